package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/verify"
)

// record is what Kapsel has stored in the end.
type record struct {
	events     map[uuid.UUID]*storedEvent
	deliveries map[uuid.UUID]*storedDelivery
	attempts   map[uuid.UUID]*storedAttempt
	strays     []string // leaves that are no attempt's
	deadLetter []uuid.UUID
	roots      map[int64][]byte
	published  map[int64][][]byte // roots of heads, by size
}

type storedEvent struct {
	endpoint   uuid.UUID
	key        string // duplicate key, "" for none
	body       [sha256.Size]byte
	deliveries []uuid.UUID
}

type storedDelivery struct {
	event, destination uuid.UUID
	state              string
	attempts           []*storedAttempt
}

type storedAttempt struct {
	id, delivery  uuid.UUID
	number        int // 0 for a decision
	kind, outcome string
	status        int
	leafHash      []byte
	leaves        []storedLeaf
}

// terminal says whether a delivery ends with this.
func (a *storedAttempt) terminal() bool {
	return a.kind != "attempt" || a.outcome == verify.OutcomeDelivered
}

type storedLeaf struct {
	index       int64
	hash        []byte
	seq         int64
	lost        int64
	previous    string // hex
	attemptHash []byte // recomputed from the bytes
}

// readRecord reads all of it.
func readRecord(ctx context.Context, db *pgxpool.Pool) (*record, error) {
	r := &record{
		events: map[uuid.UUID]*storedEvent{}, deliveries: map[uuid.UUID]*storedDelivery{}, attempts: map[uuid.UUID]*storedAttempt{},
		roots: map[int64][]byte{}, published: map[int64][][]byte{},
	}
	for _, part := range []struct {
		name string
		read func(context.Context, *pgxpool.Pool) error
	}{
		{"events", r.readEvents}, {"deliveries", r.readDeliveries}, {"attempts", r.readAttempts}, {"leaves", r.readLeaves},
		{"dead letters", r.readDeadLetters}, {"roots", r.readRoots},
	} {
		if err := part.read(ctx, db); err != nil {
			return nil, fmt.Errorf("read %s: %w", part.name, err)
		}
	}
	return r, nil
}

// each calls f for every row; scan's targets are read by f.
func each(ctx context.Context, db *pgxpool.Pool, sql string, scan []any, f func() error) error {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, scan, f)
	return err
}

func (r *record) readEvents(ctx context.Context, db *pgxpool.Pool) error {
	var event, endpoint uuid.UUID
	var key, body []byte
	return each(ctx, db, `select e.id, e.endpoint_id, e.duplicate_key, coalesce(sha256(p.body), ''::bytea)
		from events e left join event_payloads p on p.event_id = e.id`, []any{&event, &endpoint, &key, &body}, func() error {
		e := &storedEvent{endpoint: endpoint, key: hex.EncodeToString(key)}
		copy(e.body[:], body)
		r.events[event] = e
		return nil
	})
}

func (r *record) readDeliveries(ctx context.Context, db *pgxpool.Pool) error {
	var delivery, event, destination uuid.UUID
	var state string
	return each(ctx, db, "select id, event_id, destination_id, state from deliveries", []any{&delivery, &event, &destination, &state}, func() error {
		r.deliveries[delivery] = &storedDelivery{event: event, destination: destination, state: state}
		if e := r.events[event]; e != nil {
			e.deliveries = append(e.deliveries, delivery)
		}
		return nil
	})
}

func (r *record) readAttempts(ctx context.Context, db *pgxpool.Pool) error {
	var a storedAttempt
	return each(ctx, db, "select id, delivery_id, number, kind, outcome, response_status, leaf_hash from attempts order by delivery_id, number",
		[]any{&a.id, &a.delivery, &a.number, &a.kind, &a.outcome, &a.status, &a.leafHash}, func() error {
			kept := a
			a.leafHash = nil
			r.attempts[kept.id] = &kept
			if d := r.deliveries[kept.delivery]; d != nil {
				d.attempts = append(d.attempts, &kept)
			}
			return nil
		})
}

func (r *record) readLeaves(ctx context.Context, db *pgxpool.Pool) error {
	var attempt *uuid.UUID
	var index int64
	var bytes, hash []byte
	return each(ctx, db, "select attempt_id, leaf_index, leaf, leaf_hash from merkle_leaves order by leaf_index", []any{&attempt, &index, &bytes, &hash}, func() error {
		leaf, err := verify.ParseLeaf(bytes)
		if err != nil {
			r.strays = append(r.strays, fmt.Sprintf("leaf %d: %v", index, err))
			return nil
		}
		if attempt == nil || r.attempts[*attempt] == nil {
			r.strays = append(r.strays, fmt.Sprintf("leaf %d belongs to no attempt", index))
			return nil
		}
		a := r.attempts[*attempt]
		a.leaves = append(a.leaves, storedLeaf{
			index: index, hash: append([]byte(nil), hash...), seq: leaf.Seq, lost: leaf.LostStarts, previous: leaf.PreviousLeafHash,
			attemptHash: verify.LeafHash(bytes),
		})
		return nil
	})
}

func (r *record) readDeadLetters(ctx context.Context, db *pgxpool.Pool) error {
	var attempt uuid.UUID
	return each(ctx, db, "select attempt_id from attestation_dead_letters where resolved_at is null", []any{&attempt}, func() error {
		r.deadLetter = append(r.deadLetter, attempt)
		return nil
	})
}

func (r *record) readRoots(ctx context.Context, db *pgxpool.Pool) error {
	var size int64
	var root []byte
	err := each(ctx, db, "select tree_size, root_hash from tree_roots", []any{&size, &root}, func() error {
		r.roots[size] = append([]byte(nil), root...)
		return nil
	})
	if err != nil {
		return err
	}
	return each(ctx, db, "select tree_size, root_hash from signed_tree_heads where signature is not null", []any{&size, &root}, func() error {
		r.published[size] = append(r.published[size], append([]byte(nil), root...))
		return nil
	})
}
