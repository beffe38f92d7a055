package attestation

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kapsel-io/kapsel/verify"
)

// A log's seeds lie in one directory. The first key's is <log>.seed; that of a key which came by a transition is
// <log>.<first 16 hex digits of the key ID>.seed, so that old and new lie beside each other and a worker finds the one
// that the database says is the log's. While a change of the key is under way, its seed is also <log>.<reason>.next: a
// second run of the command after a crash goes on with the same key.

// Overlap is how long after a rotation checkpoints also carry the lines of the key that was given up.
const Overlap = 90 * 24 * time.Hour

// ErrNoSeed is returned where no seed of the log's key is to be had. Nothing else may sign in its place.
var ErrNoSeed = errors.New("the seed of the log's key is missing, so the log signs nothing: " +
	"copy it into LOG_KEY_DIR from where `kapsel log rotate` or `kapsel log init` ran, or let all workers share that directory")

// seedPath names the seed file of a key that came by a transition.
func seedPath(dir, log string, key ed25519.PublicKey) string {
	return filepath.Join(dir, log+"."+hex.EncodeToString(verify.LogKeyID(key)[:8])+".seed")
}

// firstSeedPath names the seed file of a log's first key.
func firstSeedPath(dir, log string) string { return filepath.Join(dir, log+".seed") }

func nextSeedPath(dir, log, reason string) string { return filepath.Join(dir, log+"."+reason+".next") }

// FindSigner loads the signer of one key of a log. The error wraps ErrNoSeed if there are seeds of other keys only, and also
// fs.ErrNotExist if there are none, or ErrSeed (see LoadSigner).
func FindSigner(dir, log, origin string, key ed25519.PublicKey) (*Signer, error) {
	for _, path := range []string{seedPath(dir, log, key), firstSeedPath(dir, log)} {
		signer, err := LoadSigner(path, origin)
		if err == nil && signer.public.Equal(key) {
			return signer, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err != nil && path == firstSeedPath(dir, log) {
			return nil, fmt.Errorf("find seed of key %x in %s: %w: %w", verify.LogKeyID(key)[:8], dir, ErrNoSeed, err)
		}
	}
	return nil, fmt.Errorf("the key in %s isn't the log's, which is %x: %w", dir, verify.LogKeyID(key)[:8], ErrNoSeed)
}

// PrepareKey makes the key that a log is to change to, and stores its seed under the name that FindSigner looks for. Called
// again before FinishKey, it returns the same key.
func PrepareKey(dir, log, origin, reason string) (*Signer, error) {
	next := nextSeedPath(dir, log, reason)
	signer, err := LoadOrCreateSigner(next, origin)
	if err != nil {
		return nil, fmt.Errorf("prepare key: %w", err)
	}
	path := seedPath(dir, log, signer.public)
	if err := os.Link(next, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("prepare key: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return nil, fmt.Errorf("prepare key: %w", err)
	}
	stored, err := LoadSigner(path, origin)
	if err != nil {
		return nil, fmt.Errorf("prepare key: %w", err)
	}
	if !stored.public.Equal(signer.public) {
		return nil, fmt.Errorf("prepare key: %s holds the seed of another key; move it away: %w", path, ErrSeed)
	}
	return signer, nil
}

// FinishKey forgets that a change of the key was under way, once it is committed or of no use any more. The seed stays,
// under the name of its key.
func FinishKey(dir, log, reason string) error {
	err := os.Remove(nextSeedPath(dir, log, reason))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("finish key: %w", err)
	}
	return nil
}

// Transit writes the note that changes a log's key at the given size and root. The old signer is nil after a compromise:
// its key says nothing any more. The error wraps ErrTransition.
func Transit(size uint64, root []byte, oldKey ed25519.PublicKey, older, newer *Signer) ([]byte, error) {
	t := verify.Transition{
		Origin: newer.origin, TreeSize: size, RootHash: root, OldKey: oldKey, NewKey: newer.public, Reason: verify.ReasonCompromise,
	}
	signers := []*Signer{newer}
	if older != nil {
		t.Reason, signers = verify.ReasonRotation, []*Signer{older, newer}
	}
	lines := make([]verify.NoteSignature, len(signers))
	for i, s := range signers {
		var err error
		if lines[i], err = s.SignTransition(t); err != nil {
			return nil, err
		}
	}
	return TransitionNote(t, lines...)
}

// SignHead signs a head and its checkpoint with a log's key. The checkpoint also carries both lines of each key in older,
// those that were given up by a rotation less than Overlap ago: whoever still trusts only such a key can follow for that
// time.
func SignHead(head Head, signer *Signer, older ...*Signer) (verify.SignedTreeHead, []byte, error) {
	sth, checkpoint, err := signBoth(head, signer)
	if err != nil {
		return verify.SignedTreeHead{}, nil, err
	}
	for _, o := range older {
		_, other, err := signBoth(head, o)
		if err != nil {
			return verify.SignedTreeHead{}, nil, fmt.Errorf("sign with an earlier key: %w", err)
		}
		_, lines, _ := bytes.Cut(other, []byte("\n\n"))
		checkpoint = append(checkpoint, lines...)
	}
	if _, err := verify.ParseCheckpoint(checkpoint); err != nil {
		return verify.SignedTreeHead{}, nil, fmt.Errorf("sign head: %w", err)
	}
	return sth, checkpoint, nil
}

func signBoth(head Head, s *Signer) (verify.SignedTreeHead, []byte, error) {
	sth, err := s.SignTreeHead(head)
	if err != nil {
		return verify.SignedTreeHead{}, nil, err
	}
	checkpoint, err := s.SignCheckpoint(sth)
	return sth, checkpoint, err
}

// FormerKey is a key that a log gave up.
type FormerKey struct {
	Key    ed25519.PublicKey
	Reason string // verify.ReasonRotation or verify.ReasonCompromise
	Until  int64  // Unix ms
}

// Overlapping picks, from a log's former keys in the order of time, those whose lines belong under a head of the given
// time (Unix ms): given up by a rotation less than Overlap before, and before nothing that was compromised.
func Overlapping(former []FormerKey, timestamp int64) []ed25519.PublicKey {
	var keys []ed25519.PublicKey
	for _, f := range former {
		switch {
		case f.Reason == verify.ReasonCompromise:
			keys = nil // trust starts anew
		case timestamp < f.Until+Overlap.Milliseconds():
			keys = append(keys, f.Key)
		}
	}
	return keys
}

// Continues refuses to go on with a log that isn't the continuation of what was published: one that is smaller than it
// once was, because its database was restored from an old backup, or that has another root at the published size, because
// two databases were once sealed. Other leaves at published indexes would be a second tree, and to grow it beyond the
// record would hide that. rootOf returns nil for a size that the log never had.
func (w *HighWater) Continues(ctx context.Context, rootOf func(ctx context.Context, size uint64) ([]byte, error)) error {
	recorded, err := w.Read()
	if err != nil {
		return err
	}
	root, err := rootOf(ctx, recorded.TreeSize)
	if err != nil {
		return err
	}
	switch {
	case root == nil:
		return fmt.Errorf("a head of %d leaves was published, and the log has none of that size: %w", recorded.TreeSize, ErrHighWaterConflict)
	case !bytes.Equal(root, recorded.RootHash):
		return fmt.Errorf("the log has another root at size %d than was published: %w", recorded.TreeSize, ErrHighWaterConflict)
	}
	return nil
}
