package api

import (
	"io"
	"sync/atomic"
	"time"
)

// budget bounds the memory of all bodies together. What counts is bytes that have arrived, not those that are announced:
// to use it up, an attacker has to send it.
type budget struct {
	max  int64
	used atomic.Int64
}

// holding is one request's part of a budget.
type holding struct {
	budget *budget
	bytes  int64
}

func (b *budget) hold() *holding { return &holding{budget: b} }

func (h *holding) release() { h.budget.used.Add(-h.bytes) }

// reader counts what is read from r.
func (h *holding) reader(r io.Reader) io.Reader { return &heldReader{h, r} }

type heldReader struct {
	*holding
	r io.Reader
}

func (h *heldReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.bytes += int64(n)
	if h.budget.used.Add(int64(n)) > h.budget.max {
		return n, unavailable("Too many webhooks are being received. Send the request again later.", time.Second, nil)
	}
	return n, err
}
