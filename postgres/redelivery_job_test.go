package postgres_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// jobRow is a job's progress.
type jobRow struct {
	State                                     string
	Total, Done, Redelivered, Erased, Removed int64
}

// addJob stores a job for the dead of a destination, as the api does.
func (b *testBundle) addJob(t testing.TB, destination uuid.UUID, rate int32, change ...func(*db.InsertRedeliveryJobParams)) uuid.UUID {
	t.Helper()
	job := db.InsertRedeliveryJobParams{
		ID: id.New(), TenantID: b.tenant, DestinationID: &destination, States: []string{"dead"}, RatePerSecond: rate,
		AcceptedFrom: time.Now().Add(-time.Hour).Truncate(time.Millisecond), AcceptedUntil: time.Now().Add(time.Minute).Truncate(time.Millisecond),
	}
	for _, f := range change {
		f(&job)
	}
	require.NoError(t, postgres.InTenant(t.Context(), b.api, b.tenant, func(tx pgx.Tx) error {
		_, err := db.New(tx).InsertRedeliveryJob(t.Context(), job)
		return err
	}))
	return job.ID
}

func (b *testBundle) job(t testing.TB, job uuid.UUID) (r jobRow) {
	t.Helper()
	require.NoError(t, b.owner.QueryRow(t.Context(), `select state, total, done, skipped_redelivered, skipped_erased, skipped_removed
		from redelivery_jobs where id = $1`, job).Scan(&r.State, &r.Total, &r.Done, &r.Redelivered, &r.Erased, &r.Removed))
	return r
}

// step takes the next step, whenever it would be due.
func (b *testBundle) step(t testing.TB) postgres.RedeliveryStep {
	t.Helper()
	b.exec(t, "update redelivery_jobs set next_at = now()")
	step, err := postgres.StepRedelivery(t.Context(), b.engine)
	require.NoError(t, err)
	return step
}

// finish takes steps until a job is finished, and returns how many deliveries each made.
func (b *testBundle) finish(t testing.TB, job uuid.UUID) (made []int) {
	t.Helper()
	for range 10_000 {
		if step := b.step(t); step.Created > 0 {
			made = append(made, step.Created)
		}
		if state := b.job(t, job).State; state != "counting" && state != "running" {
			return made
		}
	}
	t.Fatal("the job goes on for ever")
	return nil
}

func TestAJobCountsAndThenRedeliversEachOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 450) // more than two pages
	b.die(t, deliveries[:430]...)
	elsewhere := b.addDestination(t, b.tenant, b.endpoint)
	row := b.acceptance("{}")
	row.Deliveries[0].DestinationID = elsewhere
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	b.die(t, row.Deliveries[0].ID)

	job := b.addJob(t, b.destination, 40)
	for b.job(t, job).State == "counting" {
		require.Equal(t, job, b.step(t).Job)
		require.Equal(t, 451, b.count(t, "select count(*) from deliveries"), "nothing happens before all are counted")
	}
	require.Equal(t, jobRow{State: "running", Total: 430}, b.job(t, job))
	made := b.finish(t, job)
	require.Equal(t, 20, slices.Max(made), "half a second's worth")
	require.Equal(t, jobRow{State: "done", Total: 430, Done: 430}, b.job(t, job))
	require.Equal(t, 430, b.count(t, `select count(distinct n.redelivery_of) from deliveries n
		join redeliveries r on r.redelivery_id = n.id and r.delivery_id = n.redelivery_of and r.job_id = $1`, job))
	require.Equal(t, 430+20, b.count(t, "select count(*) from delivery_queue"))
	require.Equal(t, uuid.Nil, b.step(t).Job)

	// Of those that were delivered again only the last counts.
	second := b.addJob(t, b.destination, 1000)
	b.finish(t, second)
	require.Equal(t, jobRow{State: "done", Total: 430, Redelivered: 430}, b.job(t, second))
}

func TestAJobKeepsToItsRate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.die(t, b.accept(t, 5)...)
	job := b.addJob(t, b.destination, 1)
	b.step(t)
	require.Equal(t, 1, b.step(t).Created)
	require.Equal(t, 1, b.count(t, "select count(*) from redelivery_jobs where next_at > now() + interval '900 ms' and next_at <= now() + interval '1 s'"))
	step, err := postgres.StepRedelivery(t.Context(), b.engine)
	require.NoError(t, err)
	require.Equal(t, uuid.Nil, step.Job, "it isn't due")
	require.Equal(t, int64(1), b.job(t, job).Done)
}

func TestAJobSaysWhatItLeavesOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 4)
	b.die(t, deliveries...)
	_, err := postgres.Redeliver(t.Context(), b.engine, b.tenant, deliveries[1], nil)
	require.NoError(t, err)
	b.exec(t, "delete from event_payloads where event_id = (select event_id from deliveries where id = $1)", deliveries[2])
	job := b.addJob(t, b.destination, 10)
	b.finish(t, job)
	require.Equal(t, jobRow{State: "done", Total: 4, Done: 2, Redelivered: 1, Erased: 1}, b.job(t, job))

	b.exec(t, "update destinations set deleted_at = now()")
	job = b.addJob(t, b.destination, 10)
	b.finish(t, job)
	require.Equal(t, jobRow{State: "done", Total: 4, Redelivered: 3, Removed: 1}, b.job(t, job))
}

// What dies while the job runs, above all what it made itself, is none of its own.
func TestAJobRedeliversNothingThatEndsLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 6)
	b.die(t, deliveries[:3]...)
	job := b.addJob(t, b.destination, 2)
	b.die(t, deliveries[3:]...)
	for b.job(t, job).State != "done" {
		b.step(t)
		b.exec(t, `update deliveries set state = 'dead', finished_at = now(), leaves = 2, last_leaf_hash = sha256('x') where redelivery_of is not null and state = 'pending'`)
	}
	require.Equal(t, jobRow{State: "done", Total: 3, Done: 3}, b.job(t, job))
}

func TestAJobThatIsCanceledStops(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.die(t, b.accept(t, 5)...)
	job := b.addJob(t, b.destination, 2)
	b.step(t)
	b.step(t)
	require.NoError(t, postgres.InTenant(t.Context(), b.api, b.tenant, func(tx pgx.Tx) error {
		n, err := db.New(tx).CancelRedeliveryJob(t.Context(), job)
		require.EqualValues(t, 1, n)
		return err
	}))
	require.Equal(t, uuid.Nil, b.step(t).Job)
	require.Equal(t, jobRow{State: "canceled", Total: 5, Done: 1}, b.job(t, job))
}

// Filters: by state, by time to the millisecond, by endpoint, and never another tenant's.
func TestAJobFilters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 3)
	b.die(t, deliveries[0])
	b.exec(t, "update deliveries set state = 'delivered', finished_at = now(), leaves = 1, last_leaf_hash = sha256('x') where id = $1", deliveries[1])
	total := func(change func(*db.InsertRedeliveryJobParams)) int64 {
		job := b.addJob(t, b.destination, 10, change)
		for b.job(t, job).State == "counting" {
			b.step(t)
		}
		b.exec(t, "update redelivery_jobs set state = 'canceled', finished_at = now() where finished_at is null")
		return b.job(t, job).Total
	}
	require.EqualValues(t, 1, total(func(*db.InsertRedeliveryJobParams) {}))
	require.EqualValues(t, 2, total(func(j *db.InsertRedeliveryJobParams) { j.States = []string{"dead", "delivered"} }))
	require.EqualValues(t, 1, total(func(j *db.InsertRedeliveryJobParams) { j.DestinationID, j.EndpointID = nil, &b.endpoint }))
	none := id.New()
	require.Zero(t, total(func(j *db.InsertRedeliveryJobParams) { j.EndpointID = &none }))
	at := id.Time(deliveries[0])
	require.EqualValues(t, 1, total(func(j *db.InsertRedeliveryJobParams) { j.AcceptedFrom = at }))
	require.Zero(t, total(func(j *db.InsertRedeliveryJobParams) { j.AcceptedFrom = at.Add(time.Millisecond) }))
	require.Zero(t, total(func(j *db.InsertRedeliveryJobParams) { j.AcceptedUntil = at }))
	require.EqualValues(t, 1, total(func(j *db.InsertRedeliveryJobParams) { j.AcceptedUntil = at.Add(time.Millisecond) }))
	require.EqualValues(t, 1, total(func(j *db.InsertRedeliveryJobParams) { j.AcceptedFrom = at.AddDate(-1, 0, 0) }), "day by day")
	other, endpoint, _ := b.addTenant(t, "Other Bank")
	b.tenant = other
	require.Zero(t, total(func(*db.InsertRedeliveryJobParams) {}))
	require.Zero(t, total(func(j *db.InsertRedeliveryJobParams) { j.DestinationID, j.EndpointID = nil, &endpoint }))
}

// A job that fails over and over is given up, and says so.
func TestAJobThatFailsIsGivenUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.die(t, b.accept(t, 1)...)
	job := b.addJob(t, b.destination, 10)
	for range 9 {
		require.NoError(t, postgres.RedeliveryFailed(t.Context(), b.engine, job))
		require.Equal(t, "counting", b.job(t, job).State)
	}
	b.step(t) // one success and all is forgotten
	require.Equal(t, 1, b.count(t, "select count(*) from redelivery_jobs where failures = 0 and error is null"))
	for range 10 {
		require.Equal(t, "running", b.job(t, job).State)
		require.NoError(t, postgres.RedeliveryFailed(t.Context(), b.engine, job))
	}
	require.Equal(t, 1, b.count(t, "select count(*) from redelivery_jobs where state = 'failed' and finished_at is not null and error = 'internal_error'"))
	require.NoError(t, postgres.RedeliveryFailed(t.Context(), b.engine, job))
	require.Equal(t, uuid.Nil, b.step(t).Job)
}

// Many workers take the steps of several jobs: whatever they are, of each delivery every job makes one, and the figures add up.
func TestJobsProperty(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(rt *rapid.T) {
		b.exec(t, "delete from redelivery_jobs")
		destination := b.addDestination(t, b.tenant, b.endpoint)
		n, dead := rapid.IntRange(0, 30).Draw(rt, "deliveries"), 0
		for range n {
			row := b.acceptance("{}")
			for range rapid.IntRange(0, 3).Draw(rt, "fan-out") {
				row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: destination})
			}
			row.Deliveries[0].DestinationID = destination
			_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
			require.NoError(t, err)
			for _, d := range row.Deliveries {
				if rapid.Bool().Draw(rt, "dead") {
					b.die(t, d.ID)
					dead++
				}
			}
		}
		job := b.addJob(t, destination, int32(rapid.IntRange(1, 20).Draw(rt, "rate")))
		var workers sync.WaitGroup
		for range 3 {
			workers.Go(func() {
				for deadline := time.Now().Add(30 * time.Second); b.job(t, job).State != "done" && time.Now().Before(deadline); {
					_, err := b.owner.Exec(t.Context(), "update redelivery_jobs set next_at = now()")
					if err == nil {
						_, err = postgres.StepRedelivery(t.Context(), b.engine)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		workers.Wait()
		require.Equal(t, jobRow{State: "done", Total: int64(dead), Done: int64(dead)}, b.job(t, job))
		require.Equal(t, dead, b.count(t, "select count(distinct redelivery_of) from deliveries where destination_id = $1 and redelivery_of is not null", destination))
		require.Equal(t, dead, b.count(t, "select count(*) from deliveries where destination_id = $1 and redelivery_of is not null", destination))
	})
}

// Invariant 8 for what commands and redeliveries are stored in.
func TestCommandsAndJobsAreTheTenantsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.accept(t, 2)
	b.die(t, old[0])
	_, err := postgres.Redeliver(t.Context(), b.engine, b.tenant, old[0], make([]byte, 32))
	require.NoError(t, err)
	b.give(t, b.tenant, old[1], postgres.OrderCancel)
	job := b.addJob(t, b.destination, 10)
	other, _, _ := b.addTenant(t, "Other Bank")
	for tenant, want := range map[uuid.UUID]int{b.tenant: 1, other: 0} {
		require.NoError(t, postgres.InTenant(t.Context(), b.api, tenant, func(tx pgx.Tx) error {
			for _, table := range []string{"delivery_commands", "redelivery_jobs", "redeliveries"} {
				var n int
				require.NoError(t, tx.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n))
				require.Equal(t, want, n, table)
			}
			n, err := db.New(tx).CancelRedeliveryJob(t.Context(), job)
			require.EqualValues(t, want, n)
			return err
		}))
	}
	for _, statement := range []string{
		"select * from redelivery_keys", "insert into redeliveries default values", "update redelivery_jobs set done = 1",
		"update delivery_commands set relayed_at = now()", "delete from delivery_commands",
	} {
		_, err := b.api.Exec(t.Context(), statement)
		require.ErrorContains(t, err, "permission denied", statement)
	}
}
