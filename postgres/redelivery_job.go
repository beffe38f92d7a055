package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/id"
)

const (
	// eventsAtOnce is how many of a tenant's events a step reads; each has some deliveries.
	eventsAtOnce = 200
	// daysAtOnce is how far a step looks, so that a statement touches the partitions of two days at most.
	daysAtOnce = 24 * time.Hour
	// mostFailures is how often a step may fail in a row, failureWait apart, before its job is given up.
	mostFailures = 10
	failureWait  = 30 * time.Second
)

// RedeliveryFilter says which finished deliveries of a tenant are meant.
type RedeliveryFilter struct {
	Tenant      uuid.UUID
	Endpoint    *uuid.UUID
	Destination *uuid.UUID
	States      []string
	From, Until time.Time // when their events were accepted: from From on, before Until
	// FinishedBy is when they were over: what a job makes itself is none of its own.
	FinishedBy time.Time
}

// RedeliveryCount is what a filter finds.
type RedeliveryCount struct {
	Redeliver, Redelivered, Erased, Removed int64
	// Complete: all was counted.
	Complete bool
}

func (c *RedeliveryCount) add(found []candidate) {
	for _, f := range found {
		switch {
		case errors.Is(f.skip, ErrRedelivered):
			c.Redelivered++
		case errors.Is(f.skip, ErrErased):
			c.Erased++
		case errors.Is(f.skip, ErrRemoved):
			c.Removed++
		default:
			c.Redeliver++
		}
	}
}

// place is how far a filter's deliveries were looked at: those of events before event, and of event those up to delivery.
type place struct{ event, delivery uuid.UUID }

const (
	eventsOfTenantSQL = `
select e.id from events e
where e.tenant_id = $1 and e.id >= $2 and e.id < $3 order by e.id limit $4`

	candidatesSQL = `
select d.id, d.event_id, d.endpoint_id, d.destination_id from deliveries d
where d.event_id = any($1) and d.id between $2 and $3 and d.tenant_id = $4 and d.state = any($5) and d.finished_at <= $6
  and ($7::uuid is null or d.endpoint_id = $7) and ($8::uuid is null or d.destination_id = $8)
  and (d.event_id, d.id) > ($9, $10)
order by d.event_id, d.id`
)

// CountRedeliveries counts what a filter finds, page by page, until all is counted or the time is over.
func CountRedeliveries(ctx context.Context, tx pgx.Tx, filter RedeliveryFilter, by time.Time) (RedeliveryCount, error) {
	var count RedeliveryCount
	for at := (place{event: floor(filter.From)}); time.Now().Before(by); {
		found, next, err := filter.page(ctx, tx, at)
		if err != nil {
			return count, fmt.Errorf("count redeliveries: %w", err)
		}
		count.add(found)
		if next == nil {
			count.Complete = true
			return count, nil
		}
		at = *next
	}
	return count, nil
}

// page reads some of the deliveries after at, and where to go on; nil: there are no more.
func (f *RedeliveryFilter) page(ctx context.Context, tx querier, at place) ([]candidate, *place, error) {
	end := floor(f.Until)
	until := floor(id.Time(at.event).Add(daysAtOnce))
	if bytes.Compare(until[:], end[:]) > 0 {
		until = end
	}
	rows, err := tx.Query(ctx, eventsOfTenantSQL, f.Tenant, at.event, until, eventsAtOnce)
	if err != nil {
		return nil, nil, err
	}
	events, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, nil, err
	}
	next := &place{event: until}
	if len(events) == eventsAtOnce {
		next = &place{events[len(events)-1], uuid.Max} // all of it is on this page
	} else if until == end {
		next = nil
	}
	if len(events) == 0 {
		return nil, next, nil
	}
	low, high := events[0], uuid.Max
	clear(low[6:])
	copy(high[:6], events[len(events)-1][:6])
	rows, err = tx.Query(ctx, candidatesSQL, events, low, high, f.Tenant, f.States, f.FinishedBy, f.Endpoint, f.Destination, at.event, at.delivery)
	if err != nil {
		return nil, nil, err
	}
	found, err := pgx.CollectRows(rows, readCandidate)
	if err == nil && len(found) > 0 {
		err = addSkips(ctx, tx, found, true)
	}
	return found, next, err
}

// redeliveryJob is a job's row, locked.
type redeliveryJob struct {
	id     uuid.UUID
	state  string
	rate   int
	at     place
	filter RedeliveryFilter
}

const (
	takeJobSQL = `
select j.id, j.state, j.rate_per_second, j.cursor_event, j.cursor_delivery,
    j.tenant_id, j.endpoint_id, j.destination_id, j.states, j.accepted_from, j.accepted_until, j.created_at
from redelivery_jobs j
where j.finished_at is null and j.next_at <= now()
order by j.next_at limit 1
for update skip locked`

	countedSQL = `
update redelivery_jobs set total = total + $2, cursor_event = $3, cursor_delivery = $4, state = $5, next_at = now(),
    failures = 0, error = null
where id = $1`

	steppedSQL = `
update redelivery_jobs set done = done + $2, skipped_redelivered = skipped_redelivered + $3, skipped_erased = skipped_erased + $4,
    skipped_removed = skipped_removed + $5, cursor_event = $6, cursor_delivery = $7, next_at = now() + $8 * interval '1 us',
    state = case when $9 then 'done' else state end, finished_at = case when $9 then now() end, failures = 0, error = null
where id = $1`

	stepFailedSQL = `
update redelivery_jobs set failures = failures + 1, error = 'internal_error', next_at = now() + $2 * interval '1 ms',
    state = case when failures + 1 >= $3 then 'failed' else state end, finished_at = case when failures + 1 >= $3 then now() end
where id = $1 and finished_at is null`
)

// RedeliveryStep is what StepRedelivery did.
type RedeliveryStep struct {
	Job     uuid.UUID // Nil: none was due
	Created int       // deliveries
}

// StepRedelivery takes the next step of a job that is due: it counts some deliveries, or delivers some again, at most half a
// second's worth of the job's rate. All of a step is one transaction under the lock of the job's row: workers never take
// steps of one job at once, a crash leaves nothing of it, and no delivery is delivered again twice.
func StepRedelivery(ctx context.Context, pool *pgxpool.Pool) (step RedeliveryStep, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var j redeliveryJob
		f := &j.filter
		err := tx.QueryRow(ctx, takeJobSQL).Scan(&j.id, &j.state, &j.rate, &j.at.event, &j.at.delivery,
			&f.Tenant, &f.Endpoint, &f.Destination, &f.States, &f.From, &f.Until, &f.FinishedBy)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		step.Job = j.id
		found, next, err := f.page(ctx, tx, j.at)
		if err != nil {
			return err
		}
		if j.state == "counting" {
			return j.counted(ctx, tx, len(found), next)
		}
		step.Created, err = j.redeliver(ctx, tx, found, next)
		return err
	})
	if err != nil {
		return RedeliveryStep{Job: step.Job}, fmt.Errorf("redeliver: %w", err)
	}
	return step, nil
}

// counted notes how many more deliveries there are; when all are counted the job begins at the beginning.
func (j *redeliveryJob) counted(ctx context.Context, tx pgx.Tx, n int, next *place) error {
	state := "counting"
	if next == nil {
		state, next = "running", &place{event: floor(j.filter.From)}
	}
	_, err := tx.Exec(ctx, countedSQL, j.id, n, next.event, next.delivery, state)
	return err
}

// redeliver makes new deliveries of some of those that were found, and notes how far it came.
func (j *redeliveryJob) redeliver(ctx context.Context, tx pgx.Tx, found []candidate, next *place) (int, error) {
	quota := max((j.rate+1)/2, 1)
	var old []candidate
	var ids []uuid.UUID
	var count RedeliveryCount
	for i, c := range found {
		if c.skip == nil && len(old) == quota {
			next = &place{found[i-1].event, found[i-1].id}
			found = found[:i]
			break
		}
		if c.skip == nil {
			old, ids = append(old, c), append(ids, id.At(c.event))
		}
	}
	count.add(found)
	if len(old) > 0 {
		if err := insertRedeliveries(ctx, tx, j.filter.Tenant, &j.id, old, ids); err != nil {
			return 0, err
		}
	}
	over := next == nil
	if over {
		next = &j.at
	}
	wait := time.Duration(len(old)) * time.Second / time.Duration(j.rate)
	_, err := tx.Exec(ctx, steppedSQL, j.id, count.Redeliver, count.Redelivered, count.Erased, count.Removed,
		next.event, next.delivery, wait.Microseconds(), over)
	return len(old), err
}

// RedeliveryFailed notes that a step of a job failed; after some in a row the job is given up.
func RedeliveryFailed(ctx context.Context, pool *pgxpool.Pool, job uuid.UUID) error {
	if _, err := pool.Exec(ctx, stepFailedSQL, job, failureWait.Milliseconds(), mostFailures); err != nil {
		return fmt.Errorf("note failure of job: %w", err)
	}
	return nil
}
