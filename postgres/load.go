package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Outgoing is everything that one attempt needs to be sent.
type Outgoing struct {
	Payload
	Destination
}

// Payload is what an attempt needs of its event.
type Payload struct {
	EventID    uuid.UUID
	AcceptedAt time.Time
	Headers    []byte // as webhook.EncodeHeaders wrote them
	Body       []byte
	Commitment
}

// Erased reports whether the payload, or what opens and derives the commitments, is gone. Its size and hash remain.
func (p *Payload) Erased() bool { return p.Body == nil || p.Headers == nil || p.Commitment.Erased() }

// Destination is what all attempts to a destination share.
type Destination struct {
	ID           uuid.UUID
	URL          string
	SecretPath   bool
	Timeout      time.Duration
	Schedule     json.RawMessage
	ExtraHeaders json.RawMessage
	SigningKeys  [][]byte        // newest first; empty: not signed
	Held         bool            // paused or disabled: nothing may be sent now
	Deleted      bool            // nothing will be sent any more
	PrivateKeys  [][]byte        // for v1a, newest first
	Transport    json.RawMessage // as webhook.Transport has it; nil: as usual
	ProofKey     []byte          // makes proof tokens; nil: it gets none
	// CircuitOpen: only a probe may be sent, which can be won after CircuitWait.
	CircuitOpen bool
	CircuitWait time.Duration
	Limits
}

// ErrMoved means that the delivery isn't (any longer) where the caller thinks: another carrier has it, or it is over.
var ErrMoved = errors.New("delivery has moved on")

// ErrHeld means that nothing may be sent to the destination now: it is paused or disabled.
// ErrCanceled means that somebody canceled the delivery: its carrier ends it instead of sending.
var ErrCanceled = errors.New("delivery is canceled")

var ErrHeld = errors.New("destination is held")

// ErrDeleted means that nothing may be sent to the destination ever again: the delivery is to be canceled.
var ErrDeleted = errors.New("destination is deleted")

// ErrPayloadErased means that there is nothing left to send: the delivery is to end.
var ErrPayloadErased = errors.New("payload is erased")

// ErrEventGone means that the event's row isn't there, which nothing in Kapsel deletes: a partition was dropped too early, or there was a hand in
// the database. No leaf can be made without the event's commitment, so the delivery can't be ended truthfully, and waits for a restore.
var ErrEventGone = errors.New("the event's row is gone")

// Start asks for what one attempt of a delivery needs, for the carrier that holds Epoch.
type Start struct {
	Delivery uuid.UUID
	Epoch    int
	Attempt  int
}

// Loaded answers a Start: Err is ErrMoved, ErrEventGone, ErrHeld, ErrCanceled, ErrDeleted or ErrPayloadErased (these three leave the
// destination filled in) if nothing may be sent.
type Loaded struct {
	Outgoing
	Err error
}

const fenceSQL = `
select d.id, d.event_id, d.destination_id, d.epoch, d.next_attempt, d.cancel_requested from deliveries d where d.id = any($1) and d.state = 'pending'`

// Load reads what attempts need, in the order of starts. It counts nothing; see CountStart.
func Load(ctx context.Context, pool *pgxpool.Pool, starts []Start) ([]Loaded, error) {
	fences, err := readFences(ctx, pool, starts)
	if err != nil {
		return nil, fmt.Errorf("load attempts: %w", err)
	}
	events, destinations := map[uuid.UUID]*Payload{}, map[uuid.UUID]*Destination{}
	for _, start := range starts {
		if f := fences[start.Delivery]; f.holds(start) {
			events[f.event], destinations[f.destination] = nil, nil
		}
	}
	if len(events) > 0 {
		if err := readOutgoing(ctx, pool, events, destinations); err != nil {
			return nil, fmt.Errorf("load attempts: %w", err)
		}
	}
	loaded := make([]Loaded, len(starts))
	for i, start := range starts {
		f := fences[start.Delivery]
		if !f.holds(start) {
			loaded[i].Err = ErrMoved
			continue
		}
		loaded[i].complete(f, events[f.event], destinations[f.destination])
	}
	return loaded, nil
}

// complete takes what was read for an attempt.
func (l *Loaded) complete(f *fence, p *Payload, d *Destination) {
	switch {
	case p == nil:
		l.Err = ErrEventGone
	case f.canceled && d != nil:
		l.Destination, l.Err = *d, ErrCanceled
	case d != nil && d.Deleted:
		l.Destination, l.Err = *d, ErrDeleted
	case d != nil && p.Erased():
		l.Destination, l.Err = *d, ErrPayloadErased // an empty body would be another webhook
	case p.Erased():
		l.Err = ErrMoved
	case d == nil || d.Held:
		l.Err = ErrHeld
	default:
		l.Payload, l.Destination = *p, *d
	}
}

// fence is where a delivery stands, and what it needs.
type fence struct {
	event, destination uuid.UUID
	epoch, attempt     int
	canceled           bool
}

func (f *fence) holds(s Start) bool { return f != nil && f.epoch == s.Epoch && f.attempt == s.Attempt }

func readFences(ctx context.Context, pool *pgxpool.Pool, starts []Start) (map[uuid.UUID]*fence, error) {
	ids := make([]uuid.UUID, len(starts))
	for i, s := range starts {
		ids[i] = s.Delivery
	}
	rows, err := pool.Query(ctx, fenceSQL, ids)
	if err != nil {
		return nil, err
	}
	fences := make(map[uuid.UUID]*fence, len(starts))
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*fence, error) {
		var delivery uuid.UUID
		f := &fence{}
		err := row.Scan(&delivery, &f.event, &f.destination, &f.epoch, &f.attempt, &f.canceled)
		fences[delivery] = f
		return f, err
	})
	return fences, err
}

// readOutgoing fills in events and destinations, in one round trip.
func readOutgoing(ctx context.Context, pool *pgxpool.Pool, events map[uuid.UUID]*Payload, destinations map[uuid.UUID]*Destination) error {
	eventIDs := slices.Collect(maps.Keys(events))
	batch := &pgx.Batch{}
	batch.Queue(eventsSQL, eventIDs).Query(func(rows pgx.Rows) error { return readEvents(rows, events) })
	batch.Queue(payloadsSQL, eventIDs).Query(func(rows pgx.Rows) error { return readPayloads(rows, events) })
	batch.Queue(destinationsSQL, slices.Collect(maps.Keys(destinations))).Query(func(rows pgx.Rows) error {
		return readDestinations(rows, destinations)
	})
	return pool.SendBatch(ctx, batch).Close()
}

const countStartSQL = `
update deliveries d set lost_starts = d.lost_starts + 1
from destinations t
where d.id = $1 and d.epoch = $2 and d.next_attempt = $3 and d.state = 'pending' and not d.cancel_requested
  and t.id = d.destination_id and t.paused_at is null and t.disabled_at is null and t.deleted_at is null`

// CountStart counts a send that no claim has counted, and commits that before anything is sent, so that a lost one
// shows. It reports false, and counts nothing, if the delivery has moved on, is canceled, or its destination is held.
func CountStart(ctx context.Context, pool *pgxpool.Pool, s Start) (bool, error) {
	tag, err := pool.Exec(ctx, countStartSQL, s.Delivery, s.Epoch, s.Attempt)
	if err != nil {
		return false, fmt.Errorf("count start of attempt: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}
