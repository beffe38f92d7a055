package activities

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/postgres"
)

// gatherFor is how long loads, and records, gather while many deliveries are under way: at a hundred a second and more a
// few share each round trip, which costs less than one for each, and nobody notices the wait behind a backlog.
const gatherFor = 10 * time.Millisecond

// mostLoads is how many attempts are loaded at once at most: their bodies are in memory together.
const mostLoads = 64

// Loader reads what attempts need: those that begin at the same time share a round trip.
type Loader struct {
	group *postgres.Group[postgres.Start, postgres.Loaded]
}

// NewLoader returns a loader; Close it. Busy reports whether many deliveries are under way; nil: never.
func NewLoader(db *pgxpool.Pool, busy func() bool) *Loader {
	return &Loader{group: postgres.NewGroup(postgres.GroupConfig[postgres.Start, postgres.Loaded]{
		Commit: func(ctx context.Context, starts []postgres.Start) ([]postgres.Loaded, error) {
			return postgres.Load(ctx, db, starts)
		},
		Committers: 1,
		Size:       func(postgres.Start) int { return 1 },
		MaxRows:    mostLoads,
		Gather:     gatherWhile(busy),
	})}
}

// Close ends the loader.
func (l *Loader) Close() { l.group.Close() }

// Load reads what an attempt needs. postgres.ErrMoved and postgres.ErrHeld say that nothing may be sent.
func (l *Loader) Load(ctx context.Context, start postgres.Start) (*postgres.Outgoing, error) {
	loaded, err := l.group.Do(ctx, start)
	if err != nil {
		return nil, err
	}
	return &loaded.Outgoing, loaded.Err
}

func gatherWhile(busy func() bool) func() time.Duration {
	if busy == nil {
		return nil
	}
	return func() time.Duration {
		if busy() {
			return gatherFor
		}
		return 0
	}
}
