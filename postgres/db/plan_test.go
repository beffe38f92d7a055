package db_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// A search costs what it looks at and no more, beside a tenant that has far more rows, and before any statistics are there.
func TestSearchesReadOneTenantAndTheDaysThatAreAskedFor(t *testing.T) {
	t.Parallel()
	databaseURL := postgrestest.New(t)
	engine := postgrestest.Pool(t, databaseURL, postgres.Engine)
	tenant, other := id.New(), id.New()
	today := time.Now().UTC().Truncate(24 * time.Hour)
	fill := func(tenant uuid.UUID, n int, at time.Duration) {
		_, err := engine.Exec(t.Context(), `insert into deliveries (id, event_id, tenant_id, endpoint_id, destination_id, log_id)
			select uuid_floor($1::timestamptz + n * interval '1 ms'), gen_random_uuid(), $2, $2, $2, $2 from generate_series(1, $3::int) n`, today.Add(at), tenant, n)
		require.NoError(t, err)
		_, err = engine.Exec(t.Context(), `insert into events (id, tenant_id, endpoint_id, content_type, body_size, payload_hash, event_type)
			select id, tenant_id, tenant_id, '', 0, decode(repeat('00', 32), 'hex'), case when hashtext(id::text) % 10 = 0 then 'push' end
			from deliveries where tenant_id = $1`, tenant)
		require.NoError(t, err)
	}
	fill(other, 20_000, 0)
	fill(tenant, 50, time.Hour)
	var delivery, floor, before uuid.UUID
	require.NoError(t, engine.QueryRow(t.Context(), "select id, uuid_floor($2), uuid_floor($3) from deliveries where tenant_id = $1 limit 1",
		tenant, today, today.Add(24*time.Hour)).Scan(&delivery, &floor, &before))
	err := postgres.InTenant(t.Context(), postgrestest.Pool(t, databaseURL, postgres.API), tenant, func(tx pgx.Tx) error {
		db.CheckPlans(t, delivery, floor, before, func(sql string, args ...any) (pgx.Rows, error) { return tx.Query(t.Context(), sql, args...) })
		return nil
	})
	require.NoError(t, err)
}
