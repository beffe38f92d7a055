package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// forgetAtOnce is how many rows of each kind a step removes, so that none holds its locks for long.
const forgetAtOnce = 1000

const (
	// A job that isn't over has no finished_at, and one that is over is never begun again.
	forgetJobsSQL = `
delete from redelivery_jobs where id = any(array(
    select j.id from redelivery_jobs j where j.finished_at < now() - $1 * interval '1 ms'
    order by j.finished_at limit $2 for update skip locked))`

	// A delivery's ID says in which day's partition it is: what is below the oldest one is gone, and so is what it was delivered
	// again as. A partition whose bounds aren't two IDs counts as the oldest, so that nothing is removed that might be there.
	forgetRedeliveriesSQL = `
with oldest as (
    select min(coalesce(substring(pg_get_expr(c.relpartbound, c.oid) from 'FROM \(''([0-9a-f-]{36})''\)'),
        '00000000-0000-0000-0000-000000000000'))::uuid as id
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'deliveries'::regclass)
delete from redeliveries where ctid = any(array(
    select r.ctid from redeliveries r where r.delivery_id < (select id from oldest) limit $1))`
)

// ForgetRedeliveries removes some of the jobs that have been over for so long, and some of what is remembered of deliveries that are
// gone. Deliveries go on naming what they repeat, and no job delivers again what is there and was delivered again before, however old
// the job is that did it. more: there may be more to remove.
func ForgetRedeliveries(ctx context.Context, pool *pgxpool.Pool, age time.Duration) (more bool, err error) {
	jobs, err := pool.Exec(ctx, forgetJobsSQL, age.Milliseconds(), forgetAtOnce)
	if err != nil {
		return false, fmt.Errorf("remove old redelivery jobs: %w", err)
	}
	redeliveries, err := pool.Exec(ctx, forgetRedeliveriesSQL, forgetAtOnce)
	if err != nil {
		return false, fmt.Errorf("remove redeliveries of what is gone: %w", err)
	}
	return jobs.RowsAffected() == forgetAtOnce || redeliveries.RowsAffected() == forgetAtOnce, nil
}
