package activities

import (
	"slices"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
)

// hashes are the commitments of an attempt, in hex; empty where there was nothing to commit to.
type hashes struct{ url, headers, response string }

// addLeaf makes the leaf that records attempt and puts it at the end of d's chain. d is locked, so the chain can't
// fork: seq and previous_leaf_hash are those of the row.
func addLeaf(d *postgres.Delivery, attempt *postgres.Attempt, number, lostStarts int, h hashes) error {
	entry := attestation.Entry{
		Origin: d.Origin, Tenant: d.TenantID, Endpoint: d.EndpointID, Event: d.EventID, Destination: d.DestinationID,
		Delivery: d.ID, Attempt: attempt.ID, Kind: attempt.Kind, Outcome: attempt.Outcome, Error: attempt.Error,
		Number: number, LostStarts: lostStarts, At: attempt.AttemptedAt, Duration: attempt.Duration,
		EndpointURL: attempt.EndpointURL, PayloadHash: d.PayloadHash, PayloadSize: d.PayloadSize,
		URLHash: h.url, HeadersHash: h.headers, ResponseHash: h.response, ResponseStatus: attempt.ResponseStatus,
		ResponseSize: attempt.ResponseSize, ResponseTruncated: attempt.ResponseTruncated,
		Seq: d.Leaves + 1, PreviousLeafHash: d.LastLeafHash, Nonce: attestation.NewNonce(),
	}
	var err error
	if attempt.Leaf, attempt.LeafHash, err = entry.Leaf(); err != nil {
		return err
	}
	if attempt.LeafParts, err = entry.Parts(); err != nil {
		return err
	}
	attempt.Secrets = []byte{}
	if !d.Erased() { // from no secret anybody could derive one
		attempt.Secrets = slices.Concat(d.Salt, attestation.AttemptSecret(d.Secret, d.ID, attempt.Number))
	}
	d.Leaves++
	d.LastLeafHash = attempt.LeafHash
	return nil
}
