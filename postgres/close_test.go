package postgres_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// What became of a log after a restore is a record, which its tenants may read as far as it is theirs, and nobody may change.
func TestRecoveriesAndClosuresAreARecord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	successor, err := admin.CreateLog(t.Context(), b.owner, admin.LogConfig{Host: "kapsel.example", KeyDir: t.TempDir(), HighWaterDir: t.TempDir()})
	require.NoError(t, err)
	b.exec(t, "insert into tree_roots (log_id, tree_size, root_hash) values ($1, 7, sha256('x'))", b.log.ID)
	b.exec(t, "insert into log_recoveries (log_id, old_size, new_size, adopted) values ($1, 0, 7, 0)", b.log.ID)
	b.exec(t, `insert into log_closures (log_id, successor, tree_size, published_size, published_root, published_timestamp)
		values ($1, $2, 0, 9, sha256('x'), 1)`, b.log.ID, successor.ID)
	b.exec(t, `insert into moved_leaves (attempt_id, log_id, new_log_id, tenant_id, old_leaf_hash, leaf_hash)
		values ($1, $2, $3, $4, sha256('x'), sha256('y'))`, id.New(), b.log.ID, successor.ID, b.tenant)
	for _, table := range []string{"log_recoveries", "log_closures", "moved_leaves"} {
		for _, statement := range []string{"update " + table + " set log_id = log_id", "delete from " + table, "truncate " + table} {
			_, err := b.owner.Exec(t.Context(), statement)
			require.Equal(t, "23001", code(err), "%s: %v", statement, err)
			_, err = b.engine.Exec(t.Context(), statement)
			require.Equal(t, "42501", code(err), "%s: %v", statement, err)
		}
	}
	other, _, _ := b.addTenant(t, "Other Bank")
	for tenant, rows := range map[uuid.UUID]int{b.tenant: 1, other: 0} {
		require.NoError(t, postgres.InTenant(t.Context(), b.api, tenant, func(tx pgx.Tx) error {
			var n int
			err := tx.QueryRow(t.Context(), "select count(*) from moved_leaves").Scan(&n)
			require.Equal(t, rows, n)
			return err
		}))
	}
	_, err = b.owner.Exec(t.Context(), `insert into log_closures (log_id, successor, tree_size, published_size, published_root, published_timestamp)
		values ($1, $2, 0, 9, sha256('x'), 1)`, successor.ID, successor.ID)
	require.Error(t, err, "a log isn't its own successor")
}

// A log that was closed more than once goes on in the last.
func TestTheOpenLogIsFollowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	logs := []uuid.UUID{b.log.ID}
	for range 3 {
		log, err := admin.CreateLog(t.Context(), b.owner, admin.LogConfig{Host: "kapsel.example", KeyDir: t.TempDir(), HighWaterDir: t.TempDir()})
		require.NoError(t, err)
		b.exec(t, "update logs set closed_at = now(), successor = $2 where id = $1", logs[len(logs)-1], log.ID)
		logs = append(logs, log.ID)
	}
	for _, log := range logs {
		var open uuid.UUID
		require.NoError(t, b.engine.QueryRow(t.Context(), "select open_log($1)", log).Scan(&open))
		require.Equal(t, logs[3], open)
	}
}
