package webhook

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/kapsel-io/kapsel/id"
)

// EncodeHeaders writes headers as HTTP/1.1 does (RFC 9112, section 5): `Name: value CR LF`, sorted by name, the values
// of one name in their order. Nothing that net/http receives is lost. What it can't have received is made harmless:
// CR, LF and NUL in a value become spaces, a name that isn't a token is left out.
func EncodeHeaders(h http.Header) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if !httpguts.ValidHeaderFieldName(name) {
			continue
		}
		for _, value := range h[name] {
			b.WriteString(name + ": " + harmless.Replace(value) + "\r\n")
		}
	}
	return b.Bytes()
}

var harmless = strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ")

// DecodeHeaders reads what EncodeHeaders wrote, and nothing else: a name that isn't a token, a line without colon and
// space or without CR LF, a stray CR, LF or NUL is an error.
func DecodeHeaders(data []byte) (http.Header, error) {
	h := http.Header{}
	for n := 1; len(data) > 0; n++ {
		line, rest, ended := bytes.Cut(data, []byte("\r\n"))
		name, value, colon := bytes.Cut(line, []byte(": "))
		if !ended || !colon || !httpguts.ValidHeaderFieldName(string(name)) || bytes.ContainsAny(value, "\r\n\x00") {
			return nil, fmt.Errorf("decode headers: line %d is malformed", n)
		}
		h[string(name)] = append(h[string(name)], string(value))
		data = rest
	}
	return h, nil
}

// Outgoing is what the headers of one attempt say besides what arrived.
type Outgoing struct {
	EventID    string
	DeliveryID string // also the webhook-id, so it is the same for all attempts
	Attempt    int
	AcceptedAt time.Time // when the event was accepted
	SentAt     time.Time // the webhook-timestamp
	Body       []byte
	// Secrets (v1) and Keys (v1a) sign the request, each with its own signature; none is sent if there are none.
	Secrets [][]byte
	Keys    []ed25519.PrivateKey
	// ProofToken is with what the receiver can download the delivery's proofs; "": it gets none.
	ProofToken string
	// Traceparent is the context of this attempt's trace. It replaces the sender's, whose tracestate is of no use without it, but
	// none that is configured. "": the sender's is passed on like any other header.
	Traceparent string
}

// The headers that Kapsel sets. Whatever arrived under these names, or any that starts with Kapsel-, is left out, so
// that a sender can't pass itself off as Kapsel.
const (
	HeaderEventID           = "Kapsel-Event-Id"
	HeaderDeliveryID        = "Kapsel-Delivery-Id"
	HeaderAttempt           = "Kapsel-Attempt"
	HeaderOriginalTimestamp = "Kapsel-Original-Timestamp"
	HeaderHops              = "Kapsel-Hops"        // see Hops; left out for the first
	HeaderProofToken        = "Kapsel-Proof-Token" // only where the destination asks for it
	HeaderWebhookID         = "Webhook-Id"
	HeaderWebhookTimestamp  = "Webhook-Timestamp"
	HeaderWebhookSignature  = "Webhook-Signature"
	ownPrefix               = "Kapsel-"

	headerTraceparent, headerTracestate = "Traceparent", "Tracestate" // W3C Trace Context
)

// MaxHops is the largest number of deliveries that a webhook may have gone through and still be accepted: an endpoint that
// delivers to itself, or to another that delivers back, would make webhooks without end.
const MaxHops = 8

// Hops is how many deliveries a webhook has gone through on its way here; 0 if it doesn't come from Kapsel.
func Hops(arrived http.Header) int {
	if _, err := id.Delivery.Parse(arrived.Get(HeaderDeliveryID)); err != nil {
		return 0
	}
	hops, err := strconv.ParseUint(arrived.Get(HeaderHops), 10, 16)
	if err != nil {
		return 1
	}
	return max(int(hops), 1)
}

// ofMessage holds what belongs to the connection or to the message as it is framed, and not to the webhook.
var ofMessage = map[string]bool{
	// of the connection: RFC 9110, section 7.6.1, and what older software sends
	"Connection": true, "Proxy-Connection": true, "Keep-Alive": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Proxy-Authenticate": true, "Http2-Settings": true,
	// of the message as Kapsel frames it; Expect would make the receiver answer before it has seen the body
	"Host": true, "Content-Length": true, "Accept-Encoding": true, "Expect": true,
}

// credentials are the sender's, for Kapsel and nobody else. Configured headers may hold the receiver's. A signature
// over the body (X-Hub-Signature-256 and the like) is no credential: it says nothing of the secret, and a receiver may
// want to check it.
// The proof token of another Kapsel is for whoever owns the endpoint, and for no filter, leaf or receiver.
var credentials = map[string]bool{"Authorization": true, "Proxy-Authorization": true, "Cookie": true, HeaderProofToken: true}

// IsCredential reports whether a header, by its standard meaning, holds a credential. Name may be in any case.
func IsCredential(name string) bool { return credentials[http.CanonicalHeaderKey(name)] }

// OutgoingHeaders makes the headers of one attempt: the original ones without those of the connection and credentials,
// replaced or joined by the configured ones, and Kapsel's own. Neither argument is changed. All values that a name had
// are kept, in order; names are in canonical case.
func OutgoingHeaders(original, configured http.Header, out Outgoing) http.Header {
	h := http.Header{}
	hop := connectionHeaders(original)
	for name, values := range original {
		name = http.CanonicalHeaderKey(name)
		if !reserved(name) && !credentials[name] && !hop[name] {
			h[name] = append(h[name], values...)
		}
	}
	if out.Traceparent != "" {
		h.Set(headerTraceparent, out.Traceparent)
		h.Del(headerTracestate)
	}
	for name := range configured {
		h.Del(name)
	}
	for name, values := range configured {
		if name = http.CanonicalHeaderKey(name); !reserved(name) {
			h[name] = append(h[name], values...)
		}
	}
	if len(h["User-Agent"]) == 0 {
		h.Set("User-Agent", "Kapsel") // instead of net/http's
	}
	h.Set(HeaderEventID, out.EventID)
	h.Set(HeaderDeliveryID, out.DeliveryID)
	h.Set(HeaderAttempt, strconv.Itoa(out.Attempt))
	if hops := Hops(original); hops > 0 {
		h.Set(HeaderHops, strconv.Itoa(hops+1))
	}
	h.Set(HeaderOriginalTimestamp, out.AcceptedAt.UTC().Format("2006-01-02T15:04:05.000Z"))
	h.Set(HeaderWebhookID, out.DeliveryID)
	h.Set(HeaderWebhookTimestamp, strconv.FormatInt(out.SentAt.Unix(), 10))
	if out.ProofToken != "" {
		h.Set(HeaderProofToken, out.ProofToken)
	}
	if signature := out.signature(); signature != "" {
		h.Set(HeaderWebhookSignature, signature)
	}
	return h
}

// signature is the value of webhook-signature: those of all secrets, then those of all keys.
func (out Outgoing) signature() string {
	var parts []string
	if len(out.Secrets) > 0 {
		parts = append(parts, SignStandard(out.DeliveryID, out.SentAt, out.Body, out.Secrets))
	}
	if len(out.Keys) > 0 {
		parts = append(parts, SignStandardKeys(out.DeliveryID, out.SentAt, out.Body, out.Keys))
	}
	return strings.Join(parts, " ")
}

// reserved names are Kapsel's to set. Neither an original nor a configured header of these names is sent.
func reserved(canonical string) bool {
	switch canonical {
	case HeaderWebhookID, HeaderWebhookTimestamp, HeaderWebhookSignature:
		return true
	}
	return ofMessage[canonical] || strings.HasPrefix(canonical, ownPrefix)
}

// connectionHeaders returns the names that Connection declares to be of the connection too.
func connectionHeaders(h http.Header) map[string]bool {
	names := map[string]bool{}
	for _, value := range h.Values("Connection") {
		for name := range strings.SplitSeq(value, ",") {
			names[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	return names
}

// The bounds of a destination's configured headers.
const (
	MaxConfiguredHeaders    = 50
	maxConfiguredHeaderSize = 8 << 10 // bytes of one value
)

// ValidateConfiguredHeaders checks the headers that a destination adds. The error names the header, never its value.
func ValidateConfiguredHeaders(h http.Header) error {
	if len(h) > MaxConfiguredHeaders {
		return fmt.Errorf("headers must be at most %d, not %d", MaxConfiguredHeaders, len(h))
	}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if err := validHeaderName("headers", name); err != nil {
			return err
		}
		// Proxy-Authorization is for the next proxy and not for the receiver (RFC 9110, section 11.7.1).
		if canonical := http.CanonicalHeaderKey(name); reserved(canonical) || canonical == "Proxy-Authorization" {
			return fmt.Errorf("headers: %s is set by Kapsel or the connection and can't be configured", name)
		}
		for _, value := range h[name] {
			if !httpguts.ValidHeaderFieldValue(value) || len(value) > maxConfiguredHeaderSize {
				return fmt.Errorf("headers: %s must be at most %d bytes without control characters", name, maxConfiguredHeaderSize)
			}
		}
	}
	return nil
}

// errInvalidHeader is returned for headers that can't be sent.
var errInvalidHeader = errors.New("header can't be sent")

// sendable checks headers before a connection is opened for them.
func sendable(h http.Header) error {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) || slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return errInvalidHeader
		}
	}
	return nil
}
