package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// BatchRow is a delivery of a batch and what its attempt needs.
type BatchRow struct {
	DeliveryID    uuid.UUID
	Epoch         int
	Attempt       int
	DestinationID uuid.UUID
	EventID       uuid.UUID
	Canceled      bool     // by somebody: it is ended instead of being sent
	Payload       *Payload // perhaps erased; nil: the event's row is gone
}

// leftSQL reads what is left of claim $1 after $2.
const leftSQL = `
select q.delivery_id from delivery_queue q where q.claim_id = $1 and q.delivery_id > $2 order by q.delivery_id`

const batchRowsSQL = `
select d.id, d.epoch, d.next_attempt, d.destination_id, d.event_id, d.cancel_requested
from deliveries d
where d.id = any($1) and d.state = 'pending' and d.lane = 'batch'
order by d.id`

const eventsSQL = `
select e.id, e.accepted_at, e.body_size, e.payload_hash from events e where e.id = any($1)`

const payloadsSQL = `
select p.event_id, p.headers, p.body, p.salt, p.secret from event_payloads p where p.event_id = any($1)`

// countAgainSQL counts another start of deliveries, because an earlier run of their batch may have sent them.
const countAgainSQL = `
update deliveries d set lost_starts = d.lost_starts + 1 where d.id = any($1) and d.state = 'pending' and d.lane = 'batch'`

// CountAgain counts another start of all that is left of a batch, before it is sent by another run.
func CountAgain(ctx context.Context, pool *pgxpool.Pool, claim uuid.UUID) error {
	ids, err := left(ctx, pool, claim, uuid.Nil)
	if err == nil {
		_, err = pool.Exec(ctx, countAgainSQL, ids)
	}
	if err != nil {
		return fmt.Errorf("count starts of a batch: %w", err)
	}
	return nil
}

func left(ctx context.Context, pool *pgxpool.Pool, claim, after uuid.UUID) ([]uuid.UUID, error) {
	rows, err := pool.Query(ctx, leftSQL, claim, after)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}

// LoadBatch reads what is left of a batch after the delivery after: about maxBytes of bodies at a time, since hundreds of
// large ones don't fit into memory together.
func LoadBatch(ctx context.Context, pool *pgxpool.Pool, claim, after uuid.UUID, maxBytes int) ([]BatchRow, error) {
	rows, err := batchRows(ctx, pool, claim, after)
	if err == nil && len(rows) > 0 {
		rows, err = addEvents(ctx, pool, rows, maxBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("load batch: %w", err)
	}
	return rows, nil
}

// LeftOfBatch reads what is left of a batch after the delivery after, without its payloads.
func LeftOfBatch(ctx context.Context, pool *pgxpool.Pool, claim, after uuid.UUID) ([]BatchRow, error) {
	rows, err := batchRows(ctx, pool, claim, after)
	if err != nil {
		return nil, fmt.Errorf("read batch: %w", err)
	}
	return rows, nil
}

func batchRows(ctx context.Context, pool *pgxpool.Pool, claim, after uuid.UUID) ([]BatchRow, error) {
	ids, err := left(ctx, pool, claim, after)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	found, err := pool.Query(ctx, batchRowsSQL, ids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, func(row pgx.CollectableRow) (r BatchRow, err error) {
		err = row.Scan(&r.DeliveryID, &r.Epoch, &r.Attempt, &r.DestinationID, &r.EventID, &r.Canceled)
		return r, err
	})
}

// addEvents completes rows by their events, and cuts them off where their bodies have maxBytes together.
func addEvents(ctx context.Context, pool *pgxpool.Pool, rows []BatchRow, maxBytes int) ([]BatchRow, error) {
	payloads := make(map[uuid.UUID]*Payload, len(rows))
	err := readByEvent(ctx, pool, eventsSQL, rows, payloads, readEvents)
	if err != nil {
		return nil, err
	}
	bytes := 0
	for i := range rows {
		p := payloads[rows[i].EventID]
		if p == nil { // it must not hold up the others
			continue
		}
		if bytes += p.PayloadSize; bytes > maxBytes && i > 0 {
			rows = rows[:i]
			break
		}
		rows[i].Payload = p
	}
	return rows, readByEvent(ctx, pool, payloadsSQL, rows, payloads, readPayloads)
}

// readByEvent runs a look-up by the events of rows.
func readByEvent(ctx context.Context, pool *pgxpool.Pool, sql string, rows []BatchRow, payloads map[uuid.UUID]*Payload,
	read func(pgx.Rows, map[uuid.UUID]*Payload) error) error {
	ids := make([]uuid.UUID, len(rows))
	for i, r := range rows {
		ids[i] = r.EventID
	}
	found, err := pool.Query(ctx, sql, ids)
	if err != nil {
		return err
	}
	return read(found, payloads)
}

// readEvents reads the rows of eventsSQL.
func readEvents(rows pgx.Rows, payloads map[uuid.UUID]*Payload) error {
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Payload, error) {
		p := &Payload{}
		err := row.Scan(&p.EventID, &p.AcceptedAt, &p.PayloadSize, &p.PayloadHash)
		payloads[p.EventID] = p
		return p, err
	})
	return err
}

// readPayloads completes payloads by the rows of payloadsSQL.
func readPayloads(rows pgx.Rows, payloads map[uuid.UUID]*Payload) error {
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (none struct{}, err error) {
		var event uuid.UUID
		var p Payload
		if err := row.Scan(&event, &p.Headers, &p.Body, &p.Salt, &p.Secret); err != nil {
			return none, err
		}
		if known := payloads[event]; known != nil {
			known.Headers, known.Body, known.Salt, known.Secret = p.Headers, p.Body, p.Salt, p.Secret
		}
		return none, nil
	})
	return err
}

const destinationsSQL = `
select t.id, t.url, t.secret_path, t.timeout_ms, t.schedule, t.headers,
    array(select s.secret from destination_secrets s
          where s.destination_id = t.id and (s.expires_at is null or s.expires_at > now()) order by s.id desc),
    t.paused_at is not null or t.disabled_at is not null, t.deleted_at is not null,
    array(select k.private_key from destination_keys k
          where k.destination_id = t.id and (k.expires_at is null or k.expires_at > now()) order by k.id desc),
    (select to_jsonb(x) from destination_transports x where x.destination_id = t.id),
    (select ` + circuitWait + ` from circuits c where c.destination_id = t.id and c.state <> 'closed')::float8,
    coalesce(t.max_concurrency, 0), coalesce(t.rate_per_second, 0),
    case when t.proof_token then (select n.proof_key from tenants n where n.id = t.tenant_id) end
from destinations t where t.id = any($1)`

// LoadDestinations reads destinations.
func LoadDestinations(ctx context.Context, pool *pgxpool.Pool, ids []uuid.UUID) (map[uuid.UUID]*Destination, error) {
	rows, err := pool.Query(ctx, destinationsSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("load destinations: %w", err)
	}
	found := make(map[uuid.UUID]*Destination, len(ids))
	if err := readDestinations(rows, found); err != nil {
		return nil, fmt.Errorf("load destinations: %w", err)
	}
	return found, nil
}

// readDestinations reads the rows of destinationsSQL.
func readDestinations(rows pgx.Rows, found map[uuid.UUID]*Destination) error {
	_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d Destination, err error) {
		var timeoutMS int
		var circuitMS *float64
		err = row.Scan(&d.ID, &d.URL, &d.SecretPath, &timeoutMS, &d.Schedule, &d.ExtraHeaders, &d.SigningKeys, &d.Held, &d.Deleted,
			&d.PrivateKeys, &d.Transport, &circuitMS, &d.MaxConcurrency, &d.RatePerSecond, &d.ProofKey)
		d.Timeout = time.Duration(timeoutMS) * time.Millisecond
		if d.CircuitOpen = circuitMS != nil; d.CircuitOpen {
			d.CircuitWait = milliseconds(*circuitMS)
		}
		found[d.ID] = &d
		return d, err
	})
	return err
}

// Deferred is a delivery of a batch that wasn't sent: it goes back into the queue and uses up no attempt.
type Deferred struct {
	DeliveryID uuid.UUID
	Epoch      int
	Attempt    int
	Delay      time.Duration
}

// deferSQL is requeueSQL for many deliveries, whose counted start surely never became a request.
const deferSQL = `
with moved as (
    update deliveries d set epoch = d.epoch + 1, check_after = null, due_at = now() + u.delay_ms * interval '1 ms', lane = null,
        lost_starts = greatest(d.lost_starts - 1, 0)
    from unnest($1::uuid[], $2::int[], $3::int[], $4::bigint[]) as u(id, epoch, attempt, delay_ms)
    where d.id = u.id and d.id = any($1) and d.epoch = u.epoch and d.next_attempt = u.attempt and d.state = 'pending'
    returning d.id, d.destination_id, d.tenant_id, d.next_attempt, d.due_at
)
insert into delivery_queue (delivery_id, destination_id, tenant_id, due_at, attempt)
select id, destination_id, tenant_id, due_at, next_attempt from moved
on conflict (delivery_id) do update
    set due_at = excluded.due_at, attempt = excluded.attempt, claim_id = null, claim_owner = null`

// Defer puts deliveries that a batch didn't send back into the queue, under the next epoch.
func Defer(ctx context.Context, pool *pgxpool.Pool, deferred []Deferred) error {
	if len(deferred) == 0 {
		return nil
	}
	var ids []uuid.UUID
	var epochs, attempts []int
	var delays []int64
	for _, d := range deferred {
		ids, epochs = append(ids, d.DeliveryID), append(epochs, d.Epoch)
		attempts, delays = append(attempts, d.Attempt), append(delays, d.Delay.Milliseconds())
	}
	if _, err := pool.Exec(ctx, deferSQL, ids, epochs, attempts, delays); err != nil {
		return fmt.Errorf("put %d deliveries of a batch back: %w", len(deferred), err)
	}
	return nil
}
