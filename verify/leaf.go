package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// MaxLeafSize is the largest leaf in bytes.
const MaxLeafSize = 4096

// Kinds of leaves.
const (
	KindAttempt  = "attempt"  // an HTTP request was made, or blocked on its way out
	KindSkipped  = "skipped"  // a filter left the delivery out; terminal
	KindDead     = "dead"     // no more attempts will be made; terminal
	KindCanceled = "canceled" // somebody stopped the delivery; terminal
	KindAccepted = "accepted" // the event itself was committed; belongs to no delivery
)

// Outcomes of leaves of kind "attempt". For other kinds the outcome is the reason, a word.
const (
	OutcomeDelivered = "delivered" // answered with a 2xx; terminal
	OutcomeRetry     = "retry"     // not delivered; another attempt may follow
	OutcomeFailed    = "failed"    // not delivered, for good; a leaf of kind "dead" follows
)

// Leaf is leaf v1, the record of one attempt (or of a decision) in the log. Its fields are in the order of their JSON
// names, which is what makes encoding/json write them as RFC 8785 wants them: keep it so.
//
// Hashes are lowercase hex of 32 bytes; "" where the comment allows it. Integers are 0 to 2^53−1.
type Leaf struct {
	AttemptID     string `json:"attempt_id"`     // "da_…"; "" is allowed for kind "accepted"
	AttemptNumber int64  `json:"attempt_number"` // from 1; of other kinds the number of HTTP attempts so far
	AttemptedAt   string `json:"attempted_at"`   // FormatTime
	DeliveryID    string `json:"delivery_id"`    // "dlv_…"; "" is allowed for kind "accepted"
	DestinationID string `json:"destination_id"` // "dst_…"; "" is allowed for kind "accepted"
	DurationMS    int64  `json:"duration_ms"`
	EndpointID    string `json:"endpoint_id"` // "ep_…"
	// EndpointURL is scheme://host[:port] (lowercase, A-labels, no default port) and the escaped path unless that is
	// secret; no user info, query or fragment; printable ASCII. "" is allowed for kind "accepted".
	EndpointURL       string `json:"endpoint_url"`
	Error             string `json:"error"`        // an error class ("timeout", "dns", …) or ""
	EventID           string `json:"event_id"`     // "evt_…"
	HeadersHash       string `json:"headers_hash"` // commitment to the sent headers; "" if none were sent
	Kind              string `json:"kind"`
	LostStarts        int64  `json:"lost_starts"` // sends of this attempt whose outcome was never committed
	Nonce             string `json:"nonce"`       // 16 random bytes in hex
	Origin            string `json:"origin"`      // the log's name
	Outcome           string `json:"outcome"`     // see the constants; "" is allowed for kind "accepted"
	PayloadHash       string `json:"payload_hash"`
	PayloadSize       int64  `json:"payload_size"`       // bytes
	PreviousLeafHash  string `json:"previous_leaf_hash"` // of the delivery's leaf number seq−1; "" exactly if seq is 1
	ResponseHash      string `json:"response_hash"`      // commitment to the response body; "" exactly if the status is 0
	ResponseSize      int64  `json:"response_size"`      // bytes of the body that the commitment covers
	ResponseStatus    int64  `json:"response_status"`    // 0 if no status line was received
	ResponseTruncated bool   `json:"response_truncated"` // the body went on, but was read no further
	Seq               int64  `json:"seq"`                // number of this leaf among its delivery's, from 1
	TenantID          string `json:"tenant_id"`          // "ten_…"
	URLHash           string `json:"url_hash"`           // commitment to the full URL; "" is allowed except for attempts
	V                 int64  `json:"v"`                  // 1
}

// ParseLeaf reads leaf v1 and refuses everything that Bytes would not write: a leaf is exactly its canonical encoding
// (RFC 8785), so a member that is missing, unknown, repeated or spelt differently, another order, whitespace, an escape
// or trailing data are all the same defect. Errors wrap ErrUnknownKind or ErrLeafFormat.
func ParseLeaf(b []byte) (*Leaf, error) {
	if len(b) > MaxLeafSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrLeafFormat, len(b), MaxLeafSize)
	}
	var l Leaf
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLeafFormat, err)
	}
	// Canonical first: what the checks of Bytes say about values is meant for bytes that hold those values.
	again, err := l.encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, fmt.Errorf("%w: not the canonical JSON of exactly its members", ErrLeafFormat)
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	return &l, nil
}

// Bytes returns the canonical bytes of the leaf, which are what is hashed into the tree. A leaf that ParseLeaf would
// refuse is an error that wraps ErrUnknownKind or ErrLeafFormat.
func (l *Leaf) Bytes() ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	b, err := l.encode()
	if err != nil {
		return nil, err
	}
	if len(b) > MaxLeafSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrLeafFormat, len(b), MaxLeafSize)
	}
	return b, nil
}

// encode writes the members. It is canonical for what check lets through: printable ASCII and small integers, for
// which encoding/json without HTML escaping and RFC 8785 agree.
func (l *Leaf) encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(l); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLeafFormat, err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte{'\n'}), nil
}

// Time returns AttemptedAt, or the zero time if it is malformed, which it isn't in a leaf from ParseLeaf.
func (l *Leaf) Time() time.Time {
	t, err := time.Parse(timeLayout, l.AttemptedAt)
	if err != nil {
		return time.Time{}
	}
	return t
}

// timeLayout always has three digits of milliseconds, and is always UTC.
const timeLayout = "2006-01-02T15:04:05.000Z"

// FormatTime writes t as a leaf does: in UTC, truncated to the millisecond.
func FormatTime(t time.Time) string {
	return t.UTC().Truncate(time.Millisecond).Format(timeLayout)
}
