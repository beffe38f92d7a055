package activities_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// storedTransition is a row of key_transitions.
type storedTransition struct {
	TreeSize int64
	Reason   string
	Note     []byte
}

func (b *testBundle) transitions(t testing.TB) []storedTransition {
	t.Helper()
	return collect[storedTransition](t, b, "select tree_size, reason, note from key_transitions where log_id = $1 order by tree_size", b.log.ID)
}

// keyOf returns the key that a head was to be signed with.
func (b *testBundle) keyOf(t testing.TB, h storedHead) ed25519.PublicKey {
	t.Helper()
	return value[[]byte](t, b, `select k.public_key from signed_tree_heads h join attestation_keys k using (log_id, key_id)
		where h.log_id = $1 and h."timestamp" = $2`, b.log.ID, h.Timestamp)
}

func (b *testBundle) presentKey(t testing.TB) ed25519.PublicKey {
	t.Helper()
	return value[[]byte](t, b, "select public_key from attestation_keys where log_id = $1 and not_after is null", b.log.ID)
}

func (b *testBundle) presentVKey(t testing.TB) string {
	return verify.VKey(b.log.Origin, b.presentKey(t))
}

// trustGoesForward says whether a head's key can be trusted because of the log's first key.
func (b *testBundle) trustGoesForward(t testing.TB, head storedHead) bool {
	t.Helper()
	return !slices.ContainsFunc(b.transitions(t), func(tr storedTransition) bool {
		return tr.TreeSize < head.TreeSize && tr.Reason == verify.ReasonCompromise
	})
}

// history is what a package under a head of the given size holds of the log's keys.
func (b *testBundle) history(t testing.TB, size int64) []verify.PackageTransition {
	t.Helper()
	var history []verify.PackageTransition
	for _, tr := range b.transitions(t) {
		h := verify.PackageTransition{Transition: string(tr.Note)}
		if tr.TreeSize > 0 {
			var err error
			h.ConsistencyProof, err = attestation.ProveConsistency(context.Background(), b.readTiles, uint64(min(size, tr.TreeSize)), uint64(max(size, tr.TreeSize)))
			require.NoError(t, err)
		}
		history = append(history, h)
	}
	return history
}

func (b *testBundle) rotateConfig(compromise bool) admin.RotateConfig {
	return admin.RotateConfig{Log: b.log.ID, KeyDir: b.keyDir, HighWaterDir: b.highWaterDir, Compromise: compromise}
}

func (b *testBundle) rotate(t testing.TB, compromise bool) admin.Rotation {
	t.Helper()
	done, err := admin.RotateKey(t.Context(), b.owner, b.rotateConfig(compromise))
	require.NoError(t, err)
	require.False(t, done.FinishedBefore)
	return done
}

// headsOf lists the sizes of the heads that a key signed.
func (b *testBundle) headsOf(t testing.TB, key ed25519.PublicKey) []int64 {
	t.Helper()
	var sizes []int64
	for _, row := range collect[struct{ Size int64 }](t, b, `select tree_size from signed_tree_heads
		where log_id = $1 and key_id = $2 and signature is not null order by "timestamp"`, b.log.ID, verify.LogKeyID(key)) {
		sizes = append(sizes, row.Size)
	}
	return sizes
}

// The tree of size n is published under the old key, the transition over its root is leaf n, and what follows is signed by
// the new key. Every package verifies under the first key and under the newest one.
func TestRotate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.seal(t)
	require.NoError(t, b.deliverAll(t.Context(), b.accept(t, 4, b.destination)))
	b.sequenceOnly(t) // leaves without a head
	oldKey := b.presentKey(t)
	done := b.rotate(t, false)
	require.EqualValues(t, 7, done.LeafIndex)
	require.EqualValues(t, oldKey, done.OldKey)
	require.Equal(t, []int64{3, 7}, b.headsOf(t, oldKey), "the tree before the change has a head of the old key")

	leaf := collect[struct {
		Tenant, Attempt *uuid.UUID
		Leaf, Hash      []byte
		Secrets         []byte
	}](t, b, "select tenant_id, attempt_id, leaf, leaf_hash, secrets from merkle_leaves where leaf_index = 7")[0]
	require.Nil(t, leaf.Tenant)
	require.Nil(t, leaf.Attempt)
	require.Nil(t, leaf.Secrets)
	require.Equal(t, done.Note, leaf.Leaf, "the note's exact bytes are the leaf")
	transition, err := verify.ParseTransition(leaf.Leaf)
	require.NoError(t, err)
	require.NoError(t, transition.Verify())
	require.EqualValues(t, 7, transition.TreeSize)
	require.Equal(t, value[[]byte](t, b, "select root_hash from tree_roots where tree_size = 7"), transition.RootHash)
	require.Equal(t, verify.ReasonRotation, transition.Reason)

	b.seal(t)
	b.newestHead(t, 8)
	b.queueLeaves(t, 5)
	b.seal(t)
	b.newestHead(t, 13)
	require.Equal(t, []int64{3, 7}, b.headsOf(t, oldKey))
	require.Equal(t, []int64{8, 13}, b.headsOf(t, done.Log.PublicKey))

	second := b.rotate(t, false) // nothing new: the head of size 13 is the last of its key
	require.EqualValues(t, 13, second.LeafIndex)
	require.Equal(t, []int64{8, 13}, b.headsOf(t, done.Log.PublicKey))
	b.queueLeaves(t, 2)
	b.seal(t)
	b.newestHead(t, 16)

	third := b.rotate(t, true)
	require.Equal(t, []int64{16}, b.headsOf(t, second.Log.PublicKey))
	b.queueLeaves(t, 1)
	b.seal(t)
	b.newestHead(t, 18)
	require.Equal(t, []int64{18}, b.headsOf(t, third.Log.PublicKey))
	var reasons []string
	for _, tr := range b.transitions(t) {
		reasons = append(reasons, tr.Reason)
	}
	require.Equal(t, []string{"rotation", "rotation", "compromise"}, reasons)
}

// What was written of a change never changes, also for the owner of the tables; those who serve and seal may only read it.
func TestKeyTransitionsAreARecord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.rotate(t, false)
	for _, statement := range []string{"update key_transitions set note = 'x'", "delete from key_transitions", "truncate key_transitions"} {
		_, err := b.owner.Exec(t.Context(), statement)
		require.ErrorContains(t, err, "its rows are a record and never change", statement)
		_, err = b.engine.Exec(t.Context(), statement)
		require.ErrorContains(t, err, "permission denied", statement)
		_, err = postgrestest.Pool(t, b.url, postgres.API).Exec(t.Context(), statement)
		require.ErrorContains(t, err, "permission denied", statement)
	}
}

// sequenceOnly sequences what is queued and signs no head: the seal is stopped where it would.
func (b *testBundle) sequenceOnly(t testing.TB) {
	t.Helper()
	b.tamper(t, `create function stop() returns trigger language plpgsql as 'begin raise exception ''stopped''; end'`)
	b.tamper(t, "create trigger stop before insert on signed_tree_heads for each row execute function stop()")
	require.ErrorContains(t, b.sealing().SealNow(t.Context(), b.log.ID), "stopped")
	b.tamper(t, "drop trigger stop on signed_tree_heads")
	b.tamper(t, "drop function stop")
}

func TestRotateAnEmptyLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	done := b.rotate(t, false)
	require.Zero(t, done.LeafIndex)
	b.queueLeaves(t, 2)
	b.seal(t)
	b.newestHead(t, 3)
	require.Equal(t, []int64{0}, b.headsOf(t, b.log.PublicKey))
	require.Equal(t, []int64{3}, b.headsOf(t, done.Log.PublicKey))
}

// A compromised key signs nothing any more, also not what was sequenced before; its seed isn't even read.
func TestRotateAfterACompromise(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.seal(t)
	b.queueLeaves(t, 2)
	b.crash(t, 0) // a head of the old key is on its way
	require.NoError(t, os.Remove(b.file(b.keyDir, ".seed")))
	done := b.rotate(t, true)
	require.Equal(t, verify.ReasonCompromise, done.Reason)
	require.EqualValues(t, 5, done.LeafIndex)
	next, err := postgres.NextHead(t.Context(), b.engine, b.log.ID, [32]byte(verify.LogKeyID(done.Log.PublicKey)), postgres.DefaultCadence, true)
	require.NoError(t, err)
	require.EqualValues(t, 6, next.TreeSize, "the new key doesn't sign the head that the old one left")
	b.seal(t)
	newest := b.newestHead(t, 6)
	require.Equal(t, []int64{3}, b.headsOf(t, b.log.PublicKey))
	require.Equal(t, 2, strings.Count(string(newest.Checkpoint), "\n— "), "only the new key's lines")
	transition, err := verify.ParseTransition(done.Note)
	require.NoError(t, err)
	require.Len(t, transition.Note.Signatures, 1)
}

// For 90 days by the heads' own time, checkpoints carry both keys' lines.
func TestCheckpointsCarryBothKeysLinesFor90Days(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.rotate(t, false)
	b.queueLeaves(t, 1)
	b.seal(t)
	checkpoint, err := verify.ParseCheckpoint(b.newestHead(t, 2).Checkpoint)
	require.NoError(t, err)
	for _, key := range []ed25519.PublicKey{b.log.PublicKey, b.presentKey(t)} {
		head, err := checkpoint.Verify(key)
		require.NoError(t, err)
		require.EqualValues(t, 2, head.TreeSize)
	}
	b.tamper(t, "update key_transitions set changed_at = now() - interval '90 days'")
	b.queueLeaves(t, 1)
	b.seal(t)
	checkpoint, err = verify.ParseCheckpoint(b.newestHead(t, 3).Checkpoint)
	require.NoError(t, err)
	_, err = checkpoint.Verify(b.log.PublicKey)
	require.ErrorIs(t, err, verify.ErrSignature)
}

// The seed of the old key may be destroyed early: the log goes on with the new key's lines alone.
func TestSealWithoutTheOldSeedGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.rotate(t, false)
	require.NoError(t, os.Remove(b.file(b.keyDir, ".seed")))
	b.queueLeaves(t, 1)
	b.seal(t)
	require.Equal(t, 2, strings.Count(string(b.newestHead(t, 2).Checkpoint), "\n— "))
}

// workerWith is what seals with another key directory, such as a copy from before the new seed was made.
func (b *testBundle) workerWith(keyDir string) *activities.Sealing {
	return activities.NewSealing(activities.SealingConfig{DB: b.engine, KeyDir: keyDir, HighWaterDir: b.highWaterDir, Log: zap.NewNop()})
}

func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	entries, err := os.ReadDir(from)
	require.NoError(t, err)
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(from, e.Name()))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(to, e.Name()), text, 0o600))
	}
	return to
}

// requireUnsigned wants leaves to have their places, and nothing to be signed or prepared for it since before.
func (b *testBundle) requireUnsigned(t testing.TB, before written, leaves int) {
	t.Helper()
	now := b.written(t)
	require.Equal(t, []int{leaves, leaves, 0}, []int{now.Size, now.Leaves, now.Queued})
	require.Equal(t, before.Signed, now.Signed)
	require.Equal(t, before.HighWater, now.HighWater)
	require.Empty(t, b.unsigned(t))
}

// A worker that doesn't have the new seed says what to do, and signs nothing with the old one, nor anything else; leaves get
// their places. Once it has the seed it goes on.
func TestAWorkerWithoutTheNewSeedSignsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 2)
	b.seal(t)
	keys := copyDir(t, b.keyDir)
	behind := b.workerWith(keys)
	b.rotate(t, false)
	b.queueLeaves(t, 2)
	before := b.written(t)
	err := behind.SealNow(t.Context(), b.log.ID)
	require.ErrorIs(t, err, attestation.ErrNoSeed)
	require.ErrorContains(t, err, "copy it into LOG_KEY_DIR")
	b.requireUnsigned(t, before, 5)

	seeds, err := filepath.Glob(filepath.Join(b.keyDir, "*.seed"))
	require.NoError(t, err)
	for _, seed := range seeds {
		text, err := os.ReadFile(seed)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(keys, filepath.Base(seed)), text, 0o600))
	}
	require.NoError(t, behind.SealNow(t.Context(), b.log.ID))
	b.newestHead(t, 5)
}

// A worker that is sealing while the key is changed goes on with the new one by itself.
func TestARunningWorkerTakesTheNewKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stop := b.sealLog(t)
	b.queueLeaves(t, 100)
	published := func(size int) {
		t.Helper()
		require.Eventually(t, func() bool {
			return value[bool](t, b, "select exists (select from signed_tree_heads where tree_size >= $1 and signature is not null)", size)
		}, 30*time.Second, 10*time.Millisecond)
	}
	published(100)
	done := b.rotate(t, false)
	b.queueLeaves(t, 100)
	published(201)
	stop()
	b.seal(t)
	b.newestHead(t, 201)
	require.NotEmpty(t, b.headsOf(t, done.Log.PublicKey))
}

// Several workers seal and others record while the key is changed again and again: no head of an earlier key is larger than
// the tree that it ended with, and no leaf is lost or indexed twice.
func TestRotateWhileOthersSeal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 300, b.destination)
	done := make(chan struct{})
	var sealers sync.WaitGroup
	for range 2 {
		sealing := b.sealing()
		sealers.Go(func() {
			for {
				err := sealing.SealNow(t.Context(), b.log.ID)
				if err != nil && !errors.Is(err, attestation.ErrHighWaterConflict) && !errors.Is(err, postgres.ErrKeyChanged) {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	rotations := 0
	for i, delivery := range deliveries {
		require.NoError(t, b.deliverAll(t.Context(), []uuid.UUID{delivery}))
		if i%60 != 30 {
			continue
		}
		require.Eventually(t, func() bool { // a clock's tick, or a head that another signs at this moment, may be in the way
			_, err := admin.RotateKey(t.Context(), b.owner, b.rotateConfig(rotations == 3))
			if err != nil && !errors.Is(err, postgres.ErrClock) && !errors.Is(err, attestation.ErrHighWaterConflict) {
				require.NoError(t, err)
			}
			return err == nil
		}, 20*time.Second, time.Millisecond)
		rotations++
	}
	close(done)
	sealers.Wait()
	b.seal(t)
	b.newestHead(t, 300+rotations)
	require.Len(t, b.transitions(t), 5)
	for _, tr := range b.transitions(t) {
		transition, err := verify.ParseTransition(tr.Note)
		require.NoError(t, err)
		for _, size := range b.headsOf(t, transition.OldKey) {
			require.LessOrEqual(t, size, tr.TreeSize)
		}
		for _, size := range b.headsOf(t, transition.NewKey) {
			require.Greater(t, size, tr.TreeSize)
		}
	}
}

// Two who change the key at once change it once, or one after the other; no key is lost.
func TestRotateByTwoAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 2)
	b.seal(t)
	other := postgrestest.Pool(t, b.url, postgres.Owner)
	var mu sync.Mutex
	var committed int
	var runs sync.WaitGroup
	for i := range 4 {
		pool := b.owner
		if i%2 == 1 {
			pool = other
		}
		runs.Go(func() {
			done, err := admin.RotateKey(t.Context(), pool, b.rotateConfig(false))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && !done.FinishedBefore:
				committed++
			case err != nil && !errors.Is(err, postgres.ErrKeyChanged) && !errors.Is(err, postgres.ErrClock) && !errors.Is(err, fs.ErrNotExist):
				t.Error(err)
			}
		})
	}
	runs.Wait()
	require.GreaterOrEqual(t, committed, 1)
	require.Len(t, b.transitions(t), committed)
	b.seal(t)
	b.newestHead(t, 2+committed)
}

// keyWritten is all that a change of the key writes into the database.
func (b *testBundle) keyWritten(t testing.TB) string {
	t.Helper()
	return value[string](t, b, `select (select json_agg(k order by key_id)::text from attestation_keys k)
		|| coalesce((select json_agg(k)::text from key_transitions k), '') || (select count(*) from signed_tree_heads)`)
}

// Wherever the connection dies while the key is changed, nothing of it has happened, and the next run ends with the same
// key. Also where it dies at the very commit.
func TestRotateAfterAKill(t *testing.T) {
	t.Parallel()
	for place, trigger := range map[string]string{
		"signed_tree_heads":       "create trigger die after insert on signed_tree_heads for each statement execute function die()",
		"merkle_leaves":           "create trigger die after insert on merkle_leaves for each statement execute function die()",
		"merkle_tiles":            "create trigger die after insert on merkle_tiles for each statement execute function die()",
		"tree_roots":              "create trigger die after insert on tree_roots for each statement execute function die()",
		"attestation_keys":        "create trigger die after update on attestation_keys for each statement execute function die()",
		"attestation_keys insert": "create trigger die after insert on attestation_keys for each statement execute function die()",
		"key_transitions":         "create trigger die after insert on key_transitions for each statement execute function die()",
		"log_heads":               "create trigger die after update on log_heads for each statement execute function die()",
		"key_transitions commit":  "create constraint trigger die after insert on key_transitions initially deferred for each row execute function die()",
	} {
		for _, compromise := range []bool{false, true} {
			if compromise && place == "signed_tree_heads" {
				continue // it writes none
			}
			name := place
			if compromise {
				name += " after a compromise"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				b.queueLeaves(t, 3)
				b.seal(t)
				b.queueLeaves(t, 2)
				b.sequenceOnly(t)
				before, keysBefore := b.written(t), b.keyWritten(t)
				b.tamper(t, `create function die() returns trigger language plpgsql security definer as
					'begin perform pg_terminate_backend(pg_backend_pid()); return null; end'`)
				b.tamper(t, trigger)
				_, err := admin.RotateKey(t.Context(), b.owner, b.rotateConfig(compromise))
				require.ErrorContains(t, err, "57P01") // admin_shutdown
				b.tamper(t, "drop trigger die on "+strings.Fields(place)[0])
				after := b.written(t)
				after.HighWater, before.HighWater = "", "" // may be ahead in time: no head has it
				require.Equal(t, before, after)
				require.Equal(t, keysBefore, b.keyWritten(t))
				next, err := filepath.Glob(filepath.Join(b.keyDir, "*.next"))
				require.NoError(t, err)
				require.Len(t, next, 1)
				prepared, err := attestation.LoadSigner(next[0], b.log.Origin)
				require.NoError(t, err)

				done := b.rotate(t, compromise)
				require.EqualValues(t, prepared.PublicKey(), done.Log.PublicKey, "the key of the run that was cut off")
				b.seal(t)
				b.newestHead(t, 6)
				require.Len(t, b.transitions(t), 1)
			})
		}
	}
}

// A run that was cut off after the commit: the next one says so and changes nothing, and the one after that does again.
func TestRotateAfterACrashBehindTheCommit(t *testing.T) {
	t.Parallel()
	for _, compromise := range []bool{false, true} {
		b := setup(t)
		b.queueLeaves(t, 2)
		b.seal(t)
		reason := verify.ReasonRotation
		if compromise {
			reason = verify.ReasonCompromise
		}
		_, err := attestation.PrepareKey(b.keyDir, id.Log.Format(b.log.ID), b.log.Origin, reason)
		require.NoError(t, err)
		mark := b.file(b.keyDir, "."+reason+".next")
		seed, err := os.ReadFile(mark)
		require.NoError(t, err)
		first := b.rotate(t, compromise)
		require.NoFileExists(t, mark)
		require.NoError(t, os.WriteFile(mark, seed, 0o600)) // as the crash would have left it

		before := b.keyWritten(t)
		again, err := admin.RotateKey(t.Context(), b.owner, b.rotateConfig(compromise))
		require.NoError(t, err)
		require.True(t, again.FinishedBefore)
		again.FinishedBefore = false
		require.Equal(t, first, again)
		require.Equal(t, before, b.keyWritten(t))
		require.NoFileExists(t, mark)

		// The mark of a key that was given up again meanwhile is of no use.
		second := b.rotate(t, compromise)
		require.NotEqual(t, first.Log.PublicKey, second.Log.PublicKey)
		require.NoError(t, os.WriteFile(mark, seed, 0o600))
		third := b.rotate(t, compromise)
		require.NotEqual(t, first.Log.PublicKey, third.Log.PublicKey)
		require.Equal(t, second.Log.PublicKey, third.OldKey)
		b.seal(t)
		b.newestHead(t, 5)
	}
}

// A compromise doesn't go on with the key of a planned change, which lay beside the other.
func TestACompromiseTakesNoPreparedKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	planned, err := attestation.PrepareKey(b.keyDir, id.Log.Format(b.log.ID), b.log.Origin, verify.ReasonRotation)
	require.NoError(t, err)
	done := b.rotate(t, true)
	require.NotEqual(t, []byte(planned.PublicKey()), done.Log.PublicKey)
	require.NoFileExists(t, b.file(b.keyDir, ".rotation.next"))
	next := b.rotate(t, false)
	require.NotEqual(t, []byte(planned.PublicKey()), next.Log.PublicKey)
}

func TestRotateRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 2)
	b.seal(t)
	before := b.keyWritten(t)
	refuses := func(config admin.RotateConfig, want string) {
		t.Helper()
		_, err := admin.RotateKey(t.Context(), b.owner, config)
		require.ErrorContains(t, err, want)
		require.Equal(t, before, b.keyWritten(t))
	}
	good := b.rotateConfig(false)
	other := good
	other.Log = id.New()
	refuses(other, "there is no open log")
	other = good
	other.KeyDir = t.TempDir()
	refuses(other, "run with --compromise")
	other = good
	other.HighWaterDir = t.TempDir()
	refuses(other, attestation.ErrHighWaterMissing.Error())
	other = good
	other.KeyDir = ""
	refuses(other, "a log needs a directory")

	// A database that was restored from an old backup.
	newest := b.newestHead(t, 2)
	record, err := os.ReadFile(b.file(b.highWaterDir, ".highwater"))
	require.NoError(t, err)
	require.NoError(t, b.highWater().Advance(t.Context(), attestation.Head{TreeSize: 5, Timestamp: newest.Timestamp + 1, RootHash: random32()}))
	refuses(good, attestation.ErrHighWaterConflict.Error())
	require.NoError(t, os.WriteFile(b.file(b.highWaterDir, ".highwater"), record, 0o600))

	// Tiles that don't lead to the root.
	b.tamper(t, "update merkle_tiles set hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1)")
	refuses(good, attestation.ErrRootMismatch.Error())
	b.tamper(t, "update merkle_tiles set hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1)")

	// A head from the future.
	b.tamper(t, `update signed_tree_heads set "timestamp" = "timestamp" + 60000`)
	before = b.keyWritten(t)
	refuses(good, postgres.ErrClock.Error())
	b.tamper(t, `update signed_tree_heads set "timestamp" = "timestamp" - 60000`)
	before = b.keyWritten(t)

	b.exec(t, "update logs set closed_at = now()")
	refuses(good, "there is no open log")
}

// A thief has the old seed and a copy of the whole database. What it makes of them is rejected by everybody who trusts
// the new key, and by who trusts the old one as long as the log's own history comes with it.
func TestAThiefWithTheOldSeedAndTheDatabase(t *testing.T) {
	t.Parallel()
	for _, compromise := range []bool{false, true} {
		b := setup(t)
		b.queueLeaves(t, 4)
		b.seal(t)
		oldKey, stolen := b.presentKey(t), copyDir(t, b.keyDir)
		b.rotate(t, compromise)
		b.queueLeaves(t, 3)
		b.seal(t)
		newest := b.newestHead(t, 8)
		thief, err := attestation.FindSigner(stolen, id.Log.Format(b.log.ID), b.log.Origin, oldKey)
		require.NoError(t, err)

		// Kapsel itself, with the thief's key directory, signs nothing.
		b.queueLeaves(t, 1)
		before := b.written(t)
		require.ErrorIs(t, b.workerWith(stolen).SealNow(t.Context(), b.log.ID), attestation.ErrNoSeed)
		_, err = postgres.NextHead(t.Context(), b.engine, b.log.ID, [32]byte(verify.LogKeyID(oldKey)), postgres.DefaultCadence, true)
		require.ErrorIs(t, err, postgres.ErrKeyChanged)
		b.requireUnsigned(t, before, 9)

		// So the thief signs by itself: the newest tree, as it is.
		leaf := collect[storedLeaf](t, b, `select leaf_index, tenant_id, attempt_id, leaf_hash, leaf, secrets
			from merkle_leaves where leaf_index = 6`)[0]
		sth, checkpoint, err := attestation.SignHead(attestation.Head{
			TreeSize: 8, Timestamp: newest.Timestamp + 1, RootHash: newest.RootHash,
		}, thief)
		require.NoError(t, err)
		forged := storedHead{8, sth.Timestamp, sth.RootHash, sth.Signature, checkpoint}
		evidence := b.evidence(t, leaf, newest)
		evidence.Head, evidence.Checkpoint, evidence.Key = forged.signed(), checkpoint, oldKey
		_, err = evidence.Package()
		require.ErrorIs(t, err, verify.ErrKeyHistory, "with the history it doesn't even hold under the old key")
		evidence.History = nil
		pkg, err := evidence.Package()
		require.NoError(t, err)
		_, err = verify.Package(pkg, verify.Options{VKey: b.presentVKey(t)})
		require.ErrorIs(t, err, verify.ErrUntrustedKey)
		_, err = verify.Package(pkg, verify.Options{VKey: b.log.VKey})
		require.NoError(t, err, "who trusts the old key only and sees no history can't know: give auditors the new key")

		// The signatures of the old key don't become visible either.
		b.tamper(t, `insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id) values ($1, 8, $2, $3, $4)`,
			b.log.ID, forged.Timestamp, forged.RootHash, verify.LogKeyID(oldKey))
		require.False(t, b.store(t, forged))
	}
}
