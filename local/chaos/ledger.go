package chaos

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/google/uuid"
)

// ledger is what was seen from outside. All of it is in memory.
type ledger struct {
	mu       sync.Mutex
	accepted map[uuid.UUID]*accepted // by event
	requests map[uuid.UUID][]request // by delivery
	arrived  map[uuid.UUID]time.Time // by event: when a receiver that nothing is done to got it first
	sources  int                     // webhooks that were to be sent
	refused  int                     // webhooks whose source gave up
	skipped  int                     // webhooks that weren't sent because too many were under way
	again    int                     // answers that said the webhook was there already
	answers  map[int]int             // by status; 0 is none
	// failedTwice is when a webhook was taken by neither api, one asked right after the other.
	failedTwice []time.Time
}

// accepted is a webhook that got its 200.
type accepted struct {
	endpoint     string // ID
	order        string // key of its order, "" for none
	body         [sha256.Size]byte
	sent, answer time.Time // the first request, and the 200
}

// request is one that a receiver read to its end.
type request struct {
	event   uuid.UUID
	attempt int
	body    [sha256.Size]byte
	at      time.Time
}

func newLedger() *ledger {
	return &ledger{
		accepted: map[uuid.UUID]*accepted{}, requests: map[uuid.UUID][]request{}, arrived: map[uuid.UUID]time.Time{}, answers: map[int]int{},
	}
}

// answered notes one answer to a source.
func (l *ledger) answered(status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers[status]++
}

// accept notes a 200. It returns false if another webhook was told the same event.
func (l *ledger) accept(event uuid.UUID, a *accepted, duplicate bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.accepted[event] != nil {
		return false
	}
	l.accepted[event] = a
	if duplicate {
		l.again++
	}
	return true
}

func (l *ledger) failTwice() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failedTwice = append(l.failedTwice, time.Now())
}

func (l *ledger) failedTwiceIn(from, to time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.failedTwice {
		if at.After(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// arrive notes a request. undisturbed: at a receiver that nothing is done to.
func (l *ledger) arrive(delivery uuid.UUID, r request, undisturbed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests[delivery] = append(l.requests[delivery], r)
	if _, before := l.arrived[r.event]; undisturbed && !before {
		l.arrived[r.event] = r.at
	}
}

// figures are for the line of progress.
func (l *ledger) figures() (accepted, arrived, refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted), len(l.arrived), l.refused
}

// recovery says how delivery came back after a moment: how long until a webhook that was accepted later had arrived, and how
// long until all that had been accepted earlier had. Negative: never.
func (l *ledger) recovery(from time.Time) (next, caughtUp time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = -1
	for event, a := range l.accepted {
		at, there := l.arrived[event]
		switch {
		case !there:
			if a.answer.Before(from) {
				caughtUp = -1
			}
		case a.sent.After(from):
			if took := at.Sub(from); next < 0 || took < next {
				next = took
			}
		case a.answer.Before(from) && caughtUp >= 0:
			caughtUp = max(caughtUp, at.Sub(from))
		}
	}
	return next, caughtUp
}
