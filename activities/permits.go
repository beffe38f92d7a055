package activities

import (
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// Quick destinations answer within it.
	Quick = 500 * time.Millisecond
	// stalledFrom is how many requests under way for longer than Quick make a destination one that stalls.
	stalledFrom = 4
	// rateWindow is the time over which a rate is counted: in any second there are at most so many sends.
	rateWindow = time.Second
	// expectedFor is how long a claimed delivery counts against the limits before its send begins. What a batch doesn't send
	// has left it by then, and what is sent by another worker holds a permit there.
	expectedFor = BatchBudget + time.Second
	// permitAgain is the pause after which a delivery of a batch asks for a permit again.
	permitAgain = 20 * time.Millisecond
	// noPermitDelay is how long a delivery waits in the queue that got no permit. Whoever claims it has one.
	noPermitDelay = 500 * time.Millisecond
)

// Permits are this worker's rights to send: its part of what each destination allows. Every send takes one, for the time of
// its request; without one nothing is sent. What is remembered of a destination is forgotten when nothing is under way.
type Permits struct {
	// holder is the ID under which this worker's lease is held, and whether it is.
	holder func() (uuid.UUID, bool)
	// slots is how many attempts this worker makes at a time.
	slots int

	mu           sync.Mutex
	division     Division
	destinations map[uuid.UUID]*sends
}

// sends is what this worker sends to one destination.
type sends struct {
	underWay map[*Permit]struct{}
	expected map[uuid.UUID]time.Time // deliveries that were claimed and aren't sent yet, and when
	recent   []time.Time             // when the sends of the last rateWindow began, if there is a limit
}

// Permit is the right to one request, until it is given back.
type Permit struct {
	permits     *Permits
	destination uuid.UUID
	began       time.Time
}

// Send asks for a permit.
type Send struct {
	Destination uuid.UUID
	Delivery    uuid.UUID
	Limits      postgres.Limits
	Timeout     time.Duration
	// Claimed: the dispatcher has found it a place. Other sends also have to leave room for those of other destinations.
	Claimed bool
}

// NewPermits returns permits that allow nothing to destinations with limits until Divide is called. slots is how many attempts
// the worker makes at a time.
func NewPermits(slots int, holder func() (uuid.UUID, bool)) *Permits {
	return &Permits{holder: holder, slots: slots, destinations: map[uuid.UUID]*sends{}}
}

// Divide says how limits are divided from now on, and forgets destinations to which nothing is sent. Call it every second.
func (p *Permits) Divide(division Division) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.division = division
	now := time.Now()
	for destination, s := range p.destinations {
		s.forget(now)
		if len(s.underWay) == 0 && len(s.expected) == 0 && len(s.recent) == 0 {
			delete(p.destinations, destination)
		}
	}
}

// Take takes a permit, if both the concurrency and the rate allow it, without waiting. Return it.
func (p *Permits) Take(send Send) (*Permit, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := p.of(send.Destination)
	delete(s.expected, send.Delivery)
	s.forget(now)
	concurrency, rate := p.shares(send.Limits, send.Timeout, now)
	switch {
	case send.Limits.MaxConcurrency > 0 && len(s.underWay) >= concurrency,
		send.Limits.RatePerSecond > 0 && len(s.recent) >= rate,
		!send.Claimed && p.crowdsOut(s, now):
		return nil, false
	}
	if send.Limits.RatePerSecond > 0 {
		s.recent = append(s.recent, now)
	}
	permit := &Permit{permits: p, destination: send.Destination, began: now}
	s.underWay[permit] = struct{}{}
	return permit, true
}

// Return gives a permit back when its request is over. Only the first time counts.
func (permit *Permit) Return() {
	p := permit.permits
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.destinations[permit.destination]; s != nil {
		delete(s.underWay, permit)
	}
}

// Usable reports whether this worker may ever send to a destination with such limits, as they are divided now.
func (p *Permits) Usable(limits postgres.Limits, timeout time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	concurrency, rate := p.shares(limits, timeout, time.Now())
	return (limits.MaxConcurrency == 0 || concurrency > 0) && (limits.RatePerSecond == 0 || rate > 0)
}

// Expect reserves nothing, but lets Free know of a claimed delivery, until it is sent, forgotten, or long gone.
func (p *Permits) Expect(destination, delivery uuid.UUID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of(destination).expected[delivery] = time.Now()
}

// Forget is told that a claimed delivery isn't sent any more.
func (p *Permits) Forget(destination, delivery uuid.UUID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.destinations[destination]; s != nil {
		delete(s.expected, delivery)
	}
}

// Free is how many of most deliveries to a destination may be claimed now, if one permit serves so many turns, one after
// the other. If the rate is what binds, again is when it allows more.
func (p *Permits) Free(destination uuid.UUID, limits postgres.Limits, timeout time.Duration, turns, most int) (free int, again time.Time) {
	if limits.MaxConcurrency == 0 && limits.RatePerSecond == 0 {
		return most, time.Time{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := p.destinations[destination]
	if s == nil {
		s = &sends{}
	}
	s.forget(now)
	concurrency, rate := p.shares(limits, timeout, now)
	free = most
	if limits.MaxConcurrency > 0 {
		free = min(free, (concurrency-len(s.underWay))*turns-len(s.expected))
	}
	if limits.RatePerSecond > 0 && rate-len(s.recent)-len(s.expected) < free {
		free = rate - len(s.recent) - len(s.expected)
		if rate > 0 && len(s.recent) > 0 {
			again = s.recent[0].Add(rateWindow)
		}
	}
	return max(free, 0), again
}

// Stalls reports whether several requests of this worker to a destination are under way for longer than Quick.
func (p *Permits) Stalls(destination uuid.UUID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.destinations[destination]
	return s != nil && s.stalled(time.Now()) >= stalledFrom
}

// Remembered is how many destinations something is known of.
func (p *Permits) Remembered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.destinations)
}

func (p *Permits) of(destination uuid.UUID) *sends {
	s := p.destinations[destination]
	if s == nil {
		s = &sends{underWay: map[*Permit]struct{}{}, expected: map[uuid.UUID]time.Time{}}
		p.destinations[destination] = s
	}
	return s
}

// shares are this worker's parts of limits; 0 unless the division is that of the lease it holds.
func (p *Permits) shares(limits postgres.Limits, timeout time.Duration, now time.Time) (concurrency, rate int) {
	if worker, alive := p.holder(); !alive || worker != p.division.Worker {
		return 0, 0
	}
	return p.division.share(limits.MaxConcurrency, timeout, now), p.division.share(limits.RatePerSecond, rateWindow, now)
}

// crowdsOut reports whether a destination that stalls has as many of this worker's slots as it leaves free of the half that
// is for those that stall. However many do, so the next one finds some, and the others have the other half.
func (p *Permits) crowdsOut(own *sends, now time.Time) bool {
	if own.stalled(now) < stalledFrom {
		return false
	}
	all := 0
	for _, s := range p.destinations {
		if s.stalled(now) >= stalledFrom {
			all += len(s.underWay)
		}
	}
	return len(own.underWay) >= p.slots/2-all
}

// forget drops what no longer counts.
func (s *sends) forget(now time.Time) {
	old := 0
	for old < len(s.recent) && now.Sub(s.recent[old]) >= rateWindow {
		old++
	}
	s.recent = s.recent[old:]
	for delivery, since := range s.expected {
		if now.Sub(since) >= expectedFor {
			delete(s.expected, delivery)
		}
	}
}

// stalled is how many requests are under way for longer than Quick.
func (s *sends) stalled(now time.Time) (n int) {
	for permit := range s.underWay {
		if now.Sub(permit.began) >= Quick {
			n++
		}
	}
	return n
}
