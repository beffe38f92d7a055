package worker

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// divideEvery is how often workers look for each other.
	divideEvery = time.Second
	// divideFirst is how soon a worker looks again that couldn't yet.
	divideFirst = 100 * time.Millisecond
)

// divider keeps this worker's part of the destinations' limits (see activities.Division).
type divider struct {
	db      *pgxpool.Pool
	lease   *Lease
	permits *activities.Permits
	log     *zap.Logger

	division activities.Division // that holds now
	failing  outage
}

// run divides until ctx ends. While Postgres is away the last division holds: others wait for this worker to count them, and
// count it until its lease has lapsed.
func (d *divider) run(ctx context.Context) {
	for ctx.Err() == nil {
		worker, alive := d.lease.Holder()
		if alive && d.failing.due() {
			if err := d.divide(ctx, worker); ctx.Err() == nil {
				d.failing.note(d.log, "divide limits", err)
			}
		}
		wait := divideEvery
		if d.division.Worker != worker || !alive {
			wait = divideFirst
		}
		pause(ctx, wait)
	}
}

// divide tells whom the division that holds counts, and makes the next one. The order matters: a worker is told to others as
// counted only once it is.
func (d *divider) divide(ctx context.Context, worker uuid.UUID) error {
	last := d.division
	if last.Worker != worker {
		last = activities.Division{Worker: worker}
	}
	var counted []uuid.UUID
	for _, w := range last.Workers {
		counted = append(counted, w.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, renewEvery)
	defer cancel()
	asked := time.Now()
	peers, err := postgres.Peers(ctx, d.db, worker, counted)
	if err != nil {
		return err
	}
	d.division = nextDivision(last, peers, asked, time.Now())
	d.permits.Divide(d.division)
	return nil
}

// nextDivision counts peers, as they were between asked and now.
func nextDivision(last activities.Division, peers []postgres.Peer, asked, now time.Time) activities.Division {
	next := activities.Division{Worker: last.Worker, Joined: last.Joined}
	joined, begun := true, asked.Add(-time.Hour) // what others began under another division is over by then, if there is nobody
	for _, peer := range peers {
		sharer := activities.Sharer{ID: peer.ID}
		switch {
		case peer.ID == last.Worker:
		case peer.Alive:
			begun = now
			joined = joined && peer.CountsMe
		default:
			// Once it is known to have lapsed, the moment stays as it was found first: clocks are compared only once.
			if sharer.Lapsed = lapsedIn(last, peer.ID); sharer.Lapsed.IsZero() {
				sharer.Lapsed = now.Add(-peer.Lapsed)
			}
			if sharer.Lapsed.After(begun) {
				begun = sharer.Lapsed
			}
		}
		next.Workers = append(next.Workers, sharer)
	}
	slices.SortFunc(next.Workers, func(a, b activities.Sharer) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	if next.Joined.IsZero() && joined {
		next.Joined = begun
	}
	return next
}

// lapsedIn is when a worker's lease lapsed by a division; zero: it wasn't known to have.
func lapsedIn(d activities.Division, worker uuid.UUID) time.Time {
	for _, w := range d.Workers {
		if w.ID == worker {
			return w.Lapsed
		}
	}
	return time.Time{}
}
