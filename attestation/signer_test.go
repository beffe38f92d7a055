package attestation_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

const testOrigin = "kapsel.example/log/log_01kaw9xv4xfk3r0r6fcpnh8e5b"

func testSigner(t testing.TB, seed byte) *attestation.Signer {
	s, err := attestation.NewSigner(bytes.Repeat([]byte{seed}, 32), testOrigin)
	require.NoError(t, err)
	return s
}

func testHead(size uint64) attestation.Head {
	return attestation.Head{TreeSize: size, Timestamp: 1764000000000, RootHash: bytes.Repeat([]byte{byte(size)}, 32)}
}

func TestSignTreeHead(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	for _, size := range []uint64{0, 1, 255, verify.MaxTreeSize} {
		sth, err := s.SignTreeHead(testHead(size))
		require.NoError(t, err)
		require.NoError(t, verify.TreeHead(sth, s.PublicKey()))
		again, err := s.SignTreeHead(testHead(size))
		require.NoError(t, err)
		require.Equal(t, sth, again, "two signings of one head give the same bytes")
	}
}

// The vector is computed from the specification: 48 bytes, big-endian, under the seed 01…01.
func TestSignTreeHeadVector(t *testing.T) {
	t.Parallel()
	message := slices.Concat([]byte{0, 0, 0, 0, 0, 0, 1, 0}, []byte{0, 0, 1, 0x9a, 0xb6, 0xcb, 0x30, 0}, bytes.Repeat([]byte{7}, 32))
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	sth, err := testSigner(t, 1).SignTreeHead(attestation.Head{
		TreeSize: 256, Timestamp: 0x19ab6cb3000, RootHash: bytes.Repeat([]byte{7}, 32),
	})
	require.NoError(t, err)
	require.Equal(t, ed25519.Sign(private, message), sth.Signature)
}

func TestSignTreeHeadRefuses(t *testing.T) {
	t.Parallel()
	root := make([]byte, 32)
	for name, head := range map[string]attestation.Head{
		"size 2^53":        {TreeSize: 1 << 53, Timestamp: 1, RootHash: root},
		"size 2^64-1":      {TreeSize: 1<<64 - 1, Timestamp: 1, RootHash: root},
		"negative time":    {TreeSize: 1, Timestamp: -1, RootHash: root},
		"time 2^53":        {TreeSize: 1, Timestamp: 1 << 53, RootHash: root},
		"no root":          {TreeSize: 1, Timestamp: 1},
		"root of 31 bytes": {TreeSize: 1, Timestamp: 1, RootHash: root[:31]},
		"root of 33 bytes": {TreeSize: 1, Timestamp: 1, RootHash: make([]byte, 33)},
	} {
		_, err := testSigner(t, 1).SignTreeHead(head)
		require.ErrorIs(t, err, attestation.ErrHead, name)
	}
}

// x/mod/sumdb/note is what the Go checksum database's clients verify with. It takes line one for what it is and ignores
// line two, whose key ID it doesn't know.
func TestCheckpointIsASignedNote(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	sth, err := s.SignTreeHead(testHead(42))
	require.NoError(t, err)
	checkpoint, err := s.SignCheckpoint(sth)
	require.NoError(t, err)

	verifier, err := note.NewVerifier(s.VKey())
	require.NoError(t, err)
	opened, err := note.Open(checkpoint, note.VerifierList(verifier))
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%s\n42\n%s\n", testOrigin, base64.StdEncoding.EncodeToString(sth.RootHash)), opened.Text)
	require.Len(t, opened.Sigs, 1)
	require.Len(t, opened.UnverifiedSigs, 1)
	require.Equal(t, testOrigin, opened.UnverifiedSigs[0].Name)
	require.Equal(t, verify.STHKeyID(testOrigin, s.PublicKey()), opened.UnverifiedSigs[0].Hash)
	line, err := base64.StdEncoding.DecodeString(opened.UnverifiedSigs[0].Base64)
	require.NoError(t, err)
	require.Len(t, line, 4+8+64)
	require.Equal(t, sth.Signature, line[12:])

	parsed, err := verify.ParseCheckpoint(checkpoint)
	require.NoError(t, err)
	carried, err := parsed.Verify(s.PublicKey())
	require.NoError(t, err)
	require.Equal(t, sth, carried, "the checkpoint carries the signed tree head")

	again, err := s.SignCheckpoint(sth)
	require.NoError(t, err)
	require.Equal(t, checkpoint, again)
}

func TestCheckpointWithAnyByteChangedIsRejected(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	sth, err := s.SignTreeHead(testHead(42))
	require.NoError(t, err)
	checkpoint, err := s.SignCheckpoint(sth)
	require.NoError(t, err)
	for i := range checkpoint {
		changed := bytes.Clone(checkpoint)
		changed[i] ^= 1
		if parsed, err := verify.ParseCheckpoint(changed); err == nil {
			_, err = parsed.Verify(s.PublicKey())
			require.Error(t, err, "byte %d", i)
		}
	}
}

func TestSignCheckpointRefusesHeadsOfOthers(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	sth, err := testSigner(t, 2).SignTreeHead(testHead(42))
	require.NoError(t, err)
	_, err = s.SignCheckpoint(sth)
	require.ErrorIs(t, err, verify.ErrSignature)
	_, err = s.SignCheckpoint(verify.SignedTreeHead{TreeSize: 42, RootHash: make([]byte, 32)})
	require.ErrorIs(t, err, verify.ErrHeadFormat)
}

func TestSignTransition(t *testing.T) {
	t.Parallel()
	older, newer := testSigner(t, 1), testSigner(t, 2)
	transition := verify.Transition{
		Origin: testOrigin, TreeSize: 7, RootHash: make([]byte, 32),
		OldKey: older.PublicKey(), NewKey: newer.PublicKey(), Reason: verify.ReasonRotation,
	}
	oldLine, err := older.SignTransition(transition)
	require.NoError(t, err)
	newLine, err := newer.SignTransition(transition)
	require.NoError(t, err)
	noted, err := attestation.TransitionNote(transition, oldLine, newLine)
	require.NoError(t, err)
	for _, s := range []*attestation.Signer{older, newer} {
		verifier, err := note.NewVerifier(s.VKey())
		require.NoError(t, err)
		_, err = note.Open(noted, note.VerifierList(verifier))
		require.NoError(t, err)
	}
	_, err = attestation.TransitionNote(transition, newLine)
	require.ErrorIs(t, err, attestation.ErrTransition, "a rotation needs the old key's line")
	_, err = attestation.TransitionNote(transition, oldLine)
	require.ErrorIs(t, err, attestation.ErrTransition, "and the new key's")

	transition.Reason = verify.ReasonCompromise
	_, err = older.SignTransition(transition)
	require.ErrorIs(t, err, attestation.ErrTransition, "a compromised key signs no farewell")
	newLine, err = newer.SignTransition(transition)
	require.NoError(t, err)
	_, err = attestation.TransitionNote(transition, newLine)
	require.NoError(t, err)
}

func TestSignTransitionRefuses(t *testing.T) {
	t.Parallel()
	older, newer, other := testSigner(t, 1), testSigner(t, 2), testSigner(t, 3)
	good := verify.Transition{
		Origin: testOrigin, TreeSize: 7, RootHash: make([]byte, 32),
		OldKey: older.PublicKey(), NewKey: newer.PublicKey(), Reason: verify.ReasonRotation,
	}
	_, err := other.SignTransition(good)
	require.ErrorIs(t, err, attestation.ErrTransition, "not its key")
	for name, change := range map[string]func(*verify.Transition){
		"another log":    func(t *verify.Transition) { t.Origin = "kapsel.example/log/other" },
		"size 2^53":      func(t *verify.Transition) { t.TreeSize = 1 << 53 },
		"short root":     func(t *verify.Transition) { t.RootHash = t.RootHash[1:] },
		"unknown reason": func(t *verify.Transition) { t.Reason = "boredom" },
		"line injected":  func(t *verify.Transition) { t.Reason = "rotation\n\n" },
		"same key":       func(t *verify.Transition) { t.OldKey = t.NewKey },
		"no old key":     func(t *verify.Transition) { t.OldKey = nil },
		"low order key":  func(t *verify.Transition) { t.OldKey = make([]byte, 32) },
	} {
		bad := good
		change(&bad)
		_, err := newer.SignTransition(bad)
		require.ErrorIs(t, err, attestation.ErrTransition, name)
	}
}

func TestNewSignerRefuses(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 31, 33, 64} {
		_, err := attestation.NewSigner(make([]byte, n), testOrigin)
		require.ErrorIs(t, err, attestation.ErrSeed)
	}
	for _, origin := range []string{"", "with space", "with+plus", "two\nlines", string(make([]byte, 256))} {
		_, err := attestation.NewSigner(make([]byte, 32), origin)
		require.ErrorIs(t, err, verify.ErrOrigin)
	}
}

// Whatever formats a signer, alone or within another struct, sees no byte of its seed.
func TestFormattingASignerShowsNoKey(t *testing.T) {
	t.Parallel()
	seed := bytes.Repeat([]byte{0xA7}, 32)
	s, err := attestation.NewSigner(seed, testOrigin)
	require.NoError(t, err)
	within := struct{ s attestation.Signer }{*s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, value := range []any{s, *s, within} {
			text := fmt.Sprintf(verb, value)
			for _, spelling := range []string{string(seed[:4]), hex.EncodeToString(seed[:4]), "167 167 167", "0xa7, 0xa7"} {
				require.NotContains(t, text, spelling, verb)
			}
		}
	}
}

// The set of operations is part of the security argument: a new one needs a reason that no message of one kind is a
// message of another.
func TestSignerSignsThreeThings(t *testing.T) {
	t.Parallel()
	var names []string
	for m := range reflect.TypeFor[*attestation.Signer]().Methods() {
		names = append(names, m.Name)
	}
	require.Equal(t, []string{"Origin", "PublicKey", "SignCheckpoint", "SignTransition", "SignTreeHead", "VKey"}, names)
}

func TestPublicKeyIsACopy(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	s.PublicKey()[0] ^= 1
	sth, err := s.SignTreeHead(testHead(1))
	require.NoError(t, err)
	require.NoError(t, verify.TreeHead(sth, s.PublicKey()))
}
