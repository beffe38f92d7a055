package api

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// What a process remembers of an endpoint says when each secret ends; none outlives that by the time it is remembered.
func TestRememberedSecretsExpire(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_000)
	e := &endpoint{secrets: []sourceSecret{{value: []byte("old"), expires: now}, {value: []byte("new")}}}
	require.Equal(t, [][]byte{[]byte("old"), []byte("new")}, e.validSecrets(now.Add(-time.Millisecond)))
	require.Equal(t, [][]byte{[]byte("new")}, e.validSecrets(now))
}

// Endpoints that are missed at the same time share round trips; each caller gets its own, and one that can't be read is
// nobody else's trouble.
func TestEndpointsAreReadTogether(t *testing.T) {
	t.Parallel()
	b := telling(t)
	const tenants = 20
	var made []tellTenant
	for range tenants {
		made = append(made, b.addTenant(t, "Example Bank", true))
	}
	broken := b.addTenant(t, "Broken Bank", true)
	b.exec(t, `update endpoints set verification = '[]' where id = $1`, broken.endpoint)
	deleted := b.addTenant(t, "Former Bank", true)
	b.exec(t, `update endpoints set deleted_at = now() where id = $1`, deleted.endpoint)

	config := b.engine.Config()
	reads := &countReads{}
	config.ConnConfig.Tracer = reads
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	cache := newEndpointCache(pool, postgres.NewWatch(nil, pool))
	t.Cleanup(cache.close)

	locked, err := b.owner.Begin(t.Context()) // so that reads take long
	require.NoError(t, err)
	t.Cleanup(func() { _ = locked.Rollback(context.Background()) })
	_, err = locked.Exec(t.Context(), "lock table endpoints")
	require.NoError(t, err)
	var callers sync.WaitGroup
	var asking atomic.Int64
	get := func(endpoint uuid.UUID, found **endpoint, failed *error) {
		callers.Go(func() {
			asking.Add(1)
			*found, *failed = cache.get(t.Context(), endpoint)
		})
	}
	found, failed := make([]*endpoint, tenants), make([]error, tenants)
	for i := range 2 { // as many reads as there may be at once
		get(made[i].endpoint, &found[i], &failed[i])
		require.Eventually(t, func() bool {
			return b.count(t, "select count(*) from pg_locks where not granted and relation = 'endpoints'::regclass") == i+1
		}, time.Minute, time.Millisecond)
	}
	for i := 2; i < tenants; i++ {
		get(made[i].endpoint, &found[i], &failed[i])
	}
	var none, gone, unread *endpoint
	var noneErr, goneErr, brokenErr error
	get(id.New(), &none, &noneErr)
	get(deleted.endpoint, &gone, &goneErr)
	get(broken.endpoint, &unread, &brokenErr)
	require.Eventually(t, func() bool { return asking.Load() == tenants+3 }, time.Minute, time.Millisecond)
	require.NoError(t, locked.Rollback(t.Context()))
	callers.Wait()

	for i, tenant := range made {
		require.NoError(t, failed[i])
		require.Equal(t, tenant.endpoint, found[i].id)
		require.Equal(t, tenant.id, found[i].tenant)
		require.Equal(t, []uuid.UUID{tenant.destination}, []uuid.UUID{found[i].recipients[0].id})
		require.Len(t, found[i].recipients, 1)
	}
	require.NoError(t, noneErr)
	require.Nil(t, none)
	require.NoError(t, goneErr)
	require.Nil(t, gone)
	require.ErrorContains(t, brokenErr, broken.endpoint.String())
	require.Less(t, reads.n.Load(), int64(tenants), "there are fewer reads than endpoints")

	// One that is asked for twice in the same round trip is there for both.
	rows, err := cache.read(t.Context(), []uuid.UUID{made[0].endpoint, made[1].endpoint, made[0].endpoint})
	require.NoError(t, err)
	require.Equal(t, made[0].endpoint, rows[0].endpoint.ID)
	require.Equal(t, made[1].endpoint, rows[1].endpoint.ID)
	require.Equal(t, rows[0], rows[2])
}

// countReads counts the reads of endpoints.
type countReads struct{ n atomic.Int64 }

func (c *countReads) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "EndpointsForIngest") {
		c.n.Add(1)
	}
	return ctx
}

func (c *countReads) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
