package webhook

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// The errors of Source.Verify; every error it returns is one of them. The two of the timestamp are returned only for a
// request whose signature is right, so that nobody without a secret learns anything from them.
var (
	// ErrNoSignature: the request doesn't carry what its source's scheme asks for.
	ErrNoSignature = errors.New("signature missing")
	// ErrBadSignature: it carries one that none of the secrets gives.
	ErrBadSignature = errors.New("signature does not match")
	// ErrTooOld: it was signed longer ago than the tolerance, so it may be a replay.
	ErrTooOld = errors.New("signed too long ago")
	// ErrTooNew: it was signed further in the future than the tolerance.
	ErrTooNew = errors.New("signed in the future")
)

// The bounds of an endpoint's secrets.
const (
	MinSecretBytes = 16
	MaxSecretBytes = 1024
	MaxSecrets     = 10 // all are tried for every request; two are enough to rotate
)

// maxSignatures bounds the signatures of one request that are tried. Senders put two there while they rotate a secret;
// without a bound, a request of a few kilobytes could ask for hundreds of Ed25519 verifications of a large body.
const maxSignatures = 8

// Scheme names how a source proves that a webhook is its own.
type Scheme string

// The schemes.
const (
	SchemeNone     Scheme = "none"     // not at all: whoever knows the URL can send
	SchemeHMAC     Scheme = "hmac"     // HMAC in a header, see HMAC
	SchemeGitHub   Scheme = "github"   // X-Hub-Signature-256
	SchemeStripe   Scheme = "stripe"   // Stripe-Signature: t=…,v1=…
	SchemeShopify  Scheme = "shopify"  // X-Shopify-Hmac-Sha256
	SchemeSlack    Scheme = "slack"    // X-Slack-Signature and X-Slack-Request-Timestamp
	SchemeStandard Scheme = "standard" // Standard Webhooks, v1 and v1a, see Standard
	SchemeBasic    Scheme = "basic"    // user name and password (RFC 7617)
	SchemeAPIKey   Scheme = "api_key"  // a key in a header, see APIKey
)

// Source says how the webhooks of an endpoint are verified. It is stored as JSON with the endpoint, apart from its
// secrets: {"scheme": "hmac", "hmac": {"header": "X-Signature", "prefix": "sha256="}}.
type Source struct {
	Scheme Scheme `json:"scheme"`
	// HMAC holds the settings of scheme hmac; nil for all others.
	HMAC *HMAC `json:"hmac,omitempty"`
	// Standard holds the settings of scheme standard; nil for all others, and for the defaults.
	Standard *Standard `json:"standard,omitempty"`
	// APIKey holds the settings of scheme api_key; nil for all others.
	APIKey *APIKey `json:"api_key,omitempty"`
	// ToleranceSeconds is how far a signed timestamp may be from now, either way: 1 to 86,400; 0 is 300. Only for schemes
	// that sign one.
	ToleranceSeconds int64 `json:"tolerance_seconds,omitempty"`
	// Handshake is answered before the first webhook; nil: none is.
	Handshake *Handshake `json:"handshake,omitempty"`
}

// scheme is what Kapsel knows of a Scheme. To add one is to add a line to schemes, and its settings to Source.
type scheme struct {
	form   secretForm // of its secrets; the zero form: it has none
	timed  func(Source) bool
	verify func(Source, request) error
}

// request is what a scheme may look at. The secrets are of the scheme's form. Schemes that sign a timestamp compare it
// with now.
type request struct {
	headers   http.Header
	body      []byte
	secrets   [][]byte
	now       time.Time
	tolerance time.Duration
}

var schemes = map[Scheme]scheme{
	SchemeNone:     {timed: never, verify: func(Source, request) error { return nil }},
	SchemeHMAC:     {form: anyBytes, timed: Source.hmacTimed, verify: verifyHMAC},
	SchemeGitHub:   {form: anyBytes, timed: never, verify: verifyGitHub},
	SchemeStripe:   {form: anyBytes, timed: always, verify: verifyStripe},
	SchemeShopify:  {form: anyBytes, timed: never, verify: verifyShopify},
	SchemeSlack:    {form: anyBytes, timed: always, verify: verifySlack},
	SchemeStandard: {form: standardKey, timed: always, verify: verifyStandard},
	SchemeBasic:    {form: userPassword, timed: never, verify: verifyBasic},
	SchemeAPIKey:   {form: headerValue, timed: never, verify: verifyAPIKey},
}

func never(Source) bool  { return false }
func always(Source) bool { return true }

// Validate names the first setting that is wrong.
func (s Source) Validate() error {
	known, ok := schemes[s.Scheme]
	if !ok {
		return fmt.Errorf("source: scheme must be one of %s, not %.80q", quoted(slices.Sorted(maps.Keys(schemes))), s.Scheme)
	}
	if err := s.validSettings(); err != nil {
		return err
	}
	switch longest := int64(MaxTolerance / time.Second); {
	case s.ToleranceSeconds != 0 && !known.timed(s):
		return fmt.Errorf("source: tolerance_seconds has no meaning where no timestamp is signed")
	case s.ToleranceSeconds < 0 || s.ToleranceSeconds > longest:
		return fmt.Errorf("source: tolerance_seconds must be 1 to %d, not %d", longest, s.ToleranceSeconds)
	}
	return s.validHandshake()
}

// validSettings checks those of the scheme, and that there are none of another.
func (s Source) validSettings() error {
	for _, settings := range []struct {
		scheme Scheme
		given  bool
	}{{SchemeHMAC, s.HMAC != nil}, {SchemeStandard, s.Standard != nil}, {SchemeAPIKey, s.APIKey != nil}} {
		if settings.given && s.Scheme != settings.scheme {
			return fmt.Errorf("source: %s has no meaning for scheme %q", settings.scheme, s.Scheme)
		}
	}
	switch s.Scheme {
	case SchemeHMAC:
		return validateHMAC(s)
	case SchemeStandard:
		return validateStandard(s)
	case SchemeAPIKey:
		return validateAPIKey(s)
	}
	return nil
}

func quoted[T ~string](names []T) string {
	var list []string
	for _, name := range names {
		list = append(list, fmt.Sprintf("%q", name))
	}
	return strings.Join(list, ", ")
}

// Verify reports whether a webhook comes from its source: nil, or an error that is one of the four above. It fails
// closed: an unknown scheme, wrong settings, no secrets or only secrets that the scheme can't have verify nothing. All
// secrets are tried, in constant time, so that old and new ones are good together while they are rotated.
func (s Source) Verify(headers http.Header, body []byte, secrets [][]byte, now time.Time) error {
	known, ok := schemes[s.Scheme]
	if !ok {
		return fmt.Errorf("verify source of unknown scheme %.80q: %w", s.Scheme, ErrBadSignature)
	}
	if s.answersCRC() && isCRCToken(string(body)) {
		return fmt.Errorf("verify %s source: body could be a CRC token: %w", s.Scheme, ErrBadSignature)
	}
	r := request{headers, body, known.form.usable(secrets), now, s.Tolerance()}
	if err := known.verify(s, r); err != nil {
		return fmt.Errorf("verify %s source: %w", s.Scheme, err)
	}
	return nil
}

// SecretHeader is the header in which the source sends a secret itself, or empty. Whoever reads it can send webhooks in
// the source's name, so it mustn't be kept or passed on.
func (s Source) SecretHeader() string {
	switch {
	case s.Scheme == SchemeBasic:
		return "Authorization"
	case s.Scheme == SchemeAPIKey && s.APIKey != nil:
		return http.CanonicalHeaderKey(s.APIKey.Header)
	}
	return ""
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
