package api

import (
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
)

// budget bounds the memory of all bodies together, and of those for one endpoint to a share: its ID is all that a sender
// needs before the signature is checked, and mustn't be enough to keep everybody else's webhooks out. What counts is bytes
// that have arrived, not those that are announced: to use it up, an attacker has to send it.
type budget struct {
	max, share int64

	mu        sync.Mutex
	used      int64
	endpoints map[uuid.UUID]int64 // only those that hold something
}

// newBudget gives each endpoint a quarter, but at least enough for one body.
func newBudget(size int64) *budget {
	return &budget{max: size, share: max(size/4, MaxBody), endpoints: map[uuid.UUID]int64{}}
}

// add takes n bytes for an endpoint, or gives them back, and reports whether all is within the bounds.
func (b *budget) add(endpoint uuid.UUID, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
	b.endpoints[endpoint] += n
	held := b.endpoints[endpoint]
	if held == 0 {
		delete(b.endpoints, endpoint)
	}
	return b.used <= b.max && held <= b.share
}

// held is what all bodies use together.
func (b *budget) held() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return float64(b.used)
}

// holding is one request's part of a budget.
type holding struct {
	budget   *budget
	endpoint uuid.UUID
	bytes    int64
}

func (b *budget) hold(endpoint uuid.UUID) *holding { return &holding{budget: b, endpoint: endpoint} }

func (h *holding) release() { h.budget.add(h.endpoint, -h.bytes) }

// reader counts what is read from r.
func (h *holding) reader(r io.Reader) io.Reader { return &heldReader{h, r} }

type heldReader struct {
	*holding
	r io.Reader
}

func (h *heldReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.bytes += int64(n)
	if !h.budget.add(h.endpoint, int64(n)) {
		return n, unavailable("Too many webhooks are being received. Send the request again later.", time.Second, nil)
	}
	return n, err
}
