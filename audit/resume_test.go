package audit_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/verify"
)

// A check that is killed at any moment goes on from the state that was saved last, and says the same in the end as one that
// wasn't: here from each state that there ever was.
func TestAKilledCheckGoesOn(t *testing.T) {
	t.Parallel()
	b := sealed(t, 700, 1, 500)
	b.rotate(t, verify.ReasonRotation, nil)
	b.queue(t, b.tenant, 600)
	b.seal(t) // 1,802 leaves
	for _, sql := range []string{
		"delete from merkle_leaves where leaf_index between 200 and 300",
		"update merkle_leaves set leaf = 'x' where leaf_index = 1700",
		"update merkle_tiles set hashes = set_byte(hashes, 32*5, 255 - get_byte(hashes, 32*5)) where level = 1",
		"update tree_roots set root_hash = sha256('') where tree_size = 701",
		"update signed_tree_heads set signature = sha512('') where tree_size = 1202",
		"delete from merkle_tiles where level = 0 and tile_index = 3",
	} {
		b.tamper(t, sql)
	}
	file := filepath.Join(t.TempDir(), "fsck.json")
	var states [][]byte
	report, faults := b.fsck(t, func(c *audit.FsckConfig) {
		c.Step(1)
		c.StateFile = file
		c.Progress = func(audit.Progress) {
			state, err := os.ReadFile(file)
			require.NoError(t, err)
			info, err := os.Stat(file)
			require.NoError(t, err)
			require.EqualValues(t, 0o600, info.Mode().Perm())
			states = append(states, state)
		}
	})
	require.NoFileExists(t, file, "nothing is left to go on with")
	require.Len(t, where(faults), 7, where(faults))
	require.Len(t, states, 8, "the last one is that of the last whole tile, twice")
	for _, state := range states {
		file := filepath.Join(t.TempDir(), "fsck.json")
		require.NoError(t, os.WriteFile(file, state, 0o600))
		again, resumed := b.fsck(t, func(c *audit.FsckConfig) { c.StateFile = file })
		require.Equal(t, where(faults), where(resumed))
		require.NotZero(t, again.Resumed)
		again.Resumed = 0
		require.Equal(t, report, again)
	}
}

// Stopped by its context, as by Ctrl-C, a check leaves its state; it goes on with the log as it is by then.
func TestAStoppedCheckGoesOnWithAGrownLog(t *testing.T) {
	t.Parallel()
	b := sealed(t, 1024)
	file := filepath.Join(t.TempDir(), "fsck.json")
	ctx, stop := context.WithCancel(t.Context())
	config := audit.FsckConfig{DB: b.engine, Log: b.row, StateFile: file, Progress: func(p audit.Progress) {
		if p.Leaves == 512 {
			stop()
		}
	}}
	config.Step(1)
	_, err := audit.Fsck(ctx, config)
	require.ErrorIs(t, err, context.Canceled)
	b.queue(t, b.tenant, 1000)
	b.seal(t)
	report, faults := b.fsck(t, func(c *audit.FsckConfig) { c.StateFile = file })
	require.Empty(t, where(faults))
	require.NotZero(t, report.Resumed)
	require.EqualValues(t, 2024, report.Leaves)
}

// A state of another log, or what isn't one, is no reason to skip anything.
func TestAStateThatCantBeUsedIsRefused(t *testing.T) {
	t.Parallel()
	b := sealed(t, 600)
	file := filepath.Join(t.TempDir(), "fsck.json")
	var state map[string]any
	_, _ = b.fsck(t, func(c *audit.FsckConfig) {
		c.Step(1)
		c.StateFile = file
		c.Progress = func(audit.Progress) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(text, &state))
		}
	})
	for member, wrong := range map[string]any{
		"format": "kapsel.fsck/v0", "log_id": "log_01h455vb4pex5vsknk084sn02q", "next": 257, "chain": []string{"ab", "cd", "ef"}, "levels": []string{"AAAA"},
	} {
		changed := map[string]any{}
		for k, v := range state {
			changed[k] = v
		}
		changed[member] = wrong
		text, err := json.Marshal(changed)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, text, 0o600))
		_, err = audit.Fsck(t.Context(), audit.FsckConfig{DB: b.engine, Log: b.row, StateFile: file})
		require.Error(t, err, member)
	}
	require.NoError(t, os.WriteFile(file, []byte(`{"format":`), 0o600))
	_, err := audit.Fsck(t.Context(), audit.FsckConfig{DB: b.engine, Log: b.row, StateFile: file})
	require.ErrorContains(t, err, "remove it to begin anew")

	// A log that is smaller than what an earlier run has seen was cut back, or restored.
	changed := map[string]any{}
	for k, v := range state {
		changed[k] = v
	}
	changed["next"] = 1024
	text, err := json.Marshal(changed)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, text, 0o600))
	_, faults := b.fsck(t, func(c *audit.FsckConfig) { c.StateFile = file })
	require.Equal(t, []string{"rollback: size 600"}, where(faults))
}

// Beside workers that queue, seal and publish, a sound log is sound.
func TestACheckBesideASealingWorker(t *testing.T) {
	t.Parallel()
	b := sealed(t, 300)
	ctx, stop := context.WithCancel(t.Context())
	var worker sync.WaitGroup
	worker.Go(func() {
		sealing := b.sealing()
		for ctx.Err() == nil {
			if err := b.enqueue(ctx, b.tenant, 37); err != nil {
				continue
			}
			_ = sealing.SealNow(ctx, b.log.ID)
		}
	})
	seen := uint64(0)
	for range 40 {
		report, faults := b.fsck(t)
		require.Empty(t, where(faults))
		seen = report.TreeSize
	}
	stop()
	worker.Wait()
	require.Greater(t, seen, uint64(300), "the log grew meanwhile")
	b.seal(t)
	b.requireSound(t, int(value[int64](t, b.owner, "select tree_size from log_heads")))
}

func TestALogWithoutAHeadCantBeChecked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := audit.Fsck(t.Context(), audit.FsckConfig{DB: b.engine, Log: b.row})
	require.ErrorIs(t, err, audit.ErrNoHead)
}

// Erasure leaves the hash; that is all the tree needs.
func TestErasedLeavesAreSound(t *testing.T) {
	t.Parallel()
	b := sealed(t, 300)
	b.exec(t, "update merkle_leaves set leaf = null, secrets = null where leaf_index in (3, 299)")
	report, faults := b.fsck(t)
	require.Empty(t, where(faults))
	require.EqualValues(t, 2, report.Erased)
}

// A key transition is a leaf; heads before it are under the old key, later ones under the new key.
func TestKeysChangeAtTransitions(t *testing.T) {
	t.Parallel()
	b := sealed(t, 300)
	first := b.signer(t)
	b.rotate(t, verify.ReasonRotation, nil)
	b.queue(t, b.tenant, 10)
	b.seal(t)
	b.rotate(t, verify.ReasonCompromise, nil)
	report, faults := b.fsck(t, func(c *audit.FsckConfig) { c.Key = first.PublicKey() })
	require.Empty(t, where(faults))
	require.Equal(t, 3, report.Keys)
	require.EqualValues(t, 312, report.TreeSize)

	stranger, err := attestation.NewSigner(make([]byte, 32), b.log.Origin)
	require.NoError(t, err)
	_, faults = b.fsck(t, func(c *audit.FsckConfig) { c.Key = stranger.PublicKey() })
	require.Len(t, faults, 1)
	require.Equal(t, audit.Key, faults[0].Kind)

	// Who has the old key makes a head that verifies with it, and with the key ID of the new one or of its own.
	root := value[[]byte](t, b.owner, "select root_hash from tree_roots where tree_size = 311")
	sth, err := first.SignTreeHead(attestation.Head{TreeSize: 311, Timestamp: value[int64](t, b.owner, `select "timestamp" from signed_tree_heads where tree_size = 311`), RootHash: root})
	require.NoError(t, err)
	checkpoint, err := first.SignCheckpoint(sth)
	require.NoError(t, err)
	b.tamper(t, "update signed_tree_heads set signature = $1, checkpoint = $2 where tree_size = 311", sth.Signature, checkpoint)
	_, faults = b.fsck(t)
	require.Equal(t, []string{audit.Signature, audit.Checkpoint}, kinds(faults))
	b.tamper(t, "update signed_tree_heads set key_id = $1 where tree_size = 311", verify.LogKeyID(first.PublicKey()))
	_, faults = b.fsck(t)
	require.Equal(t, []string{audit.HeadKey, audit.Signature, audit.Checkpoint}, kinds(faults))
}

func kinds(faults []audit.Fault) []string {
	var list []string
	for _, f := range faults {
		list = append(list, f.Kind)
	}
	return list
}

// A transition must be of this log, at its own place, from the key in effect to one of the log's.
func TestATransitionMustHoldWhereItStands(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*verify.Transition){
		"another size": func(tr *verify.Transition) { tr.TreeSize-- },
		"another root": func(tr *verify.Transition) { tr.RootHash = verify.EmptyRoot() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sealed(t, 20)
			b.rotate(t, verify.ReasonRotation, change)
			_, faults := b.fsck(t)
			require.Contains(t, where(faults), "leaf_format: leaf 20")
		})
	}
	t.Run("a key that isn't the log's", func(t *testing.T) {
		t.Parallel()
		b := sealed(t, 20)
		b.rotate(t, verify.ReasonRotation, nil)
		b.tamper(t, "delete from attestation_keys where not_after is null")
		_, faults := b.fsck(t)
		require.Contains(t, where(faults), "leaf_format: leaf 20")
	})
	t.Run("erased", func(t *testing.T) {
		t.Parallel()
		b := sealed(t, 20)
		b.rotate(t, verify.ReasonRotation, nil)
		b.exec(t, "update merkle_leaves set leaf = null, secrets = null where leaf_index = 20")
		_, faults := b.fsck(t)
		require.Contains(t, where(faults), "leaf_row: leaf 20")
	})
}

// After a rotation checkpoints may carry lines of both keys; each under the log's name must verify.
func TestCheckpointsWithLinesOfSeveralKeys(t *testing.T) {
	t.Parallel()
	b := sealed(t, 20)
	old := b.signer(t)
	b.rotate(t, verify.ReasonRotation, nil)
	head, err := attestation.NewSigner(make([]byte, 32), b.log.Origin)
	require.NoError(t, err)
	note := value[[]byte](t, b.owner, "select checkpoint from signed_tree_heads where tree_size = 21")
	root := value[[]byte](t, b.owner, "select root_hash from tree_roots where tree_size = 21")
	timestamp := value[int64](t, b.owner, `select "timestamp" from signed_tree_heads where tree_size = 21`)
	withLinesOf := func(s *attestation.Signer) []byte {
		sth, err := s.SignTreeHead(attestation.Head{TreeSize: 21, Timestamp: timestamp, RootHash: root})
		require.NoError(t, err)
		own, err := s.SignCheckpoint(sth)
		require.NoError(t, err)
		parsed, err := verify.ParseNote(own)
		require.NoError(t, err)
		both, err := verify.ParseNote(note)
		require.NoError(t, err)
		both.Signatures = append(both.Signatures, parsed.Signatures...)
		return both.Bytes()
	}
	b.tamper(t, "update signed_tree_heads set checkpoint = $1 where tree_size = 21", withLinesOf(old))
	b.requireSound(t, 21)
	b.tamper(t, "update signed_tree_heads set checkpoint = $1 where tree_size = 21", withLinesOf(head))
	_, faults := b.fsck(t)
	require.Equal(t, []string{audit.Checkpoint}, kinds(faults))
	wrong, err := verify.ParseNote(withLinesOf(old))
	require.NoError(t, err)
	wrong.Signatures[3].Signature[20] ^= 1
	b.tamper(t, "update signed_tree_heads set checkpoint = $1 where tree_size = 21", wrong.Bytes())
	_, faults = b.fsck(t)
	require.Equal(t, []string{audit.Checkpoint}, kinds(faults))
}

// A checkpoint that somebody kept shows a second tree, which the database alone can't.
func TestACheckpointThatWasKeptElsewhere(t *testing.T) {
	t.Parallel()
	b := sealed(t, 300, 300)
	kept := value[[]byte](t, b.owner, "select checkpoint from signed_tree_heads where tree_size = 300")
	withKept := func(note []byte) func(*audit.FsckConfig) {
		return func(c *audit.FsckConfig) { c.Checkpoint = note }
	}
	_, faults := b.fsck(t, withKept(kept))
	require.Empty(t, where(faults))

	sign := func(size uint64, root []byte) []byte {
		sth, err := b.signer(t).SignTreeHead(attestation.Head{TreeSize: size, Timestamp: 1, RootHash: root})
		require.NoError(t, err)
		note, err := b.signer(t).SignCheckpoint(sth)
		require.NoError(t, err)
		return note
	}
	for size, want := range map[uint64]string{0: "rollback: size 0", 77: "rollback: size 77", 300: "rollback: size 300", 600: "rollback: size 600", 601: "rollback: size 601"} {
		_, faults = b.fsck(t, withKept(sign(size, verify.LeafHash(nil))))
		require.Equal(t, []string{want}, where(faults))
	}
	stranger, err := attestation.NewSigner(make([]byte, 32), b.log.Origin)
	require.NoError(t, err)
	sth, err := stranger.SignTreeHead(attestation.Head{TreeSize: 300, Timestamp: 1, RootHash: verify.EmptyRoot()})
	require.NoError(t, err)
	note, err := stranger.SignCheckpoint(sth)
	require.NoError(t, err)
	_, err = audit.Fsck(t.Context(), audit.FsckConfig{DB: b.engine, Log: b.row, Checkpoint: note})
	require.ErrorContains(t, err, "no key of the log has signed the checkpoint", "it says nothing about this log")
}
