package webhook

import (
	"crypto/hmac"
	"crypto/sha1" // some providers sign with HMAC-SHA-1, which still holds as a MAC
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// HMAC describes a source that signs the body alone and puts the signature, encoded and after a prefix, into a header.
type HMAC struct {
	// Header is its name, in any case.
	Header string `json:"header"`
	// Algorithm is sha256 (also if empty), sha512 or sha1.
	Algorithm string `json:"algorithm,omitempty"`
	// Encoding is hex (also if empty; both cases are read) or base64 (standard alphabet, padded).
	Encoding string `json:"encoding,omitempty"`
	// Prefix stands before the encoded signature, such as "sha256="; its case counts.
	Prefix string `json:"prefix,omitempty"`
}

// gitHub is what GitHub documents under "Validating webhook deliveries".
var gitHub = HMAC{Header: "X-Hub-Signature-256", Prefix: "sha256="}

const maxPrefix = 64

var (
	algorithms = map[string]func() hash.Hash{"": sha256.New, "sha256": sha256.New, "sha512": sha512.New, "sha1": sha1.New}
	encodings  = map[string]encoding{
		"":       {hex.EncodeToString, hex.DecodeString},
		"hex":    {hex.EncodeToString, hex.DecodeString},
		"base64": {base64.StdEncoding.EncodeToString, base64.StdEncoding.Strict().DecodeString},
	}
)

type encoding struct {
	encode func([]byte) string
	decode func(string) ([]byte, error)
}

func validateHMAC(s Source) error {
	if s.HMAC == nil {
		return errors.New("source: hmac is needed for scheme \"hmac\"")
	}
	if err := validSource("source: hmac.header", s.HMAC.Header); err != nil {
		return err
	}
	if algorithms[s.HMAC.Algorithm] == nil {
		return fmt.Errorf(`source: hmac.algorithm must be "sha256", "sha512" or "sha1", not %.80q`, s.HMAC.Algorithm)
	}
	if _, ok := encodings[s.HMAC.Encoding]; !ok {
		return fmt.Errorf(`source: hmac.encoding must be "hex" or "base64", not %.80q`, s.HMAC.Encoding)
	}
	if len(s.HMAC.Prefix) > maxPrefix {
		return fmt.Errorf("source: hmac.prefix must have at most %d bytes, not %d", maxPrefix, len(s.HMAC.Prefix))
	}
	return nil
}

func verifyGitHub(_ Source, r request) error { return gitHub.verify(r) }

func verifyHMAC(s Source, r request) error {
	if err := validateHMAC(s); err != nil {
		return fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	return s.HMAC.verify(r)
}

func (m HMAC) verify(r request) error {
	value, err := r.only(m.Header)
	if err != nil {
		return err
	}
	encoded, ok := strings.CutPrefix(value, m.Prefix)
	if !ok {
		return fmt.Errorf("header %s doesn't start with %q: %w", m.Header, m.Prefix, ErrBadSignature)
	}
	signature, err := encodings[m.Encoding].decode(encoded)
	if err != nil { // its text would quote what the sender wrote
		return fmt.Errorf("header %s isn't encoded as it should be: %w", m.Header, ErrBadSignature)
	}
	matched := false
	for _, secret := range r.secrets {
		if len(secret) < MinSecretBytes {
			continue // an empty one could be used by anybody
		}
		matched = hmac.Equal(signature, m.mac(secret, r.body)) || matched // no early return: all are compared
	}
	if !matched {
		return fmt.Errorf("header %s: %w", m.Header, ErrBadSignature)
	}
	return nil
}

func (m HMAC) mac(secret, body []byte) []byte {
	h := hmac.New(algorithms[m.Algorithm], secret)
	h.Write(body)
	return h.Sum(nil)
}

// Sign returns the value of m's header for body. m must be valid.
func (m HMAC) Sign(secret, body []byte) string {
	return m.Prefix + encodings[m.Encoding].encode(m.mac(secret, body))
}

// SignGitHub returns the value of X-Hub-Signature-256 that GitHub would send with body.
func SignGitHub(secret, body []byte) string { return gitHub.Sign(secret, body) }
