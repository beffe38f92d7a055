package activities

import (
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// latencySamples is how many of a destination's last requests count.
const latencySamples = 32

// latencyDestinations bounds the destinations that are remembered; beyond it all is forgotten and learnt again.
const latencyDestinations = 20_000

// Latencies remembers how long the last requests to each destination took, as seen by this process.
type Latencies struct {
	mu    sync.Mutex
	rings map[uuid.UUID]*latencyRing
}

type latencyRing struct {
	samples [latencySamples]time.Duration
	count   int
}

// NewLatencies returns an empty memory.
func NewLatencies() *Latencies { return &Latencies{rings: map[uuid.UUID]*latencyRing{}} }

// Add remembers one request.
func (l *Latencies) Add(destination uuid.UUID, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ring := l.rings[destination]
	if ring == nil {
		if len(l.rings) >= latencyDestinations {
			clear(l.rings)
		}
		ring = &latencyRing{}
		l.rings[destination] = ring
	}
	ring.samples[ring.count%latencySamples] = took
	ring.count++
}

// P95 is the 95th percentile of the destination's last requests; 0 if there were none.
func (l *Latencies) P95(destination uuid.UUID) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	ring := l.rings[destination]
	if ring == nil {
		return 0
	}
	sorted := slices.Sorted(slices.Values(ring.samples[:min(ring.count, latencySamples)]))
	return sorted[(len(sorted)*95)/100]
}
