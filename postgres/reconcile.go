package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Reconciliation compares the attempts, and the events whose acceptance is attested, with the log, in pages. The attempts of a day
// stand in one partition, but one may be recorded long after that day, since its ID has the time of its delivery. So each day is looked at again and again, the older the
// more rarely: when a quarter of its age has passed. Leaves never change and are looked at once.

// nextDaySQL picks the day to look at: the newest that never was as a whole, else the one that waits longest for its turn.
// $1 is when this run began: no day comes twice in it.
const nextDaySQL = `
with days as (
    select to_date(right(c.relname, 8), 'YYYYMMDD') as day
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'attempts'::regclass and c.relname ~ '^attempts_[0-9]{8}$'
), aged as (
    select d.day, r.after, r.finished_at, greatest(extract(epoch from $1::timestamptz - ((d.day + 1)::timestamp at time zone 'utc')), 0) as age
    from days d left join reconciled_days r on r.day = d.day
    where d.day <= ($1::timestamptz at time zone 'utc')::date
)
select day, coalesce(after, '00000000-0000-0000-0000-000000000000') from aged
where finished_at is null or finished_at < $1::timestamptz - age / 4 * interval '1 s'
order by finished_at is null desc, case when finished_at is null then day end desc,
    extract(epoch from $1::timestamptz - finished_at) / (age / 4 + 300) desc
limit 1`

// NextDay returns the day whose attempts are to be compared with the log next, and after which of them to go on; ok is false if
// none is due.
func NextDay(ctx context.Context, pool *pgxpool.Pool, begun time.Time) (day time.Time, after uuid.UUID, ok bool, err error) {
	err = pool.QueryRow(ctx, nextDaySQL, begun).Scan(&day, &after)
	if errors.Is(err, pgx.ErrNoRows) {
		return day, after, false, nil
	}
	if err != nil {
		return day, after, false, fmt.Errorf("choose a day: %w", err)
	}
	return day, after, true, nil
}

// DayReached notes how far a day was looked at; finished: as a whole.
func DayReached(ctx context.Context, pool *pgxpool.Pool, day time.Time, after uuid.UUID, finished bool) error {
	_, err := pool.Exec(ctx, `insert into reconciled_days as r (day, after, finished_at)
		values ($1, case when not $3 then $2::uuid end, case when $3 then now() end)
		on conflict (day) do update set after = excluded.after, finished_at = coalesce(excluded.finished_at, r.finished_at)`, day, after, finished)
	if err != nil {
		return fmt.Errorf("note how far the day was looked at: %w", err)
	}
	return nil
}

// RecordedLeaf is an attempt's word on its leaf, or an event's on that of its acceptance.
type RecordedLeaf struct {
	AttemptID  uuid.UUID // or the event's
	LogID      uuid.UUID
	TenantID   uuid.UUID
	LeafHash   []byte
	RecordedAt time.Time
}

// attemptsOfDaySQL reads a range of the primary key of attempts, and of an index of events, of one day's partitions. An event from
// before migration 27 doesn't say which log it was for.
const attemptsOfDaySQL = `
select a.id, coalesce(m.new_log_id, a.log_id), a.tenant_id, coalesce(m.leaf_hash, a.leaf_hash), a.recorded_at
from (
    (select o.id, o.log_id, o.tenant_id, o.leaf_hash, o.recorded_at from attempts o where o.id > $1 and o.id < $2 order by o.id limit $3)
    union all
    (select e.id, ` + acceptanceLogSQL + `, e.tenant_id, e.leaf_hash, e.accepted_at from events e
    where e.id > $1 and e.id < $2 and e.leaf_hash is not null order by e.id limit $3)
) a left join lateral (` + movedSQL + `) m on true
order by a.id limit $3`

const acceptanceLogSQL = `coalesce(e.leaf_log_id, (select t.log_id from tenants t where t.id = e.tenant_id))`

// AttemptsOfDay returns a page of what attempts of a day, and events with an attested acceptance, say of their leaves, in the order of
// their IDs.
func AttemptsOfDay(ctx context.Context, pool *pgxpool.Pool, day time.Time, after uuid.UUID, limit int) ([]RecordedLeaf, error) {
	if first := floor(day); string(after[:]) < string(first[:]) {
		after = first
	}
	rows, err := pool.Query(ctx, attemptsOfDaySQL, after, floor(day.AddDate(0, 0, 1)), limit)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	attempts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[RecordedLeaf])
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	return attempts, nil
}

// Settled returns, for each log, the time before which what was recorded is in the log, or nowhere: since when its queue's oldest
// leaf waits, or now, also if the log is closed.
func Settled(ctx context.Context, pool *pgxpool.Pool) (map[uuid.UUID]time.Time, error) {
	rows, err := pool.Query(ctx, `
		select l.id, coalesce((select q.queued_at from leaf_queue q where q.log_id = l.id and l.closed_at is null order by q.id limit 1), now())
		from logs l`)
	if err != nil {
		return nil, fmt.Errorf("look how old queues are: %w", err)
	}
	settled := map[uuid.UUID]time.Time{}
	var log uuid.UUID
	var since time.Time
	_, err = pgx.ForEachRow(rows, []any{&log, &since}, func() error {
		settled[log] = since
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look how old queues are: %w", err)
	}
	return settled, nil
}

// HaveLeaves returns which attempts, or events, have their place in a log.
func HaveLeaves(ctx context.Context, pool *pgxpool.Pool, attempts []uuid.UUID) (map[uuid.UUID]bool, error) {
	return setOf(ctx, pool, "select attempt_id from leaf_of_attempt where attempt_id = any($1)", attempts)
}

func setOf(ctx context.Context, pool *pgxpool.Pool, sql string, args ...any) (map[uuid.UUID]bool, error) {
	rows, err := pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("look up: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("look up: %w", err)
	}
	set := make(map[uuid.UUID]bool, len(ids))
	for _, one := range ids {
		set[one] = true
	}
	return set, nil
}

// LogReached says how far the leaves of a log were looked at.
type LogReached struct {
	LogID     uuid.UUID
	LeafIndex int64
	TreeSize  int64
}

// LogsReached lists all logs.
func LogsReached(ctx context.Context, pool *pgxpool.Pool) ([]LogReached, error) {
	rows, err := pool.Query(ctx, `select h.log_id, coalesce(r.leaf_index, 0), h.tree_size
		from log_heads h left join reconciled_logs r on r.log_id = h.log_id order by h.log_id`)
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	logs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LogReached])
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	return logs, nil
}

// SetLogReached notes how far the leaves of a log were looked at. It never goes back.
func SetLogReached(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, leafIndex int64) error {
	_, err := pool.Exec(ctx, `insert into reconciled_logs as r (log_id, leaf_index) values ($1, $2)
		on conflict (log_id) do update set leaf_index = greatest(r.leaf_index, excluded.leaf_index)`, log, leafIndex)
	if err != nil {
		return fmt.Errorf("note how far the log was looked at: %w", err)
	}
	return nil
}

// LeafOf is a leaf, in a log or in its queue, and whose it claims to be.
type LeafOf struct {
	AttemptID uuid.UUID
	TenantID  uuid.UUID
	LeafHash  []byte
	Leaf      []byte // nil if its bytes are erased
}

// LeavesFrom returns the leaves of attempts with indexes from, up to before to.
func LeavesFrom(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, from, to int64) ([]LeafOf, error) {
	rows, err := pool.Query(ctx, `select attempt_id, tenant_id, leaf_hash, leaf from merkle_leaves
		where log_id = $1 and leaf_index >= $2 and leaf_index < $3 and attempt_id is not null`, log, from, to)
	if err != nil {
		return nil, fmt.Errorf("read leaves: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LeafOf])
	if err != nil {
		return nil, fmt.Errorf("read leaves: %w", err)
	}
	return leaves, nil
}

// LongQueued returns those among the first leaves of a log's queue that wait for longer than so.
func LongQueued(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, longer time.Duration, limit int) ([]LeafOf, error) {
	rows, err := pool.Query(ctx, `select q.attempt_id, q.tenant_id, q.leaf_hash, q.leaf
		from (select * from leaf_queue where log_id = $1 order by id limit $2) q
		where q.queued_at < now() - $3 * interval '1 ms'`, log, limit, longer.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LeafOf])
	if err != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	return leaves, nil
}

// LeafHashesOf reads what attempts recorded of their leaves, or events of those of their acceptance, and in which log.
func LeafHashesOf(ctx context.Context, pool *pgxpool.Pool, attempts []uuid.UUID) (map[uuid.UUID]RecordedLeaf, error) {
	rows, err := pool.Query(ctx, leafRecordsSQL, attempts)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[RecordedLeaf])
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	recorded := make(map[uuid.UUID]RecordedLeaf, len(found))
	for _, r := range found {
		recorded[r.AttemptID] = r
	}
	return recorded, nil
}

const leafRecordsSQL = `select a.id, coalesce(m.new_log_id, a.log_id), a.tenant_id, coalesce(m.leaf_hash, a.leaf_hash), a.recorded_at
from (
    select o.id, o.log_id, o.tenant_id, o.leaf_hash, o.recorded_at from attempts o where o.id = any($1)
    union all
    select e.id, e.leaf_log_id, e.tenant_id, e.leaf_hash, e.accepted_at from events e
    where e.id = any($1) and e.leaf_hash is not null and e.leaf_log_id is not null
) a left join lateral (` + movedSQL + `) m on true`

// movedSQL is where the leaf of attempt a went when its log was closed before it had its place there, and how it reads now.
const movedSQL = `select m.new_log_id, m.leaf_hash from moved_leaves m where m.attempt_id = a.id order by m.moved_at desc limit 1`

const eventsThereSQL = `select e.id from events e where e.id = any($1) and e.leaf_hash is not null`

// EventsOf returns which of these are events whose acceptance is attested.
func EventsOf(ctx context.Context, pool *pgxpool.Pool, events []uuid.UUID) (map[uuid.UUID]bool, error) {
	return setOf(ctx, pool, eventsThereSQL, events)
}

// OldestDay returns the first day whose attempts are kept.
func OldestDay(ctx context.Context, pool *pgxpool.Pool) (day time.Time, err error) {
	err = pool.QueryRow(ctx, `select coalesce(min(to_date(right(c.relname, 8), 'YYYYMMDD')), '9999-01-01')
		from pg_inherits i join pg_class c on c.oid = i.inhrelid
		where i.inhparent = 'attempts'::regclass and c.relname ~ '^attempts_[0-9]{8}$'`).Scan(&day)
	if err != nil {
		return day, fmt.Errorf("find the oldest day: %w", err)
	}
	return day, nil
}

// Finding is something that reconciliation can't repair.
type Finding struct {
	Problem  string
	Subject  uuid.UUID
	LogID    uuid.UUID
	TenantID uuid.UUID
	Detail   string
	Event    bool // the subject is an event, and its leaf that of its acceptance
}

// maxFindings is how many open findings of a problem are kept. Whoever has so many has one cause to look for.
const maxFindings = 10000

// Found keeps findings, and resolves the open ones of a problem about those of looked that aren't among them.
func Found(ctx context.Context, pool *pgxpool.Pool, problem string, looked []uuid.UUID, findings []Finding) error {
	var subjects, logs, tenants []uuid.UUID
	var details []string
	for _, f := range findings {
		if f.Problem == problem {
			subjects, logs = append(subjects, f.Subject), append(logs, f.LogID)
			tenants, details = append(tenants, f.TenantID), append(details, f.Detail)
		}
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update attestation_findings set resolved_at = now()
			where problem = $1 and resolved_at is null and subject = any($2) and not subject = any($3::uuid[])`, problem, looked, append([]uuid.UUID{}, subjects...))
		if err != nil || len(subjects) == 0 {
			return err
		}
		_, err = tx.Exec(ctx, `insert into attestation_findings as f (problem, subject, log_id, tenant_id, detail)
			select $1, * from unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::text[])
			where (select count(*) from attestation_findings o where o.problem = $1 and o.resolved_at is null) < $6
			order by 2
			on conflict (problem, subject) do update set detail = excluded.detail, last_seen = now(), resolved_at = null`,
			problem, subjects, logs, tenants, details, maxFindings)
		return err
	})
	if err != nil {
		return fmt.Errorf("keep findings: %w", err)
	}
	return nil
}

// SealingFigures are what the metrics say of sealing.
type SealingFigures struct {
	// Unattested is, for each open log, how long its oldest leaf has waited for a published head.
	Unattested map[uuid.UUID]time.Duration
	// DeadLetters that are open, by log; Findings that are open, by problem.
	DeadLetters map[uuid.UUID]int
	Findings    map[string]int
}

// Figures reads them. It reads a few rows of each log, and what is open.
func Figures(ctx context.Context, pool *pgxpool.Pool) (SealingFigures, error) {
	f := SealingFigures{Unattested: map[uuid.UUID]time.Duration{}, DeadLetters: map[uuid.UUID]int{}, Findings: map[string]int{}}
	rows, err := pool.Query(ctx, `
		select l.id, coalesce(extract(epoch from now() - least(
		    (select q.queued_at from leaf_queue q where q.log_id = l.id order by q.id limit 1),
		    (select r.sequenced_at from tree_roots r where r.log_id = l.id and r.tree_size > greatest(coalesce(
		        (select s.tree_size from signed_tree_heads s where s.log_id = l.id and s.signature is not null order by s."timestamp" desc limit 1),
		        0), 0) order by r.tree_size limit 1))), 0)::float8,
		    (select count(*) from attestation_dead_letters d where d.log_id = l.id and d.resolved_at is null)
		from logs l where l.closed_at is null`)
	if err != nil {
		return f, fmt.Errorf("read figures: %w", err)
	}
	var log uuid.UUID
	var waited float64
	var letters int
	_, err = pgx.ForEachRow(rows, []any{&log, &waited, &letters}, func() error {
		f.Unattested[log], f.DeadLetters[log] = time.Duration(max(waited, 0)*float64(time.Second)), letters
		return nil
	})
	if err != nil {
		return f, fmt.Errorf("read figures: %w", err)
	}
	rows, err = pool.Query(ctx, "select problem, count(*) from attestation_findings where resolved_at is null group by problem")
	if err != nil {
		return f, fmt.Errorf("read figures: %w", err)
	}
	var problem string
	_, err = pgx.ForEachRow(rows, []any{&problem, &letters}, func() error {
		f.Findings[problem] = letters
		return nil
	})
	if err != nil {
		return f, fmt.Errorf("read figures: %w", err)
	}
	return f, nil
}
