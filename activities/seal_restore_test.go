package activities_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
)

// copyDatabase replaces the database to by a copy of from, through a connection to neither.
func (b *testBundle) copyDatabase(t testing.TB, from, to string) {
	t.Helper()
	b.owner.Reset() // a template must have no sessions, and sessions of a database that goes are useless
	b.engine.Reset()
	config, err := pgx.ParseConfig(b.url)
	require.NoError(t, err)
	config.Database = "postgres"
	conn, err := pgx.ConnectConfig(context.Background(), config)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	for _, sql := range []string{
		"select pg_terminate_backend(pid) from pg_stat_activity where datname = '" + from + "'",
		"drop database if exists " + pgx.Identifier{to}.Sanitize() + " with (force)",
		"create database " + pgx.Identifier{to}.Sanitize() + " template " + pgx.Identifier{from}.Sanitize(),
	} {
		_, err := conn.Exec(context.Background(), sql)
		require.NoError(t, err)
	}
}

// A real backup, restored after more was published: whatever is delivered then, the log signs nothing and grows by nothing.
func TestSealOfABackupRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.seal(t)
	restore := b.backup(t)
	b.queueLeaves(t, 2)
	b.seal(t)
	b.newestHead(t, 5)
	published, err := b.highWater().Read()
	require.NoError(t, err)

	restore()
	b.newestHead(t, 3) // the log as it was: nothing in it says that it's old
	for range 3 {      // also once it would be as large again as what was published, and larger
		b.queueLeaves(t, 1)
		b.refuses(t, attestation.ErrHighWaterConflict)
	}
	b.newestHead(t, 3)
	recorded, err := b.highWater().Read()
	require.NoError(t, err)
	require.Equal(t, published, recorded)
}
