package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
)

// What was recorded can't be changed, not even by the owner of the tables.
func TestRecordsAreAppendOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.accept(t, 1)
	for _, statement := range []string{
		"update events set content_type = 'x'",
		"update events set duplicate_key = sha256('x')",
		"update events set duplicate_key = null, content_type = 'x'",
		"update events set leaf_hash = sha256('x')",
		"delete from events",
		"truncate events",
		"update event_payloads set body = 'x'",
		"delete from deliveries",
		"truncate deliveries",
		"update tree_roots set root_hash = sha256('x')",
		"delete from tree_roots",
		"truncate tree_roots cascade",
		"update log_heads set root_hash = sha256('x')",
		"update log_heads set tree_size = tree_size",
		"delete from log_heads",
		"delete from attestation_keys",
		"update attestation_keys set public_key = sha256('x')",
	} {
		_, err := b.owner.Exec(t.Context(), statement)
		require.Equal(t, "23001", code(err), "%s: %v", statement, err)
	}
	// Partitions can't be emptied around their parents either.
	var partition string
	require.NoError(t, b.owner.QueryRow(t.Context(), "select tableoid::regclass::text from events").Scan(&partition))
	for _, statement := range []string{"truncate " + partition, "delete from " + partition, "update " + partition + " set content_type = 'x'"} {
		_, err := b.owner.Exec(t.Context(), statement)
		require.Equal(t, "23001", code(err), "%s: %v", statement, err)
	}
}

func TestTheLogOnlyGrows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, `insert into merkle_tiles values ($1, 0, 0, sha256('a'))`, b.log.ID)
	b.exec(t, `update merkle_tiles set hashes = hashes || sha256('b')`)
	b.exec(t, `insert into merkle_leaves values ($1, 0, $2, $3, sha256('a'), '{', decode(repeat('00', 64), 'hex'))`, b.log.ID, b.tenant, id.New())
	for _, statement := range []string{
		"update merkle_tiles set hashes = sha256('a')",
		"update merkle_tiles set hashes = sha256('x') || sha256('b') || sha256('c')",
		"delete from merkle_tiles",
		"update merkle_leaves set leaf = 'x'",
		"update merkle_leaves set leaf = 'x', secrets = null",
		"update merkle_leaves set leaf = null",
		"update merkle_leaves set leaf_hash = sha256('x')",
		"update merkle_leaves set leaf = null, secrets = null, leaf_hash = sha256('x')",
		"delete from merkle_leaves",
		"truncate merkle_leaves",
	} {
		_, err := b.owner.Exec(t.Context(), statement)
		require.Equal(t, "23001", code(err), "%s: %v", statement, err)
	}
	b.exec(t, "update merkle_leaves set secrets = null")
	b.exec(t, "update merkle_leaves set leaf = null, secrets = null")
	for _, statement := range []string{"update merkle_leaves set leaf = '{'", "update merkle_leaves set secrets = decode(repeat('00', 64), 'hex')"} {
		_, err := b.owner.Exec(t.Context(), statement)
		require.Equal(t, "23001", code(err), "%s: what is erased doesn't come back", statement)
	}
	// A second root for one size can't be written, and no head without its root.
	_, err := b.owner.Exec(t.Context(), "insert into tree_roots (log_id, tree_size, root_hash) values ($1, 0, sha256('x'))", b.log.ID)
	require.Equal(t, "23505", code(err))
	_, err = b.owner.Exec(t.Context(), `insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id) values ($1, 0, 1, sha256('x'), sha256('k'))`, b.log.ID)
	require.Equal(t, "23503", code(err))
}

func TestAFinishedDeliveryNeverChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.accept(t, 1)
	b.exec(t, "update deliveries set state = 'dead', finished_at = now(), leaves = 2, last_leaf_hash = sha256('x')")
	_, err := b.owner.Exec(t.Context(), "update deliveries set state = 'pending', finished_at = null")
	require.Equal(t, "23001", code(err))
}

// The engine adds to the log and does nothing else to it; the api only reads.
func TestRolesMayDoNoMoreThanTheyMust(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, table := range []string{"events", "attempts", "merkle_leaves", "tree_roots", "signed_tree_heads", "leaf_of_attempt"} {
		_, err := b.engine.Exec(t.Context(), "delete from "+table)
		require.Equal(t, "42501", code(err), table)
	}
	for _, statement := range []string{
		"update tree_roots set root_hash = root_hash", "update merkle_leaves set leaf = null",
		"update destination_keys set expires_at = null", "delete from destination_transports",
		"update signed_tree_heads set root_hash = root_hash", "update tenants set name = 'x'", "select * from api_keys",
	} {
		_, err := b.engine.Exec(t.Context(), statement)
		require.Equal(t, "42501", code(err), statement)
	}
	for _, statement := range []string{
		"select secret from endpoint_secrets", "select secret from destination_secrets", "select salt from event_payloads",
		"select private_key from destination_keys", "delete from destination_keys", "update destination_keys set public_key = public_key",
		"select client_key_pem from destination_transports", "select proxy_url from destination_transports",
		"select * from api_keys", "insert into events default values", "update deliveries set epoch = 1", "delete from delivery_queue",
	} {
		_, err := b.api.Exec(t.Context(), statement)
		require.Equal(t, "42501", code(err), statement)
	}
}

// Invariant 8: what a tenant isn't shown by the database can't be shown by mistake.
func TestATenantSeesOnlyItsOwnRows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.accept(t, 1)
	other, _, _ := b.addTenant(t, "Other Bank")
	tables := []string{"events", "event_payloads", "deliveries", "delivery_queue"}
	count := func(tenant uuid.UUID, table string) (n int) {
		require.NoError(t, postgres.InTenant(t.Context(), b.api, tenant, func(tx pgx.Tx) error {
			column := "tenant_id"
			return tx.QueryRow(t.Context(), "select count("+column+") from "+table).Scan(&n)
		}))
		return n
	}
	for _, table := range tables {
		require.Equal(t, 1, count(b.tenant, table), table)
		require.Zero(t, count(other, table), table)
		var n int
		require.NoError(t, b.api.QueryRow(t.Context(), "select count(tenant_id) from "+table).Scan(&n))
		require.Zero(t, n, "%s without a tenant", table)
	}
	// Nor can it write into another's: not under its own name, and not under the other's.
	for _, tenant := range []uuid.UUID{b.tenant, other} {
		err := postgres.InTenant(t.Context(), b.api, other, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `insert into destinations (id, tenant_id, endpoint_id, url, secret_path, timeout_ms, schedule)
				values ($1, $2, $3, 'https://evil.example', false, 5000, '{}')`, id.New(), tenant, b.endpoint)
			return err
		})
		require.Contains(t, []string{"42501", "23503"}, code(err))
	}
}

func TestEveryRoleChangeIsChecked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for role, pool := range map[string]interface {
		QueryRow(context.Context, string, ...any) pgx.Row
	}{"kapsel_owner": b.owner, "kapsel_engine": b.engine, "kapsel_api": b.api} {
		var got string
		require.NoError(t, pool.QueryRow(t.Context(), "select current_user").Scan(&got))
		require.Equal(t, role, got)
	}
}

func TestPartitionsAreThereForTwoWeeks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, postgres.EnsurePartitions(t.Context(), b.engine), "the engine may")
	require.NoError(t, postgres.EnsurePartitions(t.Context(), b.engine), "any number of times")
	for _, table := range []string{"events", "event_payloads", "deliveries", "attempts", "dedup"} {
		n := b.count(t, "select count(*) from pg_inherits where inhparent = $1::regclass", table)
		require.GreaterOrEqual(t, n, 16, table)
	}
	// Rows of days without a partition are refused, not misplaced.
	row := b.acceptance("{}")
	copy(row.EventID[:], []byte{0, 0, 0, 0, 0, 1})
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.Equal(t, "23514", code(err))
}

// Several processes may migrate at once.
func TestMigrationsRunOnceWhenManyStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	done := make(chan error, 4)
	for range 4 {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			result, err := migrations.Up(ctx, b.url, 1)
			if err == nil && len(result.Applied) > 0 {
				err = errors.New("applied again")
			}
			done <- err
		}()
	}
	for range 4 {
		require.NoError(t, <-done)
	}
}

func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
