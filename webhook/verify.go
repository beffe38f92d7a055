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
	"regexp"
	"strings"
)

// HMAC describes a source that signs the body, alone or together with a timestamp and an ID, and puts the signature,
// encoded and after a prefix, into a header.
type HMAC struct {
	// Header is its name, in any case.
	Header string `json:"header"`
	// Algorithm is sha256 (also if empty), sha512 or sha1.
	Algorithm string `json:"algorithm,omitempty"`
	// Encoding is hex (also if empty; both cases are read) or base64 (standard alphabet, padded).
	Encoding string `json:"encoding,omitempty"`
	// Prefix stands before the encoded signature, such as "sha256="; its case counts.
	Prefix string `json:"prefix,omitempty"`
	// Signed says what is signed: {body} (also if empty), at the end, and before it any text, {timestamp} and {id}, such
	// as "v0:{timestamp}:{body}". Text follows each of the two, so that no two requests are signed alike.
	Signed string `json:"signed,omitempty"`
	// TimestampHeader is where {timestamp} stands, in Unix seconds; empty if it isn't signed.
	TimestampHeader string `json:"timestamp_header,omitempty"`
	// IDHeader is where {id} stands; empty if it isn't signed.
	IDHeader string `json:"id_header,omitempty"`
}

// What the providers document: GitHub under "Validating webhook deliveries"
// (https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries), Shopify under "Verify a webhook's
// origin" (https://shopify.dev/docs/apps/build/webhooks/subscribe/https), Slack under "Verifying requests from Slack"
// (https://docs.slack.dev/authentication/verifying-requests-from-slack).
var (
	gitHub  = HMAC{Header: "X-Hub-Signature-256", Prefix: "sha256="}
	shopify = HMAC{Header: "X-Shopify-Hmac-Sha256", Encoding: "base64"}
	slack   = HMAC{Header: "X-Slack-Signature", Prefix: "v0=", Signed: "v0:{timestamp}:{body}", TimestampHeader: "X-Slack-Request-Timestamp"}
)

const (
	maxPrefix = 64
	maxSigned = 128
)

// signedForm is what HMAC.Signed can be, but that a placeholder can stand there only once.
var signedForm = regexp.MustCompile(`^(?:[^{}]|\{id\}[^{}]|\{timestamp\}[^{}0-9])*\{body\}$`)

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
	return s.HMAC.validSigned()
}

// validSigned checks what is signed: the template, and that each header is named exactly if the template has its value.
func (m HMAC) validSigned() error {
	signed := m.signed()
	if len(signed) > maxSigned || !signedForm.MatchString(signed) || strings.Count(signed, "{id}") > 1 || strings.Count(signed, "{timestamp}") > 1 {
		return fmt.Errorf("source: hmac.signed must end in {body}, with text, {timestamp} and {id} before it, each at most once and "+
			"followed by text (after {timestamp} no digit), in at most %d bytes", maxSigned)
	}
	for _, value := range []struct{ member, placeholder, header string }{
		{"hmac.timestamp_header", "{timestamp}", m.TimestampHeader}, {"hmac.id_header", "{id}", m.IDHeader},
	} {
		switch needed := strings.Contains(signed, value.placeholder); {
		case !needed && value.header != "":
			return fmt.Errorf("source: %s has no meaning without %s in hmac.signed", value.member, value.placeholder)
		case needed:
			if err := validSource("source: "+value.member, value.header); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m HMAC) signed() string {
	if m.Signed == "" {
		return "{body}"
	}
	return m.Signed
}

// hmacTimed reports whether the HMAC of s covers a timestamp.
func (s Source) hmacTimed() bool { return s.HMAC != nil && s.HMAC.TimestampHeader != "" }

func verifyGitHub(_ Source, r request) error  { return gitHub.verify(r) }
func verifyShopify(_ Source, r request) error { return shopify.verify(r) }
func verifySlack(_ Source, r request) error   { return slack.verify(r) }

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
	id, timestamp, at, err := m.values(r)
	if err != nil {
		return err
	}
	before, matched := m.before(id, timestamp), false
	for _, secret := range r.secrets {
		matched = hmac.Equal(signature, m.mac(secret, before, r.body)) || matched // no early return: all are compared
	}
	if !matched {
		return fmt.Errorf("header %s: %w", m.Header, ErrBadSignature)
	}
	if m.TimestampHeader == "" {
		return nil
	}
	return r.fresh(at)
}

// values reads what is signed besides the body.
func (m HMAC) values(r request) (id, timestamp string, at int64, err error) {
	if m.IDHeader != "" {
		if id, err = r.only(m.IDHeader); err != nil {
			return "", "", 0, err
		}
		// The ID ends where the text after it begins, and mustn't seem to end before.
		if _, after, _ := strings.Cut(m.signed(), "{id}"); strings.IndexByte(id, after[0]) >= 0 {
			return "", "", 0, fmt.Errorf("header %s holds what is to follow it: %w", m.IDHeader, ErrBadSignature)
		}
	}
	if m.TimestampHeader != "" {
		if timestamp, err = r.only(m.TimestampHeader); err != nil {
			return "", "", 0, err
		}
		if at, err = parseTimestamp(timestamp); err != nil {
			return "", "", 0, fmt.Errorf("header %s: %w", m.TimestampHeader, err)
		}
	}
	return id, timestamp, at, nil
}

// before is what is signed before the body. What stands in a value is no placeholder.
func (m HMAC) before(id, timestamp string) string {
	if m.Signed == "" {
		return ""
	}
	text := strings.TrimSuffix(m.signed(), "{body}")
	return strings.NewReplacer("{id}", id, "{timestamp}", timestamp).Replace(text)
}

func (m HMAC) mac(secret []byte, before string, body []byte) []byte {
	h := hmac.New(algorithms[m.Algorithm], secret)
	h.Write([]byte(before))
	h.Write(body)
	return h.Sum(nil)
}

// Sign returns the value of m's header for body. m must be valid and sign the body alone.
func (m HMAC) Sign(secret, body []byte) string {
	return m.Prefix + encodings[m.Encoding].encode(m.mac(secret, m.before("", ""), body))
}

// SignGitHub returns the value of X-Hub-Signature-256 that GitHub would send with body.
func SignGitHub(secret, body []byte) string { return gitHub.Sign(secret, body) }
