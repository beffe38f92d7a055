package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/id"
)

// What was delivered, or not, can be delivered again: as a new delivery of the same event that names the old one. It carries
// the event's timestamp in its ID, as all deliveries do, and so lies in the partition that is dropped together with the event.

// Why a delivery can't be delivered again.
var (
	// ErrErased: the payload of its event is gone.
	ErrErased = errors.New("payload is erased")
	// ErrRemoved: its destination or tenant is removed.
	ErrRemoved = errors.New("destination is removed")
	// ErrRedelivered: it was delivered again before. Only jobs ask: of a row of redeliveries the last one counts.
	ErrRedelivered = errors.New("delivery was redelivered before")
)

// ErrKeyUsed means that an Idempotency-Key was used for another delivery.
var ErrKeyUsed = errors.New("key was used for another delivery")

// ErrNotFinished means that a delivery can't be delivered again because it isn't over, or isn't there.
var ErrNotFinished = errors.New("delivery is not finished")

// candidate is a delivery that may be delivered again. Skip says why not.
type candidate struct {
	id, event, endpoint, destination uuid.UUID
	skip                             error
}

const (
	finishedSQL = `
select d.id, d.event_id, d.endpoint_id, d.destination_id from deliveries d
where d.id = any($1) and d.tenant_id = $2 and d.state <> 'pending'`

	keptSQL = `select p.event_id from event_payloads p where p.event_id = any($1)`

	// holdPayloadsSQL makes whoever erases a payload wait, and then see the new deliveries of its event.
	holdPayloadsSQL = `select p.event_id from event_payloads p where p.event_id = any($1) order by p.event_id for key share`

	presentSQL = `
select t.id from destinations t
join tenants n on n.id = t.tenant_id
where t.id = any($1) and t.deleted_at is null and n.deleted_at is null`

	redeliveredSQL = `select r.delivery_id from redeliveries r where r.delivery_id = any($1)`

	insertRedeliveriesSQL = `
insert into deliveries (id, event_id, tenant_id, endpoint_id, destination_id, log_id, redelivery_of, erased)
select u.id, u.event_id, t.id, u.endpoint_id, u.destination_id, t.log_id, u.redelivery_of,
    (select case when x.leaves then 'leaves' else 'payload' end from erasures x where x.event_id = u.event_id)
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[]) as u(id, event_id, endpoint_id, destination_id, redelivery_of)
join tenants t on t.id = $6`

	noteRedeliveriesSQL = `
insert into redeliveries (delivery_id, redelivery_id, tenant_id, job_id)
select u.delivery_id, u.redelivery_id, $3, $4 from unnest($1::uuid[], $2::uuid[]) as u(delivery_id, redelivery_id)`

	takeKeySQL = `
insert into redelivery_keys (tenant_id, key_hash, delivery_id, redelivery_id) values ($1, $2, $3, $4) on conflict do nothing`

	keySQL = `select delivery_id, redelivery_id from redelivery_keys where tenant_id = $1 and key_hash = $2`
)

// Redeliver makes a new delivery of a finished one and returns its ID. keyHash, if not nil, is the hash of a key under which
// the same request may come again: then it is answered with the same ID.
func Redeliver(ctx context.Context, pool *pgxpool.Pool, tenant, delivery uuid.UUID, keyHash []byte) (uuid.UUID, error) {
	redelivery := id.At(delivery)
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if keyHash != nil {
			known, err := takeRedeliveryKey(ctx, tx, tenant, delivery, redelivery, keyHash)
			if err != nil || known != redelivery {
				redelivery = known
				return err
			}
		}
		found, err := finished(ctx, tx, tenant, delivery)
		if err != nil {
			return err
		}
		if found.skip != nil {
			return found.skip
		}
		return insertRedeliveries(ctx, tx, tenant, nil, []candidate{*found}, []uuid.UUID{redelivery})
	})
	if err != nil {
		return uuid.Nil, fmt.Errorf("redeliver: %w", err)
	}
	return redelivery, nil
}

// takeRedeliveryKey returns the redelivery to which a key belongs: the new one, or that of an earlier request.
func takeRedeliveryKey(ctx context.Context, tx pgx.Tx, tenant, delivery, redelivery uuid.UUID, keyHash []byte) (uuid.UUID, error) {
	taken, err := tx.Exec(ctx, takeKeySQL, tenant, keyHash, delivery, redelivery)
	if err != nil || taken.RowsAffected() == 1 {
		return redelivery, err
	}
	var before, known uuid.UUID
	if err := tx.QueryRow(ctx, keySQL, tenant, keyHash).Scan(&before, &known); err != nil {
		return uuid.Nil, err
	}
	if before != delivery {
		return uuid.Nil, ErrKeyUsed
	}
	return known, nil
}

// finished reads one delivery that is over.
func finished(ctx context.Context, tx pgx.Tx, tenant, delivery uuid.UUID) (*candidate, error) {
	rows, err := tx.Query(ctx, finishedSQL, []uuid.UUID{delivery}, tenant)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, readCandidate)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, ErrNotFinished
	}
	return &found[0], addSkips(ctx, tx, found, false)
}

func readCandidate(row pgx.CollectableRow) (c candidate, err error) {
	err = row.Scan(&c.id, &c.event, &c.endpoint, &c.destination)
	return c, err
}

// addSkips finds out which of candidates can't be delivered again. once: nor may those that were before.
func addSkips(ctx context.Context, tx querier, candidates []candidate, once bool) error {
	ids, events, destinations := make([]uuid.UUID, len(candidates)), make([]uuid.UUID, len(candidates)), make([]uuid.UUID, len(candidates))
	for i, c := range candidates {
		ids[i], events[i], destinations[i] = c.id, c.event, c.destination
	}
	payloads, err := readSet(ctx, tx, keptSQL, events)
	if err != nil {
		return err
	}
	present, err := readSet(ctx, tx, presentSQL, destinations)
	if err != nil {
		return err
	}
	before := map[uuid.UUID]bool{}
	if once {
		if before, err = readSet(ctx, tx, redeliveredSQL, ids); err != nil {
			return err
		}
	}
	for i := range candidates {
		switch c := &candidates[i]; {
		case before[c.id]:
			c.skip = ErrRedelivered
		case !present[c.destination]:
			c.skip = ErrRemoved
		case !payloads[c.event]:
			c.skip = ErrErased
		}
	}
	return nil
}

func readSet(ctx context.Context, tx querier, sql string, ids []uuid.UUID) (map[uuid.UUID]bool, error) {
	rows, err := tx.Query(ctx, sql, ids)
	if err != nil {
		return nil, err
	}
	set := map[uuid.UUID]bool{}
	var member uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&member}, func() error {
		set[member] = true
		return nil
	})
	return set, err
}

// insertRedeliveries makes new deliveries of old ones, due now.
func insertRedeliveries(ctx context.Context, tx pgx.Tx, tenant uuid.UUID, job *uuid.UUID, old []candidate, ids []uuid.UUID) error {
	n := len(old)
	events, endpoints, destinations := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	of, tenants := make([]uuid.UUID, n), make([]uuid.UUID, n)
	for i, c := range old {
		of[i], events[i], endpoints[i], destinations[i], tenants[i] = c.id, c.event, c.endpoint, c.destination, tenant
	}
	batch := &pgx.Batch{}
	batch.Queue(holdPayloadsSQL, events)
	batch.Queue(insertRedeliveriesSQL, ids, events, endpoints, destinations, of, tenant)
	batch.Queue(insertQueueSQL, ids, destinations, tenants)
	batch.Queue(noteRedeliveriesSQL, of, ids, tenant, job)
	return tx.SendBatch(ctx, batch).Close()
}

// floor is the smallest UUIDv7 of a moment, as uuid_floor has it.
func floor(t time.Time) (u uuid.UUID) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(max(t.UnixMilli(), 0)))
	copy(u[:6], b[2:])
	return u
}
