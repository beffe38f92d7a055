package attestation_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

// A key that is kept elsewhere signs the same bytes, and whatever else comes from there goes no further.
func TestRemoteSigner(t *testing.T) {
	t.Parallel()
	seed := sha512.Sum512([]byte("seed"))
	private := ed25519.NewKeyFromSeed(seed[:32])
	public := private.Public().(ed25519.PublicKey)
	const origin = "kapsel.example/log/log_1"
	local, err := attestation.NewSigner(seed[:32], origin)
	require.NoError(t, err)
	answer := func(message []byte) ([]byte, error) { return ed25519.Sign(private, message), nil }
	remote, err := attestation.NewRemoteSigner(public, origin, func(message []byte) ([]byte, error) { return answer(message) })
	require.NoError(t, err)
	head := attestation.Head{TreeSize: 3, Timestamp: 1, RootHash: seed[32:]}
	transition := verify.Transition{
		Origin: origin, TreeSize: 3, RootHash: seed[32:], OldKey: public,
		NewKey: ed25519.NewKeyFromSeed(seed[16:48]).Public().(ed25519.PublicKey), Reason: verify.ReasonRotation,
	}
	wantSTH, wantCheckpoint, err := attestation.SignHead(head, local)
	require.NoError(t, err)
	wantLine, err := local.SignTransition(transition)
	require.NoError(t, err)
	sth, checkpoint, err := attestation.SignHead(head, remote)
	require.NoError(t, err)
	line, err := remote.SignTransition(transition)
	require.NoError(t, err)
	require.Equal(t, wantSTH, sth)
	require.Equal(t, wantCheckpoint, checkpoint)
	require.Equal(t, wantLine, line)

	away := errors.New("away")
	for name, wrong := range map[string]func(message []byte) ([]byte, error){
		"away":       func([]byte) ([]byte, error) { return nil, away },
		"nothing":    func([]byte) ([]byte, error) { return nil, nil },
		"short":      func(message []byte) ([]byte, error) { return ed25519.Sign(private, message)[:63], nil },
		"long":       func(message []byte) ([]byte, error) { return append(ed25519.Sign(private, message), 0), nil },
		"zeros":      func([]byte) ([]byte, error) { return make([]byte, 64), nil },
		"other text": func(message []byte) ([]byte, error) { return ed25519.Sign(private, append(message, 0)), nil },
		"other key": func(message []byte) ([]byte, error) {
			return ed25519.Sign(ed25519.NewKeyFromSeed(seed[32:]), message), nil
		},
		"hashed first": func(message []byte) ([]byte, error) {
			h := sha512.Sum512(message)
			return ed25519.Sign(private, h[:]), nil
		},
	} {
		answer = wrong
		_, err := remote.SignTreeHead(head)
		require.ErrorIs(t, err, attestation.ErrSigner, name)
		_, err = remote.SignCheckpoint(wantSTH)
		require.ErrorIs(t, err, attestation.ErrSigner, name)
		_, err = remote.SignTransition(transition)
		require.ErrorIs(t, err, attestation.ErrSigner, name)
		require.Equal(t, name == "away", errors.Is(err, away))
	}

	_, err = attestation.NewRemoteSigner(make([]byte, 32), origin, answer)
	require.ErrorIs(t, err, verify.ErrKey)
	_, err = attestation.NewRemoteSigner(public, "no origin", answer)
	require.ErrorIs(t, err, verify.ErrOrigin)
}

// Check tells what would go wrong, and changes nothing.
func TestCheck(t *testing.T) {
	t.Parallel()
	seed := sha512.Sum512([]byte("seed"))
	const origin = "kapsel.example/log/log_1"
	signer, err := attestation.NewSigner(seed[:32], origin)
	require.NoError(t, err)
	record := attestation.NewHighWater(filepath.Join(t.TempDir(), "record"), origin)
	require.ErrorIs(t, attestation.Check(t.Context(), record, signer), attestation.ErrHighWaterMissing)
	require.NoError(t, record.Init())
	require.NoError(t, attestation.Check(t.Context(), record, signer), "a log that has signed nothing yet")
	head := attestation.Head{TreeSize: 3, Timestamp: 1, RootHash: seed[32:]}
	require.NoError(t, record.Advance(t.Context(), head))
	require.NoError(t, attestation.Check(t.Context(), record, signer))
	recorded, err := record.Read()
	require.NoError(t, err)
	require.Equal(t, head, recorded)

	away, err := attestation.NewRemoteSigner(signer.PublicKey(), origin, func([]byte) ([]byte, error) { return nil, errors.New("away") })
	require.NoError(t, err)
	require.ErrorIs(t, attestation.Check(t.Context(), record, away), attestation.ErrSigner)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, attestation.Check(done, record, signer), "nobody holds the lock")
}

// A leaf is made again, to the byte, from what is recorded beside it and its parts.
func TestLeafParts(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("ab", 32)
	for name, entry := range map[string]attestation.Entry{
		"answered":  {Kind: "attempt", Outcome: "delivered", Number: 2, Seq: 2, PreviousLeafHash: make([]byte, 32), LostStarts: 3, URLHash: hash, HeadersHash: strings.Repeat("cd", 32), ResponseHash: strings.Repeat("ef", 32), ResponseStatus: 200, ResponseSize: 2},
		"timed out": {Kind: "attempt", Outcome: "retry", Error: "timeout", Number: 1, Seq: 1, URLHash: hash, HeadersHash: hash},
		"skipped":   {Kind: "skipped", Outcome: "filter", Seq: 1},
	} {
		entry.Origin, entry.At, entry.EndpointURL, entry.PayloadHash = "kapsel.example/log/log_1", time.Now(), "https://example.com/in", make([]byte, 32)
		entry.Tenant, entry.Endpoint, entry.Event, entry.Destination, entry.Delivery, entry.Attempt = uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New()
		entry.Nonce = attestation.NewNonce()
		leaf, leafHash, err := entry.Leaf()
		require.NoError(t, err, name)
		parts, err := entry.Parts()
		require.NoError(t, err)
		again := entry
		again.Nonce, again.LostStarts, again.URLHash, again.HeadersHash, again.ResponseHash = "", 0, "x", "", ""
		require.NoError(t, again.AddParts(parts))
		made, madeHash, err := again.Leaf()
		require.NoError(t, err)
		require.Equal(t, string(leaf), string(made), name)
		require.Equal(t, leafHash, madeHash)

		for n := range len(parts) {
			require.ErrorIs(t, again.AddParts(parts[:n]), attestation.ErrLeafParts)
		}
		require.ErrorIs(t, again.AddParts(append(parts, 0)), attestation.ErrLeafParts)
		require.ErrorIs(t, again.AddParts(append([]byte{2}, parts[1:]...)), attestation.ErrLeafParts)
	}
	_, err := (&attestation.Entry{}).Parts()
	require.ErrorIs(t, err, attestation.ErrLeafParts)
	_, err = (&attestation.Entry{Nonce: hex.EncodeToString(make([]byte, 16)), URLHash: "ab"}).Parts()
	require.ErrorIs(t, err, attestation.ErrLeafParts)
}
