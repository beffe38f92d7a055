package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/id"
)

// Backlog is what waits, for those who watch over it. Whatever waits, finding out costs about the same: of a table that is
// larger than sampledPages some pages are looked at, chosen at random, and counts are scaled up.
type Backlog struct {
	// Waiting deliveries are in the queue: not yet carried, or carried without a record of their next attempt. Claimed of these
	// are being carried; Due could be claimed at once; Held are due, but their destination is paused, disabled, or its circuit open.
	Waiting, Claimed, Due, Held float64
	// OldestDue is for how long a delivery has been due that nothing holds.
	OldestDue time.Duration
	// OldestWaiting is how long ago the oldest delivery in the queue was accepted.
	OldestWaiting time.Duration
	// Destinations are those with the most waiting deliveries, at most as many as were asked for.
	Destinations []DestinationBacklog
	// Leaves wait for their place in a log.
	Leaves float64
	// DeadLetters are leaves that were set aside and wait for a person, counted up to mostDeadLetters.
	DeadLetters int
	// Logs are the largest logs, at most as many as were asked for; OldestUnattested and OldestHead are of all of them.
	Logs []LogBacklog
	// OldestUnattested is how long ago the oldest attempt was recorded that no signed head covers.
	OldestUnattested time.Duration
	// OldestHead is how old the newest signed head is, of the log where it is oldest.
	OldestHead time.Duration
	// Workers hold a lease.
	Workers int
	// PartitionsAhead is for how long from now there are partitions.
	PartitionsAhead time.Duration
}

// DestinationBacklog is how many deliveries wait for a destination.
type DestinationBacklog struct {
	ID      uuid.UUID
	Waiting float64
}

// LogBacklog is how large a log is, and how much of it a signed head covers.
type LogBacklog struct {
	ID              uuid.UUID
	Size, Published float64
}

const (
	// sampledPages is how much of a table is looked at: 16 MiB, which takes some tens of milliseconds.
	sampledPages    = 2000
	mostDeadLetters = 10_000
)

// sharePages is the part of a table, in percent, that sampledPages of it are.
const sharePages = `least(100, 100.0 * $1 / greatest(pg_relation_size('%s') / current_setting('block_size')::int, 1))::real`

var (
	queueBacklogSQL = fmt.Sprintf(`
with share as (select `+sharePages+` as percent),
waiting as (
    select q.destination_id, count(*) as waiting, count(q.claim_id) as claimed,
        count(*) filter (where q.claim_id is null and q.due_at <= now()) as due,
        min(q.due_at) filter (where q.claim_id is null and q.due_at <= now()) as oldest
    from delivery_queue q tablesample system ((select percent from share))
    group by q.destination_id),
judged as (
    select w.*, d.deleted_at is null and (d.paused_at is not null or d.disabled_at is not null
        or coalesce(c.state <> 'closed' and c.probe_until > now(), false)) as held
    from waiting w
    left join destinations d on d.id = w.destination_id
    left join circuits c on c.destination_id = w.destination_id)
select j.destination_id, j.waiting * s.factor, (sum(j.waiting) over () * s.factor)::float8, (sum(j.claimed) over () * s.factor)::float8,
    (coalesce(sum(j.due) filter (where not j.held) over (), 0) * s.factor)::float8,
    (coalesce(sum(j.due) filter (where j.held) over (), 0) * s.factor)::float8,
    coalesce(extract(epoch from now() - min(j.oldest) filter (where not j.held) over ()), 0)::float8
from judged j cross join (select (100 / percent)::float8 as factor from share) s
order by j.waiting desc, j.destination_id limit $2`, "delivery_queue")

	leafBacklogSQL = fmt.Sprintf(`
with share as (select `+sharePages+` as percent)
select (select count(*) from leaf_queue tablesample system ((select percent from share))) * (100 / percent)::float8 from share`, "leaf_queue")
)

// oldestWaitingSQL reads the first entry of the queue's primary key: a delivery's ID begins with the time of its acceptance.
const oldestWaitingSQL = `select delivery_id from delivery_queue order by delivery_id limit 1`

// logBacklogSQL reads a few rows of each log by its keys. What is oldest of a log is in the queue, or else has a place in the
// tree and no head yet.
const logBacklogSQL = `
select l.id, h.tree_size::float8, coalesce(p.tree_size, 0)::float8,
    coalesce(extract(epoch from now() - to_timestamp(p."timestamp" / 1000.0)), 0)::float8,
    coalesce(extract(epoch from now() - least(q.queued_at, r.sequenced_at)), 0)::float8
from logs l
join log_heads h on h.log_id = l.id
left join lateral (select tree_size, "timestamp" from signed_tree_heads s where s.log_id = l.id and s.signature is not null
    order by s."timestamp" desc limit 1) p on true
left join lateral (select queued_at from leaf_queue where log_id = l.id order by id limit 1) q on true
left join lateral (select sequenced_at from tree_roots t where t.log_id = l.id and t.tree_size > coalesce(p.tree_size, 0)
    order by t.tree_size limit 1) r on true
where l.closed_at is null
order by h.tree_size desc, l.id`

const restBacklogSQL = `
select (select count(*) from (select from attestation_dead_letters where resolved_at is null limit $1) open_letters)::int,
    (select count(*) from workers where alive_until > now())::int,
    coalesce((select extract(epoch from max(to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp at time zone 'UTC' - now())
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'events'::regclass and c.relname ~ '^events_\d{8}$'), 0)::float8`

// ReadBacklog reads what waits, with the most destinations and the largest logs. The pool must be one of role Engine, because
// it looks at all tenants.
func ReadBacklog(ctx context.Context, pool *pgxpool.Pool, most int) (Backlog, error) {
	var b Backlog
	for what, read := range map[string]func(context.Context, *pgxpool.Pool, int) error{
		"queue": b.readQueue, "oldest": b.readOldest, "logs": b.readLogs, "rest": b.readRest,
	} {
		if err := read(ctx, pool, most); err != nil {
			return Backlog{}, fmt.Errorf("read backlog: %s: %w", what, err)
		}
	}
	return b, nil
}

func (b *Backlog) readQueue(ctx context.Context, pool *pgxpool.Pool, most int) error {
	rows, err := pool.Query(ctx, queueBacklogSQL, sampledPages, most)
	if err != nil {
		return err
	}
	var d DestinationBacklog
	var oldest float64
	_, err = pgx.ForEachRow(rows, []any{&d.ID, &d.Waiting, &b.Waiting, &b.Claimed, &b.Due, &b.Held, &oldest}, func() error {
		b.Destinations = append(b.Destinations, d)
		return nil
	})
	b.OldestDue = seconds(oldest)
	return err
}

func (b *Backlog) readOldest(ctx context.Context, pool *pgxpool.Pool, _ int) error {
	rows, err := pool.Query(ctx, oldestWaitingSQL)
	if err != nil {
		return err
	}
	var oldest uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&oldest}, func() error {
		b.OldestWaiting = max(time.Since(id.Time(oldest)), 0)
		return nil
	})
	return err
}

func (b *Backlog) readLogs(ctx context.Context, pool *pgxpool.Pool, most int) error {
	if err := pool.QueryRow(ctx, leafBacklogSQL, sampledPages).Scan(&b.Leaves); err != nil {
		return err
	}
	rows, err := pool.Query(ctx, logBacklogSQL)
	if err != nil {
		return err
	}
	var l LogBacklog
	var head, unattested float64
	_, err = pgx.ForEachRow(rows, []any{&l.ID, &l.Size, &l.Published, &head, &unattested}, func() error {
		if len(b.Logs) < most {
			b.Logs = append(b.Logs, l)
		}
		b.OldestHead, b.OldestUnattested = max(b.OldestHead, seconds(head)), max(b.OldestUnattested, seconds(unattested))
		return nil
	})
	return err
}

func (b *Backlog) readRest(ctx context.Context, pool *pgxpool.Pool, _ int) error {
	var ahead float64
	err := pool.QueryRow(ctx, restBacklogSQL, mostDeadLetters).Scan(&b.DeadLetters, &b.Workers, &ahead)
	b.PartitionsAhead = seconds(ahead)
	return err
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
