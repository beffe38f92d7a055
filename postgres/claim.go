package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DueDestination is a destination with at least one delivery due that nobody carries.
type DueDestination struct {
	ID             uuid.UUID
	TenantID       uuid.UUID
	MaxConcurrency int // 0: no limit
}

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
select d.id, d.tenant_id, coalesce(d.max_concurrency, 0)
from waiting w
join destinations d on d.id = w.destination_id
where d.paused_at is null and d.disabled_at is null
  and exists (select from delivery_queue q
              where q.destination_id = w.destination_id and q.claim_id is null and q.due_at <= now())
limit $2`

// DueDestinations returns up to limit destinations with something due, in the order of their IDs, after the given one.
// Paused and disabled destinations aren't among them: what is theirs waits.
func DueDestinations(ctx context.Context, pool *pgxpool.Pool, after uuid.UUID, limit int) ([]DueDestination, error) {
	rows, err := pool.Query(ctx, dueSQL, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list due destinations: %w", err)
	}
	due, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d DueDestination, err error) {
		err = row.Scan(&d.ID, &d.TenantID, &d.MaxConcurrency)
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
}

// claimSQL claims up to $2[i] due deliveries of destination $1[i] for worker $4, if its lease still holds.
const claimSQL = `
with picked as (
    select due.delivery_id
    from unnest($1::uuid[], $2::int[]) as w(destination_id, quota)
    cross join lateral (
        select q.delivery_id from delivery_queue q
        where q.destination_id = w.destination_id and q.claim_id is null and q.due_at <= now()
        order by q.due_at, q.delivery_id limit w.quota
        for update skip locked) as due
    where exists (select from workers where id = $4 and alive_until > now())
)
update delivery_queue q set claim_id = $3, claim_owner = $4
from picked p where q.delivery_id = p.delivery_id
returning q.delivery_id`

// countStartsSQL counts the first send of each claimed delivery as started: if its outcome is never recorded, it was lost.
const countStartsSQL = `
update deliveries d set lost_starts = d.lost_starts + 1, lane = 'workflow', due_at = null
from delivery_queue q
where q.delivery_id = any($1) and d.id = q.delivery_id and d.id between $2 and $3
  and d.state = 'pending' and d.next_attempt = q.attempt
returning d.id, d.event_id, d.tenant_id, d.endpoint_id, d.destination_id, d.epoch, d.next_attempt`

// Claim takes due deliveries, quotas[i] at most of destinations[i], for worker under the name claim.
func Claim(ctx context.Context, pool *pgxpool.Pool, worker, claim uuid.UUID, destinations []uuid.UUID, quotas []int) ([]Claimed, error) {
	claimed, err := claimThenRead(ctx, pool, countStartsSQL, claimSQL, destinations, quotas, claim, worker)
	if err != nil {
		return nil, fmt.Errorf("claim deliveries: %w", err)
	}
	return claimed, nil
}

// claimThenRead takes queue rows, and then reads their deliveries, in one transaction. It is two statements because only
// the second one can give bounds for the deliveries' keys.
func claimThenRead(ctx context.Context, pool *pgxpool.Pool, readSQL, claimSQL string, args ...any) (claimed []Claimed, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, claimSQL, args...)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil || len(ids) == 0 {
			return err
		}
		low, high := bounds(ids)
		if rows, err = tx.Query(ctx, readSQL, ids, low, high); err != nil {
			return err
		}
		claimed, err = pgx.CollectRows(rows, scanClaimed)
		return err
	})
	return claimed, err
}

func scanClaimed(row pgx.CollectableRow) (c Claimed, err error) {
	err = row.Scan(&c.DeliveryID, &c.EventID, &c.TenantID, &c.EndpointID, &c.DestinationID, &c.Epoch, &c.Attempt)
	return c, err
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
returning q.delivery_id`

const readClaimedSQL = `
select d.id, d.event_id, d.tenant_id, d.endpoint_id, d.destination_id, d.epoch, d.next_attempt
from delivery_queue q
join deliveries d on d.id = q.delivery_id and d.id between $2 and $3 and d.state = 'pending' and d.next_attempt = q.attempt
where q.delivery_id = any($1)`

// TakeOver claims up to limit deliveries whose claim belongs to a worker that is no longer alive.
func TakeOver(ctx context.Context, pool *pgxpool.Pool, worker uuid.UUID, limit int) ([]Claimed, error) {
	claimed, err := claimThenRead(ctx, pool, readClaimedSQL, takeOverSQL, worker, limit)
	if err != nil {
		return nil, fmt.Errorf("take over claims: %w", err)
	}
	return claimed, nil
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
	overdue, err := pgx.CollectRows(rows, scanClaimed)
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
