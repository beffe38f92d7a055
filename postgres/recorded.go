package postgres

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/id"
)

// Recorded is what the database says of an attempt, apart from its leaf: enough to make the leaf again, or to tell why that can't
// be done.
type Recorded struct {
	Attempt
	DeliveryID    uuid.UUID
	EventID       uuid.UUID
	TenantID      uuid.UUID
	EndpointID    uuid.UUID
	DestinationID uuid.UUID
	LogID         uuid.UUID
	Origin        string // of the log; "" if there is no such log
	LogClosed     bool
	// Delivery and Event: the rows are there, and what follows was read from them.
	Delivery, Event bool
	Requests        int // HTTP attempts of the delivery so far
	Commitment
	PreviousLeafHash []byte // nil: the leaf is the first, or its predecessor isn't there
}

const recordedAttemptsSQL = `
select a.id, a.number, a.epoch, a.kind, a.outcome, a.error, a.attempted_at, a.duration_ms * interval '1 ms', a.endpoint_url,
    a.response_status, a.response_size, a.response_truncated, a.leaf_hash, a.leaf_parts,
    a.delivery_id, a.event_id, a.tenant_id, a.endpoint_id, a.destination_id, a.log_id, coalesce(l.origin, ''), l.closed_at is not null
from attempts a left join logs l on l.id = a.log_id
where a.id = any($1)`

const requestsSQL = `select d.id, d.next_attempt - 1 from deliveries d where d.id = any($1)`

const leafHashesSQL = `select a.id, a.leaf_hash from attempts a where a.id = any($1)`

// ReadRecorded reads what is recorded of attempts. One that isn't there is left out.
func ReadRecorded(ctx context.Context, db querier, attempts []uuid.UUID) (map[uuid.UUID]*Recorded, error) {
	rows, err := db.Query(ctx, recordedAttemptsSQL, attempts)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Recorded, error) {
		r := &Recorded{}
		err := row.Scan(&r.ID, &r.Number, &r.Epoch, &r.Kind, &r.Outcome, &r.Error, &r.AttemptedAt, &r.Duration, &r.EndpointURL,
			&r.ResponseStatus, &r.ResponseSize, &r.ResponseTruncated, &r.LeafHash, &r.LeafParts,
			&r.DeliveryID, &r.EventID, &r.TenantID, &r.EndpointID, &r.DestinationID, &r.LogID, &r.Origin, &r.LogClosed)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	recorded := make(map[uuid.UUID]*Recorded, len(found))
	for _, r := range found {
		recorded[r.ID] = r
	}
	if len(found) == 0 {
		return recorded, nil
	}
	return recorded, addContext(ctx, db, found)
}

// addContext reads the deliveries and events of attempts, and the leaves before theirs.
func addContext(ctx context.Context, db querier, found []*Recorded) error {
	byDelivery, byEvent := map[uuid.UUID][]*Recorded{}, map[uuid.UUID][]*Recorded{}
	var deliveries, events []uuid.UUID
	for _, r := range found {
		byDelivery[r.DeliveryID], byEvent[r.EventID] = append(byDelivery[r.DeliveryID], r), append(byEvent[r.EventID], r)
		deliveries, events = append(deliveries, r.DeliveryID), append(events, r.EventID)
	}
	rows, err := db.Query(ctx, requestsSQL, deliveries)
	if err != nil {
		return fmt.Errorf("read deliveries: %w", err)
	}
	before := map[uuid.UUID][]*Recorded{}
	var key uuid.UUID
	var requests int
	_, err = pgx.ForEachRow(rows, []any{&key, &requests}, func() error {
		for _, r := range byDelivery[key] {
			r.Delivery, r.Requests = true, requests
			last := requests // of a decision: the last request
			if r.Number != id.Decision {
				last = r.Number - 1
			}
			if last > 0 {
				previous := id.AttemptOf(key, last)
				before[previous] = append(before[previous], r)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read deliveries: %w", err)
	}
	rows, err = db.Query(ctx, commitmentsSQL, events)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	var c Commitment
	_, err = pgx.ForEachRow(rows, []any{&key, &c.PayloadSize, &c.PayloadHash, &c.Salt, &c.Secret}, func() error {
		for _, r := range byEvent[key] {
			r.Event, r.Commitment = true, c
		}
		c = Commitment{} // its slices belong to the attempts now
		return nil
	})
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return addPrevious(ctx, db, before)
}

func addPrevious(ctx context.Context, db querier, before map[uuid.UUID][]*Recorded) error {
	previous := make([]uuid.UUID, 0, len(before))
	for attempt := range before {
		previous = append(previous, attempt)
	}
	if len(previous) == 0 {
		return nil
	}
	rows, err := db.Query(ctx, leafHashesSQL, previous)
	if err != nil {
		return fmt.Errorf("read leaves before: %w", err)
	}
	var key uuid.UUID
	var hash []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &hash}, func() error {
		for _, r := range before[key] {
			r.PreviousLeafHash = hash
		}
		hash = nil // it is the attempts' now
		return nil
	})
	if err != nil {
		return fmt.Errorf("read leaves before: %w", err)
	}
	return nil
}

// RecordedAcceptance is what the database says of an event whose acceptance is attested, apart from the leaf.
type RecordedAcceptance struct {
	EventID, TenantID, EndpointID, LogID uuid.UUID
	Origin                               string // of the log; "" if there is no such log
	LogClosed                            bool
	LeafHash, LeafParts                  []byte // LeafParts is nil if they were never kept, or are erased
	Commitment
}

const recordedAcceptancesSQL = `
select a.id, a.tenant_id, a.endpoint_id, a.log_id, coalesce(l.origin, ''), l.closed_at is not null, a.leaf_hash, a.leaf_parts,
    a.body_size, a.payload_hash, p.salt, p.secret
from (select e.*, ` + acceptanceLogSQL + ` as log_id from events e where e.id = any($1) and e.leaf_hash is not null) a
left join logs l on l.id = a.log_id
left join event_payloads p on p.event_id = a.id and p.event_id = any($1)`

// ReadAcceptances reads what is recorded of the acceptance of events. One that isn't there, or isn't attested, is left out.
func ReadAcceptances(ctx context.Context, db querier, events []uuid.UUID) (map[uuid.UUID]*RecordedAcceptance, error) {
	rows, err := db.Query(ctx, recordedAcceptancesSQL, events)
	if err != nil {
		return nil, fmt.Errorf("read acceptances: %w", err)
	}
	recorded := map[uuid.UUID]*RecordedAcceptance{}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*RecordedAcceptance, error) {
		r := &RecordedAcceptance{}
		return r, row.Scan(&r.EventID, &r.TenantID, &r.EndpointID, &r.LogID, &r.Origin, &r.LogClosed, &r.LeafHash, &r.LeafParts,
			&r.PayloadSize, &r.PayloadHash, &r.Salt, &r.Secret)
	})
	if err != nil {
		return nil, fmt.Errorf("read acceptances: %w", err)
	}
	for _, r := range found {
		recorded[r.EventID] = r
	}
	return recorded, nil
}
