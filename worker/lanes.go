package worker

import (
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// batchSize is how many deliveries one batch carries at most.
	batchSize = 500
	// mostBatched is how many deliveries a worker carries in batches at a time.
	mostBatched = 4 * batchSize
	// gatherFor is how long deliveries gather for the next batch, unless the last one was full.
	gatherFor = 200 * time.Millisecond
	// backlogAfter is how long every place for single deliveries must have been taken before auto goes over to batches,
	// and calmAfter how long batches must have been smaller than smallBatch before it goes back.
	backlogAfter = 500 * time.Millisecond
	calmAfter    = 3 * time.Second
	smallBatch   = batchSize / 10
	// startsPerSecond is how many workflows of single deliveries a worker starts while there is a backlog: what fails once
	// then gets one while this lasts, and is carried in a batch again otherwise, so that failures can't flood Temporal.
	startsPerSecond = 50
)

// lanes decides who carries what. For an endpoint of lane auto it is a workflow for each delivery, until the backlog
// shows that Temporal can't keep up; then batches, until they stay small.
type lanes struct {
	batches   bool
	fullSince time.Time // since when no place for single deliveries was free; zero: one was
	calmSince time.Time // since when batches were small; zero: the last one wasn't
	budget    float64   // workflow starts that are left
	refilled  time.Time
	gathering time.Time // until when no batch is made
	allBatch  bool      // when it was last looked, whatever was due was to be carried in batches
}

// batching is 1 while auto means batches, else 0.
func (l *lanes) batching() float64 {
	if l.batches {
		return 1
	}
	return 0
}

// split tells destinations whose deliveries get a workflow each from those whose deliveries are carried in batches. In a
// backlog slow destinations of lane auto are carried one by one, as far as the budget goes: in a batch most of what is
// theirs would only be put back.
func (l *lanes) split(due []postgres.DueDestination, slow func(uuid.UUID) bool) (single, batched []postgres.DueDestination) {
	for _, destination := range due {
		switch {
		case destination.Lane == postgres.LaneWorkflow,
			destination.Lane == postgres.LaneAuto && (!l.batches || slow(destination.ID)):
			single = append(single, destination)
		default:
			batched = append(batched, destination)
		}
	}
	l.allBatch = len(single) == 0 && len(batched) > 0
	return single, batched
}

// idle reports whether a look at the queue can wait until enough has gathered for the next batch.
func (l *lanes) idle() bool { return (l.batches || l.allBatch) && !l.mayBatch() }

// affordable is how many of free places for single deliveries may be used now.
func (l *lanes) affordable(free int) int {
	if !l.batches {
		return free
	}
	now := time.Now()
	l.budget = min(l.budget+startsPerSecond*now.Sub(l.refilled).Seconds(), startsPerSecond)
	l.refilled = now
	return min(free, int(l.budget))
}

// claimedSingles is told how many single deliveries were claimed for how many free places.
func (l *lanes) claimedSingles(n, free int) {
	if l.batches {
		l.budget -= float64(n)
		return
	}
	switch {
	case n < free:
		l.fullSince = time.Time{}
	case l.fullSince.IsZero():
		l.fullSince = time.Now()
	case time.Since(l.fullSince) > backlogAfter:
		l.batches, l.budget, l.refilled, l.calmSince = true, startsPerSecond, time.Now(), time.Time{}
	}
}

// mayBatch reports whether it is time for a batch.
func (l *lanes) mayBatch() bool { return !time.Now().Before(l.gathering) }

// claimedBatch is told the size of each batch, and whether more couldn't have been found: only then are deliveries left to
// gather. Of thousands of destinations with one delivery each a batch holds no more than were looked at.
func (l *lanes) claimedBatch(n int, all bool) {
	if n > 0 && n < batchSize && all {
		l.gathering = time.Now().Add(gatherFor)
	}
	switch {
	case n >= smallBatch:
		l.calmSince = time.Time{}
	case l.calmSince.IsZero():
		l.calmSince = time.Now()
	case l.batches && time.Since(l.calmSince) > calmAfter:
		l.batches, l.fullSince = false, time.Time{}
	}
}
