package bench

import "sync"

// failures remembers which webhooks have failed once.
type failures struct {
	mu   sync.Mutex
	seen map[int64]bool
}

// first reports whether a webhook is seen for the first time.
func (f *failures) first(sequence int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = map[int64]bool{}
	}
	if f.seen[sequence] {
		return false
	}
	f.seen[sequence] = true
	return true
}
