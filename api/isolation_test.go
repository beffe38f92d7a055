package api_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// Invariant 8: a tenant sees only its own rows, and can't tell another's from none.
func TestATenantSeesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, "{}")))
	b.record(t, delivery, "retry", false)
	attempt := id.Attempt.Format(id.AttemptOf(delivery, 1))
	list := read[openapi.EventPage](t, b.get(t, "/api/v1/events"), 200)
	paths := []string{
		"/api/v1/endpoints/" + endpoint, "/api/v1/events/" + list.Data[0].ID, "/api/v1/events/" + list.Data[0].ID + "/payload",
		"/api/v1/attestation/proof/" + attempt, "/api/v1/attestation/download-proof/" + attempt,
	}
	otherTenant, otherKey := b.addTenant(t, "Another Bank")
	own := b.key
	foreign := func() {
		t.Helper()
		b.key = otherKey
		defer func() { b.key = own }()
		for _, path := range paths {
			unknown := path[:strings.LastIndex(path, "_")+1] + "01h455vb4pex5vsknk084sn02q" + strings.TrimLeft(path[strings.LastIndex(path, "_")+27:], "_")
			theirs, nobodys := problem(t, b.get(t, path), 404, "not-found"), problem(t, b.get(t, unknown), 404, "not-found")
			theirs.RequestID, nobodys.RequestID = "", ""
			require.Equal(t, nobodys, theirs, path)
		}
		problem(t, b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://example.com"}`), 404, "not-found")
		require.Empty(t, read[openapi.EventPage](t, b.get(t, "/api/v1/events"), 200).Data)
		require.Empty(t, read[openapi.EventPage](t, b.get(t, "/api/v1/events?endpoint_id="+endpoint), 200).Data)
		require.Empty(t, read[openapi.EndpointPage](t, b.get(t, "/api/v1/endpoints"), 200).Data)
	}
	foreign() // queued
	b.seal(t)
	foreign() // published
	for _, path := range paths {
		require.Equal(t, 200, b.get(t, path).status, path)
	}

	tables := []string{"endpoints", "destinations", "events", "deliveries", "attempts", "delivery_queue", "merkle_leaves", "leaf_of_attempt"}
	rows := func(tx pgx.Tx, table string) (n int) {
		require.NoError(t, tx.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n), table)
		return n
	}
	require.NoError(t, postgres.InTenant(t.Context(), b.config.API, otherTenant, func(tx pgx.Tx) error {
		for _, table := range tables {
			require.Zero(t, rows(tx, table), table)
		}
		return nil
	}))
	require.NoError(t, postgres.InTenant(t.Context(), b.config.API, b.tenant, func(tx pgx.Tx) error {
		require.Equal(t, 1, rows(tx, "events"))
		return nil
	}))
	require.NoError(t, pgx.BeginFunc(t.Context(), b.config.API, func(tx pgx.Tx) error { // no tenant at all
		for _, table := range tables {
			require.Zero(t, rows(tx, table), table)
		}
		return nil
	}))
	for _, statement := range []string{"select key_hash from api_keys", "select secret from endpoint_secrets", "select secret from destination_secrets", "select salt from event_payloads"} {
		_, err := b.config.API.Exec(t.Context(), statement)
		require.ErrorContains(t, err, "permission denied", statement)
	}
	err := postgres.InTenant(t.Context(), b.config.API, otherTenant, func(tx pgx.Tx) error {
		endpointID, err := id.Endpoint.Parse(endpoint)
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "insert into destinations (id, tenant_id, endpoint_id, url, secret_path, timeout_ms, schedule) values ($1, $2, $3, 'https://example.com', false, 1000, '{}')",
			id.New(), b.tenant, endpointID)
		return err
	})
	require.ErrorContains(t, err, "row-level security")
}
