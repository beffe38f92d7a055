package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Acceptance is one webhook that arrived and was verified, with the deliveries that follow from it.
type Acceptance struct {
	EventID     uuid.UUID
	TenantID    uuid.UUID // derived from the endpoint, never from input
	EndpointID  uuid.UUID
	LogID       uuid.UUID
	ContentType string
	Headers     []byte // as webhook.EncodeHeaders writes them
	Body        []byte
	PayloadHash []byte // commitment to Body with Salt
	Salt        []byte // 32 random bytes
	Secret      []byte // 32 random bytes
	Deliveries  []NewDelivery
	Duplicate   *DuplicateKey // nil: never a duplicate
}

// NewDelivery is one event's way to one destination.
type NewDelivery struct {
	ID            uuid.UUID // carries the event's timestamp, see id.At
	DestinationID uuid.UUID
}

// DuplicateKey is what makes two webhooks of an endpoint the same one.
type DuplicateKey struct {
	Hash     []byte // 32 bytes
	BodyHash []byte // SHA-256 of the body
	Window   time.Duration
}

// Accepted is the answer to an Acceptance.
type Accepted struct {
	EventID uuid.UUID
	// Duplicate: EventID was accepted before, and nothing was stored now.
	Duplicate bool
	// BodyDiffers: it is a duplicate by its key, but came with another body.
	BodyDiffers bool
}

// Size is the weight of a in a group commit.
func (a *Acceptance) Size() int {
	return 1024 + len(a.Headers) + len(a.Body) + 256*len(a.Deliveries)
}

// errDayTurned: the day turned between two transactions that hold one key; run again it is a plain duplicate.
var errDayTurned = errors.New("duplicate key was taken across midnight")

// Accept stores events, payloads, deliveries and queue rows in one transaction, leaving out duplicates.
// It is the Commit of the ingest Group: invariant 1, accepted means committed.
func Accept(ctx context.Context, pool *pgxpool.Pool, rows []*Acceptance) ([]Accepted, error) {
	for try := 0; ; try++ {
		accepted, err := acceptOnce(ctx, pool, rows)
		if errors.Is(err, errDayTurned) && try < 3 {
			continue
		}
		return accepted, err
	}
}

func acceptOnce(ctx context.Context, pool *pgxpool.Pool, rows []*Acceptance) ([]Accepted, error) {
	var accepted []Accepted
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var err error
		if accepted, err = findDuplicates(ctx, tx, rows); err != nil {
			return err
		}
		var fresh []*Acceptance
		for i, row := range rows {
			if !accepted[i].Duplicate {
				fresh = append(fresh, row)
			}
		}
		return copyEvents(ctx, tx, fresh)
	})
	if err != nil {
		return nil, fmt.Errorf("accept %d events: %w", len(rows), err)
	}
	return accepted, nil
}

// copyEvents writes what was accepted: four COPYs, whatever the number of rows.
func copyEvents(ctx context.Context, tx pgx.Tx, rows []*Acceptance) error {
	if len(rows) == 0 {
		return nil
	}
	var events, payloads, deliveries, queue [][]any
	for _, r := range rows {
		var key []byte
		if r.Duplicate != nil {
			key = r.Duplicate.Hash
		}
		events = append(events, []any{r.EventID, r.TenantID, r.EndpointID, r.ContentType, len(r.Body), r.PayloadHash, key})
		payloads = append(payloads, []any{r.EventID, r.TenantID, r.Headers, r.Body, r.Salt, r.Secret})
		for _, d := range r.Deliveries {
			deliveries = append(deliveries, []any{d.ID, r.EventID, r.TenantID, r.EndpointID, d.DestinationID, r.LogID})
			queue = append(queue, []any{d.ID, d.DestinationID, r.TenantID})
		}
	}
	for _, c := range []struct {
		table   string
		columns []string
		rows    [][]any
	}{
		{"events", []string{"id", "tenant_id", "endpoint_id", "content_type", "body_size", "payload_hash", "duplicate_key"}, events},
		{"event_payloads", []string{"event_id", "tenant_id", "headers", "body", "salt", "secret"}, payloads},
		{"deliveries", []string{"id", "event_id", "tenant_id", "endpoint_id", "destination_id", "log_id"}, deliveries},
		{"delivery_queue", []string{"delivery_id", "destination_id", "tenant_id"}, queue},
	} {
		if len(c.rows) == 0 {
			continue
		}
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{c.table}, c.columns, pgx.CopyFromRows(c.rows)); err != nil {
			return fmt.Errorf("copy %s: %w", c.table, err)
		}
	}
	return nil
}

// dedupKey is an endpoint and a key's hash, comparable.
type dedupKey struct {
	endpoint uuid.UUID
	hash     [32]byte
}

func (a *Acceptance) dedupKey() dedupKey {
	return dedupKey{a.EndpointID, [32]byte(a.Duplicate.Hash)}
}

// findDuplicates answers for each row whether it is fresh, and takes the keys of those that are. Of several rows with
// one key in rows the first counts; the others are its duplicates.
func findDuplicates(ctx context.Context, tx pgx.Tx, rows []*Acceptance) ([]Accepted, error) {
	accepted := make([]Accepted, len(rows))
	first := map[dedupKey]*Acceptance{}
	var candidates []*Acceptance
	for i, r := range rows {
		accepted[i] = Accepted{EventID: r.EventID}
		if r.Duplicate == nil {
			continue
		}
		if first[r.dedupKey()] == nil {
			first[r.dedupKey()] = r
			candidates = append(candidates, r)
		}
	}
	if len(candidates) == 0 {
		return accepted, nil
	}
	holders, err := takeKeys(ctx, tx, candidates)
	if err != nil {
		return nil, err
	}
	for i, r := range rows {
		if r.Duplicate == nil {
			continue
		}
		holder := holders[r.dedupKey()]
		if holder.eventID != r.EventID {
			accepted[i] = Accepted{
				EventID:     holder.eventID,
				Duplicate:   true,
				BodyDiffers: !bytes.Equal(holder.bodyHash, r.Duplicate.BodyHash),
			}
		}
	}
	return accepted, nil
}
