package worker

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// leaseTest keeps a lease in a bubble, whose time passes only while everybody waits: statements on the real Postgres take
// none of it. Postgres's own clock goes on as usual.
type leaseTest struct {
	db    *pgxpool.Pool
	lease *Lease
	stop  context.CancelFunc
	ended chan struct{}
}

// inBubble runs f with a lease that is kept by Run. These tests aren't parallel: bubbles share what net keeps for the
// process, as it looks up a host.
func inBubble(t *testing.T, f func(t *testing.T, l *leaseTest)) {
	t.Helper()
	url := postgrestest.New(t)
	synctest.Test(t, func(t *testing.T) {
		db, err := postgres.Open(url, postgres.Engine, 4)
		require.NoError(t, err)
		defer db.Close()
		l := &leaseTest{db: db, lease: NewLease(db, "test", zap.NewNop()), ended: make(chan struct{})}
		require.False(t, l.lease.Alive(), "nothing is held before Run")
		l.run()
		defer l.end()
		f(t, l)
	})
}

func (l *leaseTest) run() {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go func() {
		defer close(l.ended)
		l.lease.Run(ctx)
	}()
	synctest.Wait()
}

// end stops Run and waits for it.
func (l *leaseTest) end() {
	l.stop()
	<-l.ended
}

// pass lets time pass, and what is due then be done.
func (l *leaseTest) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (l *leaseTest) holder(t *testing.T) uuid.UUID {
	t.Helper()
	holder, alive := l.lease.Holder()
	require.True(t, alive)
	require.True(t, l.lease.Alive())
	return holder
}

// leave makes a lease so long in Postgres; less than nothing is one that has lapsed.
func (l *leaseTest) leave(t *testing.T, worker uuid.UUID, left time.Duration) {
	t.Helper()
	tag, err := l.db.Exec(context.Background(), "update workers set alive_until = now() + $2 * interval '1 ms' where id = $1", worker, left.Milliseconds())
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
}

// aliveFor says whether the lease is longer than so much in Postgres.
func (l *leaseTest) aliveFor(t *testing.T, worker uuid.UUID, left time.Duration) bool {
	t.Helper()
	var longer bool
	err := l.db.QueryRow(context.Background(), "select alive_until > now() + $2 * interval '1 ms' from workers where id = $1",
		worker, left.Milliseconds()).Scan(&longer)
	require.NoError(t, err)
	return longer
}

func (l *leaseTest) workers(t *testing.T) (n int) {
	t.Helper()
	require.NoError(t, l.db.QueryRow(context.Background(), "select count(*) from workers").Scan(&n))
	return n
}

func TestALeaseIsHeldRenewedAndReleased(t *testing.T) {
	inBubble(t, func(t *testing.T, l *leaseTest) {
		holder := l.holder(t)
		require.Equal(t, 1, l.workers(t))
		var host string
		require.NoError(t, l.db.QueryRow(t.Context(), "select host from workers where id = $1", holder).Scan(&host))
		require.Equal(t, "test", host)
		for range 20 { // a minute, six times as long as one lease
			l.leave(t, holder, time.Minute) // so that only a renewal makes it shorter
			require.True(t, l.aliveFor(t, holder, postgres.LeaseFor))
			l.pass(renewEvery)
			require.False(t, l.aliveFor(t, holder, postgres.LeaseFor), "renewed for LeaseFor")
			require.Equal(t, holder, l.holder(t), "under the same ID")
		}
		l.end()
		require.False(t, l.lease.Alive())
		require.Zero(t, l.workers(t), "what was claimed under it is free at once")
	})
}

// A lease that has lapsed is never taken up again: others may have taken what was claimed under it.
func TestALeaseThatLapsedInPostgresIsTakenUnderANewID(t *testing.T) {
	inBubble(t, func(t *testing.T, l *leaseTest) {
		old := l.holder(t)
		l.leave(t, old, -time.Second)
		l.pass(renewEvery)
		holder := l.holder(t)
		require.NotEqual(t, old, holder)
		require.True(t, l.aliveFor(t, holder, 0))
		l.pass(3 * renewEvery)
		require.Equal(t, holder, l.holder(t), "the new one is renewed")
		require.False(t, l.aliveFor(t, old, 0), "the old one stays lapsed")
	})
}

func TestALeaseWhoseRowIsGoneIsTakenUnderANewID(t *testing.T) {
	inBubble(t, func(t *testing.T, l *leaseTest) {
		old := l.holder(t)
		require.NoError(t, postgres.RemoveWorker(t.Context(), l.db, old))
		l.pass(renewEvery)
		require.NotEqual(t, old, l.holder(t))
		require.Equal(t, 1, l.workers(t))
	})
}

// While Postgres doesn't answer the lease lapses by the worker's own clock, earlier than it does in Postgres, so that
// nothing is sent for deliveries that others may already carry. Afterwards it is another worker.
func TestALeaseLapsesByItselfWhilePostgresIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T, l *leaseTest) {
		old := l.holder(t)
		back := l.breakWorkers(t)
		l.pass(postgres.LeaseFor - leaseMargin - time.Millisecond)
		require.Equal(t, old, l.holder(t), "Postgres may be back before it has lapsed")
		l.pass(time.Millisecond)
		require.False(t, l.lease.Alive())
		l.pass(time.Minute)
		require.False(t, l.lease.Alive())
		back()
		l.pass(renewEvery)
		require.NotEqual(t, old, l.holder(t), "the old one still has time in Postgres, but it was given up")
	})
}

// One renewal that fails costs nothing.
func TestALeaseSurvivesAShortOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, l *leaseTest) {
		old := l.holder(t)
		back := l.breakWorkers(t)
		l.pass(renewEvery)
		require.Equal(t, old, l.holder(t))
		back()
		l.pass(10 * renewEvery)
		require.Equal(t, old, l.holder(t))
		require.Equal(t, 1, l.workers(t))
	})
}

// A worker that stops while Postgres is away stops all the same; its lease lapses by itself.
func TestALeaseIsGivenUpWithoutPostgresToo(t *testing.T) {
	inBubble(t, func(t *testing.T, l *leaseTest) {
		holder := l.holder(t)
		back := l.breakWorkers(t)
		l.end()
		require.False(t, l.lease.Alive())
		back()
		require.False(t, l.aliveFor(t, holder, postgres.LeaseFor))
	})
}

// breakWorkers lets every statement on workers fail until the returned function is called.
func (l *leaseTest) breakWorkers(t *testing.T) (back func()) {
	t.Helper()
	rename := func(from, to string) {
		owner, err := postgres.Open(l.db.Config().ConnString(), postgres.Owner, 1)
		require.NoError(t, err)
		defer owner.Close()
		_, err = owner.Exec(context.Background(), "alter table "+from+" rename to "+to)
		require.NoError(t, err)
	}
	rename("workers", "workers_away")
	return func() { rename("workers_away", "workers") }
}

// With nothing listening there was never a lease, and none is claimed to be.
func TestThereIsNoLeaseWithoutPostgres(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := postgres.Open("postgres://kapsel@127.0.0.1:1/kapsel?sslmode=disable", postgres.Engine, 1) // a port without a server
		require.NoError(t, err)
		defer db.Close()
		l := &leaseTest{db: db, lease: NewLease(db, "test", zap.NewNop()), ended: make(chan struct{})}
		l.run()
		for range 5 {
			require.False(t, l.lease.Alive())
			l.pass(renewEvery)
		}
		l.end()
		require.False(t, l.lease.Alive())
	})
}
