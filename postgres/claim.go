package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DueDestination is a destination with at least one delivery due that nobody carries.
type DueDestination struct {
	ID       uuid.UUID
	TenantID uuid.UUID
	Lane     Lane
	Limits
	Timeout time.Duration
	// Probing: its circuit isn't closed, and a probe may be won.
	Probing bool
	// ClosedAt is when its circuit closed, ClosedFor how long ago that was; zero: it never was open. Circuit are the settings.
	ClosedAt  time.Time
	ClosedFor time.Duration
	Circuit   json.RawMessage
}

// Lane is how a delivery is carried: by a workflow of its own, or as one row of a batch. For an endpoint also Auto.
type Lane string

// The lanes.
const (
	LaneAuto     Lane = "auto"
	LaneWorkflow Lane = "workflow"
	LaneBatch    Lane = "batch"
)

// dueSQL lists the next destinations with something due, after a cursor. It steps from one destination_id to the next
// in the index, so its cost grows with the destinations in the queue and never with what waits for each.
const dueSQL = `
with recursive waiting as (
    (select destination_id from delivery_queue
     where claim_id is null and destination_id > $1 order by destination_id limit 1)
    union all
    select (select q.destination_id from delivery_queue q
            where q.claim_id is null and q.destination_id > w.destination_id order by q.destination_id limit 1)
    from waiting w where w.destination_id is not null
)
select d.id, d.tenant_id, e.lane, coalesce(d.max_concurrency, 0), coalesce(d.rate_per_second, 0), d.timeout_ms,
    coalesce(c.state <> 'closed', false), c.closed_at, (extract(epoch from now() - c.closed_at) * 1000)::float8,
    case when c.closed_at is not null then d.circuit end
from waiting w
join destinations d on d.id = w.destination_id
join endpoints e on e.id = d.endpoint_id
left join circuits c on c.destination_id = w.destination_id
where (d.deleted_at is not null
    or d.paused_at is null and d.disabled_at is null and (c.state is null or c.state = 'closed' or c.probe_until <= now()))
  and exists (select from delivery_queue q
              where q.destination_id = w.destination_id and q.claim_id is null and q.due_at <= now())
limit $2`

// DueDestinations returns up to limit destinations with something due, in the order of their IDs, after the given one.
// Paused and disabled destinations aren't among them, nor those whose circuit is open: what is theirs waits. Deleted ones are: what is theirs is canceled.
func DueDestinations(ctx context.Context, pool *pgxpool.Pool, after uuid.UUID, limit int) ([]DueDestination, error) {
	rows, err := pool.Query(ctx, dueSQL, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list due destinations: %w", err)
	}
	due, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d DueDestination, err error) {
		var closedAt *time.Time
		var closedMS *float64
		var timeoutMS int
		err = row.Scan(&d.ID, &d.TenantID, &d.Lane, &d.MaxConcurrency, &d.RatePerSecond, &timeoutMS, &d.Probing, &closedAt, &closedMS, &d.Circuit)
		if closedAt != nil {
			d.ClosedAt, d.ClosedFor = *closedAt, milliseconds(*closedMS)
		}
		d.Timeout = time.Duration(timeoutMS) * time.Millisecond
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("list due destinations: %w", err)
	}
	return due, nil
}

// Claimed is a delivery that this worker shall carry.
type Claimed struct {
	DeliveryID    uuid.UUID
	EventID       uuid.UUID
	TenantID      uuid.UUID
	EndpointID    uuid.UUID
	DestinationID uuid.UUID
	Epoch         int
	Attempt       int
	Lane          Lane // LaneWorkflow or LaneBatch
	ClaimID       uuid.UUID
	DueAt         time.Time // when it became due
}

// claimSQL claims up to $2[i] deliveries of destination $1[i] that are due, and were not before $5[i], for worker $4, if
// its lease still holds.
const claimSQL = `
with picked as (
    select due.delivery_id
    from unnest($1::uuid[], $2::int[], $5::timestamptz[]) as w(destination_id, quota, after)
    cross join lateral (
        select q.delivery_id from delivery_queue q
        where q.destination_id = w.destination_id and q.claim_id is null and q.due_at between w.after and now()
        order by q.due_at, q.delivery_id limit w.quota
        for update skip locked) as due
    where exists (select from workers where id = $4 and alive_until > now())
)
update delivery_queue q set claim_id = $3, claim_owner = $4
from picked p where q.delivery_id = p.delivery_id
returning q.delivery_id, q.attempt, q.claim_id, q.due_at`

// countStartsSQL counts the first send of each claimed delivery as started (if its outcome is never recorded, it was
// lost), and says who carries it.
const countStartsSQL = `
update deliveries d set lost_starts = d.lost_starts + 1, due_at = null, lane = u.lane
from unnest($1::uuid[], $2::int[], $3::text[]) as u(id, attempt, lane)
where d.id = u.id and d.id = any($1) and d.state = 'pending' and d.next_attempt = u.attempt
returning d.id, d.event_id, d.tenant_id, d.endpoint_id, d.destination_id, d.epoch, d.next_attempt, d.lane`

// ClaimRequest says what to claim, and who is to carry it.
type ClaimRequest struct {
	Worker uuid.UUID
	Claim  uuid.UUID // the claim's name, and that of the batch
	// Destinations and how many deliveries of each at most.
	Destinations []uuid.UUID
	Quotas       []int
	// DueAfter is from when on each destination's due deliveries are looked for; nil: all are. It is a hint that saves a walk
	// over rows that were just claimed and are not vacuumed yet: whoever gives one also has to ask without it.
	DueAfter []time.Time
	Lane     Lane // LaneWorkflow or LaneBatch
	// Workflows is how many of a batch's deliveries that were tried before get a workflow of their own.
	Workflows int
}

// Claim takes due deliveries, if the worker's lease still holds.
func Claim(ctx context.Context, pool *pgxpool.Pool, r ClaimRequest) ([]Claimed, error) {
	var claimed []Claimed
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		taken, err := takeRows(ctx, tx, claimSQL, r.Destinations, r.Quotas, r.Claim, r.Worker, r.dueAfter())
		if err != nil || len(taken) == 0 {
			return err
		}
		ids, attempts := make([]uuid.UUID, len(taken)), make([]int, len(taken))
		for i, t := range taken {
			ids[i], attempts[i] = t.id, t.attempt
		}
		claimed, err = readClaimed(ctx, tx, taken, countStartsSQL, ids, attempts, r.lanes(taken))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim deliveries: %w", err)
	}
	return claimed, nil
}

func (r *ClaimRequest) dueAfter() []time.Time {
	if r.DueAfter != nil {
		return r.DueAfter
	}
	return make([]time.Time, len(r.Destinations)) // long ago
}

// lanes says who carries each of the rows that were taken.
func (r *ClaimRequest) lanes(taken []takenRow) []string {
	lanes := make([]string, len(taken))
	workflows := r.Workflows
	for i, t := range taken {
		lanes[i] = string(r.Lane)
		if r.Lane == LaneBatch && t.attempt > 1 && workflows > 0 {
			lanes[i] = string(LaneWorkflow)
			workflows--
		}
	}
	return lanes
}

// takenRow is a queue row that was claimed. Its delivery is read by a second statement, which can name the key.
type takenRow struct {
	id      uuid.UUID
	attempt int
	claim   uuid.UUID
	dueAt   time.Time
}

func takeRows(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]takenRow, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t takenRow, err error) {
		err = row.Scan(&t.id, &t.attempt, &t.claim, &t.dueAt)
		return t, err
	})
}

func readClaimed(ctx context.Context, tx pgx.Tx, taken []takenRow, sql string, args ...any) ([]Claimed, error) {
	byID := make(map[uuid.UUID]takenRow, len(taken))
	for _, t := range taken {
		byID[t.id] = t
	}
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Claimed, err error) {
		err = row.Scan(&c.DeliveryID, &c.EventID, &c.TenantID, &c.EndpointID, &c.DestinationID, &c.Epoch, &c.Attempt, &c.Lane)
		c.ClaimID, c.DueAt = byID[c.DeliveryID].claim, byID[c.DeliveryID].dueAt
		return c, err
	})
}

// takeOverSQL makes worker $1 the owner of claims whose worker is dead or gone. The claim keeps its name: what it may
// have started has the same ID and is found by it.
const takeOverSQL = `
with lapsed as (
    select q.delivery_id from delivery_queue q
    where q.claim_id is not null
      and not exists (select from workers w where w.id = q.claim_owner and w.alive_until > now())
      and exists (select from workers w where w.id = $1 and w.alive_until > now())
    limit $2
    for update skip locked
)
update delivery_queue q set claim_owner = $1
from lapsed l where q.delivery_id = l.delivery_id
returning q.delivery_id, q.attempt, q.claim_id, q.due_at`

// readClaimedSQL takes what has no lane, which only a hand in the database leaves, to be carried alone: one such row mustn't keep
// all others of a dead worker from being taken over.
const readClaimedSQL = `
select d.id, d.event_id, d.tenant_id, d.endpoint_id, d.destination_id, d.epoch, d.next_attempt, coalesce(d.lane, 'workflow')
from deliveries d
where d.id = any($1) and d.state = 'pending'`

// TakeOver claims up to limit deliveries whose claim belongs to a worker that is no longer alive.
func TakeOver(ctx context.Context, pool *pgxpool.Pool, worker uuid.UUID, limit int) ([]Claimed, error) {
	var claimed []Claimed
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		taken, err := takeRows(ctx, tx, takeOverSQL, worker, limit)
		if err != nil || len(taken) == 0 {
			return err
		}
		ids := make([]uuid.UUID, len(taken))
		for i, t := range taken {
			ids[i] = t.id
		}
		claimed, err = readClaimed(ctx, tx, taken, readClaimedSQL, ids)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("take over claims: %w", err)
	}
	return claimed, nil
}

// ownedSQL finds what worker $1 has claimed beside $2.
const ownedSQL = `
select delivery_id, attempt, claim_id, due_at from delivery_queue
where claim_id is not null and claim_owner = $1 and delivery_id <> all($2)
limit $3`

// Owned returns up to limit deliveries that are claimed for a worker beside those that it knows of: what it claimed when the answer
// to the commit was lost.
func Owned(ctx context.Context, pool *pgxpool.Pool, worker uuid.UUID, known []uuid.UUID, limit int) ([]Claimed, error) {
	var owned []Claimed
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		taken, err := takeRows(ctx, tx, ownedSQL, worker, known, limit)
		if err != nil || len(taken) == 0 {
			return err
		}
		ids := make([]uuid.UUID, len(taken))
		for i, t := range taken {
			ids[i] = t.id
		}
		owned, err = readClaimed(ctx, tx, taken, readClaimedSQL, ids)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list own claims: %w", err)
	}
	return owned, nil
}

// requeueSQL is a hand-over: whoever carries the delivery under the old epoch is fenced off by the new one.
const requeueSQL = `
with moved as (
    update deliveries set epoch = epoch + 1, check_after = null, due_at = now() + $4 * interval '1 ms', lane = null,
        lost_starts = greatest(lost_starts - $5, 0)
    where id = $1 and epoch = $2 and next_attempt = $3 and state = 'pending'
    returning id, destination_id, tenant_id, next_attempt, due_at
)
insert into delivery_queue (delivery_id, destination_id, tenant_id, due_at, attempt)
select id, destination_id, tenant_id, due_at, next_attempt from moved
on conflict (delivery_id) do update
    set due_at = excluded.due_at, attempt = excluded.attempt, claim_id = null, claim_owner = null`

// Requeue takes a delivery from whoever carries it under epoch and puts it back into the queue, due after delay. unused
// is how many counted starts surely never became a request: they don't count as lost. It reports false if the delivery
// has moved on since.
func Requeue(ctx context.Context, pool *pgxpool.Pool, delivery uuid.UUID, epoch, attempt int, delay time.Duration, unused int) (bool, error) {
	tag, err := pool.Exec(ctx, requeueSQL, delivery, epoch, attempt, delay.Milliseconds(), unused)
	if err != nil {
		return false, fmt.Errorf("requeue delivery: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// overdueSQL finds carried deliveries from which nothing was heard for too long.
const overdueSQL = `
select id, event_id, tenant_id, endpoint_id, destination_id, epoch, next_attempt
from deliveries where check_after < now() order by check_after limit $1`

// Overdue returns up to limit carried deliveries that should have been recorded by now.
func Overdue(ctx context.Context, pool *pgxpool.Pool, limit int) ([]Claimed, error) {
	rows, err := pool.Query(ctx, overdueSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("list overdue deliveries: %w", err)
	}
	overdue, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Claimed, err error) {
		c.Lane = LaneWorkflow // rows of a batch stay in the queue until they are recorded
		err = row.Scan(&c.DeliveryID, &c.EventID, &c.TenantID, &c.EndpointID, &c.DestinationID, &c.Epoch, &c.Attempt)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("list overdue deliveries: %w", err)
	}
	return overdue, nil
}

// CheckLater puts off the next look at a carried delivery whose carrier turned out to be alive.
func CheckLater(ctx context.Context, pool *pgxpool.Pool, delivery uuid.UUID, epoch int, wait time.Duration) error {
	_, err := pool.Exec(ctx, `update deliveries set check_after = now() + $3 * interval '1 ms'
		where id = $1 and epoch = $2 and state = 'pending' and check_after is not null`, delivery, epoch, wait.Milliseconds())
	if err != nil {
		return fmt.Errorf("put off check of delivery: %w", err)
	}
	return nil
}

// StillClaimed tells which of deliveries are still in the queue under a claim.
func StillClaimed(ctx context.Context, pool *pgxpool.Pool, deliveries []uuid.UUID) (map[uuid.UUID]bool, error) {
	rows, err := pool.Query(ctx, "select delivery_id from delivery_queue where delivery_id = any($1) and claim_id is not null", deliveries)
	if err != nil {
		return nil, fmt.Errorf("look up claims: %w", err)
	}
	claimed := map[uuid.UUID]bool{}
	var delivery uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&delivery}, func() error {
		claimed[delivery] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up claims: %w", err)
	}
	return claimed, nil
}
