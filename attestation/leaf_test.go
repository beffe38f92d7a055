package attestation_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

// The expected value was computed with Python's hmac from the formula in the documentation.
func TestAttemptSecretVector(t *testing.T) {
	t.Parallel()
	delivery := uuid.MustParse("019aab00-0102-7304-8506-0708090a0b0c")
	secret := attestation.AttemptSecret(bytes.Repeat([]byte{3}, 32), delivery, 258)
	require.Equal(t, "6617a17f6bd3715318ac1dc1735620ceda8f52535ab8124fb49ddc993f6ed519", hex.EncodeToString(secret))
}

func TestAttemptSecretsDiffer(t *testing.T) {
	t.Parallel()
	event := attestation.NewSecret()
	deliveryA, deliveryB := uuid.New(), uuid.New()
	seen := map[string]bool{}
	for _, secret := range [][]byte{
		attestation.AttemptSecret(event, deliveryA, 0),
		attestation.AttemptSecret(event, deliveryA, 1),
		attestation.AttemptSecret(event, deliveryA, 256),
		attestation.AttemptSecret(event, deliveryB, 1),
		attestation.AttemptSecret(attestation.NewSecret(), deliveryA, 1),
	} {
		require.Len(t, secret, attestation.SecretSize)
		seen[string(secret)] = true
	}
	require.Len(t, seen, 5)
	require.Equal(t, attestation.AttemptSecret(event, deliveryA, 1), attestation.AttemptSecret(event, deliveryA, 1))
}

func TestSaltsOf(t *testing.T) {
	t.Parallel()
	payload, secret := attestation.NewSecret(), attestation.NewSecret()
	salts, err := attestation.SaltsOf(payload, secret)
	require.NoError(t, err)
	require.EqualValues(t, payload, salts.Payload)
	all := map[string]bool{string(secret): true}
	for _, salt := range []verify.Hex{salts.Payload, salts.Response, salts.URL, salts.Headers} {
		require.Len(t, salt, verify.SaltSize)
		all[string(salt)] = true
	}
	require.Len(t, all, 5, "four salts, all different, none of them the secret")

	for _, n := range []int{0, 31, 33} {
		_, err = attestation.SaltsOf(make([]byte, n), secret)
		require.ErrorIs(t, err, attestation.ErrSecret)
		_, err = attestation.SaltsOf(payload, make([]byte, n))
		require.ErrorIs(t, err, attestation.ErrSecret)
	}
}

// C("payload", salt, x) written out: "kapsel.io/payload/v1", a zero byte, the salt, the octets.
func TestCommit(t *testing.T) {
	t.Parallel()
	salt := bytes.Repeat([]byte{9}, 32)
	want := sha256.Sum256(append(append([]byte("kapsel.io/payload/v1\x00"), salt...), `{"a":1}`...))
	require.Equal(t, hex.EncodeToString(want[:]), attestation.Commit(verify.LabelPayload, salt, []byte(`{"a":1}`)))
	require.Len(t, attestation.Commit(verify.LabelResponse, salt, nil), 64, "an empty body is committed to as well")
	require.NotEqual(t, attestation.Commit(verify.LabelResponse, salt, nil), attestation.Commit(verify.LabelPayload, salt, nil))
}

func TestNewNonce(t *testing.T) {
	t.Parallel()
	require.Regexp(t, `^[0-9a-f]{32}$`, attestation.NewNonce())
	require.NotEqual(t, attestation.NewNonce(), attestation.NewNonce())
}

func TestCanonicalHeaders(t *testing.T) {
	t.Parallel()
	sent := map[string][]string{
		"X-GitHub-Event":      {"push"},
		"Content-Type":        {"application/json"},
		"Accept":              {"b", "a"},
		"x-Odd":               {" \tspaced\t ", "two\r\nlines"},
		"X-Empty":             {""},
		"Authorization":       {"Bearer secret"},
		"Proxy-Authorization": {"secret"},
		"COOKIE":              {"session=secret"},
		"Kapsel-Proof-Token":  {"secret"},
		"X-Api-Key":           {"secret"},
		"X-None":              nil,
	}
	want := "accept:a\naccept:b\ncontent-type:application/json\nx-empty:\nx-github-event:push\nx-odd:spaced\nx-odd:two  lines\n"
	require.Equal(t, want, string(attestation.CanonicalHeaders(sent, "X-API-Key")))
	require.Contains(t, string(attestation.CanonicalHeaders(sent)), "x-api-key:secret\n", "only what is named is left out")
	require.Empty(t, attestation.CanonicalHeaders(nil))
}
