package activities_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// headRow is a head as it is committed, signed or not.
type headRow struct {
	TreeSize  int64
	Timestamp int64
	RootHash  []byte
}

func (h headRow) head() attestation.Head {
	return attestation.Head{TreeSize: uint64(h.TreeSize), Timestamp: h.Timestamp, RootHash: h.RootHash}
}

func (b *testBundle) unsigned(t testing.TB) []headRow {
	t.Helper()
	return collect[headRow](t, b, `select tree_size, "timestamp", root_hash from signed_tree_heads
		where log_id = $1 and signature is null order by "timestamp"`, b.log.ID)
}

// crash has a sealer sequence what is queued and commit an unsigned head, and come no further: the high-water record
// can't be locked. The head is then of the given age; a negative one keeps it from being given up however long a test
// takes.
func (b *testBundle) crash(t testing.TB, age time.Duration) headRow {
	t.Helper()
	lock := b.file(b.highWaterDir, ".highwater.lock")
	require.NoError(t, os.RemoveAll(lock))
	require.NoError(t, os.Mkdir(lock, 0o700))
	require.ErrorContains(t, b.sealing().SealNow(t.Context(), b.log.ID), "lock high-water record")
	require.NoError(t, os.Remove(lock))
	b.tamper(t, `update signed_tree_heads set "timestamp" = "timestamp" - $1 where signature is null`, age.Milliseconds())
	unsigned := b.unsigned(t)
	require.Len(t, unsigned, 1)
	return unsigned[0]
}

// sign signs a head as a sealer does, and tells nobody.
func (b *testBundle) sign(t testing.TB, head headRow) storedHead {
	t.Helper()
	signer, err := attestation.LoadSigner(b.file(b.keyDir, ".seed"), b.log.Origin)
	require.NoError(t, err)
	sth, err := signer.SignTreeHead(head.head())
	require.NoError(t, err)
	checkpoint, err := signer.SignCheckpoint(sth)
	require.NoError(t, err)
	return storedHead{head.TreeSize, head.Timestamp, head.RootHash, sth.Signature, checkpoint}
}

func (b *testBundle) store(t testing.TB, h storedHead) bool {
	t.Helper()
	head := postgres.Head{TreeSize: uint64(h.TreeSize), Timestamp: h.Timestamp, RootHash: h.RootHash}
	stored, err := postgres.StoreSignatures(t.Context(), b.engine, b.log.ID, head, h.Signature, h.Checkpoint)
	require.NoError(t, err)
	return stored
}

// Wherever a sealer dies between committing a head and making it visible, the next one ends with the same head and the
// same bytes.
func TestSealAfterACrash(t *testing.T) {
	t.Parallel()
	for name, steps := range map[string]int{
		"unsigned head committed": 0, "high-water record advanced": 1, "signed": 2, "signatures stored": 3,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.queueLeaves(t, 3)
			b.seal(t)
			b.queueLeaves(t, 4)
			head := b.crash(t, -time.Hour)
			if steps > 0 {
				require.NoError(t, b.highWater().Advance(t.Context(), head.head()))
			}
			signed := b.sign(t, head) // leaves nothing behind
			if steps > 2 {
				require.True(t, b.store(t, signed))
			}
			b.seal(t)
			require.Equal(t, signed, b.newestHead(t, 7))
			require.Equal(t, 2, value[int](t, b, "select count(*) from signed_tree_heads"), "no head of the crash is left, and none was added")
			recorded, err := b.highWater().Read()
			require.NoError(t, err)
			require.Equal(t, head.head(), recorded)
			require.False(t, b.store(t, signed), "signatures are stored once")
		})
	}
}

// A head that another sealer left unsigned doesn't keep SealNow from publishing what is newer.
func TestSealNowAfterACrashPublishesTheNewestSize(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.crash(t, 0)
	b.queueLeaves(t, 2)
	b.seal(t)
	b.newestHead(t, 5)
}

// A head that couldn't be signed in time is replaced by a later one, and stays unsigned for ever.
func TestSealGivesUpAnOldUnsignedHead(t *testing.T) {
	t.Parallel()
	for name, advanced := range map[string]bool{"before the high-water record": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.queueLeaves(t, 3)
			old := b.crash(t, postgres.DefaultCadence.GiveUp+time.Second)
			if advanced {
				require.NoError(t, b.highWater().Advance(t.Context(), old.head()))
			}
			b.seal(t)
			newest := b.newestHead(t, 3)
			require.Equal(t, old.RootHash, newest.RootHash)
			require.Greater(t, newest.Timestamp, old.Timestamp)
			b.queueLeaves(t, 2)
			b.seal(t)
			b.newestHead(t, 5)
			require.Equal(t, []headRow{old}, b.unsigned(t))
		})
	}
}

// Nor does a sealer that stalled, and wakes up when others have gone on, make it visible.
func TestSealNeverStoresSignaturesOfAHeadThatWasGivenUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	old := b.crash(t, postgres.DefaultCadence.GiveUp+time.Second)
	require.NoError(t, b.highWater().Advance(t.Context(), old.head()))
	signed := b.sign(t, old)
	b.seal(t)
	b.newestHead(t, 3)
	require.False(t, b.store(t, signed))
	require.Equal(t, []headRow{old}, b.unsigned(t))
}

// What decides about the next head is read under the log's lock: a head that another sealer committed while this one
// waited for the lock is the one to sign.
func TestSealSeesTheHeadThatWasCommittedWhileItWaited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	head := b.crash(t, postgres.DefaultCadence.GiveUp+time.Second)
	blocker, err := b.owner.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = blocker.Rollback(context.Background()) })
	_, err = blocker.Exec(t.Context(), "select from log_heads where log_id = $1 for update", b.log.ID)
	require.NoError(t, err)
	type answer struct {
		head *postgres.Head
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		next, err := postgres.NextHead(t.Context(), b.engine, b.log.ID, sha256.Sum256(b.log.PublicKey), postgres.DefaultCadence, true)
		answers <- answer{next, err}
	}()
	b.waitForBlocked(t, 1)
	committed := head
	committed.Timestamp = time.Now().Add(time.Hour).UnixMilli()
	_, err = blocker.Exec(t.Context(), `insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id)
		select log_id, tree_size, $1, root_hash, key_id from signed_tree_heads`, committed.Timestamp)
	require.NoError(t, err)
	require.NoError(t, blocker.Commit(t.Context()))
	got := <-answers
	require.NoError(t, got.err)
	require.Equal(t, committed.head(), attestation.Head(*got.head))
	require.Equal(t, []headRow{head, committed}, b.unsigned(t))
}

// written is all that sealing writes and a stranger may see.
type written struct {
	Size, Queued, Leaves, Roots, Signed, DeadLetters int
	Tiles, HighWater                                 string
}

func (b *testBundle) written(t testing.TB) written {
	t.Helper()
	w := collect[written](t, b, `select (select tree_size from log_heads)::int, (select count(*) from leaf_queue)::int,
		(select count(*) from merkle_leaves)::int, (select count(*) from tree_roots)::int,
		(select count(*) from signed_tree_heads where signature is not null)::int, (select count(*) from attestation_dead_letters)::int,
		coalesce((select md5(string_agg(hashes, '' order by level, tile_index)) from merkle_tiles), ''), ''`)[0]
	record, err := os.ReadFile(b.file(b.highWaterDir, ".highwater"))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	w.HighWater = string(record)
	return w
}

// refuses wants sealing to fail, and to write nothing.
func (b *testBundle) refuses(t testing.TB, target error) {
	t.Helper()
	before := b.written(t)
	require.ErrorIs(t, b.sealing().SealNow(t.Context(), b.log.ID), target)
	require.Equal(t, before, b.written(t))
}

func TestSealWithoutHighWaterRecordRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	record := b.file(b.highWaterDir, ".highwater")
	away := func() { require.NoError(t, os.Rename(record, record+".away")) }
	back := func() { require.NoError(t, os.Rename(record+".away", record)) }
	away()
	b.refuses(t, attestation.ErrHighWaterMissing) // to sign the empty tree
	back()
	b.queueLeaves(t, 3)
	b.seal(t)
	b.queueLeaves(t, 2)
	away()
	b.refuses(t, attestation.ErrHighWaterMissing)
	require.NoError(t, os.WriteFile(record, []byte("something else\n"), 0o600))
	b.refuses(t, attestation.ErrHighWaterCorrupt)
	back()
	b.seal(t)
	b.newestHead(t, 5)
}

// A database that was restored from an old backup has lost leaves that were published. Others in their place would be a
// second tree.
func TestSealOfARestoredDatabaseRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.seal(t)
	newest := b.newestHead(t, 3)
	published := attestation.Head{TreeSize: 5, Timestamp: newest.Timestamp + 1, RootHash: random32()}
	require.NoError(t, b.highWater().Advance(t.Context(), published))
	for range 3 { // also once it would be as large again as what was published
		b.queueLeaves(t, 2)
		b.refuses(t, attestation.ErrHighWaterConflict)
	}
	b.newestHead(t, 3)
}

// The same where the published tree was just as large: growing beyond it would make a fork of it.
func TestSealOfAnotherTreeOfThePublishedSizeRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 5)
	published := b.crash(t, postgres.DefaultCadence.GiveUp+time.Second).head()
	published.RootHash = random32()
	require.NoError(t, b.highWater().Advance(t.Context(), published))
	b.refuses(t, attestation.ErrHighWaterConflict)
	b.tamper(t, `update signed_tree_heads set "timestamp" = "timestamp" - 10000`) // given up
	b.queueLeaves(t, 1)
	b.refuses(t, attestation.ErrHighWaterConflict)
}

func TestSealWithAnotherKeyRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	path := b.file(b.keyDir, ".seed")
	seed, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(hex.EncodeToString(random32())+"\n"), 0o600))
	want := b.written(t)
	require.ErrorContains(t, b.sealing().SealNow(t.Context(), b.log.ID), "isn't the log's")
	got := b.written(t)
	require.Equal(t, []int{3, 3, 0}, []int{got.Size, got.Leaves, got.Queued}, "sequencing needs no key")
	require.Equal(t, want.HighWater, got.HighWater)
	require.Zero(t, got.Signed)
	require.Empty(t, b.unsigned(t))
	require.NoError(t, os.WriteFile(path, seed, 0o600))
	b.seal(t)
	b.newestHead(t, 3)
}

// The edge tiles are all that is read of the tree: if they don't lead to the stored root, somebody else has written.
func TestSealOverTamperedTilesRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 300) // edge tiles 0/1 of 44 hashes, and 1/0 of one
	b.seal(t)
	b.newestHead(t, 300)
	b.tamper(t, "create table kept as select * from merkle_tiles")
	b.queueLeaves(t, 2)
	const edge = "where (level, tile_index) in ((0, 1), (1, 0))"
	for tampering, target := range map[string]error{
		"update merkle_tiles set hashes = set_byte(hashes, 31, get_byte(hashes, 31) # 1) where level = 0 and tile_index = 1": attestation.ErrRootMismatch,
		"update merkle_tiles set hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1) where level = 1":                      attestation.ErrRootMismatch,
		"update merkle_tiles set hashes = substring(hashes from 33) where level = 0 and tile_index = 1":                      attestation.ErrTile,
		"update merkle_tiles set hashes = hashes || substring(hashes for 32) where level = 1":                                attestation.ErrTile,
		"delete from merkle_tiles where level = 0 and tile_index = 1":                                                        attestation.ErrTile,
		"delete from merkle_tiles where level = 1":                                                                           attestation.ErrTile,
	} {
		b.tamper(t, tampering)
		b.refuses(t, target)
		b.tamper(t, "delete from merkle_tiles "+edge)
		b.tamper(t, "insert into merkle_tiles select * from kept "+edge)
	}
	b.seal(t)
	b.newestHead(t, 302)
}

func TestSealOfNoLogRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.ErrorIs(t, b.sealing().SealNow(t.Context(), id.New()), postgres.ErrNoLog)
	b.exec(t, "update logs set closed_at = now()")
	b.refuses(t, postgres.ErrLogClosed)

	env := newSuite().NewTestActivityEnvironment()
	sealing := b.sealing()
	env.RegisterActivity(sealing.SealLog)
	_, err := env.ExecuteActivity(sealing.SealLog, activities.SealInput{LogID: "log_", For: time.Hour})
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	require.True(t, application.NonRetryable())
	_, err = env.ExecuteActivity(sealing.SealLog, activities.SealInput{LogID: id.Log.Format(b.log.ID), For: time.Hour})
	require.ErrorAs(t, err, &application)
	require.True(t, application.NonRetryable())
	require.Equal(t, activities.LogClosed, application.Type())
}

// A log that is closed while it is sealed ends the seal, and gets nothing more.
func TestALogThatIsClosedIsSealedNoMore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.seal(t)
	sealing, ended := b.sealing(), make(chan error, 1)
	env := newSuite().NewTestActivityEnvironment()
	env.RegisterActivity(sealing.SealLog)
	env.SetWorkerStopChannel(make(chan struct{}))
	go func() {
		_, err := env.ExecuteActivity(sealing.SealLog, activities.SealInput{LogID: id.Log.Format(b.log.ID), For: time.Hour})
		ended <- err
	}()
	b.queueLeaves(t, 100)
	b.waitForLeaves(t, 103)
	b.exec(t, "update logs set closed_at = now()")
	var application *temporal.ApplicationError
	require.ErrorAs(t, <-ended, &application)
	require.Equal(t, activities.LogClosed, application.Type())
	before := b.written(t)
	b.queueLeaves(t, 2)
	b.refusesAfter(t, before, 2)
}

// refusesAfter wants nothing but so many more leaves in the queue of a closed log.
func (b *testBundle) refusesAfter(t testing.TB, before written, queued int) {
	t.Helper()
	require.ErrorIs(t, b.sealing().SealNow(t.Context(), b.log.ID), postgres.ErrLogClosed)
	before.Queued += queued
	require.Equal(t, before, b.written(t))
}
