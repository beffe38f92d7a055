package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// cameKey is a key that the log got after the backup was made, and the note by which it came.
type cameKey struct {
	postgres.LogKey
	transition *verify.Transition
	note       []byte
}

// readKeys reads which keys the log has had since the backup: of the file that was named, or of the mirror itself.
func (r *recovery) readKeys(ctx context.Context) error {
	mirrored, err := r.mirroredKeys(ctx)
	if err != nil {
		return err
	}
	all := slices.Clone(r.stored)
	for _, k := range mirrored {
		came, err := r.cameBy(k)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMirror, err)
		}
		if came != nil {
			r.came, all = append(r.came, *came), append(all, came.LogKey)
			r.notes[came.transition.TreeSize] = came.note
		}
	}
	var faults []Fault
	if r.keys, faults = newKeychain(r.Log.Origin, all); len(faults) > 0 {
		return fmt.Errorf("%w: %s", ErrContradiction, faults[0])
	}
	for _, k := range r.stored {
		if k.NotAfter == nil {
			r.keys.chain = []ed25519.PublicKey{k.PublicKey}
		}
	}
	return nil
}

func (r *recovery) mirroredKeys(ctx context.Context) ([]MirroredKey, error) {
	var log *MirroredLog
	if r.Keys != "" {
		text, err := os.ReadFile(r.Keys)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &log); err != nil || log == nil || len(log.Keys) == 0 {
			return nil, fmt.Errorf("%s isn't an answer of /api/v1/attestation/keys: %w", r.Keys, errors.Join(err, errors.New("it has no keys")))
		}
	} else {
		var err error
		if log, err = r.from.log(ctx); err != nil || log == nil {
			return nil, err
		}
	}
	if log.Origin != r.Log.Origin {
		return nil, fmt.Errorf("%w: its keys are those of the log %s", ErrMirror, log.Origin)
	}
	return log.Keys, nil
}

// cameBy returns a key that the database doesn't know and a change of the key after the backup brought; nil if it is none.
func (r *recovery) cameBy(k MirroredKey) (*cameKey, error) {
	if k.Transition == "" { // the first key, one that signs deliveries, or one whose change wasn't published
		return nil, nil
	}
	_, key, err := verify.ParseVKey(k.VKey)
	if err != nil {
		return nil, err
	}
	keyID := verify.LogKeyID(key)
	if slices.ContainsFunc(r.stored, func(s postgres.LogKey) bool { return bytes.Equal(s.KeyID, keyID) }) {
		return nil, nil
	}
	t, err := verify.ParseTransition([]byte(k.Transition))
	if err != nil {
		return nil, err
	}
	if t.TreeSize < r.size || t.TreeSize >= r.target.TreeSize || !t.NewKey.Equal(key) {
		return nil, fmt.Errorf("the change of the key to %x isn't one of the leaves that are missing, %d to %d", keyID, r.size, r.target.TreeSize-1)
	}
	return &cameKey{postgres.LogKey{KeyID: keyID, PublicKey: key, NotBefore: k.NotBefore}, t, []byte(k.Transition)}, nil
}

// readHeads reads the heads that were published after the backup. The newest must be of the tree that the high-water record names.
func (r *recovery) readHeads(ctx context.Context) error {
	after := int64(-1)
	if r.newest != nil {
		after = r.newest.Timestamp
	}
	err := r.from.heads(ctx, func(h *MirroredHead) error {
		if h.Timestamp > after {
			r.heads = append(r.heads, h.published())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMirror, err)
	}
	if err := r.readCheckpoint(ctx); err != nil {
		return err
	}
	last := postgres.Head{Timestamp: -1}
	if r.newest != nil {
		last = r.newest.Head
	}
	for _, h := range r.heads {
		if h.Timestamp <= last.Timestamp || h.TreeSize < last.TreeSize {
			return fmt.Errorf("%w: its heads are out of order at size %d and time %d", ErrMirror, h.TreeSize, h.Timestamp)
		}
		last = h.Head
	}
	switch size := last.TreeSize; {
	case size < r.target.TreeSize:
		return fmt.Errorf("%w: it ends at size %d, and a head of %d leaves may have been published; find one that is newer, or %s",
			ErrMirror, size, r.target.TreeSize, closeIt)
	case size > r.target.TreeSize || last.Timestamp > r.target.Timestamp:
		return fmt.Errorf("%w: a head of %d leaves and time %d was published, the high-water record has %d and %d; it was put back to an older state, or isn't that of the log's workers: find the right one",
			ErrContradiction, size, last.Timestamp, r.target.TreeSize, r.target.Timestamp)
	}
	return nil
}

// readCheckpoint takes the head of the mirror's checkpoint, if it is none of its heads.
func (r *recovery) readCheckpoint(ctx context.Context) error {
	note, err := r.from.file(ctx, checkpointFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no checkpoint in %s", ErrMirror, r.from.name)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMirror, err)
	}
	checkpoint, err := verify.ParseCheckpoint(note)
	if err != nil {
		return fmt.Errorf("%w: checkpoint: %w", ErrMirror, err)
	}
	if checkpoint.Origin != r.Log.Origin {
		return fmt.Errorf("%w: it is one of %s", ErrMirror, checkpoint.Origin)
	}
	if err := r.knowsKeys(checkpoint); err != nil {
		return err
	}
	for _, key := range slices.Backward(r.keys.keys) { // of several lines those of the newest key are the head's
		sth, err := checkpoint.Verify(key)
		if err != nil {
			continue
		}
		for _, h := range r.heads {
			if h.TreeSize == sth.TreeSize && h.Timestamp == sth.Timestamp {
				return nil
			}
		}
		if r.newest == nil || sth.Timestamp > r.newest.Timestamp {
			r.heads = append(r.heads, &postgres.PublishedHead{Checkpoint: note, KeyID: verify.LogKeyID(key), Signature: sth.Signature,
				Head: postgres.Head{TreeSize: sth.TreeSize, Timestamp: sth.Timestamp, RootHash: sth.RootHash}})
		}
		return nil
	}
	return fmt.Errorf("%w: no key of the log has signed its checkpoint, or the log's key was changed since: %s", ErrMirror, nameKeys)
}

const nameKeys = "name with --keys a file with what GET /api/v1/attestation/keys answered after the change; it holds the note that is the leaf"

// knowsKeys refuses a checkpoint with lines of a key that the log got after the backup and nobody told about: its transition
// is among the missing leaves, and would come back as a hash that no one knows to be a change of the key.
func (r *recovery) knowsKeys(c *verify.Checkpoint) error {
	for _, line := range c.Note.Signatures {
		known := line.Name != r.Log.Origin || slices.ContainsFunc(r.keys.keys, func(key ed25519.PublicKey) bool {
			return line.KeyID == verify.CheckpointKeyID(r.Log.Origin, key) || line.KeyID == verify.STHKeyID(r.Log.Origin, key)
		})
		if !known {
			return fmt.Errorf("%w: its checkpoint is signed by a key that the restored database doesn't know, so the log's key was changed after the backup: %s", ErrMirror, nameKeys)
		}
	}
	return nil
}

// walk goes through the sizes of heads and the changes of the key: each head must have the root that its leaves give, and be
// signed by the key that was the log's at its size.
func (r *recovery) walk(ctx context.Context) error {
	tree, err := r.open(ctx)
	if err != nil {
		return err
	}
	stops := map[uint64]bool{r.size: true, r.target.TreeSize: true}
	for _, h := range r.heads {
		if h.TreeSize >= r.size {
			stops[h.TreeSize] = true
			continue
		}
		root, err := postgres.RootOf(ctx, r.Owner, r.Log.ID, h.TreeSize) // published from the backup's leaves, after it was made
		if err != nil {
			return err
		}
		if err := r.checkHead(h, root); err != nil {
			return err
		}
	}
	for n := range r.notes {
		stops[n] = true
	}
	for _, size := range slices.Sorted(maps.Keys(stops)) {
		if err := r.appendTo(tree, size); err != nil {
			return err
		}
		if err := r.atSize(tree, size); err != nil {
			return err
		}
	}
	return r.inOrder()
}

// atSize checks the heads of a size, and takes the change of the key that is the leaf after it.
func (r *recovery) atSize(tree *attestation.Tree, size uint64) error {
	root, err := tree.Root()
	if err != nil {
		return err
	}
	published := size == r.target.TreeSize
	for _, h := range r.heads {
		if h.TreeSize == size {
			published = true
			if err := r.checkHead(h, root); err != nil {
				return err
			}
		}
	}
	if published && size > r.size {
		r.roots = append(r.roots, postgres.SizedRoot{TreeSize: int64(size), RootHash: root})
	}
	note, ok := r.notes[size]
	if !ok {
		return nil
	}
	if !bytes.Equal(r.hashes(size, size+1)[0], leafHashOf(note)) {
		return fmt.Errorf("%w: leaf %d isn't the change of the key that was named", ErrMirror, size)
	}
	t, err := r.keys.transition(note, size, root)
	if err != nil {
		return fmt.Errorf("%w: leaf %d: %w", ErrMirror, size, err)
	}
	keys := make([]postgres.LogKey, len(r.came))
	for i, k := range r.came {
		keys[i] = k.LogKey
	}
	r.change = append(r.change, transitionRow(t, note, keys))
	return nil
}

func (r *recovery) checkHead(h *postgres.PublishedHead, root []byte) error {
	if root == nil {
		return fmt.Errorf("%w: it has a head of %d leaves, and the log never had that size", ErrMirror, h.TreeSize)
	}
	faults := r.keys.checkHead(h, root)
	if len(faults) == 0 {
		return nil
	}
	if faults[0].Kind == HeadKey {
		return fmt.Errorf("%w: %s. If the key was changed after the backup: %s", ErrMirror, faults[0], nameKeys)
	}
	return fmt.Errorf("%w: %s", ErrMirror, faults[0])
}

// inOrder wants keys to come in the order of their leaves.
func (r *recovery) inOrder() error {
	var at time.Time
	for _, c := range r.change {
		if !c.ChangedAt.After(at) {
			return fmt.Errorf("%w: the times of its keys are out of order at leaf %d", ErrMirror, c.TreeSize)
		}
		at = c.ChangedAt
	}
	return nil
}
