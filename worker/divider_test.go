package worker

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// divided is a worker of which only the division matters. Its lease is a row.
type divided struct {
	*divider
	worker uuid.UUID
}

func newDivided(t *testing.T, db *pgxpool.Pool) *divided {
	t.Helper()
	w := &divided{worker: id.New()}
	w.divider = &divider{db: db, log: zap.NewNop(), permits: activities.NewPermits(400, func() (uuid.UUID, bool) { return w.worker, true })}
	require.NoError(t, postgres.AddWorker(t.Context(), db, w.worker, "test"))
	return w
}

// looks lets workers look for each other in turn.
func looks(t *testing.T, workers ...*divided) {
	t.Helper()
	for _, w := range workers {
		require.NoError(t, w.divide(t.Context(), w.worker))
	}
}

// may is how many requests a worker may have under way of a limit of 4, once all that was begun before is over.
func (w *divided) may() (n int) {
	send := activities.Send{Destination: id.New(), Limits: postgres.Limits{MaxConcurrency: 4}, Claimed: true} // Timeout 0
	for {
		if _, ok := w.permits.Take(send); !ok {
			return n
		}
		n++
	}
}

// A worker that comes may send once all others have made room for it, and what one that goes had is there for the others.
func TestWorkersDivideLimits(t *testing.T) {
	t.Parallel()
	db := postgrestest.Pool(t, postgrestest.New(t), postgres.Engine)
	first := newDivided(t, db)
	require.Zero(t, first.may(), "it hasn't looked yet")
	looks(t, first)
	require.Equal(t, 4, first.may(), "it is alone")

	second := newDivided(t, db)
	looks(t, second, second)
	require.Equal(t, []int{4, 0}, []int{first.may(), second.may()}, "the first doesn't know of it")
	looks(t, first, second)
	require.Equal(t, []int{2, 0}, []int{first.may(), second.may()}, "the first does, but hasn't said so")
	looks(t, first, second)
	require.Equal(t, []int{2, 2}, []int{first.may(), second.may()})

	third, fourth := newDivided(t, db), newDivided(t, db)
	all := []*divided{first, second, third, fourth}
	for range 3 {
		looks(t, all...)
		inAll := 0
		for _, w := range all {
			inAll += w.may()
		}
		require.LessOrEqual(t, inAll, 4)
	}
	require.Equal(t, []int{1, 1, 1, 1}, []int{first.may(), second.may(), third.may(), fourth.may()})

	require.NoError(t, postgres.RemoveWorker(t.Context(), db, first.worker))
	looks(t, second, third, fourth)
	require.Equal(t, []int{2, 1, 1}, []int{second.may(), third.may(), fourth.may()})
}

// A worker that was lost is counted for as long as its requests may be under way; and one that takes a new lease joins anew.
func TestWorkersCountOneThatWasLost(t *testing.T) {
	t.Parallel()
	url := postgrestest.New(t)
	db, owner := postgrestest.Pool(t, url, postgres.Engine), postgrestest.Pool(t, url, postgres.Owner)
	first, second := newDivided(t, db), newDivided(t, db)
	for range 3 {
		looks(t, first, second)
	}
	require.Equal(t, []int{2, 2}, []int{first.may(), second.may()})
	lapse := func(w *divided, ago time.Duration) {
		_, err := owner.Exec(context.Background(), "update workers set alive_until = now() - $2 * interval '1 ms' where id = $1", w.worker, ago.Milliseconds())
		require.NoError(t, err)
	}
	lapse(first, 10*time.Second)
	second.division.Joined = second.division.Joined.Add(-time.Hour)
	looks(t, second)
	one := postgres.Limits{MaxConcurrency: 1}
	require.False(t, second.permits.Usable(one, 30*time.Second), "the first one's request may be under way")
	require.True(t, second.permits.Usable(one, 9*time.Second))

	first.worker = id.New()
	require.NoError(t, postgres.AddWorker(t.Context(), db, first.worker, "test"))
	looks(t, first)
	require.Zero(t, first.may(), "the second doesn't count the new lease")
	looks(t, second, second, first)
	require.Equal(t, []int{2, 2}, []int{first.may(), second.may()})
}

// A worker that starts after all others were lost waits as long as their requests can take.
func TestAWorkerStartsWhenWhatWasUnderWayIsOver(t *testing.T) {
	t.Parallel()
	url := postgrestest.New(t)
	db, owner := postgrestest.Pool(t, url, postgres.Engine), postgrestest.Pool(t, url, postgres.Owner)
	newDivided(t, db)
	_, err := owner.Exec(t.Context(), "update workers set alive_until = now() - interval '10 s'")
	require.NoError(t, err)
	next := newDivided(t, db)
	looks(t, next)
	limits := postgres.Limits{MaxConcurrency: 1}
	require.False(t, next.permits.Usable(limits, 30*time.Second))
	require.True(t, next.permits.Usable(limits, 5*time.Second))
	_, err = owner.Exec(t.Context(), "update workers set alive_until = now() - interval '3 min' where id <> $1", next.worker)
	require.NoError(t, err)
	looks(t, next)
	require.False(t, next.permits.Usable(limits, 30*time.Second), "when it joined is decided once")
}
