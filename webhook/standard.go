package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks, specification 1.0) signs
// `id.timestamp.body`, so that neither can be exchanged, and writes secrets as `whsec_` and base64.
const (
	signingSecretPrefix = "whsec_"
	minSigningSecret    = 24 // bytes, by the specification
	maxSigningSecret    = 64
)

// NewSigningSecret makes a secret of 32 random bytes.
func NewSigningSecret() string {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	return signingSecretPrefix + base64.StdEncoding.EncodeToString(secret)
}

// ParseSigningSecret reads the bytes of a secret: `whsec_` and padded base64 of 24 to 64 bytes. The error never holds
// any part of it.
func ParseSigningSecret(s string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(s, signingSecretPrefix)
	if !ok {
		return nil, fmt.Errorf("signing secret must start with %s", signingSecretPrefix)
	}
	secret, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(secret) < minSigningSecret || len(secret) > maxSigningSecret {
		return nil, fmt.Errorf("signing secret must be %s and base64 of %d to %d bytes", signingSecretPrefix, minSigningSecret, maxSigningSecret)
	}
	return secret, nil
}

// SignStandard returns the value of webhook-signature: `v1,` and the base64 of HMAC-SHA-256(secret, id.timestamp.body)
// for each secret, separated by spaces.
func SignStandard(id string, at time.Time, body []byte, secrets [][]byte) string {
	signatures := make([]string, len(secrets))
	for i, secret := range secrets {
		h := hmac.New(sha256.New, secret)
		h.Write(signedPrefix(id, at))
		h.Write(body)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(h.Sum(nil))
	}
	return strings.Join(signatures, " ")
}

// signedPrefix is what is signed before the body.
func signedPrefix(id string, at time.Time) []byte {
	return []byte(id + "." + strconv.FormatInt(at.Unix(), 10) + ".")
}
