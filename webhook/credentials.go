package webhook

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// APIKey describes a source that sends a secret itself in a header. It proves nothing of the body: whoever sees one
// request can send others.
type APIKey struct {
	// Header is its name, in any case.
	Header string `json:"header"`
	// Prefix stands before the key, such as "Bearer "; its case counts.
	Prefix string `json:"prefix,omitempty"`
}

func validateAPIKey(s Source) error {
	if s.APIKey == nil {
		return errors.New(`source: api_key is needed for scheme "api_key"`)
	}
	if err := validSource("source: api_key.header", s.APIKey.Header); err != nil {
		return err
	}
	if len(s.APIKey.Prefix) > maxPrefix {
		return fmt.Errorf("source: api_key.prefix must have at most %d bytes, not %d", maxPrefix, len(s.APIKey.Prefix))
	}
	return nil
}

func verifyAPIKey(s Source, r request) error {
	if err := validateAPIKey(s); err != nil {
		return fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	value, err := r.only(s.APIKey.Header)
	if err != nil {
		return err
	}
	key, ok := strings.CutPrefix(value, s.APIKey.Prefix)
	if !ok || !r.has(key) {
		return fmt.Errorf("header %s: %w", s.APIKey.Header, ErrBadSignature)
	}
	return nil
}

// verifyBasic reads what RFC 7617 describes: the scheme's name in any case, spaces, and the base64 of user:password.
func verifyBasic(_ Source, r request) error {
	value, err := r.only("Authorization")
	if err != nil {
		return err
	}
	name, encoded, _ := strings.Cut(value, " ")
	credentials, err := base64.StdEncoding.Strict().DecodeString(strings.TrimLeft(encoded, " "))
	if !strings.EqualFold(name, "Basic") || err != nil || !r.has(string(credentials)) {
		return fmt.Errorf("header Authorization: %w", ErrBadSignature)
	}
	return nil
}

// has compares what was sent with every secret. Hashes are compared, so that the time says nothing of a secret's length
// either.
func (r request) has(sent string) bool {
	sum, matched := sha256.Sum256([]byte(sent)), 0
	for _, secret := range r.secrets {
		own := sha256.Sum256(secret)
		matched |= subtle.ConstantTimeCompare(sum[:], own[:])
	}
	return matched == 1
}
