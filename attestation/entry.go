package attestation

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// Entry is what is to be said in the log of one attempt, or of the decision to send no (more) requests. It is made in the
// transaction that records it, or, with a delivery that begins with its end, before that.
type Entry struct {
	Origin                             string // of the log
	Tenant, Endpoint, Event            uuid.UUID
	Destination, Delivery, Attempt     uuid.UUID
	Kind, Outcome, Error               string
	Number                             int // of the attempt; of a decision the number of HTTP attempts so far
	LostStarts                         int
	At                                 time.Time
	Duration                           time.Duration
	EndpointURL                        string // see EndpointURL
	PayloadHash                        []byte
	PayloadSize                        int
	URLHash, HeadersHash, ResponseHash string // hex; "" where there was nothing to commit to
	ResponseStatus                     int
	ResponseSize                       int64
	ResponseTruncated                  bool
	Seq                                int    // of the leaf among its delivery's, from 1
	PreviousLeafHash                   []byte // nil for the first
	Nonce                              string // hex; "": Leaf makes one each time
}

// Leaf returns the entry's leaf, and the leaf's hash. Made again from an entry with a nonce, it is the same leaf. Errors wrap verify's: the entry says
// something that no leaf can.
func (e *Entry) Leaf() (leaf, hash []byte, err error) {
	nonce := e.Nonce
	if nonce == "" {
		nonce = NewNonce()
	}
	l := verify.Leaf{
		AttemptID:         id.Attempt.Format(e.Attempt),
		AttemptNumber:     int64(e.Number),
		AttemptedAt:       verify.FormatTime(e.At),
		DeliveryID:        id.Delivery.Format(e.Delivery),
		DestinationID:     id.Destination.Format(e.Destination),
		DurationMS:        e.Duration.Milliseconds(),
		EndpointID:        id.Endpoint.Format(e.Endpoint),
		EndpointURL:       e.EndpointURL,
		Error:             e.Error,
		EventID:           id.Event.Format(e.Event),
		HeadersHash:       e.HeadersHash,
		Kind:              e.Kind,
		LostStarts:        int64(e.LostStarts),
		Nonce:             nonce,
		Origin:            e.Origin,
		Outcome:           e.Outcome,
		PayloadHash:       hex.EncodeToString(e.PayloadHash),
		PayloadSize:       int64(e.PayloadSize),
		PreviousLeafHash:  hex.EncodeToString(e.PreviousLeafHash),
		ResponseHash:      e.ResponseHash,
		ResponseSize:      e.ResponseSize,
		ResponseStatus:    int64(e.ResponseStatus),
		ResponseTruncated: e.ResponseTruncated,
		Seq:               int64(e.Seq),
		TenantID:          id.Tenant.Format(e.Tenant),
		URLHash:           e.URLHash,
		V:                 1,
	}
	if leaf, err = l.Bytes(); err != nil {
		return nil, nil, fmt.Errorf("make leaf of attempt %s: %w", l.AttemptID, err)
	}
	return leaf, verify.LeafHash(leaf), nil
}
