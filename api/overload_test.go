package api_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// setupWithUser also connects as the superuser.
func setupWithUser(t *testing.T) (*testBundle, *pgx.Conn) {
	t.Helper()
	database := postgrestest.New(t)
	b := prepare(t, database)
	b.serve(t)
	user, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(func() { _ = user.Close(context.Background()) })
	return b, user
}

// resetOthers ends all other connections to the database.
func resetOthers(t *testing.T, user *pgx.Conn) {
	t.Helper()
	_, err := user.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
		where datname = current_database() and pid <> pg_backend_pid()`)
	require.NoError(t, err)
}

// A server that a failover made a standby, or that is read-only for another reason, takes nothing; connections to it are given
// up, so that the primary is found as soon as there is one.
func TestPostgresTurnsReadOnly(t *testing.T) {
	t.Parallel()
	b, user := setupWithUser(t)
	endpoint := b.endpoint(t)
	acceptedID(t, b.ingest(t, endpoint, "before"))
	b.awaitReady(t, 200)
	database := pgx.Identifier{user.Config().Database}.Sanitize()
	_, err := user.Exec(t.Context(), "alter database "+database+" set default_transaction_read_only = on")
	require.NoError(t, err)
	resetOthers(t, user) // as a failover does
	b.awaitReady(t, 503)
	require.Eventually(t, func() bool { // it was away for a moment
		return strings.Contains((*problem(t, b.do(t, "GET", "/health/ready", nil), 503, "unavailable").Checks)["postgres"], "read-only")
	}, 20*time.Second, 50*time.Millisecond)
	requireUnavailable(t, b.ingest(t, endpoint, "during"))

	_, err = user.Exec(t.Context(), "alter database "+database+" reset default_transaction_read_only")
	require.NoError(t, err)
	b.awaitReady(t, 200)
	acceptedID(t, b.ingest(t, endpoint, "after"))
	require.Equal(t, 2, b.count(t, "events"))
}

// Connections that are reset under requests cost these their answer and nobody else anything.
func TestConnectionsAreReset(t *testing.T) {
	t.Parallel()
	b, user := setupWithUser(t)
	endpoint := b.endpoint(t)
	for range 5 {
		b.ingest(t, endpoint, "x")
		resetOthers(t, user)
		require.Eventually(t, func() bool { return b.ingest(t, endpoint, "again").status == 200 }, 20*time.Second, 10*time.Millisecond)
	}
}

// While commits hang, requests don't pile up: an endpoint has half of the places, and all together have all of them.
func TestRequestsUnderWayAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.MaxRequests, c.AcceptTimeout = 8, time.Minute })
	greedy, other, third := b.endpoint(t), b.endpoint(t), b.endpoint(t)
	for _, endpoint := range []string{greedy, other, third} {
		acceptedID(t, b.ingest(t, endpoint, "known"))
	}
	tx, err := b.owner.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), "lock table events in access exclusive mode")
	require.NoError(t, err)

	answers := make(chan answer, 100)
	send := func(endpoint string) {
		go func() {
			a, err := b.try(context.Background(), "POST", "/ingest/"+endpoint, strings.NewReader("{}"))
			if err == nil {
				answers <- a
			}
		}()
	}
	refused := func(status int, kind string) {
		a := <-answers
		problem(t, a, status, kind)
		require.Equal(t, "1", a.header.Get("Retry-After"))
	}
	for range 5 {
		send(greedy)
	}
	refused(429, "too-many-requests")
	for range 4 {
		send(other)
	}
	select { // all places are taken, and no answer is due
	case a := <-answers:
		t.Fatalf("%d %s", a.status, a.body)
	case <-time.After(300 * time.Millisecond):
	}
	send(third)
	refused(503, "unavailable")
	require.NoError(t, tx.Rollback(t.Context()))
	for range 8 {
		acceptedID(t, <-answers)
	}
	acceptedID(t, b.ingest(t, third, "there is room again"))
}

// A tenant's rate is its own.
func TestTenantRate(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.TenantRate = 5 })
	flooded, spared := b.endpoint(t), b.endpoint(t)
	_, b.key = b.addTenant(t, "Another Bank")
	other := b.endpoint(t)
	statuses := map[int]int{}
	start := time.Now()
	for _, a := range b.flood(t, 60, func(int) string { return flooded }) {
		if statuses[a.status]++; a.status != 200 {
			problem(t, a, 429, "too-many-requests")
			require.Equal(t, "1", a.header.Get("Retry-After"))
		}
	}
	most := 5 + int(5*time.Since(start).Seconds()) + 1
	require.GreaterOrEqual(t, statuses[200], 5)
	require.LessOrEqual(t, statuses[200], most)
	require.Equal(t, statuses[200], b.count(t, "events"), "what is refused isn't kept")
	acceptedID(t, b.ingest(t, other, "of another tenant"))
	require.Eventually(t, func() bool { return b.ingest(t, spared, "later").status == 200 }, 20*time.Second, 50*time.Millisecond)
}

// A server that is to stop says so first, and goes on for a while; connections that are kept alive go elsewhere meanwhile.
func TestStoppingIsSaidFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	config := b.config
	config.StopDelay = 3 * time.Second
	server, err := api.New(config)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b.url = "http://" + listener.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	b.awaitReady(t, 200)
	require.Equal(t, 200, b.do(t, "GET", "/health/startup", nil).status)
	acceptedID(t, b.ingest(t, endpoint, "before"))

	stop()
	b.awaitReady(t, 503)
	p := problem(t, b.do(t, "GET", "/health/ready", nil), 503, "unavailable")
	require.Contains(t, (*p.Checks)["traffic"], "stopping")
	during, err := http.Post(b.url+"/ingest/"+endpoint, "text/plain", strings.NewReader("during"))
	require.NoError(t, err)
	require.NoError(t, during.Body.Close())
	require.Equal(t, 200, during.StatusCode)
	require.True(t, during.Close, "Connection: close")
	require.Equal(t, 200, b.do(t, "GET", "/health/live", nil).status)
	require.NoError(t, <-served)
	_, err = b.try(t.Context(), "GET", "/health/live", nil)
	require.Error(t, err, "nobody listens any more")
}

// While others hold all connections of the pool, a webhook is refused in time, and accepted when there is one again.
func TestThePoolIsUsedUp(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.AcceptTimeout = 300 * time.Millisecond })
	known, unknown := b.endpoint(t), b.endpoint(t)
	b.awaitReady(t, 200) // its first look at the pools is over
	acceptedID(t, b.ingest(t, known, "before"))
	var held []*pgxpool.Conn
	for range b.engine.Config().MaxConns {
		conn, err := b.engine.Acquire(t.Context())
		require.NoError(t, err)
		held = append(held, conn)
	}
	requireUnavailable(t, b.ingest(t, known, "during"))
	requireUnavailable(t, b.ingest(t, unknown, "during"))
	b.awaitReady(t, 200) // Postgres is there: others needn't be sent what this one can take in a moment
	for _, conn := range held {
		conn.Release()
	}
	acceptedID(t, b.ingest(t, known, "after"))
	acceptedID(t, b.ingest(t, unknown, "after"))
	// What was refused for the time that it took may still be committed, as one of which the caller's connection broke.
	require.Contains(t, []int{3, 4}, b.count(t, "events"))
}
