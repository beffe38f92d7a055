package worker

import (
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// While something fails it is tried again after firstPause, and then ever later up to longestPause: soon enough for what waits, and
	// seldom enough for a Postgres that is starting.
	firstPause   = 100 * time.Millisecond
	longestPause = 2 * time.Second
	// reminderEvery is how often a lasting outage is told again, and tellAgain how soon a new one after the last line.
	reminderEvery = time.Minute
	tellAgain     = 5 * time.Second
)

// outage is about work that is done again and again and needs something that may be away. It makes one line of its failures when
// they begin, one a minute while they last, and one when they are over; and it says how long to leave the work alone. Many may
// share one. The zero value is for work that hasn't failed.
type outage struct {
	mu       sync.Mutex
	since    time.Time // zero: it works
	told     time.Time
	failures int
	next     time.Time // not before
}

// note takes down how a round of the work went.
func (o *outage) note(log *zap.Logger, what string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if err == nil {
		if !o.since.IsZero() && !o.told.Before(o.since) {
			log.Info("works now: "+what, zap.Duration("after", now.Sub(o.since)), zap.Int("failures", o.failures))
		}
		o.since, o.failures, o.next = time.Time{}, 0, time.Time{}
		return
	}
	if o.since.IsZero() {
		o.since = now
	}
	o.failures++
	o.next = now.Add(jitter(min(firstPause<<min(o.failures-1, 10), longestPause)))
	begins := o.told.Before(o.since) && now.Sub(o.told) >= tellAgain
	if begins || now.Sub(o.told) >= reminderEvery {
		o.told = now
		log.Warn("not now: "+what, zap.Error(err), zap.Duration("for", now.Sub(o.since)), zap.Int("failures", o.failures))
	}
}

// due reports whether the work may be tried.
func (o *outage) due() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !time.Now().Before(o.next)
}

// jitter is between half of d and d, so that those who lost the same thing don't come back together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
