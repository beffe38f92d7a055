package verify

import (
	"crypto/hmac"
	"crypto/sha256"
)

// Labels of commitments and of the salts that open them.
const (
	LabelPayload  = "payload"
	LabelResponse = "response"
	LabelURL      = "url"
	LabelHeaders  = "headers"
)

// SaltSize is the length in bytes of every salt.
const SaltSize = 32

// Commitment returns C(label, salt, x) = SHA-256("kapsel.io/" ‖ label ‖ "/v1" ‖ 0x00 ‖ salt ‖ x). Without the 32-byte
// salt it says nothing about x. x is what went over the wire after transfer decoding, never content-decoded.
func Commitment(label string, salt, x []byte) []byte {
	h := sha256.New()
	h.Write([]byte("kapsel.io/" + label + "/v1\x00"))
	h.Write(salt)
	h.Write(x)
	return h.Sum(nil)
}

// DeriveSalt returns the 32-byte salt of one of an attempt's commitments, HMAC-SHA-256(attemptSecret, label), so that
// one opened commitment opens no other. Payload salts aren't derived: they are random, one for each event.
func DeriveSalt(attemptSecret []byte, label string) []byte {
	m := hmac.New(sha256.New, attemptSecret)
	m.Write([]byte(label))
	return m.Sum(nil)
}
