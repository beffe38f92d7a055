package webhook

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/net/http/httpguts"
)

// The errors of Source.Verify; every error it returns is one of them.
var (
	// ErrNoSignature: the request doesn't carry what its source's scheme asks for.
	ErrNoSignature = errors.New("signature missing")
	// ErrBadSignature: it carries one that none of the secrets gives.
	ErrBadSignature = errors.New("signature does not match")
)

// The bounds of an endpoint's secrets.
const (
	MinSecretBytes = 16
	MaxSecretBytes = 1024
	MaxSecrets     = 10 // all are tried for every request; two are enough to rotate
)

// Scheme names how a source proves that a webhook is its own.
type Scheme string

// The schemes.
const (
	SchemeNone   Scheme = "none"   // not at all: whoever knows the URL can send
	SchemeHMAC   Scheme = "hmac"   // HMAC of the body in a header, see HMAC
	SchemeGitHub Scheme = "github" // X-Hub-Signature-256
)

// Source says how the webhooks of an endpoint are verified. It is stored as JSON with the endpoint, apart from its
// secrets: {"scheme": "hmac", "hmac": {"header": "X-Signature", "prefix": "sha256="}}.
type Source struct {
	Scheme Scheme `json:"scheme"`
	// HMAC holds the settings of scheme hmac; nil for all others.
	HMAC *HMAC `json:"hmac,omitempty"`
}

// scheme is what Kapsel knows of a Scheme. To add one is to add a line to schemes, and its settings to Source.
type scheme struct {
	secrets  bool // whether it needs any
	validate func(Source) error
	verify   func(Source, request) error
}

// request is what a scheme may look at. Schemes that sign a timestamp compare it with now.
type request struct {
	headers http.Header
	body    []byte
	secrets [][]byte
	now     time.Time
}

var schemes = map[Scheme]scheme{
	SchemeNone:   {validate: noSettings, verify: func(Source, request) error { return nil }},
	SchemeHMAC:   {secrets: true, validate: validateHMAC, verify: verifyHMAC},
	SchemeGitHub: {secrets: true, validate: noSettings, verify: verifyGitHub},
}

// Validate names the first setting that is wrong.
func (s Source) Validate() error {
	known, ok := schemes[s.Scheme]
	if !ok {
		return fmt.Errorf("source: scheme must be %q, %q or %q, not %q", SchemeNone, SchemeHMAC, SchemeGitHub, s.Scheme)
	}
	return known.validate(s)
}

func noSettings(s Source) error {
	if s.HMAC != nil {
		return fmt.Errorf("source: hmac has no meaning for scheme %q", s.Scheme)
	}
	return nil
}

// ValidateSecrets checks number and length of an endpoint's secrets. The error never holds any part of one.
func (s Source) ValidateSecrets(secrets [][]byte) error {
	switch needed := schemes[s.Scheme].secrets; {
	case !needed && len(secrets) > 0:
		return fmt.Errorf("source: secrets have no meaning for scheme %q", s.Scheme)
	case needed && (len(secrets) == 0 || len(secrets) > MaxSecrets):
		return fmt.Errorf("source: secrets must be 1 to %d for scheme %q, not %d", MaxSecrets, s.Scheme, len(secrets))
	}
	for i, secret := range secrets {
		if n := len(secret); n < MinSecretBytes || n > MaxSecretBytes {
			return fmt.Errorf("source: secrets[%d] must have %d to %d bytes, not %d", i, MinSecretBytes, MaxSecretBytes, n)
		}
	}
	return nil
}

// Verify reports whether a webhook comes from its source: nil, or an error that is ErrNoSignature or ErrBadSignature.
// It fails closed: an unknown scheme, no secrets or only secrets that are too short verify nothing. All secrets are
// tried, in constant time, so that old and new ones are good together while they are rotated.
func (s Source) Verify(headers http.Header, body []byte, secrets [][]byte, now time.Time) error {
	known, ok := schemes[s.Scheme]
	if !ok {
		return fmt.Errorf("verify source of unknown scheme %q: %w", s.Scheme, ErrBadSignature)
	}
	if err := known.verify(s, request{headers, body, secrets, now}); err != nil {
		return fmt.Errorf("verify %s source: %w", s.Scheme, err)
	}
	return nil
}

// only returns the one value that the header has. Several are refused: a proxy and Kapsel might not agree on which one
// counts.
func (r request) only(header string) (string, error) {
	values := r.headers.Values(header)
	switch {
	case len(values) == 0, len(values) == 1 && values[0] == "":
		return "", fmt.Errorf("header %s: %w", header, ErrNoSignature)
	case len(values) > 1:
		return "", fmt.Errorf("header %s occurs %d times: %w", header, len(values), ErrBadSignature)
	}
	return values[0], nil
}

func validHeaderName(field, name string) error {
	if !httpguts.ValidHeaderFieldName(name) || len(name) > maxHeaderName {
		return fmt.Errorf("%s must be the name of a header of at most %d characters, not %.80q", field, maxHeaderName, name)
	}
	return nil
}

// validSource refuses also headers that every request has, or that end at the connection: they say nothing of the webhook,
// and most of them net/http takes out.
func validSource(field, name string) error {
	if ofMessage[http.CanonicalHeaderKey(name)] {
		return fmt.Errorf("%s must be a header of the webhook itself; %.80q belongs to the connection", field, name)
	}
	return validHeaderName(field, name)
}

// maxHeaderName bounds the header names that can be configured.
const maxHeaderName = 128
