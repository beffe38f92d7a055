package activities

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// hashes are the commitments of an attempt, in hex; empty where there was nothing to commit to.
type hashes struct{ url, headers, response string }

// addLeaf makes the leaf that records attempt and puts it at the end of d's chain. d is locked, so the chain can't
// fork: seq and previous_leaf_hash are those of the row.
func addLeaf(d *postgres.Delivery, attempt *postgres.Attempt, number, lostStarts int, h hashes) error {
	leaf := verify.Leaf{
		AttemptID:         id.Attempt.Format(attempt.ID),
		AttemptNumber:     int64(number),
		AttemptedAt:       verify.FormatTime(attempt.AttemptedAt),
		DeliveryID:        id.Delivery.Format(d.ID),
		DestinationID:     id.Destination.Format(d.DestinationID),
		DurationMS:        attempt.Duration.Milliseconds(),
		EndpointID:        id.Endpoint.Format(d.EndpointID),
		EndpointURL:       attempt.EndpointURL,
		Error:             attempt.Error,
		EventID:           id.Event.Format(d.EventID),
		HeadersHash:       h.headers,
		Kind:              attempt.Kind,
		LostStarts:        int64(lostStarts),
		Nonce:             attestation.NewNonce(),
		Origin:            d.Origin,
		Outcome:           attempt.Outcome,
		PayloadHash:       hex.EncodeToString(d.PayloadHash),
		PayloadSize:       int64(d.PayloadSize),
		PreviousLeafHash:  hex.EncodeToString(d.LastLeafHash),
		ResponseHash:      h.response,
		ResponseSize:      attempt.ResponseSize,
		ResponseStatus:    int64(attempt.ResponseStatus),
		ResponseTruncated: attempt.ResponseTruncated,
		Seq:               int64(d.Leaves + 1),
		TenantID:          id.Tenant.Format(d.TenantID),
		URLHash:           h.url,
		V:                 1,
	}
	bytes, err := leaf.Bytes()
	if err != nil {
		return fmt.Errorf("make leaf of attempt %s: %w", leaf.AttemptID, err)
	}
	attempt.Leaf = bytes
	attempt.LeafHash = verify.LeafHash(bytes)
	attempt.Secrets = []byte{}
	if !d.Erased() { // from no secret anybody could derive one
		attempt.Secrets = slices.Concat(d.Salt, attestation.AttemptSecret(d.Secret, d.ID, attempt.Number))
	}
	d.Leaves++
	d.LastLeafHash = attempt.LeafHash
	return nil
}
