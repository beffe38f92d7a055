package activities_test

import (
	"context"
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/replay"
	"github.com/kapsel-io/kapsel/verify"
)

// backup copies the database, and returns what puts the copy in its place.
func (b *testBundle) backup(t testing.TB) (restore func()) {
	t.Helper()
	config, err := pgx.ParseConfig(b.url)
	require.NoError(t, err)
	backup := config.Database + "_backup"
	b.copyDatabase(t, config.Database, backup)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), b.url)
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(context.Background(), "drop database if exists "+pgx.Identifier{backup}.Sanitize()+" with (force)")
		require.NoError(t, err)
	})
	return func() { b.copyDatabase(t, backup, config.Database) }
}

func (b *testBundle) closeConfig() admin.CloseConfig {
	return admin.CloseConfig{Log: postgres.LogRow{ID: b.log.ID, Origin: b.log.Origin}, KeyDir: b.keyDir, HighWaterDir: b.highWaterDir}
}

func (b *testBundle) stopWorkers(t testing.TB) { b.exec(t, "update workers set alive_until = now()") }

// restoredWithoutMirror is a log that lacks what it has published, with a delivery whose first leaf is in the log and whose
// second and third wait, and another that waits alone.
func restoredWithoutMirror(t testing.TB) (b *testBundle, chain uuid.UUID) {
	t.Helper()
	b = setup(t)
	chain = b.claimed(t, 1)[0]
	r := b.recorder(t)
	record(t, r, chain, 0, 1, retried(time.Minute))
	b.seal(t)
	restore := b.backup(t)
	b.queueLeaves(t, 5)
	b.seal(t)
	restore()
	r = b.recorder(t)
	record(t, r, chain, 0, 2, retried(time.Minute))
	b.queueLeaves(t, 1)
	record(t, r, chain, 0, 3, retried(time.Minute))
	b.refuses(t, attestation.ErrHighWaterConflict)
	return b, chain
}

// A log that can't be completed ends, and its successor takes everything that waits, with unbroken chains.
func TestCloseLogGoesOnInItsSuccessor(t *testing.T) {
	t.Parallel()
	b, chain := restoredWithoutMirror(t)
	published, err := b.highWater().Read()
	require.NoError(t, err)
	_, err = admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.ErrorIs(t, err, admin.ErrWorkers)
	b.stopWorkers(t)
	done, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.NoError(t, err)
	require.False(t, done.ClosedBefore)
	require.Equal(t, 3, done.Moved)
	require.EqualValues(t, 1, done.TreeSize)
	require.Equal(t, published, done.Published)
	require.NotEqual(t, b.log.Origin, done.Successor.Origin)
	require.NotEqual(t, b.log.PublicKey, done.Successor.PublicKey)
	closure, err := postgres.ClosureOf(t.Context(), b.owner, b.log.ID)
	require.NoError(t, err)
	require.Equal(t, done.Successor.ID, closure.Successor)
	require.EqualValues(t, 6, closure.PublishedSize)
	require.Equal(t, done.Successor.ID, value[uuid.UUID](t, b, "select log_id from tenants where id = $1", b.tenant))

	// What is recorded from then on goes into the successor, also of deliveries that were accepted for the closed log, and when
	// an api that hasn't heard of it accepts for the closed one.
	r := b.recorder(t)
	record(t, r, chain, 0, 4, delivered())
	b.queueLeaves(t, 1)
	require.Zero(t, value[int](t, b, "select count(*) from leaf_queue where log_id = $1", b.log.ID))
	require.NoError(t, b.sealing().SealNow(t.Context(), done.Successor.ID))
	require.EqualValues(t, 5, value[int64](t, b, "select tree_size from log_heads where log_id = $1", done.Successor.ID))
	require.Zero(t, value[int](t, b, "select count(*) from attestation_dead_letters"))

	previous := ""
	for i, leaf := range collect[struct {
		LogID uuid.UUID
		Leaf  []byte
		Hash  []byte
	}](t, b, `select m.log_id, m.leaf, m.leaf_hash from attempts a join merkle_leaves m on m.attempt_id = a.id
		where a.delivery_id = $1 order by a.number`, chain) {
		parsed, err := verify.ParseLeaf(leaf.Leaf)
		require.NoError(t, err)
		require.Equal(t, previous, parsed.PreviousLeafHash, "leaf %d", i+1)
		require.EqualValues(t, i+1, parsed.Seq)
		origin := map[bool]string{true: b.log.Origin, false: done.Successor.Origin}[i == 0]
		require.Equal(t, origin, parsed.Origin)
		require.Equal(t, i == 0, leaf.LogID == b.log.ID)
		previous = hex.EncodeToString(leaf.Hash)
	}
	require.Equal(t, previous, hex.EncodeToString(value[[]byte](t, b, "select last_leaf_hash from deliveries where id = $1", chain)))
	account, err := replay.Read(t.Context(), b.engine, chain)
	require.NoError(t, err)
	require.Equal(t, account.Attempts[3].LeafHash, account.LastLeafHash)
	for i, a := range account.Attempts {
		require.Equal(t, postgres.LeafInLog, a.Leaf.Place)
		require.Equal(t, min(i, 1), a.Leaf.Log, "attempt %d", a.Number)
		require.Equal(t, a.LeafHash, a.Leaf.Hash)
		head := account.Covering(&a.Leaf)
		require.NotNil(t, head.Signature)
		require.NoError(t, verify.Inclusion(a.Leaf.Hash, uint64(a.Leaf.Index), uint64(head.TreeSize), a.Leaf.Path, head.RootHash))
	}
	require.Equal(t, 3, value[int](t, b, `select count(*) from moved_leaves m join attempts a on a.id = m.attempt_id and a.leaf_hash = m.old_leaf_hash
		join merkle_leaves l on l.attempt_id = a.id and l.leaf_hash = m.leaf_hash`), "what was recorded, and what it became")
}

// What waits with its bytes erased gets them back in no log.
func TestCloseLogKeepsWhatIsErasedErased(t *testing.T) {
	t.Parallel()
	b, _ := restoredWithoutMirror(t)
	b.exec(t, "update leaf_queue set erased = true, secrets = ''")
	b.stopWorkers(t)
	done, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.NoError(t, err)
	require.Equal(t, done.Moved, value[int](t, b, "select count(*) from leaf_queue where log_id = $1 and erased and secrets = ''", done.Successor.ID))
	require.NoError(t, b.sealing().SealNow(t.Context(), done.Successor.ID))
	require.Equal(t, done.Moved, value[int](t, b, "select count(*) from merkle_leaves where log_id = $1 and leaf is null and attempt_id is not null", done.Successor.ID))
}

// A leaf that moved, and so reads otherwise than its attempt recorded, is no finding of reconciliation.
func TestMovedLeavesAreWhatWasRecorded(t *testing.T) {
	t.Parallel()
	b, _ := restoredWithoutMirror(t)
	b.stopWorkers(t)
	done, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.NoError(t, err)
	require.NoError(t, b.sealing().SealNow(t.Context(), done.Successor.ID))
	found := b.reconcile(t)
	require.GreaterOrEqual(t, found.Leaves, done.Moved)
	require.Equal(t, activities.Problems{}, found.Findings, "%v", found.Examples)
}

// A closed log gets no leaf and no head, whoever writes.
func TestAClosedLogTakesNothing(t *testing.T) {
	t.Parallel()
	b, _ := restoredWithoutMirror(t)
	b.stopWorkers(t)
	_, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.NoError(t, err)
	require.ErrorIs(t, b.sealing().SealNow(t.Context(), b.log.ID), postgres.ErrLogClosed)
	_, err = admin.RotateKey(t.Context(), b.owner, b.rotateConfig(false))
	require.Error(t, err)
	for _, sql := range []string{
		"update log_heads set tree_size = 2 where log_id = $1",
		`insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id) select log_id, tree_size, "timestamp" + 1, root_hash, key_id from signed_tree_heads where log_id = $1`,
	} {
		_, err := b.owner.Exec(t.Context(), sql, b.log.ID)
		require.ErrorContains(t, err, "the log is closed")
	}
}

// Run again it moves what came in between: an api may not have heard of it.
func TestCloseLogAgainMovesWhatCameLater(t *testing.T) {
	t.Parallel()
	b, chain := restoredWithoutMirror(t)
	b.stopWorkers(t)
	first, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.NoError(t, err)
	// As a transaction that had read the old log before, and committed after: with the old name and the old hash of the leaf before.
	var waiting postgres.QueuedLeaf
	require.NoError(t, b.owner.QueryRow(t.Context(), `select leaf_hash, leaf, attempt_id, secrets from leaf_queue q where attempt_id in (select id from attempts where delivery_id = $1 and number = 3)`, chain).
		Scan(&waiting.Hash, &waiting.Bytes, &waiting.AttemptID, &waiting.Secrets))
	leaf, err := verify.ParseLeaf(waiting.Bytes)
	require.NoError(t, err)
	newHash := hex.EncodeToString(value[[]byte](t, b, "select leaf_hash from leaf_queue where id = (select min(id) from leaf_queue)"))
	require.Equal(t, newHash, leaf.PreviousLeafHash)
	leaf.Origin = b.log.Origin
	leaf.PreviousLeafHash = hex.EncodeToString(value[[]byte](t, b, "select a.leaf_hash from attempts a where delivery_id = $1 and number = 2", chain))
	old, err := leaf.Bytes()
	require.NoError(t, err)
	b.tamper(t, "delete from leaf_queue where attempt_id = $1", waiting.AttemptID)
	b.tamper(t, "delete from moved_leaves where attempt_id = $1", waiting.AttemptID)
	b.exec(t, "insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets) values ($1, $2, $3, $4, $5, $6)",
		b.log.ID, b.tenant, waiting.AttemptID, verify.LeafHash(old), old, waiting.Secrets)
	b.exec(t, "insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets) values ($1, $2, $2, sha256(''), 'x', '')", b.log.ID, b.tenant)

	again, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.NoError(t, err)
	require.True(t, again.ClosedBefore)
	require.Equal(t, 2, again.Moved)
	require.Equal(t, first.Successor, again.Successor)
	require.Equal(t, first.Published, again.Published)
	require.Equal(t, waiting.Hash, value[[]byte](t, b, "select leaf_hash from leaf_queue where attempt_id = $1", waiting.AttemptID), "made anew, it is the same leaf")
	require.NoError(t, b.sealing().SealNow(t.Context(), first.Successor.ID))
	require.Equal(t, 1, value[int](t, b, "select count(*) from attestation_dead_letters"), "what is no leaf is set aside")
	require.EqualValues(t, 3, value[int64](t, b, "select tree_size from log_heads where log_id = $1", first.Successor.ID))
}

// Nothing is closed that has what it published, nor without the record that says what that is.
func TestCloseLogWithoutNeed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.seal(t)
	b.stopWorkers(t)
	_, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
	require.ErrorIs(t, err, admin.ErrSound)
	config := b.closeConfig()
	config.HighWaterDir = t.TempDir()
	_, err = admin.CloseLog(t.Context(), b.owner, config)
	require.ErrorIs(t, err, attestation.ErrHighWaterMissing)
	require.Equal(t, 1, value[int](t, b, "select count(*) from logs"))
	b.seal(t)
}

// Wherever it is killed nothing of it stays, and the next run ends the log.
func TestCloseLogAfterAKill(t *testing.T) {
	t.Parallel()
	for table, event := range map[string]string{
		"logs": "update", "log_heads": "insert", "log_closures": "insert", "tenants": "update", "leaf_queue": "delete", "moved_leaves": "insert", "deliveries": "update",
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			b, chain := restoredWithoutMirror(t)
			b.stopWorkers(t)
			before := b.written(t)
			queue := collect[struct{ Leaf []byte }](t, b, "select leaf from leaf_queue order by id")
			b.tamper(t, `create function die() returns trigger language plpgsql security definer as
				'begin perform pg_terminate_backend(pg_backend_pid()); return null; end'`)
			b.tamper(t, "create trigger die after "+event+" on "+table+" for each statement execute function die()")
			_, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
			require.ErrorContains(t, err, "57P01")
			b.tamper(t, "drop trigger die on "+table)
			require.Equal(t, before, b.written(t))
			require.Equal(t, queue, collect[struct{ Leaf []byte }](t, b, "select leaf from leaf_queue order by id"))
			require.Equal(t, 1, value[int](t, b, "select count(*) from logs where closed_at is null"))

			done, err := admin.CloseLog(t.Context(), b.owner, b.closeConfig())
			require.NoError(t, err)
			require.Equal(t, 3, done.Moved)
			require.NoError(t, b.sealing().SealNow(t.Context(), done.Successor.ID))
			require.EqualValues(t, 3, value[int64](t, b, "select tree_size from log_heads where log_id = $1", done.Successor.ID))
			record(t, b.recorder(t), chain, 0, 4, delivered())
		})
	}
}
