package postgres_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// testBundle is a database with one log, and a tenant with an endpoint and a destination.
type testBundle struct {
	url                   string
	owner, engine, api    *pgxpool.Pool
	log                   admin.Log
	tenant                uuid.UUID
	endpoint, destination uuid.UUID
}

func setup(t testing.TB) *testBundle {
	t.Helper()
	b := &testBundle{url: postgrestest.New(t)}
	b.owner = postgrestest.Pool(t, b.url, postgres.Owner)
	b.engine = postgrestest.Pool(t, b.url, postgres.Engine)
	b.api = postgrestest.Pool(t, b.url, postgres.API)
	var err error
	b.log, err = admin.CreateLog(t.Context(), b.owner, admin.LogConfig{Host: "kapsel.example", KeyDir: t.TempDir(), HighWaterDir: t.TempDir()})
	require.NoError(t, err)
	b.tenant, b.endpoint, b.destination = b.addTenant(t, "Example Bank")
	return b
}

// addTenant makes a tenant with an endpoint and a destination.
func (b *testBundle) addTenant(t testing.TB, name string) (tenant, endpoint, destination uuid.UUID) {
	t.Helper()
	tenant, err := admin.CreateTenant(t.Context(), b.owner, name, b.log.ID)
	require.NoError(t, err)
	endpoint = id.New()
	b.exec(t, `insert into endpoints (id, tenant_id, name, verification, duplicates) values ($1, $2, 'in', '{"scheme":"none"}', '{}')`, endpoint, tenant)
	return tenant, endpoint, b.addDestination(t, tenant, endpoint)
}

func (b *testBundle) addDestination(t testing.TB, tenant, endpoint uuid.UUID) uuid.UUID {
	t.Helper()
	destination := id.New()
	b.exec(t, `insert into destinations (id, tenant_id, endpoint_id, url, secret_path, timeout_ms, schedule)
		values ($1, $2, $3, 'https://example.com/in', false, 5000, '{}')`, destination, tenant, endpoint)
	return destination
}

func (b *testBundle) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	_, err := b.owner.Exec(context.Background(), sql, args...)
	require.NoError(t, err)
}

func (b *testBundle) count(t testing.TB, sql string, args ...any) int {
	t.Helper()
	var n int
	require.NoError(t, b.owner.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

// acceptance is a webhook with one delivery.
func (b *testBundle) acceptance(body string) *postgres.Acceptance {
	event := id.New()
	salt := make([]byte, 32)
	return &postgres.Acceptance{
		EventID: event, TenantID: b.tenant, EndpointID: b.endpoint, LogID: b.log.ID,
		ContentType: "application/json", Headers: []byte("Content-Type: application/json\r\n"), Body: []byte(body),
		PayloadHash: verify.Commitment("payload", salt, []byte(body)), Salt: salt, Secret: make([]byte, 32),
		Deliveries: []postgres.NewDelivery{{ID: id.At(event), DestinationID: b.destination}},
	}
}

// accept stores n webhooks and returns their deliveries.
func (b *testBundle) accept(t testing.TB, n int) []uuid.UUID {
	t.Helper()
	var rows []*postgres.Acceptance
	var deliveries []uuid.UUID
	for range n {
		row := b.acceptance("{}")
		rows = append(rows, row)
		deliveries = append(deliveries, row.Deliveries[0].ID)
	}
	_, err := postgres.Accept(t.Context(), b.engine, rows)
	require.NoError(t, err)
	return deliveries
}

// worker enters a live worker.
func (b *testBundle) worker(t testing.TB) uuid.UUID {
	t.Helper()
	worker := id.New()
	require.NoError(t, postgres.AddWorker(t.Context(), b.engine, worker, "test"))
	return worker
}
