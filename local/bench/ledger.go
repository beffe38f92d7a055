package bench

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// ledger is what is known of every webhook of one run, by its sequence number. Times are nanoseconds since the run's
// start, 0 for never.
type ledger struct {
	start  time.Time
	mu     sync.Mutex
	chunks atomic.Pointer[[]*chunk]
	next   atomic.Int64

	accepted  atomic.Int64 // answered 200
	refused   atomic.Int64 // answered otherwise, or not at all
	delivered atomic.Int64 // taken by its receiver, each once
	again     atomic.Int64 // taken once more
	requests  atomic.Int64 // that receivers saw, whatever they answered, but for those that hang
	stuck     atomic.Int64 // accepted for a destination that hangs
}

const chunkSize = 1 << 14

type chunk [chunkSize]entry

type entry struct {
	sent, answered, taken    atomic.Int64
	accepted, refused, stuck atomic.Bool // stuck: its destination hangs
}

func newLedger() *ledger {
	l := &ledger{start: time.Now()}
	l.chunks.Store(&[]*chunk{})
	return l
}

func (l *ledger) now() int64 { return max(int64(time.Since(l.start)), 1) }

// entry returns the entry of a webhook; sequence numbers that were never given out have none.
func (l *ledger) entry(sequence int64) *entry {
	chunks := *l.chunks.Load()
	if sequence < 0 || sequence/chunkSize >= int64(len(chunks)) {
		return nil
	}
	return &chunks[sequence/chunkSize][sequence%chunkSize]
}

// bytes is the size of all entries.
func (l *ledger) bytes() int64 { return int64(len(*l.chunks.Load())) * int64(unsafe.Sizeof(chunk{})) }

// begin gives out the next sequence number, at the moment in which its webhook is sent.
func (l *ledger) begin() int64 {
	sequence := l.next.Add(1) - 1
	if l.entry(sequence) == nil {
		l.grow(sequence)
	}
	l.entry(sequence).sent.Store(l.now())
	return sequence
}

func (l *ledger) grow(sequence int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	chunks := slices.Clone(*l.chunks.Load())
	for int64(len(chunks))*chunkSize <= sequence {
		chunks = append(chunks, new(chunk))
	}
	l.chunks.Store(&chunks)
}

// answer notes how a webhook was answered, and whether its destination hangs.
func (l *ledger) answer(sequence int64, ok, stuck bool) {
	e := l.entry(sequence)
	e.answered.Store(l.now())
	if !ok {
		e.refused.Store(true)
		l.refused.Add(1)
		return
	}
	e.accepted.Store(true)
	l.accepted.Add(1)
	if stuck {
		e.stuck.Store(true)
		l.stuck.Add(1)
	}
}

// take notes that a receiver took a webhook.
func (l *ledger) take(sequence int64) {
	e := l.entry(sequence)
	if e == nil {
		return
	}
	if e.taken.CompareAndSwap(0, l.now()) {
		l.delivered.Add(1)
	} else {
		l.again.Add(1)
	}
}

// waiting is how many webhooks were sent and not yet taken, of those that can be.
func (l *ledger) waiting() int64 {
	return l.next.Load() - l.refused.Load() - l.delivered.Load() - l.stuck.Load()
}

// each calls f for every webhook that was sent.
func (l *ledger) each(f func(*entry)) {
	for sequence := range l.next.Load() {
		f(l.entry(sequence))
	}
}

// Latency is the distribution of a time, in milliseconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// latencies returns the times from sending to the answer of what was accepted, and from sending to being taken.
func (l *ledger) latencies() (ingest, endToEnd Latency) {
	var answers, ends []int64
	l.each(func(e *entry) {
		if sent := e.sent.Load(); !e.refused.Load() && e.answered.Load() > 0 {
			answers = append(answers, e.answered.Load()-sent)
			if taken := e.taken.Load(); taken > 0 {
				ends = append(ends, taken-sent)
			}
		}
	})
	return distribution(answers), distribution(ends)
}

func distribution(nanoseconds []int64) Latency {
	if len(nanoseconds) == 0 {
		return Latency{}
	}
	slices.Sort(nanoseconds)
	at := func(part float64) float64 {
		return float64(nanoseconds[min(int(part*float64(len(nanoseconds))), len(nanoseconds)-1)]) / 1e6
	}
	return Latency{P50: at(0.5), P95: at(0.95), P99: at(0.99), Max: at(1)}
}
