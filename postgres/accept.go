package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
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
	EventType   string // at most 200 bytes of text; "" if it has none
	Headers     []byte // as webhook.EncodeHeaders writes them
	Body        []byte
	PayloadHash []byte // commitment to Body with Salt
	Salt        []byte // 32 random bytes
	Secret      []byte // 32 random bytes
	Deliveries  []NewDelivery
	Duplicate   *DuplicateKey // nil: never a duplicate
	OrderKey    []byte        // 32 bytes: its deliveries wait for those with the same key; nil: they wait for nobody
	Leaf        *AcceptedLeaf // nil: its acceptance isn't attested
}

// AcceptedLeaf attests that a webhook was accepted. It is queued in the transaction that makes it true, under the event's ID.
type AcceptedLeaf struct {
	Bytes   []byte
	Hash    []byte
	Parts   []byte // with which it can be made again; see attestation.Acceptance.Parts
	Secrets []byte // as those of an Attempt
}

func (a *Acceptance) leafHash() []byte {
	if a.Leaf == nil {
		return nil
	}
	return a.Leaf.Hash
}

// NewDelivery is one event's way to one destination.
type NewDelivery struct {
	ID            uuid.UUID // carries the event's timestamp, see id.At
	DestinationID uuid.UUID
	FilterError   string   // why the destination's filter could not be asked; "" if it could
	Skipped       *Attempt // the decision to send nothing, with its leaf; nil: it is to be sent
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
	// LeafHash is that of the leaf that attests the acceptance of EventID; nil: there is none.
	LeafHash []byte
}

// Size is the weight of a in a group commit.
func (a *Acceptance) Size() int {
	size := 1024 + len(a.Headers) + len(a.Body) + 256*len(a.Deliveries)
	for _, d := range a.Deliveries {
		if d.Skipped != nil {
			size += len(d.Skipped.Leaf)
		}
	}
	if a.Leaf != nil {
		size += len(a.Leaf.Bytes)
	}
	return size
}

// errDayTurned: the day turned between two transactions that hold one key; run again it is a plain duplicate.
var errDayTurned = errors.New("duplicate key was taken across midnight")

// Accept stores events, payloads, deliveries and queue rows in one transaction, leaving out duplicates. Deliveries that
// are skipped begin with their end: no queue row, and their one attempt and its leaf in the same transaction.
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
	accepted, err := acceptIn(ctx, pool, rows)
	if err != nil {
		return nil, fmt.Errorf("accept %d events: %w", len(rows), err)
	}
	return accepted, nil
}

func acceptIn(ctx context.Context, pool *pgxpool.Pool, rows []*Acceptance) ([]Accepted, error) {
	if !slices.ContainsFunc(rows, func(r *Acceptance) bool { return r.Duplicate != nil || r.OrderKey != nil }) {
		accepted := make([]Accepted, len(rows))
		for i, r := range rows {
			accepted[i] = Accepted{EventID: r.EventID, LeafHash: r.leafHash()}
		}
		// Statements that are sent together outside of a transaction block are one transaction: one round trip in all.
		return accepted, pool.SendBatch(ctx, eventsBatch(rows, nil)).Close()
	}
	var accepted []Accepted
	return accepted, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var err error
		accepted, err = acceptInTx(ctx, tx, rows)
		return err
	})
}

func acceptInTx(ctx context.Context, tx pgx.Tx, rows []*Acceptance) ([]Accepted, error) {
	accepted, err := findDuplicates(ctx, tx, rows)
	if err != nil {
		return nil, err
	}
	var fresh []*Acceptance
	for i, row := range rows {
		if !accepted[i].Duplicate {
			fresh = append(fresh, row)
		}
	}
	if len(fresh) == 0 {
		return accepted, nil
	}
	turns, err := takeTurns(ctx, tx, fresh)
	if err != nil {
		return nil, err
	}
	return accepted, tx.SendBatch(ctx, eventsBatch(fresh, turns)).Close()
}

const (
	insertEventsSQL = `
insert into events (id, tenant_id, endpoint_id, content_type, body_size, payload_hash, duplicate_key, event_type, leaf_hash, leaf_parts, leaf_log_id)
select u.id, u.tenant_id, u.endpoint_id, u.content_type, u.body_size, u.payload_hash, u.duplicate_key, nullif(u.event_type, ''), u.leaf_hash,
    u.leaf_parts, case when u.leaf_hash is not null then u.log_id end
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::int[], $6::bytea[], $7::bytea[], $8::text[], $9::bytea[], $10::bytea[], $11::uuid[])
    as u(id, tenant_id, endpoint_id, content_type, body_size, payload_hash, duplicate_key, event_type, leaf_hash, leaf_parts, log_id)`
	insertPayloadsSQL = `
insert into event_payloads (event_id, tenant_id, headers, body, salt, secret)
select * from unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[])`
	insertDeliveriesSQL = `
insert into deliveries (id, event_id, tenant_id, endpoint_id, destination_id, log_id, order_key, order_seq, filter_error)
select u.id, u.event_id, u.tenant_id, u.endpoint_id, u.destination_id, u.log_id, u.order_key, u.order_seq, nullif(u.filter_error, '')
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bytea[], $8::bigint[], $9::text[])
    as u(id, event_id, tenant_id, endpoint_id, destination_id, log_id, order_key, order_seq, filter_error)`
	insertSkippedSQL = `
insert into deliveries (id, event_id, tenant_id, endpoint_id, destination_id, log_id, state, leaves, last_leaf_hash, finished_at)
select u.*, now()
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::int[], $9::bytea[]) as u`
	insertQueueSQL = `
insert into delivery_queue (delivery_id, destination_id, tenant_id) select * from unnest($1::uuid[], $2::uuid[], $3::uuid[])`
)

// eventsBatch writes what was accepted: four statements, whatever the number of rows, one more for deliveries that have turns,
// three for what was skipped, and one for the leaves of acceptance.
func eventsBatch(rows []*Acceptance, turns map[uuid.UUID]turn) *pgx.Batch {
	n := len(rows)
	events, tenants, endpoints := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	contentTypes, eventTypes, sizes := make([]string, n), make([]string, n), make([]int, n)
	hashes, keys, headers := make([][]byte, n), make([][]byte, n), make([][]byte, n)
	bodies, salts, secrets := make([][]byte, n), make([][]byte, n), make([][]byte, n)
	leafHashes, leafParts, logs := make([][]byte, n), make([][]byte, n), make([]uuid.UUID, n)
	d := deliveryColumns{turns: turns}
	var skipped []Change
	for i, r := range rows {
		events[i], tenants[i], endpoints[i] = r.EventID, r.TenantID, r.EndpointID
		contentTypes[i], eventTypes[i], sizes[i], hashes[i] = r.ContentType, r.EventType, len(r.Body), r.PayloadHash
		headers[i], bodies[i], salts[i], secrets[i] = r.Headers, r.Body, r.Salt, r.Secret
		leafHashes[i], logs[i] = r.leafHash(), r.LogID
		if r.Leaf != nil {
			leafParts[i] = r.Leaf.Parts
		}
		if r.Duplicate != nil {
			keys[i] = r.Duplicate.Hash
		}
		d.add(r)
		skipped = append(skipped, r.skipped()...)
	}
	batch := &pgx.Batch{}
	batch.Queue(insertEventsSQL, events, tenants, endpoints, contentTypes, sizes, hashes, keys, eventTypes, leafHashes, leafParts, logs)
	batch.Queue(insertPayloadsSQL, events, tenants, headers, bodies, salts, secrets)
	if len(d.ids) > 0 {
		batch.Queue(insertDeliveriesSQL, d.ids, d.events, d.tenants, d.endpoints, d.destinations, d.logs, d.orderKeys, d.orderSeqs, d.filterErrors)
	}
	if len(d.ordered.ids) > 0 {
		batch.Queue(insertOrderedSQL, d.ordered.destinations, d.ordered.keys, d.ordered.seqs, d.ordered.ids, d.ordered.tenants)
	}
	if len(d.queue.ids) > 0 {
		batch.Queue(insertQueueSQL, d.queue.ids, d.queue.destinations, d.queue.tenants)
	}
	if len(skipped) > 0 {
		queueSkipped(batch, skipped)
		queueAttempts(batch, skipped)
	}
	queueAccepted(batch, rows)
	return batch
}

// queueAccepted queues the leaves of those whose acceptance is attested.
func queueAccepted(batch *pgx.Batch, rows []*Acceptance) {
	var logs, tenants, events []uuid.UUID
	var hashes, leaves, secrets [][]byte
	for _, r := range rows {
		if r.Leaf != nil {
			logs, tenants, events = append(logs, r.LogID), append(tenants, r.TenantID), append(events, r.EventID)
			hashes, leaves, secrets = append(hashes, r.Leaf.Hash), append(leaves, r.Leaf.Bytes), append(secrets, r.Leaf.Secrets)
		}
	}
	if len(events) > 0 {
		batch.Queue(queueLeavesSQL, logs, tenants, events, hashes, leaves, secrets, make([]bool, len(events)))
	}
}

// deliveryColumns are the columns of new deliveries that are to be sent.
type deliveryColumns struct {
	ids, events, tenants, endpoints, destinations, logs []uuid.UUID
	orderKeys                                           [][]byte
	orderSeqs                                           []*int64
	filterErrors                                        []string

	turns   map[uuid.UUID]turn
	ordered lineColumns
	queue   lineColumns
}

// lineColumns are the columns of rows in the queue, or in lines.
type lineColumns struct {
	ids, destinations, tenants []uuid.UUID
	keys                       [][]byte
	seqs                       []int64
}

func (c *lineColumns) add(d NewDelivery, tenant uuid.UUID, key []byte, seq int64) {
	c.ids, c.destinations, c.tenants = append(c.ids, d.ID), append(c.destinations, d.DestinationID), append(c.tenants, tenant)
	c.keys, c.seqs = append(c.keys, key), append(c.seqs, seq)
}

func (c *deliveryColumns) add(r *Acceptance) {
	for _, d := range r.Deliveries {
		if d.Skipped != nil {
			continue
		}
		c.ids, c.events, c.tenants = append(c.ids, d.ID), append(c.events, r.EventID), append(c.tenants, r.TenantID)
		c.endpoints, c.destinations = append(c.endpoints, r.EndpointID), append(c.destinations, d.DestinationID)
		c.logs, c.filterErrors = append(c.logs, r.LogID), append(c.filterErrors, d.FilterError)
		t, ordered := c.turns[d.ID]
		if !ordered {
			c.orderKeys, c.orderSeqs = append(c.orderKeys, nil), append(c.orderSeqs, nil)
			c.queue.add(d, r.TenantID, nil, 0)
			continue
		}
		c.orderKeys, c.orderSeqs = append(c.orderKeys, r.OrderKey), append(c.orderSeqs, &t.seq)
		c.ordered.add(d, r.TenantID, r.OrderKey, t.seq)
		if t.first {
			c.queue.add(d, r.TenantID, nil, 0)
		}
	}
}

// skipped returns what becomes of the deliveries that are skipped: each ends with the leaf that says so.
func (a *Acceptance) skipped() []Change {
	var changes []Change
	for _, d := range a.Deliveries {
		if d.Skipped != nil {
			changes = append(changes, Change{Attempts: []Attempt{*d.Skipped}, Delivery: &Delivery{
				ID: d.ID, EventID: a.EventID, TenantID: a.TenantID, EndpointID: a.EndpointID, DestinationID: d.DestinationID, LogID: a.LogID,
				State: d.Skipped.Kind, Leaves: 1, LastLeafHash: d.Skipped.LeafHash,
			}})
		}
	}
	return changes
}

func queueSkipped(batch *pgx.Batch, changes []Change) {
	n := len(changes)
	ids, events, tenants := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	endpoints, destinations, logs := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	states, leaves, hashes := make([]string, n), make([]int, n), make([][]byte, n)
	for i, c := range changes {
		d := c.Delivery
		ids[i], events[i], tenants[i], endpoints[i], destinations[i], logs[i] = d.ID, d.EventID, d.TenantID, d.EndpointID, d.DestinationID, d.LogID
		states[i], leaves[i], hashes[i] = d.State, d.Leaves, d.LastLeafHash
	}
	batch.Queue(insertSkippedSQL, ids, events, tenants, endpoints, destinations, logs, states, leaves, hashes)
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
		accepted[i] = Accepted{EventID: r.EventID, LeafHash: r.leafHash()}
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
				BodyDiffers: holder.bodyHash != nil && !bytes.Equal(holder.bodyHash, r.Duplicate.BodyHash),
				LeafHash:    holder.leafHash,
			}
		}
	}
	return accepted, nil
}
