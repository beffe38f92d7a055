package webhook

import (
	"cmp"
	"crypto/ed25519"
	"crypto/hmac"
	"encoding/base64"
	"fmt"
	"strings"

	"filippo.io/edwards25519"
)

// Standard describes a source that signs as Standard Webhooks has it (specification 1.0, "Verifying webhook
// authenticity"): v1 is HMAC-SHA-256, v1a is Ed25519, both over id.timestamp.body, in a list of signatures separated by
// spaces.
type Standard struct {
	// Headers begin the names of the three: "webhook" (also if empty), or "svix" for sources that still use svix-id,
	// svix-timestamp and svix-signature.
	Headers string `json:"headers,omitempty"`
}

var standardHeaders = map[string]string{"": "Webhook-", "webhook": "Webhook-", "svix": "Svix-"}

func validateStandard(s Source) error {
	if s.Standard != nil && standardHeaders[s.Standard.Headers] == "" {
		return fmt.Errorf(`source: standard.headers must be "webhook" or "svix", not %.80q`, s.Standard.Headers)
	}
	return nil
}

// checkStandardKey takes the two forms of the specification and no other: which of them a key has says which signatures
// it may verify, so a public key can never be used as the secret of an HMAC.
func checkStandardKey(secret []byte) error {
	if _, err := ParseSigningSecret(string(secret)); err == nil {
		return nil
	}
	if _, ok := parsePublicKey(string(secret)); ok {
		return nil
	}
	return fmt.Errorf("must be %s and base64 of %d to %d bytes, or %s and base64 of the %d bytes of an Ed25519 key that isn't of small order",
		signingSecretPrefix, minSigningSecret, maxSigningSecret, publicKeyPrefix, ed25519.PublicKeySize)
}

func parsePublicKey(s string) (ed25519.PublicKey, bool) {
	encoded, ok := strings.CutPrefix(s, publicKeyPrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil {
		return nil, false
	}
	return key, strongKey(key)
}

// strongKey refuses what is no point of the curve, and the few points of small order (32 zero bytes are one): under those,
// anybody can make signatures.
func strongKey(key []byte) bool {
	point, err := new(edwards25519.Point).SetBytes(key)
	return err == nil && new(edwards25519.Point).MultByCofactor(point).Equal(edwards25519.NewIdentityPoint()) == 0
}

func verifyStandard(s Source, r request) error {
	if err := validateStandard(s); err != nil {
		return fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	begin := standardHeaders[""]
	if s.Standard != nil {
		begin = standardHeaders[s.Standard.Headers]
	}
	id, idErr := r.only(begin + "Id")
	timestamp, timestampErr := r.only(begin + "Timestamp")
	list, listErr := r.only(begin + "Signature")
	if err := cmp.Or(idErr, timestampErr, listErr); err != nil {
		return err
	}
	// A full stop in the ID could be read as the end of it: another ID, timestamp and body would have the same signature.
	if strings.Contains(id, ".") {
		return fmt.Errorf("header %sId holds a full stop: %w", begin, ErrBadSignature)
	}
	at, err := parseTimestamp(timestamp)
	if err != nil {
		return err
	}
	signatures, err := parseStandard(list)
	if err != nil {
		return err
	}
	if !signatures.match(r.secrets, standard.before(id, timestamp), r.body) {
		return fmt.Errorf("header %sSignature: %w", begin, ErrBadSignature)
	}
	return r.fresh(at)
}

// standardSignatures are those of one request, by the algorithm that each says it is of.
type standardSignatures struct{ v1, v1a [][]byte }

// parseStandard reads `v1,<base64> v1a,<base64> …`. Other versions are ignored, as the specification asks; what isn't
// base64 matches nothing.
func parseStandard(list string) (signatures standardSignatures, err error) {
	seen := 0
	for entry := range strings.SplitSeq(list, " ") {
		if entry == "" {
			continue
		}
		if seen++; seen > maxSignatures {
			return signatures, fmt.Errorf("more than %d signatures: %w", maxSignatures, ErrBadSignature)
		}
		version, encoded, _ := strings.Cut(entry, ",")
		signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
		switch {
		case err != nil:
		case version == "v1":
			signatures.v1 = append(signatures.v1, signature)
		case version == "v1a" && len(signature) == ed25519.SignatureSize:
			signatures.v1a = append(signatures.v1a, signature)
		}
	}
	return signatures, nil
}

var standard = HMAC{Signed: "{id}.{timestamp}.{body}"}

// match tries every key on every signature of its own algorithm, and on none of the other.
func (s standardSignatures) match(keys [][]byte, before string, body []byte) bool {
	matched := false
	var signed []byte
	for _, key := range keys {
		if public, ok := parsePublicKey(string(key)); ok {
			if signed == nil && len(s.v1a) > 0 {
				signed = append([]byte(before), body...)
			}
			for _, signature := range s.v1a {
				matched = ed25519.Verify(public, signed, signature) || matched
			}
			continue
		}
		secret, err := ParseSigningSecret(string(key))
		if err != nil {
			continue
		}
		mac := standard.mac(secret, before, body)
		for _, signature := range s.v1 {
			matched = hmac.Equal(signature, mac) || matched // no early return: all are compared
		}
	}
	return matched
}
