package webhook

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// ErrIdempotencyKey: the request's Idempotency-Key can't be used. The request is to be refused, since its sender relies
// on the key.
var ErrIdempotencyKey = errors.New("unusable Idempotency-Key")

// The bounds of what is configured and sent.
const (
	MaxIdempotencyKey = 255 // bytes
	DefaultWindow     = 24 * time.Hour
	MaxWindow         = 7 * 24 * time.Hour
)

// DuplicateSource is where the key comes from by which a webhook is recognized when it comes again.
type DuplicateSource string

// The sources of a duplicate key. In all but DuplicatesOff an Idempotency-Key (or X-Idempotency-Key) header comes
// first: a sender who sets it asks for exactly this.
const (
	DuplicatesByNone    DuplicateSource = "none"    // nothing but an Idempotency-Key
	DuplicatesByHeader  DuplicateSource = "header"  // a named header, such as X-GitHub-Delivery
	DuplicatesByContent DuplicateSource = "content" // the hash of the body
	DuplicatesOff       DuplicateSource = "off"     // nothing, also not an Idempotency-Key: every request is an event
)

// DuplicatePolicy says how an endpoint recognizes duplicates. It is stored as JSON with the endpoint; the zero policy
// and `{}` are source none with a window of 24 h.
type DuplicatePolicy struct {
	Source DuplicateSource `json:"source,omitempty"`
	// Header is the name of the header for source header, in any case; empty for all others.
	Header string `json:"header,omitempty"`
	// WindowSeconds is how long a key is remembered: 1 to 604,800 (7 days); 0 is 86,400 (24 h).
	WindowSeconds int64 `json:"window_seconds,omitempty"`
}

// DuplicateKey is a key in the form it is stored in.
type DuplicateKey struct {
	Hash [sha256.Size]byte
	// Idempotency is whether the sender gave it as an Idempotency-Key. Only then is the same key with another body a
	// conflict; otherwise it is a duplicate, because providers send one event again with changed content.
	Idempotency bool
}

// UnmarshalJSON reads and validates a policy. Unknown members are errors.
func (p *DuplicatePolicy) UnmarshalJSON(data []byte) error {
	type plain DuplicatePolicy // without this method
	var read plain
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&read); err != nil {
		return fmt.Errorf("read duplicate policy: %w", err)
	}
	if err := DuplicatePolicy(read).Validate(); err != nil {
		return err
	}
	*p = DuplicatePolicy(read)
	return nil
}

// Validate names the first field that is wrong.
func (p DuplicatePolicy) Validate() error {
	switch p.Source {
	case DuplicatesByHeader:
		if err := validSource("duplicates: header", p.Header); err != nil {
			return err
		}
	case "", DuplicatesByNone, DuplicatesByContent, DuplicatesOff:
		if p.Header != "" {
			return fmt.Errorf("duplicates: header has no meaning for source %q", p.Source)
		}
	default:
		return fmt.Errorf("duplicates: source must be %q, %q, %q or %q, not %.80q",
			DuplicatesByNone, DuplicatesByHeader, DuplicatesByContent, DuplicatesOff, p.Source)
	}
	if longest := int64(MaxWindow / time.Second); p.WindowSeconds < 0 || p.WindowSeconds > longest {
		return fmt.Errorf("duplicates: window_seconds must be 1 to %d, not %d", longest, p.WindowSeconds)
	}
	return nil
}

// Window is how long a key is remembered.
func (p DuplicatePolicy) Window() time.Duration {
	if p.WindowSeconds == 0 {
		return DefaultWindow
	}
	return time.Duration(p.WindowSeconds) * time.Second
}

// Key returns the key of a webhook; ok is false if it has none, and then it is no duplicate of anything. The error is
// ErrIdempotencyKey with a reason that its sender may read.
func (p DuplicatePolicy) Key(headers http.Header, body []byte) (key DuplicateKey, ok bool, err error) {
	if p.Source == DuplicatesOff {
		return DuplicateKey{}, false, nil
	}
	value, present, err := idempotencyKey(headers)
	if err != nil {
		return DuplicateKey{}, false, err
	}
	if present {
		return DuplicateKey{Hash: keyHash("idempotency-key", "", value), Idempotency: true}, true, nil
	}
	switch p.Source {
	case DuplicatesByHeader:
		values := headers.Values(p.Header)
		if strings.Join(values, "") == "" {
			return DuplicateKey{}, false, nil
		}
		return DuplicateKey{Hash: keyHash("header", strings.ToLower(p.Header), values...)}, true, nil
	case DuplicatesByContent:
		sum := sha256.Sum256(body)
		return DuplicateKey{Hash: keyHash("content", "", string(sum[:]))}, true, nil
	}
	return DuplicateKey{}, false, nil
}

// idempotencyKey reads the one key that the sender gave, under either name and however often.
func idempotencyKey(headers http.Header) (key string, present bool, err error) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		for _, value := range headers.Values(name) {
			switch {
			case value == "":
				return "", false, fmt.Errorf("%w: it is empty", ErrIdempotencyKey)
			case len(value) > MaxIdempotencyKey:
				return "", false, fmt.Errorf("%w: it has %d bytes, more than %d", ErrIdempotencyKey, len(value), MaxIdempotencyKey)
			case present && value != key:
				return "", false, fmt.Errorf("%w: the request has several", ErrIdempotencyKey)
			}
			key, present = value, true
		}
	}
	return key, present, nil
}

// keyHash is the hash of a duplicate key.
func keyHash(kind, name string, values ...string) [sha256.Size]byte {
	return hashOf("duplicate-key", kind, name, values...)
}

// hashOf hashes what a key is for, kind, name and values, each after its length, so that no two different inputs give the
// same bytes.
func hashOf(purpose, kind, name string, values ...string) [sha256.Size]byte {
	in := []byte("kapsel.io/" + purpose + "/v1\x00")
	for _, part := range append([]string{kind, name}, values...) {
		in = binary.BigEndian.AppendUint64(in, uint64(len(part)))
		in = append(in, part...)
	}
	return sha256.Sum256(in)
}
