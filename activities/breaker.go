package activities

import (
	"math/rand/v2"
	"time"
)

const (
	// breakerFailures is how many failures in a row open a breaker.
	breakerFailures = 3
	// The waits before a probe: the first, doubled after each probe that failed, up to the last; each up to a quarter shorter or
	// longer, so that workers don't probe at one moment.
	breakerFirstWait = time.Second
	breakerLastWait  = time.Minute
)

// breakerState is closed while calls are made, open while none is, and half open while a probe is under way.
type breakerState string

const (
	breakerClosed   breakerState = "closed"
	breakerOpen     breakerState = "open"
	breakerHalfOpen breakerState = "half_open"
)

// breaker keeps what fails from being called again and again. It decides only; the caller makes one call at a time.
type breaker struct {
	failures int       // in a row
	probeAt  time.Time // zero: closed
	probing  bool
}

// allows reports whether a call may be made now. If it is a probe, no other is allowed before it has ended.
func (b *breaker) allows(now time.Time) bool {
	switch {
	case b.probeAt.IsZero():
		return true
	case b.probing || now.Before(b.probeAt):
		return false
	}
	b.probing = true
	return true
}

func (b *breaker) succeeded() { *b = breaker{} }

func (b *breaker) failed(now time.Time) {
	b.failures++
	b.probing = false
	if over := b.failures - breakerFailures; over >= 0 {
		wait := min(breakerFirstWait<<min(over, 10), breakerLastWait)
		b.probeAt = now.Add(time.Duration(float64(wait) * (0.75 + 0.5*rand.Float64())))
	}
}

func (b *breaker) state() breakerState {
	switch {
	case b.probeAt.IsZero():
		return breakerClosed
	case b.probing:
		return breakerHalfOpen
	}
	return breakerOpen
}
