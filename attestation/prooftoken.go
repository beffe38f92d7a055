package attestation

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
)

// ProofToken is what the receiver of a delivery shows to be given the delivery's proof packages, and nothing else:
//
//	base64url without padding (HMAC-SHA-256(tenant's proof key, delivery ID "dlv_…"))
//
// It is the same in all attempts of the delivery. Nobody can make one without the key, and none says anything about another.
func ProofToken(proofKey []byte, deliveryID string) string {
	m := hmac.New(sha256.New, proofKey)
	m.Write([]byte(deliveryID))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// IsProofToken compares a token with the one of a delivery. The time that it takes says nothing of where they differ.
func IsProofToken(proofKey []byte, deliveryID, token string) bool {
	return hmac.Equal([]byte(ProofToken(proofKey, deliveryID)), []byte(token))
}
