package activities

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// probeMargin is how long beyond its timeout a probe's outcome may take to be recorded before another one may try.
	probeMargin = 10 * time.Second
	// probeLook is how soon it is worth another look whether a probe is over.
	probeLook = time.Second
	// parkSpread is how far apart deliveries become due that wait for one circuit.
	parkSpread = 2 * time.Second
	// openCircuits bounds the circuits that are remembered; beyond it all is forgotten, and Postgres says it again.
	openCircuits = 20_000
)

// circuits remembers which circuits this process has lately seen open, and when they may be probed. Postgres knows better;
// this spares batches from asking it for each delivery, and lets them notice at once that one of theirs has opened.
type circuits struct {
	mu      sync.Mutex
	probeAt map[uuid.UUID]time.Time
}

func newCircuits() *circuits { return &circuits{probeAt: map[uuid.UUID]time.Time{}} }

// learn notes how long it is until a circuit may be probed; 0: it is closed.
func (c *circuits) learn(destination uuid.UUID, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wait == 0 {
		delete(c.probeAt, destination)
		return
	}
	if len(c.probeAt) >= openCircuits {
		clear(c.probeAt)
	}
	c.probeAt[destination] = time.Now().Add(wait)
}

// open reports whether a circuit isn't closed, and how long it is until it may be probed.
func (c *circuits) open(destination uuid.UUID) (wait time.Duration, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, open := c.probeAt[destination]
	return max(time.Until(at), 0), open
}

// figures are those of destinations that have none of their own.
func (c *circuits) figures() postgres.Circuits {
	s := delivery.DefaultCircuit()
	return postgres.Circuits{
		FailuresInRow: s.FailuresInRow, FailuresOfLast10: s.FailuresOfLast10, Successes: s.Successes,
		Open: time.Duration(s.OpenMS) * time.Millisecond, Moved: c.learn,
	}
}

// pass is the way by a circuit that isn't closed: the token of a probe that was won, or uuid.Nil and the wait until one may
// be; without either it has closed meanwhile and anything may be sent. wait is the wait as far as it is known.
func (a *Activities) pass(ctx context.Context, to *target, wait time.Duration) (token uuid.UUID, again time.Duration, err error) {
	if wait > 0 {
		return uuid.Nil, parkFor(wait), nil
	}
	probe, err := postgres.WinProbe(ctx, a.DB, to.ID, uuid.New(), to.Timeout+probeMargin)
	switch {
	case err != nil:
		return uuid.Nil, 0, err
	case probe.Token != uuid.Nil:
		a.Recorder.circuits.learn(to.ID, probeLook)
		return probe.Token, 0, nil
	}
	a.Recorder.circuits.learn(to.ID, probe.Wait)
	if probe.Wait == 0 {
		return uuid.Nil, 0, nil
	}
	return uuid.Nil, parkFor(probe.Wait), nil
}

// passLoaded is pass for a destination that was read just now.
func (a *Activities) passLoaded(ctx context.Context, to *target) (token uuid.UUID, wait time.Duration, err error) {
	if !to.CircuitOpen {
		return uuid.Nil, 0, nil
	}
	return a.pass(ctx, to, to.CircuitWait)
}

// passBatched is pass for a delivery of a batch, whose destinations were read at its start: what has opened since is known
// from what was recorded here.
func (a *Activities) passBatched(ctx context.Context, to *target) (token uuid.UUID, wait time.Duration, err error) {
	wait, open := a.Recorder.circuits.open(to.ID)
	if !open {
		return uuid.Nil, 0, nil
	}
	return a.pass(ctx, to, wait)
}

// learn notes what a destination's row says about its circuit.
func (b *batch) learn(d *postgres.Destination) {
	wait := time.Duration(0)
	if d.CircuitOpen {
		wait = max(d.CircuitWait, time.Nanosecond)
	}
	b.Recorder.circuits.learn(d.ID, wait)
}

// parkFor is how long a delivery waits in the queue for a circuit: until that may be probed, and a little more, so that not
// all become due at once.
func parkFor(wait time.Duration) time.Duration { return wait + rand.N(parkSpread) }

// verdict is what a recording says about the receiver.
func (o *Outcome) verdict() postgres.Verdict {
	judged := delivery.Judge(o.ResponseStatus, delivery.ErrorClass(o.Error))
	probe, _ := uuid.Parse(o.Probe) // what isn't one is none
	return postgres.Verdict{Counts: judged != delivery.NoVerdict, Failed: judged == delivery.ReceiverFails, Probe: probe,
		Status: o.ResponseStatus, Error: o.Error}
}
