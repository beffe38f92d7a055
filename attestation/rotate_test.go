package attestation_test

import (
	"context"
	"crypto/ed25519"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

const testLog = "log_01kaw9xv4xfk3r0r6fcpnh8e5b"

func firstSigner(t *testing.T, dir string) *attestation.Signer {
	t.Helper()
	s, err := attestation.LoadOrCreateSigner(filepath.Join(dir, testLog+".seed"), testOrigin)
	require.NoError(t, err)
	return s
}

func TestFindSignerFindsTheSeedOfEachKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := firstSigner(t, dir)
	signers := []*attestation.Signer{first}
	for _, reason := range []string{verify.ReasonRotation, verify.ReasonCompromise, verify.ReasonRotation} {
		s, err := attestation.PrepareKey(dir, testLog, testOrigin, reason)
		require.NoError(t, err)
		require.NoError(t, attestation.FinishKey(dir, testLog, reason))
		signers = append(signers, s)
	}
	for _, want := range signers {
		got, err := attestation.FindSigner(dir, testLog, testOrigin, want.PublicKey())
		require.NoError(t, err)
		require.Equal(t, want.PublicKey(), got.PublicKey())
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 4, "no mark of a change is left")
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), e.Name())
	}
}

func TestFindSignerNeverTakesAnotherKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stranger := testSigner(t, 9).PublicKey()
	_, err := attestation.FindSigner(dir, testLog, testOrigin, stranger)
	require.ErrorIs(t, err, attestation.ErrNoSeed)
	require.ErrorIs(t, err, fs.ErrNotExist)
	firstSigner(t, dir)
	_, err = attestation.FindSigner(dir, testLog, testOrigin, stranger)
	require.ErrorIs(t, err, attestation.ErrNoSeed)
	require.ErrorContains(t, err, "isn't the log's")

	// Also not where a file has the name of the key, and holds another's seed.
	s, err := attestation.PrepareKey(dir, testLog, testOrigin, verify.ReasonRotation)
	require.NoError(t, err)
	require.NoError(t, attestation.FinishKey(dir, testLog, verify.ReasonRotation))
	paths, err := filepath.Glob(filepath.Join(dir, testLog+".*.seed"))
	require.NoError(t, err)
	require.Len(t, paths, 1)
	require.NoError(t, os.WriteFile(paths[0], []byte(strings.Repeat("ab", 32)+"\n"), 0o600))
	_, err = attestation.FindSigner(dir, testLog, testOrigin, s.PublicKey())
	require.ErrorIs(t, err, attestation.ErrNoSeed)
	require.NoError(t, os.Chmod(paths[0], 0o644))
	_, err = attestation.FindSigner(dir, testLog, testOrigin, s.PublicKey())
	require.ErrorIs(t, err, attestation.ErrSeed)
}

// A crash between any two steps of PrepareKey: the next run comes to the same key.
func TestPrepareKeyGoesOnWithTheSameKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := attestation.PrepareKey(dir, testLog, testOrigin, verify.ReasonRotation)
	require.NoError(t, err)
	paths, err := filepath.Glob(filepath.Join(dir, "*.seed"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(paths[0])) // as before it had its name
	again, err := attestation.PrepareKey(dir, testLog, testOrigin, verify.ReasonRotation)
	require.NoError(t, err)
	require.Equal(t, first.PublicKey(), again.PublicKey())
	again, err = attestation.PrepareKey(dir, testLog, testOrigin, verify.ReasonRotation)
	require.NoError(t, err)
	require.Equal(t, first.PublicKey(), again.PublicKey())

	other, err := attestation.PrepareKey(dir, testLog, testOrigin, verify.ReasonCompromise)
	require.NoError(t, err)
	require.NotEqual(t, first.PublicKey(), other.PublicKey(), "a planned key may be known to a thief too")

	require.NoError(t, attestation.FinishKey(dir, testLog, verify.ReasonRotation))
	require.NoError(t, attestation.FinishKey(dir, testLog, verify.ReasonRotation))
	next, err := attestation.PrepareKey(dir, testLog, testOrigin, verify.ReasonRotation)
	require.NoError(t, err)
	require.NotEqual(t, first.PublicKey(), next.PublicKey())
}

// For 90 days whoever trusts the old key only, with software of another project too, can follow.
func TestACheckpointWithBothKeysLines(t *testing.T) {
	t.Parallel()
	older, newer := testSigner(t, 1), testSigner(t, 2)
	sth, checkpoint, err := attestation.SignHead(testHead(42), newer, older)
	require.NoError(t, err)
	require.NoError(t, verify.TreeHead(sth, newer.PublicKey()))
	for _, s := range []*attestation.Signer{older, newer} {
		verifier, err := note.NewVerifier(s.VKey())
		require.NoError(t, err)
		_, err = note.Open(checkpoint, note.VerifierList(verifier))
		require.NoError(t, err)
		parsed, err := verify.ParseCheckpoint(checkpoint)
		require.NoError(t, err)
		head, err := parsed.Verify(s.PublicKey())
		require.NoError(t, err)
		require.EqualValues(t, 42, head.TreeSize)
	}
	require.Equal(t, 4, strings.Count(string(checkpoint), "\n— "+testOrigin+" "))
	alone, err := newer.SignCheckpoint(sth)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(checkpoint), string(alone)), "the log's own lines come first")
	_, again, err := attestation.SignHead(testHead(42), newer, older)
	require.NoError(t, err)
	require.Equal(t, checkpoint, again)
}

func TestOverlapping(t *testing.T) {
	t.Parallel()
	day := (24 * time.Hour).Milliseconds()
	key := func(n byte) ed25519.PublicKey { return testSigner(t, n).PublicKey() }
	rotation := func(n byte, until int64) attestation.FormerKey {
		return attestation.FormerKey{Key: key(n), Reason: verify.ReasonRotation, Until: until * day}
	}
	compromise := attestation.FormerKey{Key: key(3), Reason: verify.ReasonCompromise, Until: 110 * day}
	for name, c := range map[string]struct {
		former []attestation.FormerKey
		at     int64
		want   []ed25519.PublicKey
	}{
		"a key that was never changed":        {nil, 100 * day, nil},
		"within 90 days":                      {[]attestation.FormerKey{rotation(1, 100)}, 190*day - 1, []ed25519.PublicKey{key(1)}},
		"after 90 days":                       {[]attestation.FormerKey{rotation(1, 100)}, 190 * day, nil},
		"two rotations":                       {[]attestation.FormerKey{rotation(1, 50), rotation(2, 100)}, 120 * day, []ed25519.PublicKey{key(1), key(2)}},
		"two rotations, one of them long ago": {[]attestation.FormerKey{rotation(1, 10), rotation(2, 100)}, 120 * day, []ed25519.PublicKey{key(2)}},
		"a compromise ends all":               {[]attestation.FormerKey{rotation(1, 50), rotation(2, 100), compromise}, 120 * day, nil},
		"a rotation after a compromise":       {[]attestation.FormerKey{rotation(1, 50), compromise, rotation(4, 115)}, 120 * day, []ed25519.PublicKey{key(4)}},
	} {
		require.Equal(t, c.want, attestation.Overlapping(c.former, c.at), name)
	}
}

func TestTransitIsSignedByBothOrByTheNewKeyOnly(t *testing.T) {
	t.Parallel()
	older, newer := testSigner(t, 1), testSigner(t, 2)
	for _, c := range []struct {
		older  *attestation.Signer
		reason string
		lines  int
	}{{older, verify.ReasonRotation, 2}, {nil, verify.ReasonCompromise, 1}} {
		text, err := attestation.Transit(7, make([]byte, 32), older.PublicKey(), c.older, newer)
		require.NoError(t, err)
		got, err := verify.ParseTransition(text)
		require.NoError(t, err)
		require.NoError(t, got.Verify())
		require.Equal(t, c.reason, got.Reason)
		require.EqualValues(t, 7, got.TreeSize)
		require.Len(t, got.Note.Signatures, c.lines)
	}
	_, err := attestation.Transit(7, make([]byte, 32), newer.PublicKey(), nil, newer)
	require.ErrorIs(t, err, attestation.ErrTransition)
}

func TestContinues(t *testing.T) {
	t.Parallel()
	record := attestation.NewHighWater(filepath.Join(t.TempDir(), "record"), testOrigin)
	rootOf := func(root []byte) func(context.Context, uint64) ([]byte, error) {
		return func(context.Context, uint64) ([]byte, error) { return root, nil }
	}
	require.ErrorIs(t, record.Continues(t.Context(), rootOf(nil)), attestation.ErrHighWaterMissing)
	require.NoError(t, record.Init())
	require.NoError(t, record.Continues(t.Context(), rootOf(verify.EmptyRoot())))
	require.ErrorIs(t, record.Continues(t.Context(), rootOf(nil)), attestation.ErrHighWaterConflict)
	require.ErrorIs(t, record.Continues(t.Context(), rootOf(make([]byte, 32))), attestation.ErrHighWaterConflict)
}
