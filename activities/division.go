package activities

import (
	"time"

	"github.com/google/uuid"
)

// Division is how the workers divide what destinations allow. Each has its part by the rank of its ID among all that may be
// sending: of a limit L and n workers the worker of rank r has as many as there are numbers below L that leave r when divided
// by n, which together are L. A worker's part never grows by counting one more worker. So the parts of workers that all count
// each other never add up to more than L, even while one of them knows of more workers than another.
//
// What was begun under one division may still be under way when the next one holds. So a part only grows when that is over:
// a worker begins to send a request's longest time after the others have counted it, and one whose lease has lapsed is counted
// for as long. A worker that gave its lease up has ended its requests before.
type Division struct {
	// Worker is the lease for which this holds.
	Worker uuid.UUID
	// Joined: every other worker that is alive counts this one, since then. Zero: not yet.
	Joined time.Time
	// Workers are all that may be sending, this one included, in the order of their IDs.
	Workers []Sharer
}

// Sharer is a worker that may be sending.
type Sharer struct {
	ID uuid.UUID
	// Lapsed is when its lease lapsed; zero: it is alive.
	Lapsed time.Time
}

// share is this worker's part of a limit, if what was begun under another division can be under way for so long.
func (d *Division) share(limit int, underWay time.Duration, now time.Time) int {
	if d.Joined.IsZero() || now.Sub(d.Joined) < underWay {
		return 0
	}
	rank, workers := -1, 0
	for _, w := range d.Workers {
		if !w.Lapsed.IsZero() && now.Sub(w.Lapsed) >= underWay {
			continue
		}
		if w.ID == d.Worker {
			rank = workers
		}
		workers++
	}
	if rank < 0 {
		return 0
	}
	return (limit + workers - 1 - rank) / workers
}
