package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Delivery is a delivery's row, locked by the recording transaction, with what its leaves need of the event.
type Delivery struct {
	ID            uuid.UUID
	EventID       uuid.UUID
	TenantID      uuid.UUID
	EndpointID    uuid.UUID
	DestinationID uuid.UUID
	LogID         uuid.UUID
	Origin        string // of the log
	State         string
	Epoch         int
	NextAttempt   int
	LostStarts    int
	Leaves        int
	LastLeafHash  []byte // nil before the first leaf
	DueIn         time.Duration
	Ordered       bool // it has a place in a line
	DeadBlocks    bool // and if it is dead, those behind it wait
	// CircuitActive: the circuit of its destination isn't at rest, because its receiver has failed lately.
	CircuitActive bool
	// CancelRequested: it shall end instead of being tried again.
	CancelRequested bool
	// PayloadErased: its event's payload was erased while it was pending; LeavesErased: the bytes of its leaves too.
	PayloadErased, LeavesErased bool
	Commitment
}

// Commitment is what a leaf says of an event's payload, and what opens it. Salt and Secret are nil once the payload is erased.
type Commitment struct {
	PayloadSize int
	PayloadHash []byte
	Salt        []byte // of the payload
	Secret      []byte // of the event: the secrets of attempts are derived from it
}

// Gone reports whether there is no commitment, because the event's row isn't there.
func (c *Commitment) Gone() bool { return c.PayloadHash == nil }

// Erased reports whether the commitment can't be opened any more.
func (c *Commitment) Erased() bool { return c.Salt == nil || c.Secret == nil }

// Attempt is a row of attempts: an HTTP request and its outcome, or (Number 0) the decision to send no more.
type Attempt struct {
	ID                uuid.UUID
	Number            int
	Epoch             int
	Kind              string
	Outcome           string
	Error             string
	AttemptedAt       time.Time
	Duration          time.Duration
	EndpointURL       string
	ResponseStatus    int
	ResponseSize      int64
	ResponseTruncated bool
	ResponseHeaders   []byte
	ResponseBody      []byte
	LeafHash          []byte
	Leaf              []byte
	LeafParts         []byte // what makes Leaf again from the row, if it is lost on its way into the log
	Secrets           []byte // payload salt, then the attempt's secret; empty if the payload is erased
}

// Change is what one recording does to a delivery: its new attempts and their leaves, and where it stands after them.
type Change struct {
	Delivery *Delivery // with State, Epoch, NextAttempt, LostStarts, Leaves and LastLeafHash as they shall be
	Attempts []Attempt
	// Delay (of a pending delivery) is the wait until the next attempt.
	Delay time.Duration
	// Park: a pending delivery goes back into the queue instead of staying with its carrier.
	Park bool
	// Grace is how long after Delay a carrier may be silent before the sweeper looks for it.
	Grace time.Duration
	// DisableReason, if set, disables the destination.
	DisableReason string
	// Verdict is what the attempt says about the receiver.
	Verdict Verdict
}

// lockSQL names the log that a delivery's next leaf goes into: the one it was accepted for, or the one that goes on for that.
const lockSQL = `
select d.id, d.event_id, d.tenant_id, d.endpoint_id, d.destination_id, l.id, l.origin, d.state, d.epoch, d.next_attempt,
    d.lost_starts, d.leaves, d.last_leaf_hash, greatest(coalesce(extract(epoch from d.due_at - now()), 0), 0) * 1000,
    d.order_key is not null,
    d.order_key is not null and (select e.ordering ->> 'on_dead' from endpoints e where e.id = d.endpoint_id) is not distinct from 'block',
    exists (select from circuits c where c.destination_id = d.destination_id and (c.ring <> 0 or c.state <> 'closed')),
    d.cancel_requested, d.erased is not null, d.erased is not distinct from 'leaves'
from deliveries d
cross join lateral (
    select l.id, l.origin from logs l
    where l.id = coalesce((select open_log(p.id) from logs p where p.id = d.log_id and p.successor is not null), d.log_id)
) l
where d.id = any($1)
order by d.id
for update of d`

const commitmentsSQL = `
select e.id, e.body_size, e.payload_hash, p.salt, p.secret
from events e
left join event_payloads p on p.event_id = e.id and p.event_id = any($1)
where e.id = any($1)`

// Record is invariant 4: in one transaction it locks deliveries in the order of their IDs, lets decide say what changes
// (it sees each row as it is under the lock, so it can refuse a carrier that was fenced off), and writes attempts,
// leaves, states and queue rows together. decide may be called again if the transaction has to be repeated. known are
// the commitments of deliveries whose sender has read them already; the others are read here.
func Record(ctx context.Context, pool *pgxpool.Pool, ids []uuid.UUID, known map[uuid.UUID]*Commitment,
	decide func(map[uuid.UUID]*Delivery) ([]Change, error)) error {
	return RecordAttempts(ctx, pool, ids, known, Circuits{}, decide)
}

// RecordAttempts is Record for changes that also say something about their receivers: it moves circuits.
func RecordAttempts(ctx context.Context, pool *pgxpool.Pool, ids []uuid.UUID, known map[uuid.UUID]*Commitment, circuits Circuits,
	decide func(map[uuid.UUID]*Delivery) ([]Change, error)) error {
	return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		locked, err := beginAndLock(ctx, conn, ids)
		if err == nil {
			err = addCommitments(ctx, conn, locked, known)
		}
		var changes []Change
		if err == nil {
			changes, err = decide(locked)
		}
		if err == nil && len(changes) > 0 {
			return writeAndCommit(ctx, conn, changes, circuits)
		}
		return errors.Join(err, rollback(conn))
	})
}

// beginAndLock begins a transaction and locks deliveries, in one round trip.
func beginAndLock(ctx context.Context, conn *pgxpool.Conn, ids []uuid.UUID) (map[uuid.UUID]*Delivery, error) {
	locked := make(map[uuid.UUID]*Delivery, len(ids))
	batch := &pgx.Batch{}
	batch.Queue("begin")
	batch.Queue(lockSQL, ids).Query(func(rows pgx.Rows) error {
		_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Delivery, error) {
			d := &Delivery{}
			var dueMS float64
			err := row.Scan(&d.ID, &d.EventID, &d.TenantID, &d.EndpointID, &d.DestinationID, &d.LogID, &d.Origin, &d.State, &d.Epoch,
				&d.NextAttempt, &d.LostStarts, &d.Leaves, &d.LastLeafHash, &dueMS, &d.Ordered, &d.DeadBlocks,
				&d.CircuitActive, &d.CancelRequested, &d.PayloadErased, &d.LeavesErased)
			d.DueIn = time.Duration(dueMS) * time.Millisecond
			locked[d.ID] = d
			return d, err
		})
		return err
	})
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return nil, fmt.Errorf("lock deliveries: %w", err)
	}
	return locked, nil
}

// rollback ends a transaction that changed nothing, or failed. The pool closes a connection on which that fails.
func rollback(conn *pgxpool.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	_, err := conn.Exec(ctx, "rollback")
	if err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// addCommitments completes deliveries by what is known, and reads the rest. Those whose event's row is gone have none, and are the
// caller's to refuse: others are recorded in the same transaction.
func addCommitments(ctx context.Context, tx querier, locked map[uuid.UUID]*Delivery, known map[uuid.UUID]*Commitment) error {
	unknown := map[uuid.UUID][]*Delivery{}
	var events []uuid.UUID
	for _, d := range locked {
		if c := known[d.ID]; c != nil {
			d.Commitment = *c
			d.forget()
			continue
		}
		unknown[d.EventID] = append(unknown[d.EventID], d)
		events = append(events, d.EventID)
	}
	if len(events) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, commitmentsSQL, events)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	var event uuid.UUID
	var c Commitment
	_, err = pgx.ForEachRow(rows, []any{&event, &c.PayloadSize, &c.PayloadHash, &c.Salt, &c.Secret}, func() error {
		for _, d := range unknown[event] {
			d.Commitment = c
			d.forget()
		}
		c = Commitment{} // its slices belong to the deliveries now
		return nil
	})
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return nil
}

// forget lets go of what opens the commitments of an erased payload, although whoever sent it may have it still.
func (d *Delivery) forget() {
	if d.PayloadErased {
		d.Salt, d.Secret = nil, nil
	}
}

const insertAttemptsSQL = `
insert into attempts (id, delivery_id, event_id, tenant_id, endpoint_id, destination_id, log_id, number, epoch, kind, outcome,
    error, attempted_at, duration_ms, endpoint_url, response_status, response_size, response_truncated, response_headers,
    response_body, leaf_hash, leaf_parts)
select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::uuid[], $8::int[], $9::int[],
    $10::text[], $11::text[], $12::text[], $13::timestamptz[], $14::bigint[], $15::text[], $16::int[], $17::bigint[],
    $18::boolean[], $19::bytea[], $20::bytea[], $21::bytea[], $22::bytea[])`

const queueLeavesSQL = `
insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, erased)
select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bytea[], $5::bytea[], $6::bytea[], $7::boolean[])`

const updateDeliveriesSQL = `
update deliveries d set state = u.state, epoch = u.epoch, next_attempt = u.next_attempt, lost_starts = u.lost_starts,
    leaves = u.leaves, last_leaf_hash = u.last_leaf_hash,
    due_at = case when u.state = 'pending' then now() + u.delay_ms * interval '1 ms' end,
    check_after = case when u.state = 'pending' and not u.park then now() + (u.delay_ms + u.grace_ms) * interval '1 ms' end,
    finished_at = case when u.state <> 'pending' then now() end
from unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::int[], $6::int[], $7::bytea[], $8::bigint[], $9::bigint[], $10::boolean[])
    as u(id, state, epoch, next_attempt, lost_starts, leaves, last_leaf_hash, delay_ms, grace_ms, park)
where d.id = u.id and d.id = any($1)`

const leaveQueueSQL = `delete from delivery_queue where delivery_id = any($1::uuid[])`

const parkSQL = `
insert into delivery_queue (delivery_id, destination_id, tenant_id, due_at, attempt)
select u.id, u.destination_id, u.tenant_id, now() + u.delay_ms * interval '1 ms', u.attempt
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::int[]) as u(id, destination_id, tenant_id, delay_ms, attempt)
on conflict (delivery_id) do update
    set due_at = excluded.due_at, attempt = excluded.attempt, claim_id = null, claim_owner = null`

const disableSQL = `
update destinations set disabled_at = now(), disabled_reason = $2, updated_at = now() where id = $1 and disabled_at is null`

// writeAndCommit sends all statements of the changes and the commit in one round trip. If one fails, Postgres skips those
// after it, the commit included.
func writeAndCommit(ctx context.Context, conn *pgxpool.Conn, changes []Change, circuits Circuits) error {
	batch := &pgx.Batch{}
	queueAttempts(batch, changes)
	queueDeliveries(batch, changes)
	queueTurns(batch, changes)
	queueDisabled(batch, changes)
	queueDead(batch, changes)
	committed := circuits.queue(batch, changes)
	batch.Queue("commit")
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return errors.Join(err, rollback(conn))
	}
	committed()
	return nil
}

// queueDisabled disables each destination once, in the order of their IDs: two groups that disable the same ones lock
// them in one order.
func queueDisabled(batch *pgx.Batch, changes []Change) {
	reasons := map[uuid.UUID]string{}
	for _, c := range changes {
		if c.DisableReason != "" {
			reasons[c.Delivery.DestinationID] = c.DisableReason
		}
	}
	ids := slices.SortedFunc(maps.Keys(reasons), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	for _, destination := range ids {
		batch.Queue(disableSQL, destination, reasons[destination])
	}
}

func queueAttempts(batch *pgx.Batch, changes []Change) {
	var ids, deliveries, events, tenants, endpoints, destinations, logs []uuid.UUID
	var numbers, epochs, statuses []int
	var kinds, outcomes, errors, urls []string
	var times []time.Time
	var durations, sizes []int64
	var truncated, erased []bool
	var headers, bodies, hashes, parts, leaves, secrets [][]byte
	for _, c := range changes {
		d := c.Delivery
		for _, a := range c.Attempts {
			if d.PayloadErased { // meanwhile: what came in or opens the leaf must not outlive the erasure
				a.ResponseHeaders, a.ResponseBody, a.Secrets = nil, nil, []byte{}
			}
			if d.LeavesErased {
				a.LeafParts = nil
			}
			erased = append(erased, d.LeavesErased)
			ids, deliveries, events = append(ids, a.ID), append(deliveries, d.ID), append(events, d.EventID)
			tenants, endpoints = append(tenants, d.TenantID), append(endpoints, d.EndpointID)
			destinations, logs = append(destinations, d.DestinationID), append(logs, d.LogID)
			numbers, epochs, kinds = append(numbers, a.Number), append(epochs, a.Epoch), append(kinds, a.Kind)
			outcomes, errors, times = append(outcomes, a.Outcome), append(errors, a.Error), append(times, a.AttemptedAt)
			durations, urls = append(durations, a.Duration.Milliseconds()), append(urls, a.EndpointURL)
			statuses, sizes = append(statuses, a.ResponseStatus), append(sizes, a.ResponseSize)
			truncated, headers = append(truncated, a.ResponseTruncated), append(headers, a.ResponseHeaders)
			bodies, hashes = append(bodies, a.ResponseBody), append(hashes, a.LeafHash)
			parts, leaves, secrets = append(parts, a.LeafParts), append(leaves, a.Leaf), append(secrets, a.Secrets)
		}
	}
	if len(ids) == 0 {
		return
	}
	batch.Queue(insertAttemptsSQL, ids, deliveries, events, tenants, endpoints, destinations, logs, numbers, epochs, kinds,
		outcomes, errors, times, durations, urls, statuses, sizes, truncated, headers, bodies, hashes, parts)
	batch.Queue(queueLeavesSQL, logs, tenants, ids, hashes, leaves, secrets, erased)
}

func queueDeliveries(batch *pgx.Batch, changes []Change) {
	var ids, gone, parked, parkedDestinations, parkedTenants []uuid.UUID
	var states []string
	var epochs, next, lost, leaves, parkedAttempts []int
	var hashes [][]byte
	var delays, graces, parkedDelays []int64
	var parks []bool
	for _, c := range changes {
		d := c.Delivery
		ids, states, epochs = append(ids, d.ID), append(states, d.State), append(epochs, d.Epoch)
		next, lost = append(next, d.NextAttempt), append(lost, d.LostStarts)
		leaves, hashes = append(leaves, d.Leaves), append(hashes, d.LastLeafHash)
		delays, graces = append(delays, c.Delay.Milliseconds()), append(graces, c.Grace.Milliseconds())
		parks = append(parks, c.Park)
		if !c.Park {
			gone = append(gone, d.ID)
			continue
		}
		parked, parkedDestinations = append(parked, d.ID), append(parkedDestinations, d.DestinationID)
		parkedTenants, parkedDelays = append(parkedTenants, d.TenantID), append(parkedDelays, c.Delay.Milliseconds())
		parkedAttempts = append(parkedAttempts, d.NextAttempt)
	}
	batch.Queue(updateDeliveriesSQL, ids, states, epochs, next, lost, leaves, hashes, delays, graces, parks)
	if len(gone) > 0 {
		batch.Queue(leaveQueueSQL, gone)
	}
	if len(parked) > 0 {
		batch.Queue(parkSQL, parked, parkedDestinations, parkedTenants, parkedDelays, parkedAttempts)
	}
}
