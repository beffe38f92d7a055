package attestation

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/verify"
)

// SecretSize is the length in bytes of payload salts, event secrets and attempt secrets.
const SecretSize = 32

const nonceSize = 16

// ErrSecret is returned for a salt or secret that isn't 32 bytes long.
var ErrSecret = errors.New("salt or secret must have 32 bytes")

// NewSecret makes a payload salt or an event secret: 32 random bytes. Each event has one of both, kept apart: whoever is
// given the payload salt, to check a payload, can't derive the other salts from it.
func NewSecret() []byte { return random(SecretSize) }

// NewNonce makes a leaf's nonce: 16 random bytes in lowercase hex. It keeps the hashes of neighbouring leaves opaque to
// those who could guess everything else in them.
func NewNonce() string { return hex.EncodeToString(random(nonceSize)) }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return b
}

// AttemptSecret derives the 32-byte secret of an attempt:
//
//	HMAC-SHA-256(event secret, "kapsel.io/attempt-secret/v1" ‖ 0x00 ‖ delivery ID, 16 bytes ‖ number, 4 bytes big-endian)
//
// It is derived, not drawn, so that the worker that records an attempt need not be the one that sent it, and no secret
// travels through a workflow's history.
func AttemptSecret(eventSecret []byte, delivery uuid.UUID, number int) []byte {
	m := hmac.New(sha256.New, eventSecret)
	m.Write([]byte("kapsel.io/attempt-secret/v1\x00"))
	m.Write(delivery[:])
	m.Write(binary.BigEndian.AppendUint32(nil, uint32(number)))
	return m.Sum(nil)
}

// SaltsOf returns the salts that open an attempt's commitments. Response, URL and headers have salts of their own, so
// that one opened commitment opens no other. The error wraps ErrSecret.
func SaltsOf(payloadSalt, attemptSecret []byte) (*verify.Salts, error) {
	if len(payloadSalt) != SecretSize || len(attemptSecret) != SecretSize {
		return nil, fmt.Errorf("derive salts from %d and %d bytes: %w", len(payloadSalt), len(attemptSecret), ErrSecret)
	}
	return &verify.Salts{
		Payload:  bytes.Clone(payloadSalt),
		Response: verify.DeriveSalt(attemptSecret, verify.LabelResponse),
		URL:      verify.DeriveSalt(attemptSecret, verify.LabelURL),
		Headers:  verify.DeriveSalt(attemptSecret, verify.LabelHeaders),
	}, nil
}

// Commit returns a commitment to x as a leaf holds it, 64 lowercase hex digits. The label is one of verify's, the salt
// that of the label. What doesn't exist (a response without a status line) is "" in the leaf, not a commitment to nothing.
func Commit(label string, salt, x []byte) string {
	return hex.EncodeToString(verify.Commitment(label, salt, x))
}

// credentialHeaders never go into a commitment: someone who may check the others must not be able to test guesses of
// these. The proof token is Kapsel's own: whoever has it can download proofs.
var credentialHeaders = []string{"authorization", "cookie", "kapsel-proof-token", "proxy-authorization"}

// CanonicalHeaders returns the octets that a leaf's headers_hash commits to: one line "lower-name:value\n" for each value
// of the sent headers, sorted bytewise, without credentials. Further names of headers that hold credentials (an API key's,
// say) are given in any case. Values are taken as net/http writes them: line breaks become spaces, and white space
// around them is cut off.
func CanonicalHeaders(sent map[string][]string, credentials ...string) []byte {
	breaks := strings.NewReplacer("\n", " ", "\r", " ")
	var lines []string
	for name, values := range sent {
		name = strings.ToLower(name)
		if slices.Contains(credentialHeaders, name) ||
			slices.ContainsFunc(credentials, func(c string) bool { return strings.ToLower(c) == name }) {
			continue
		}
		for _, value := range values {
			lines = append(lines, name+":"+strings.Trim(breaks.Replace(value), " \t")+"\n")
		}
	}
	slices.Sort(lines)
	return []byte(strings.Join(lines, ""))
}
