package postgres

import (
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// InsertRedelivery makes a new delivery as Redeliver does, in a transaction that the caller holds open.
func InsertRedelivery(t testing.TB, tx pgx.Tx, tenant, old, event, endpoint, destination, made uuid.UUID) {
	t.Helper()
	require.NoError(t, insertRedeliveries(t.Context(), tx, tenant, nil, []candidate{{id: old, event: event, endpoint: endpoint, destination: destination}}, []uuid.UUID{made}))
}
