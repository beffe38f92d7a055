package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// ErrHandshake: the request isn't the handshake that the endpoint answers. Nothing of it is repeated.
var ErrHandshake = errors.New("not the handshake that is answered here")

// HandshakeType names what a provider sends before the first webhook, to see that whoever configured a URL owns it.
type HandshakeType string

// The handshakes, as their providers document them.
const (
	// HandshakeSlack is a signed POST whose challenge is answered: https://docs.slack.dev/reference/events/url_verification
	HandshakeSlack HandshakeType = "slack"
	// HandshakeMeta is a GET with hub.challenge and a token: https://developers.facebook.com/docs/graph-api/webhooks/getting-started
	HandshakeMeta HandshakeType = "meta"
	// HandshakeDropbox is a GET with challenge: https://www.dropbox.com/developers/reference/webhooks
	HandshakeDropbox HandshakeType = "dropbox"
	// HandshakeGraph is an empty POST with validationToken:
	// https://learn.microsoft.com/en-us/graph/change-notifications-delivery-webhooks
	HandshakeGraph HandshakeType = "microsoft_graph"
	// HandshakeX is a GET whose crc_token is answered with its HMAC: https://docs.x.com/x-api/webhooks/quickstart
	HandshakeX HandshakeType = "x"
)

var handshakes = []HandshakeType{HandshakeSlack, HandshakeMeta, HandshakeDropbox, HandshakeGraph, HandshakeX}

// Handshake says which handshake an endpoint answers. Make one with NewHandshake.
type Handshake struct {
	Type HandshakeType `json:"type"`
	// TokenHash is the hexadecimal SHA-256 of Meta's verify token; the token itself isn't kept.
	TokenHash string `json:"token_hash,omitempty"`
}

// NewHandshake makes a handshake; the token is for Meta's only, and needed there: 16 to 255 bytes.
func NewHandshake(kind HandshakeType, verifyToken string) (*Handshake, error) {
	h := &Handshake{Type: kind}
	switch n := len(verifyToken); {
	case kind != HandshakeMeta && n > 0:
		return nil, fmt.Errorf("source: handshake.verify_token has no meaning for type %.80q", kind)
	case kind == HandshakeMeta && (n < MinSecretBytes || n > 255):
		return nil, fmt.Errorf("source: handshake.verify_token must have %d to 255 bytes, not %d", MinSecretBytes, n)
	case kind == HandshakeMeta:
		sum := sha256.Sum256([]byte(verifyToken))
		h.TokenHash = hex.EncodeToString(sum[:])
	}
	return h, nil
}

// validHandshake keeps handshakes to the schemes with which they are safe. Slack's is signed. X asks for the HMAC of a
// token of the asker's choice under the very secret that signs webhooks; see isCRCToken.
func (s Source) validHandshake() error {
	if s.Handshake == nil {
		return nil
	}
	switch kind := s.Handshake.Type; {
	case kind == HandshakeSlack && s.Scheme != SchemeSlack:
		return errors.New(`source: handshake.type "slack" goes with scheme "slack" only`)
	case kind == HandshakeX && (s.Scheme != SchemeHMAC || s.HMAC.signed() != "{body}"):
		return errors.New(`source: handshake.type "x" goes with scheme "hmac" only, where hmac.signed is {body}`)
	case kind == HandshakeMeta && s.Handshake.TokenHash == "":
		return errors.New(`source: handshake.verify_token is needed for type "meta"`)
	case kind == HandshakeSlack, kind == HandshakeX, kind == HandshakeMeta, kind == HandshakeDropbox, kind == HandshakeGraph:
		return nil
	default:
		return fmt.Errorf("source: handshake.type must be one of %s, not %.80q", quoted(handshakes), kind)
	}
}

func (s Source) answers(kind HandshakeType) bool {
	return s.Handshake != nil && s.Handshake.Type == kind
}
func (s Source) answersCRC() bool { return s.answers(HandshakeX) }

// AnswersGet reports whether the endpoint's handshake comes as a GET.
func (s Source) AnswersGet() bool {
	return s.answers(HandshakeMeta) || s.answers(HandshakeDropbox) || s.answers(HandshakeX)
}

// Reply is the answer to a handshake.
type Reply struct {
	ContentType string
	Body        []byte
}

// AnswerGet answers a handshake that comes as a GET; the error is ErrHandshake. The secrets must be in the order in which
// they were added.
func (s Source) AnswerGet(rawQuery string, secrets [][]byte) (Reply, error) {
	query, err := url.ParseQuery(rawQuery)
	switch {
	case err != nil:
		return Reply{}, fmt.Errorf("malformed query: %w", ErrHandshake) // the error would quote it
	case s.answers(HandshakeDropbox):
		return echo(one(query, "challenge"))
	case s.answers(HandshakeMeta):
		if one(query, "hub.mode") != "subscribe" || !s.Handshake.knows(one(query, "hub.verify_token")) {
			return Reply{}, fmt.Errorf("mode or verify token: %w", ErrHandshake)
		}
		return echo(one(query, "hub.challenge"))
	case s.answersCRC():
		return answerCRC(one(query, "crc_token"), schemes[s.Scheme].form.usable(secrets))
	}
	return Reply{}, ErrHandshake
}

// AnswerPost answers a handshake that comes as a POST and isn't signed; ok is false if the request isn't one and must be
// treated as any other. Only a request without body can be one, so that no webhook is taken for it.
func (s Source) AnswerPost(rawQuery string, body []byte) (reply Reply, ok bool, err error) {
	if !s.answers(HandshakeGraph) || len(body) > 0 {
		return Reply{}, false, nil
	}
	query, err := url.ParseQuery(rawQuery)
	if err != nil || !query.Has("validationToken") {
		return Reply{}, false, nil //nolint:nilerr // a query that can't be read is that of no handshake
	}
	reply, err = echo(one(query, "validationToken"))
	return reply, true, err
}

// maxSignedHandshake bounds the bodies that are looked into for a handshake; Slack's has some 150 bytes.
const maxSignedHandshake = 4 << 10

// AnswerVerified answers a handshake that is signed like a webhook. It must have been verified.
func (s Source) AnswerVerified(body []byte) (reply Reply, ok bool, err error) {
	if !s.answers(HandshakeSlack) || len(body) > maxSignedHandshake {
		return Reply{}, false, nil
	}
	var event struct{ Type, Challenge string }
	if err := json.Unmarshal(body, &event); err != nil || event.Type != "url_verification" {
		return Reply{}, false, nil //nolint:nilerr // what isn't JSON is no handshake
	}
	reply, err = echo(event.Challenge)
	return reply, true, err
}

// one is the parameter's value if it is there once, else empty.
func one(query url.Values, name string) string {
	if values := query[name]; len(values) == 1 {
		return values[0]
	}
	return ""
}

// maxChallenge bounds what is repeated to whoever asks.
const maxChallenge = 1024

// echo repeats printable ASCII without what markup, scripts and attributes are made of. The challenges of all providers
// are of that kind.
func echo(value string) (Reply, error) {
	special := func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`<>&"'`, r) }
	if value == "" || len(value) > maxChallenge || strings.ContainsFunc(value, special) {
		return Reply{}, fmt.Errorf("challenge is missing, repeated, too long or no plain text: %w", ErrHandshake)
	}
	return Reply{ContentType: "text/plain; charset=utf-8", Body: []byte(value)}, nil
}

// knows compares a token with the configured one in constant time.
func (h *Handshake) knows(token string) bool {
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(h.TokenHash)) == 1
}

// crcToken is what X's tokens are made of.
var crcToken = regexp.MustCompile(`^[A-Za-z0-9+/=_-]{1,255}$`)

// isCRCToken tells X's tokens from webhooks. X gives a token to be signed with the secret of its webhooks, and anybody can
// ask in its place: without a bound, the answer to a forged webhook as token would be that webhook's signature. So no
// token may be anything that could be a webhook (X's are JSON objects), and no webhook anything that could be a token.
func isCRCToken(s string) bool { return crcToken.MatchString(s) }

// answerCRC signs the token with the newest secret, which is the one that X has too.
func answerCRC(token string, secrets [][]byte) (Reply, error) {
	if !isCRCToken(token) || len(secrets) == 0 {
		return Reply{}, fmt.Errorf("crc_token is missing, repeated or no token: %w", ErrHandshake)
	}
	h := hmac.New(sha256.New, secrets[len(secrets)-1])
	h.Write([]byte(token))
	mac := base64.StdEncoding.EncodeToString(h.Sum(nil))
	return Reply{ContentType: "application/json", Body: []byte(`{"response_token":"sha256=` + mac + `"}`)}, nil
}
