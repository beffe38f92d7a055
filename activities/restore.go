package activities

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// restoreLeaf finds or makes the leaf that an attempt recorded: bytes that were found somewhere and have the recorded hash, or
// the leaf made again from the attempt's row. Nothing is invented: whatever hasn't that hash isn't the attempt's leaf. Else it says
// why there is none.
func restoreLeaf(r *postgres.Recorded, found ...[]byte) (leaf postgres.QueuedLeaf, reason string) {
	if reason := takesNone(r.Origin, r.LogClosed); reason != "" {
		return leaf, reason
	}
	bytes, reason := leafBytes(r, found)
	if reason != "" {
		return leaf, reason
	}
	leaf = postgres.QueuedLeaf{
		TenantID: r.TenantID, AttemptID: r.ID, Hash: r.LeafHash, Bytes: bytes, Recorded: r.LeafHash, Secrets: []byte{},
	}
	if r.Event && !r.Erased() {
		leaf.Secrets = slices.Concat(r.Salt, attestation.AttemptSecret(r.Secret, r.DeliveryID, r.Number))
	}
	return leaf, rejectLeaf(leaf, r.Origin) // what would be set aside again isn't queued
}

func takesNone(origin string, closed bool) (reason string) {
	switch {
	case origin == "":
		return "its log doesn't exist"
	case closed:
		return "its log is closed"
	}
	return ""
}

// withHash finds what has the hash.
func withHash(found [][]byte, hash []byte) []byte {
	for _, candidate := range found {
		if bytes.Equal(verify.LeafHash(candidate), hash) {
			return candidate
		}
	}
	return nil
}

// restoreAcceptance does for the leaf of an event's acceptance what restoreLeaf does for that of an attempt.
func restoreAcceptance(r *postgres.RecordedAcceptance, found ...[]byte) (leaf postgres.QueuedLeaf, reason string) {
	if reason := takesNone(r.Origin, r.LogClosed); reason != "" {
		return leaf, reason
	}
	bytes, reason := acceptanceBytes(r, found)
	if reason != "" {
		return leaf, reason
	}
	leaf = postgres.QueuedLeaf{
		TenantID: r.TenantID, AttemptID: r.EventID, Hash: r.LeafHash, Bytes: bytes, Recorded: r.LeafHash, Secrets: []byte{},
	}
	if !r.Erased() {
		leaf.Secrets = slices.Concat(r.Salt, attestation.AttemptSecret(r.Secret, r.EventID, id.Decision))
	}
	return leaf, rejectLeaf(leaf, r.Origin)
}

func acceptanceBytes(r *postgres.RecordedAcceptance, found [][]byte) (leaf []byte, reason string) {
	if leaf = withHash(found, r.LeafHash); leaf != nil {
		return leaf, ""
	}
	if r.LeafParts == nil {
		return nil, "its bytes are lost, and what they could be made from was never kept, or is erased"
	}
	acceptance := attestation.Acceptance{
		Origin: r.Origin, Tenant: r.TenantID, Endpoint: r.EndpointID, Event: r.EventID, PayloadHash: r.PayloadHash, PayloadSize: r.PayloadSize,
	}
	err := acceptance.AddParts(r.LeafParts)
	if err != nil {
		return nil, "its bytes are lost, and what they could be made from is damaged: " + err.Error()
	}
	leaf, hash, err := acceptance.Leaf()
	switch {
	case err != nil:
		return nil, "its bytes are lost, and can't be made again: " + err.Error()
	case !bytes.Equal(hash, r.LeafHash):
		return nil, "its bytes are lost, and the event's row doesn't say any more what it said"
	}
	return leaf, ""
}

func leafBytes(r *postgres.Recorded, found [][]byte) (leaf []byte, reason string) {
	if leaf = withHash(found, r.LeafHash); leaf != nil {
		return leaf, ""
	}
	switch {
	case r.LeafParts == nil:
		return nil, "its bytes are lost, and what they could be made from was never kept, or is erased"
	case !r.Event || !r.Delivery:
		return nil, "its bytes are lost, and its event or delivery is gone"
	}
	entry := attestation.Entry{
		Origin: r.Origin, Tenant: r.TenantID, Endpoint: r.EndpointID, Event: r.EventID, Destination: r.DestinationID,
		Delivery: r.DeliveryID, Attempt: r.ID, Kind: r.Kind, Outcome: r.Outcome, Error: r.Error, Number: r.Number,
		At: r.AttemptedAt, Duration: r.Duration, EndpointURL: r.EndpointURL, PayloadHash: r.PayloadHash, PayloadSize: r.PayloadSize,
		ResponseStatus: r.ResponseStatus, ResponseSize: r.ResponseSize, ResponseTruncated: r.ResponseTruncated,
		Seq: r.Number, PreviousLeafHash: r.PreviousLeafHash,
	}
	if r.Number == id.Decision { // the last of the chain
		entry.Number, entry.Seq = r.Requests, r.Requests+1
	}
	err := entry.AddParts(r.LeafParts)
	if err != nil {
		return nil, "its bytes are lost, and what they could be made from is damaged: " + err.Error()
	}
	leaf, hash, err := entry.Leaf()
	switch {
	case err != nil:
		return nil, "its bytes are lost, and can't be made again: " + err.Error()
	case !bytes.Equal(hash, r.LeafHash):
		return nil, "its bytes are lost, and the rows of attempt, delivery, event or the attempt before don't say any more what it said"
	}
	return leaf, ""
}

// RetriedLetter is what became of a dead letter that was tried again.
type RetriedLetter struct {
	// Resolution is postgres.ResolvedQueued or ResolvedInLog; empty: it stays as it is.
	Resolution string
	// Reason says why it stays as it is.
	Reason string
	// Attempt is the one whose leaf was queued, or is in the log; or the event, if it is the leaf of its acceptance.
	Attempt uuid.UUID
}

// RetryDeadLetter has the log get the leaf that a dead letter should have been: the one that the attempt recorded, not what was
// set aside. A leaf that no attempt recorded is never queued. by is who asked for it, for the record.
func RetryDeadLetter(ctx context.Context, db *pgxpool.Pool, number int64, by string) (RetriedLetter, error) {
	letter, err := postgres.ReadDeadLetter(ctx, db, number)
	if err != nil {
		return RetriedLetter{}, err
	}
	if letter.ResolvedAt != nil {
		return RetriedLetter{Reason: "it was resolved before"}, nil
	}
	attempts := []uuid.UUID{letter.AttemptID}
	if leaf, err := verify.ParseLeaf(letter.Leaf); err == nil { // the column may be what is wrong
		if named, err := id.Attempt.Parse(leaf.AttemptID); err == nil && named != letter.AttemptID {
			attempts = append(attempts, named)
		}
	}
	recorded, err := postgres.ReadRecorded(ctx, db, attempts)
	if err != nil {
		return RetriedLetter{}, err
	}
	accepted, err := postgres.ReadAcceptances(ctx, db, []uuid.UUID{letter.AttemptID})
	if err != nil {
		return RetriedLetter{}, err
	}
	done := RetriedLetter{Reason: fmt.Sprintf("no attempt %s is recorded", id.Attempt.Format(letter.AttemptID))}
	if r := accepted[letter.AttemptID]; r != nil {
		leaf, reason := restoreAcceptance(r, letter.Leaf)
		return retry(ctx, db, r.LogID, r.EventID, "event "+id.Event.Format(r.EventID), leaf, reason, letter, by)
	}
	for _, attempt := range attempts {
		r := recorded[attempt]
		if r == nil {
			continue
		}
		leaf, reason := restoreLeaf(r, letter.Leaf)
		done, err = retry(ctx, db, r.LogID, r.ID, "attempt "+id.Attempt.Format(r.ID), leaf, reason, letter, by)
		if err != nil || done.Resolution != "" {
			return done, err
		}
	}
	return done, nil
}

// retry queues the leaf of what name names, unless there is a reason against it.
func retry(ctx context.Context, db *pgxpool.Pool, log, subject uuid.UUID, name string, leaf postgres.QueuedLeaf, reason string,
	letter *postgres.DeadLetter, by string) (RetriedLetter, error) {
	if reason != "" {
		return RetriedLetter{Reason: name + ": " + reason}, nil
	}
	results, err := postgres.QueueAgain(ctx, db, log, []postgres.QueuedLeaf{leaf}, []int64{letter.ID}, by)
	if err != nil {
		return RetriedLetter{}, err
	}
	switch results[subject] {
	case postgres.ResolvedInLog:
		return RetriedLetter{Resolution: postgres.ResolvedInLog, Attempt: subject}, nil
	case postgres.Contradicted:
		return RetriedLetter{Reason: name + " has another leaf in the log than it recorded"}, nil
	}
	return RetriedLetter{Resolution: postgres.ResolvedQueued, Attempt: subject}, nil
}
