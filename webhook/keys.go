package webhook

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"time"
)

// Standard Webhooks writes Ed25519 keys in base64, public ones after whpk_. (Secret ones would stand after whsk_; Kapsel
// never writes one.)
const publicKeyPrefix = "whpk_"

// NewSigningKey makes a key pair for signatures v1a. It is of one destination, and never a log's.
func NewSigningKey() (public ed25519.PublicKey, private ed25519.PrivateKey) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil { // the random source never fails
		panic(err)
	}
	return public, private
}

// FormatPublicKey writes a public key as receivers of signatures v1a get it.
func FormatPublicKey(key ed25519.PublicKey) string {
	return publicKeyPrefix + base64.StdEncoding.EncodeToString(key)
}

// ParsePrivateKey takes the stored bytes of a private key: its seed, then its public key (as RFC 8032's and most libraries').
func ParsePrivateKey(stored []byte) (ed25519.PrivateKey, error) {
	if len(stored) != ed25519.PrivateKeySize {
		return nil, errors.New("signing key has a wrong length")
	}
	return ed25519.PrivateKey(stored), nil
}

// SignStandardKeys returns what stands in webhook-signature for each key: `v1a,` and the base64 of the Ed25519 signature of
// id.timestamp.body, separated by spaces.
func SignStandardKeys(id string, at time.Time, body []byte, keys []ed25519.PrivateKey) string {
	message := append(signedPrefix(id, at), body...)
	signatures := make([]string, len(keys))
	for i, key := range keys {
		signatures[i] = "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(key, message))
	}
	return strings.Join(signatures, " ")
}
