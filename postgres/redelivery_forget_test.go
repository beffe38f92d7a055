package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const week = 7 * 24 * time.Hour

func (b *testBundle) forget(t testing.TB) (more bool) {
	t.Helper()
	more, err := postgres.ForgetRedeliveries(t.Context(), b.engine, week)
	require.NoError(t, err)
	return more
}

// However it ended, a job goes a week after its end; one that isn't over stays, however old it is.
func TestOldJobsAreForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	add := func(state, finished string) uuid.UUID {
		job := b.addJob(t, b.destination, 10)
		b.exec(t, `update redelivery_jobs set state = $2, created_at = now() - interval '1 year', next_at = now() - interval '1 year',
			finished_at = now() - $3::interval where id = $1`, job, state, pgText(finished))
		return job
	}
	var keep []uuid.UUID
	for _, state := range []string{"done", "canceled", "failed"} {
		add(state, "7 days 1 minute")
		keep = append(keep, add(state, "6 days 23 hours 59 minutes"))
	}
	keep = append(keep, add("counting", ""), add("running", ""))
	require.False(t, b.forget(t))
	require.Equal(t, len(keep), b.count(t, "select count(*) from redelivery_jobs"))
	require.Equal(t, len(keep), b.count(t, "select count(*) from redelivery_jobs where id = any($1)", keep))
}

// pgText is null for nothing.
func pgText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// What a job did outlives it: deliveries name what they repeat, and the next job leaves out what was delivered again before.
func TestWhatAForgottenJobDidIsRemembered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.die(t, b.accept(t, 3)...)
	b.finish(t, b.addJob(t, b.destination, 1000))
	b.exec(t, "update redelivery_jobs set finished_at = now() - interval '1 year'")
	b.forget(t)
	require.Zero(t, b.count(t, "select count(*) from redelivery_jobs"))
	require.Equal(t, 3, b.count(t, "select count(distinct n.redelivery_of) from deliveries n join deliveries o on o.id = n.redelivery_of"))
	next := b.addJob(t, b.destination, 1000)
	b.finish(t, next)
	require.Equal(t, jobRow{State: "done", Total: 3, Redelivered: 3}, b.job(t, next))
}

// When the partition of a day is dropped, it is forgotten which of its deliveries was delivered again as which, and of no other day.
func TestWhatWasDroppedIsForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 2)
	b.die(t, deliveries...)
	b.finish(t, b.addJob(t, b.destination, 1000))
	// An old day with a delivery in its first millisecond and one in its last, and what is older than all.
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -100)
	b.partition(t, day)
	first, last := idAt(day), idAt(day.AddDate(0, 0, 1).Add(-time.Millisecond))
	for _, old := range []uuid.UUID{first, last, idAt(day.Add(-time.Millisecond))} {
		b.exec(t, "insert into redeliveries (delivery_id, redelivery_id, tenant_id) values ($1, $2, $3)", old, id.At(old), b.tenant)
	}
	require.False(t, b.forget(t))
	require.Equal(t, 4, b.count(t, "select count(*) from redeliveries"), "what is older than all is gone")
	require.Equal(t, 2, b.count(t, "select count(*) from redeliveries where delivery_id = any($1)", []uuid.UUID{first, last}))

	b.exec(t, fmt.Sprintf("drop table deliveries_%s", day.Format("20060102")))
	b.forget(t)
	require.Equal(t, 2, b.count(t, "select count(*) from redeliveries where delivery_id = any($1)", deliveries))
	require.Equal(t, 2, b.count(t, "select count(*) from redeliveries"))

	// A partition of which it can't be said where it begins may hold anything.
	b.exec(t, "insert into redeliveries (delivery_id, redelivery_id, tenant_id) values ($1, $2, $3)", first, id.At(first), b.tenant)
	b.exec(t, "create table deliveries_archive partition of deliveries for values from (minvalue) to ('00000000-0000-0000-0000-000000000001')")
	b.forget(t)
	require.Equal(t, 3, b.count(t, "select count(*) from redeliveries"))
}

func idAt(at time.Time) uuid.UUID {
	u := id.New()
	ms := at.UnixMilli()
	for i := range 6 {
		u[i] = byte(ms >> (40 - 8*i))
	}
	return u
}

// partition makes the partition of deliveries of a day, as its owner may.
func (b *testBundle) partition(t testing.TB, day time.Time) {
	t.Helper()
	b.exec(t, fmt.Sprintf(`create table deliveries_%s partition of deliveries for values from (uuid_floor('%s')) to (uuid_floor('%s'))`,
		day.Format("20060102"), day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
}

// However much is over, it goes a thousand rows at a time.
func TestForgettingIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, `insert into redelivery_jobs (id, tenant_id, states, accepted_from, accepted_until, rate_per_second, state, cursor_event, finished_at)
		select gen_random_uuid(), $1, '{dead}', now() - interval '1 day', now(), 1, 'done', gen_random_uuid(), now() - interval '1 month'
		from generate_series(1, 1500)`, b.tenant)
	b.exec(t, `insert into redeliveries (delivery_id, redelivery_id, tenant_id)
		select uuid_floor(now() - interval '1 year'), gen_random_uuid(), $1 from generate_series(1, 2300)`, b.tenant)
	left := func() [2]int {
		return [2]int{b.count(t, "select count(*) from redelivery_jobs"), b.count(t, "select count(*) from redeliveries")}
	}
	require.True(t, b.forget(t))
	require.Equal(t, [2]int{500, 1300}, left())
	require.True(t, b.forget(t))
	require.Equal(t, [2]int{0, 300}, left())
	require.False(t, b.forget(t))
	require.Equal(t, [2]int{0, 0}, left())
}

// A job that somebody is about to change is left to them.
func TestAJobThatIsLockedIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	job := b.addJob(t, b.destination, 10)
	b.exec(t, "update redelivery_jobs set state = 'done', finished_at = now() - interval '1 year'")
	require.NoError(t, pgx.BeginFunc(t.Context(), b.owner, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select from redelivery_jobs where id = $1 for update", job)
		require.NoError(t, err)
		b.forget(t)
		return nil
	}))
	require.Equal(t, 1, b.count(t, "select count(*) from redelivery_jobs"))
	b.forget(t)
	require.Zero(t, b.count(t, "select count(*) from redelivery_jobs"))
}
