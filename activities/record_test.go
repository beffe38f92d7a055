package activities_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

func record(t testing.TB, r *activities.Recorder, delivery uuid.UUID, epoch, attempt int, outcome activities.Outcome) activities.Progress {
	t.Helper()
	progress, err := r.Record(t.Context(), activities.Recording{
		Delivery: delivery, Epoch: epoch, Attempt: attempt, Outcome: outcome,
		Response: activities.Response{Headers: []byte("A: b\r\n"), Body: []byte("ok")},
	})
	require.NoError(t, err)
	return progress
}

func TestRecordDelivered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	delivery := b.claimed(t, 1)[0]
	require.Equal(t, activities.Progress{State: "delivered"}, record(t, r, delivery, 0, 1, delivered()))
	d, attempts, leaves := b.explained(t, delivery)
	require.Equal(t, "delivered", d.State)
	require.Len(t, leaves, 1)
	require.Equal(t, []byte("ok"), attempts[0].Body)
	require.Equal(t, []byte("A: b\r\n"), attempts[0].Headers)
	require.Equal(t, 200, attempts[0].Status)
}

func TestRecordRetryStaysWithItsCarrier(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	delivery := b.claimed(t, 1)[0]
	require.Equal(t, activities.Progress{State: "pending", Delay: 20 * time.Minute}, record(t, r, delivery, 0, 1, retried(20*time.Minute)))
	d, _, leaves := b.explained(t, delivery)
	require.Len(t, leaves, 1)
	require.False(t, d.Queued, "its carrier waits, not the queue")
	require.Equal(t, 0, d.Epoch)
	require.InDelta(t, 20*60, *d.DueIn, 30)
	require.InDelta(t, 21*60, *d.CheckIn, 30, "the sweeper looks for the carrier after the delay and its grace")

	require.Equal(t, activities.Progress{State: "delivered"}, record(t, r, delivery, 0, 2, delivered()))
	_, _, leaves = b.explained(t, delivery)
	require.Len(t, leaves, 2)
}

func TestRecordFinalFailureIsFollowedByOneDeadLeaf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	delivery := b.claimed(t, 1)[0]
	require.Equal(t, activities.Progress{State: "dead"}, record(t, r, delivery, 0, 1, failed("rejected")))
	d, attempts, leaves := b.explained(t, delivery)
	require.Equal(t, "dead", d.State)
	require.Len(t, leaves, 2)
	require.Equal(t, id.Decision, attempts[1].Number)
	require.Equal(t, "rejected", leaves[1].Outcome)
	require.EqualValues(t, 1, leaves[1].AttemptNumber)
	require.Empty(t, leaves[1].URLHash)
	require.Nil(t, attempts[1].Body)
	require.Zero(t, value[int](t, b, "select count(*) from destinations where disabled_at is not null"))
}

func TestRecordExhausted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	delivery := b.claimed(t, 1)[0]
	for attempt := range 3 {
		record(t, r, delivery, 0, attempt+1, retried(time.Second))
	}
	last := answered(503, "failed", "dead")
	last.Reason = "attempts_exhausted"
	require.Equal(t, activities.Progress{State: "dead"}, record(t, r, delivery, 0, 4, last))
	_, _, leaves := b.explained(t, delivery)
	require.Len(t, leaves, 5)
	require.Equal(t, "attempts_exhausted", leaves[4].Outcome)
	require.EqualValues(t, 4, leaves[4].AttemptNumber)
}

func TestRecordGoneDisablesTheDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.addDestination(t, "https://example.com/other")
	delivery := b.claimed(t, 1)[0]
	require.Equal(t, "dead", record(t, b.recorder(t), delivery, 0, 1, gone()).State)
	b.explained(t, delivery)
	require.Equal(t, "gone", value[string](t, b, "select disabled_reason from destinations where id = $1 and disabled_at is not null", b.destination))
	require.True(t, value[bool](t, b, "select disabled_at is null from destinations where id = $1", other))
}

func TestRecordParksInTheQueueUnderTheNextEpoch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	delivery := b.claimed(t, 1)[0]
	want := activities.Progress{State: "pending", Delay: 2 * time.Hour, Moved: true}
	require.Equal(t, want, record(t, r, delivery, 0, 1, parked(2*time.Hour)))
	d, _, leaves := b.explained(t, delivery)
	require.Len(t, leaves, 1)
	require.Equal(t, 1, d.Epoch)
	require.Nil(t, d.CheckIn, "nobody carries it")
	require.True(t, d.Queued)
	require.False(t, d.Claimed)
	require.Equal(t, 2, d.QueuedFor)
	require.InDelta(t, 2*3600, d.QueueDueIn, 30)

	require.True(t, record(t, r, delivery, 0, 2, delivered()).Moved, "the old epoch is fenced off")
	require.Equal(t, "delivered", record(t, r, delivery, 1, 2, delivered()).State)
	b.explained(t, delivery)
}

// The answer to a repeated record comes from what is there, and nothing is added.
func TestRecordTwice(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	deliveries := b.claimed(t, 3)
	for i, outcome := range []activities.Outcome{delivered(), failed("rejected"), retried(time.Hour)} {
		first := record(t, r, deliveries[i], 0, 1, outcome)
		again := record(t, r, deliveries[i], 0, 1, gone()) // whatever a second run thinks it saw
		require.InDelta(t, first.Delay, again.Delay, float64(time.Minute))
		again.Delay = first.Delay
		require.Equal(t, first, again)
		_, attempts, _ := b.explained(t, deliveries[i])
		require.Equal(t, outcome.Outcome, attempts[0].Outcome)
	}
	require.Zero(t, value[int](t, b, "select count(*) from destinations where disabled_at is not null"))
}

func TestRecordByAFencedOffCarrierChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	delivery := b.claimed(t, 1)[0]
	record(t, r, delivery, 0, 1, retried(time.Hour))
	moved, err := postgres.Requeue(t.Context(), b.engine, delivery, 0, 2, 0, 0)
	require.NoError(t, err)
	require.True(t, moved)
	before, attempts, _ := b.explained(t, delivery)
	for _, fence := range [][2]int{{0, 1}, {0, 2}, {0, 3}, {1, 3}, {2, 2}} {
		require.True(t, record(t, r, delivery, fence[0], fence[1], delivered()).Moved, "epoch %d, attempt %d", fence[0], fence[1])
	}
	after, attemptsAfter, _ := b.explained(t, delivery)
	require.Equal(t, attempts, attemptsAfter)
	require.Equal(t, before.Leaves, after.Leaves)
	require.Equal(t, before.State, after.State)
	require.True(t, after.Queued)
}

func TestRecordOneAttemptTwiceInOneGroup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.claimed(t, 3)
	var rows []activities.Recording
	for i, outcome := range []activities.Outcome{delivered(), parked(2 * time.Hour), retried(time.Minute)} {
		row := activities.Recording{Delivery: deliveries[i], Attempt: 1, Outcome: outcome}
		rows = append(rows, row, row)
	}
	results, err := activities.CommitRecordings(t.Context(), b.engine, rows)
	require.NoError(t, err)
	for i := 0; i < len(results); i += 2 {
		require.NoError(t, results[i].Err)
		require.Equal(t, results[i], results[i+1])
		_, attempts, _ := b.explained(t, rows[i].Delivery)
		require.Len(t, attempts, 1)
	}
}

func TestRecordManyDeliveriesInOneGroup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	outcomes := []func() activities.Outcome{
		delivered,
		func() activities.Outcome { return retried(time.Minute) },
		func() activities.Outcome { return failed("rejected") },
		func() activities.Outcome { return parked(2 * time.Hour) },
	}
	deliveries := b.claimed(t, 60)
	var rows []activities.Recording
	for i, delivery := range deliveries {
		rows = append(rows, activities.Recording{Delivery: delivery, Attempt: 1, Outcome: outcomes[i%len(outcomes)]()})
	}
	missing := id.New()
	rows = append(rows, activities.Recording{Delivery: missing, Attempt: 1, Outcome: delivered()})
	results, err := activities.CommitRecordings(t.Context(), b.engine, rows)
	require.NoError(t, err)
	for i, delivery := range deliveries {
		require.NoError(t, results[i].Err)
		require.Equal(t, rows[i].Outcome.Park, results[i].Progress.Moved)
		d, attempts, _ := b.explained(t, delivery)
		require.Equal(t, rows[i].Outcome.State, d.State)
		require.Equal(t, rows[i].Outcome.Outcome, attempts[0].Outcome)
		require.Equal(t, rows[i].Outcome.Park, d.Queued)
	}
	require.ErrorContains(t, results[60].Err, id.Delivery.Format(missing))
}

func TestRecordLookOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	delivery := b.claimed(t, 1)[0]
	look := func(epoch, attempt int) activities.Progress {
		progress, err := r.Record(t.Context(), activities.Recording{Delivery: delivery, Epoch: epoch, Attempt: attempt, LookOnly: true})
		require.NoError(t, err)
		return progress
	}
	require.True(t, look(0, 1).Moved, "not recorded yet, so there is nothing to go on from")
	d, attempts, _ := b.read(t, delivery)
	require.Empty(t, attempts)
	require.Equal(t, 1, d.LostStarts)
	require.True(t, d.Claimed)

	record(t, r, delivery, 0, 1, retried(time.Hour))
	found := look(0, 1)
	require.False(t, found.Moved)
	require.InDelta(t, time.Hour, found.Delay, float64(time.Minute))
	record(t, r, delivery, 0, 2, delivered())
	require.Equal(t, activities.Progress{State: "delivered"}, look(0, 2))
}

// Recorders of several workers, all with the same deliveries in different orders.
func TestRecordConcurrently(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex
	var failures []error
	observe := func(_ int, _ time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, err)
	}
	deliveries := b.claimed(t, 48)
	var wait sync.WaitGroup
	for worker := range 3 {
		r := activities.NewRecorder(activities.RecorderConfig{DB: b.engine, Observe: observe})
		t.Cleanup(r.Close)
		for i := range deliveries {
			i = (i*(2*worker+5) + 7*worker) % len(deliveries)
			wait.Go(func() {
				outcome := []activities.Outcome{delivered(), gone(), retried(time.Minute), parked(2 * time.Hour)}[(i+worker)%4]
				_, err := r.Record(t.Context(), activities.Recording{Delivery: deliveries[i], Attempt: 1, Outcome: outcome})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	wait.Wait()
	require.NoError(t, errors.Join(failures...))
	for _, delivery := range deliveries {
		_, attempts, _ := b.explained(t, delivery)
		require.Equal(t, 1, attempts[0].Number)
	}
}

// Two groups that disable the same destinations lock them in one order, whatever the order of their recordings.
func TestRecordDisablesDestinationsWithoutDeadlock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := b.destination, b.addDestination(t, "https://example.com/two")
	group := func(destinations ...uuid.UUID) (rows []activities.Recording) {
		for _, destination := range destinations {
			delivery := b.accept(t, 1, destination)[0]
			rows = append(rows, activities.Recording{Delivery: delivery, Attempt: 1, Outcome: gone()})
		}
		return rows
	}
	groups := [][]activities.Recording{group(one, two, one), group(two, one, two)}

	// Both groups wait for this lock on one of the two, and each holds by then what it locked before.
	blocker, err := b.owner.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = blocker.Rollback(context.Background()) })
	_, err = blocker.Exec(t.Context(), "select from destinations where id = $1 for update", one)
	require.NoError(t, err)
	results := make(chan error, len(groups))
	for _, rows := range groups {
		go func() {
			_, err := activities.CommitRecordings(t.Context(), b.engine, rows)
			results <- err
		}()
	}
	b.waitForBlocked(t, len(groups))
	require.NoError(t, blocker.Commit(t.Context()))
	require.NoError(t, <-results)
	require.NoError(t, <-results)
	require.Equal(t, 2, value[int](t, b, "select count(*) from destinations where disabled_reason = 'gone'"))
}

// waitForBlocked polls until n sessions of the database wait for a lock.
func (b *testBundle) waitForBlocked(t testing.TB, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return value[int](t, b, `select count(distinct l.pid) from pg_locks l join pg_stat_activity a on a.pid = l.pid
			where not l.granted and a.datname = current_database()`) >= n
	}, 10*time.Second, 5*time.Millisecond)
}

// What the counter says beyond the send that is being recorded was lost; the record resets it.
func TestRecordCountsLostStarts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	start := func(delivery uuid.UUID, epoch, attempt int, counted bool) {
		err := b.start(t, delivery, epoch, attempt, counted)
		require.NoError(t, err)
	}
	deliveries := b.claimed(t, 2)
	start(deliveries[0], 0, 1, true)
	record(t, r, deliveries[0], 0, 1, retried(time.Minute))
	for range 3 {
		start(deliveries[0], 0, 2, false)
	}
	record(t, r, deliveries[0], 0, 2, retried(time.Minute))
	start(deliveries[0], 0, 3, false)
	record(t, r, deliveries[0], 0, 3, failed("rejected"))
	d, _, leaves := b.explained(t, deliveries[0])
	require.Zero(t, d.LostStarts)
	var lost []int64
	for _, leaf := range leaves {
		lost = append(lost, leaf.LostStarts)
	}
	require.Equal(t, []int64{0, 2, 0, 0}, lost)

	// The claim counted one, the worker died after the request, and its successor counts its own.
	start(deliveries[1], 0, 1, false)
	record(t, r, deliveries[1], 0, 1, delivered())
	_, _, leaves = b.explained(t, deliveries[1])
	require.EqualValues(t, 1, leaves[0].LostStarts)
}

// An attempt of which no valid leaf can be made changes nothing, and those recorded with it are recorded.
func TestRecordFailsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.claimed(t, 4)
	badURL, badReason, badState := delivered(), failed("no word!"), delivered()
	badURL.EndpointURL = "not a URL"
	badState.State = "skipped"
	var rows []activities.Recording
	for i, outcome := range []activities.Outcome{badURL, badReason, badState, delivered()} {
		rows = append(rows, activities.Recording{Delivery: deliveries[i], Attempt: 1, Outcome: outcome})
	}
	results, err := activities.CommitRecordings(t.Context(), b.engine, rows)
	require.NoError(t, err)
	for i := range 3 {
		require.Error(t, results[i].Err)
		d, attempts, _ := b.read(t, deliveries[i])
		require.Empty(t, attempts)
		require.Equal(t, "pending", d.State)
		require.Equal(t, 1, d.LostStarts)
		require.Equal(t, 1, d.NextAttempt)
		require.True(t, d.Claimed)
	}
	require.NoError(t, results[3].Err)
	b.explained(t, deliveries[3])
	require.Equal(t, 1, value[int](t, b, "select count(*) from leaf_queue"))
}

// What Postgres refuses for what it holds fails alone too, and the group is halved until it stands alone.
func TestRecordRefusedByPostgresFailsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	deliveries := b.claimed(t, 20)
	var wait sync.WaitGroup
	errs := make([]error, len(deliveries))
	for i, delivery := range deliveries {
		outcome := delivered()
		if i == 7 {
			outcome.ResponseStatus = 1 << 40 // no int4
		}
		wait.Go(func() {
			_, errs[i] = r.Record(t.Context(), activities.Recording{Delivery: delivery, Attempt: 1, Outcome: outcome})
		})
	}
	wait.Wait()
	for i, delivery := range deliveries {
		if i == 7 {
			require.Error(t, errs[i])
			continue
		}
		require.NoError(t, errs[i])
		b.explained(t, delivery)
	}
}

func TestRecordTellsWhoWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	recorded, leaves := make(chan uuid.UUID, 1), make(chan struct{}, 1)
	r := activities.NewRecorder(activities.RecorderConfig{
		DB: b.engine, OnRecord: func(d uuid.UUID) { recorded <- d }, OnLeaves: func() { leaves <- struct{}{} },
	})
	t.Cleanup(r.Close)
	delivery := b.claimed(t, 1)[0]
	record(t, r, delivery, 0, 1, delivered())
	require.Equal(t, delivery, <-recorded)
	<-leaves
}
