package postgres_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

func (b *testBundle) claim(t testing.TB, worker uuid.UUID, quota int) []postgres.Claimed {
	t.Helper()
	claimed, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: worker, Claim: id.New(), Destinations: []uuid.UUID{b.destination}, Quotas: []int{quota}, Lane: postgres.LaneWorkflow})
	require.NoError(t, err)
	return claimed
}

func (b *testBundle) due(t testing.TB) []uuid.UUID {
	t.Helper()
	due, err := postgres.DueDestinations(t.Context(), b.engine, uuid.Nil, 100)
	require.NoError(t, err)
	var ids []uuid.UUID
	for _, d := range due {
		ids = append(ids, d.ID)
	}
	return ids
}

func TestClaimTakesEachDeliveryOnceAndCountsItsStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 50)
	workers := []uuid.UUID{b.worker(t), b.worker(t), b.worker(t)}
	var mu sync.Mutex
	var wait sync.WaitGroup
	var claimed []uuid.UUID
	for _, worker := range workers {
		wait.Go(func() {
			for {
				batch, err := postgres.Claim(context.Background(), b.engine, postgres.ClaimRequest{
					Worker: worker, Claim: id.New(), Destinations: []uuid.UUID{b.destination}, Quotas: []int{7}, Lane: postgres.LaneWorkflow})
				require.NoError(t, err)
				mu.Lock()
				for _, c := range batch {
					require.Equal(t, 0, c.Epoch)
					require.Equal(t, 1, c.Attempt)
					claimed = append(claimed, c.DeliveryID)
				}
				all := len(claimed) == len(deliveries)
				mu.Unlock()
				if all {
					return
				}
			}
		})
	}
	wait.Wait()
	require.ElementsMatch(t, deliveries, claimed)
	require.Equal(t, 50, b.count(t, "select count(*) from deliveries where lost_starts = 1 and lane = 'workflow'"))
	require.Empty(t, b.due(t))
}

func TestClaimKeepsToQuotaAndOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 5)
	b.exec(t, "update delivery_queue set due_at = now() + interval '1 hour' where delivery_id = $1", deliveries[0])
	b.exec(t, "update delivery_queue set due_at = now() - interval '1 hour' where delivery_id = $1", deliveries[4])
	worker := b.worker(t)
	require.Equal(t, deliveries[4], b.claim(t, worker, 1)[0].DeliveryID)
	require.Len(t, b.claim(t, worker, 10), 3, "what isn't due stays")
}

func TestClaimNeedsALiveWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.accept(t, 1)
	require.Empty(t, b.claim(t, id.New(), 1), "unknown")
	worker := b.worker(t)
	b.exec(t, "update workers set alive_until = now()")
	require.Empty(t, b.claim(t, worker, 1), "lapsed")
	alive, err := postgres.RenewWorker(t.Context(), b.engine, worker)
	require.NoError(t, err)
	require.False(t, alive, "a lapsed lease can't be renewed")
}

func TestDueDestinationsLeavesOutWhatIsHeld(t *testing.T) {
	t.Parallel()
	b := setup(t)
	paused, disabled, empty := b.addDestination(t, b.tenant, b.endpoint), b.addDestination(t, b.tenant, b.endpoint), b.addDestination(t, b.tenant, b.endpoint)
	row := b.acceptance("{}")
	for _, destination := range []uuid.UUID{paused, disabled} {
		row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: destination})
	}
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	b.exec(t, "update destinations set paused_at = now() where id = $1", paused)
	b.exec(t, "update destinations set disabled_at = now() where id = $1", disabled)
	require.Equal(t, []uuid.UUID{b.destination}, b.due(t))
	require.NotContains(t, b.due(t), empty)
	b.exec(t, "update destinations set paused_at = null where id = $1", paused)
	require.ElementsMatch(t, []uuid.UUID{b.destination, paused}, b.due(t))
	b.exec(t, "update destinations set deleted_at = now(), paused_at = now()")
	require.ElementsMatch(t, []uuid.UUID{b.destination, paused, disabled}, b.due(t), "what waits for deleted ones is to be canceled")
}

func TestDueDestinationsGoOnAfterTheCursor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var destinations []uuid.UUID
	row := b.acceptance("{}")
	row.Deliveries = nil
	for range 20 {
		destination := b.addDestination(t, b.tenant, b.endpoint)
		destinations = append(destinations, destination)
		row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: destination})
	}
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	var seen []uuid.UUID
	for cursor := uuid.Nil; ; cursor = seen[len(seen)-1] {
		due, err := postgres.DueDestinations(t.Context(), b.engine, cursor, 7)
		require.NoError(t, err)
		for _, d := range due {
			seen = append(seen, d.ID)
		}
		if len(due) < 7 {
			break
		}
	}
	slices.SortFunc(destinations, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	require.Equal(t, destinations, seen)
}

func TestTakeOverOnlyFromTheDead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.accept(t, 3)
	dead, live := b.worker(t), b.worker(t)
	claimed := b.claim(t, dead, 2)
	b.claim(t, live, 1)
	other := b.worker(t)
	taken, err := postgres.TakeOver(t.Context(), b.engine, other, 10)
	require.NoError(t, err)
	require.Empty(t, taken)
	require.NoError(t, postgres.RemoveWorker(t.Context(), b.engine, dead))
	b.exec(t, "update deliveries set lane = null where id = $1", claimed[0].DeliveryID) // a hand in the database
	taken, err = postgres.TakeOver(t.Context(), b.engine, other, 10)
	require.NoError(t, err)
	require.ElementsMatch(t, claimed, taken, "the same deliveries in the same epoch: what was started is found by its ID")
	taken, err = postgres.TakeOver(t.Context(), b.engine, live, 10)
	require.NoError(t, err)
	require.Empty(t, taken)
}

// start counts the start of an attempt, unless that is done, and loads what it needs, as a sender does.
func (b *testBundle) start(t testing.TB, delivery uuid.UUID, epoch, attempt int, counted bool) (*postgres.Outgoing, error) {
	t.Helper()
	start := postgres.Start{Delivery: delivery, Epoch: epoch, Attempt: attempt}
	if !counted {
		_, err := postgres.CountStart(t.Context(), b.engine, start)
		require.NoError(t, err)
	}
	loaded, err := postgres.Load(t.Context(), b.engine, []postgres.Start{start})
	require.NoError(t, err)
	return &loaded[0].Outgoing, loaded[0].Err
}

func TestStartsAreFencedAndCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	b.claim(t, b.worker(t), 1)
	lost := func() int { return b.count(t, "select lost_starts from deliveries where id = $1", delivery) }

	out, err := b.start(t, delivery, 0, 1, true)
	require.NoError(t, err)
	require.Equal(t, "https://example.com/in", out.URL)
	require.Equal(t, "{}", string(out.Body))
	require.Equal(t, 5*time.Second, out.Timeout)
	require.Equal(t, 1, lost(), "the claim has counted it")
	_, err = b.start(t, delivery, 0, 1, false)
	require.NoError(t, err)
	require.Equal(t, 2, lost())

	for _, fence := range [][2]int{{1, 1}, {0, 2}, {0, 0}} {
		_, err = b.start(t, delivery, fence[0], fence[1], false)
		require.ErrorIs(t, err, postgres.ErrMoved)
	}
	b.exec(t, "update destinations set paused_at = now()")
	_, err = b.start(t, delivery, 0, 1, false)
	require.ErrorIs(t, err, postgres.ErrHeld)
	require.Equal(t, 2, lost(), "what isn't sent isn't counted")
}

// Attempts that begin together are loaded together, and each by its own fence.
func TestLoadsOfOneGroupAreFencedEachOnItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 3)
	b.claim(t, b.worker(t), 3)
	loaded, err := postgres.Load(t.Context(), b.engine, []postgres.Start{
		{Delivery: deliveries[0], Attempt: 1},
		{Delivery: deliveries[1], Epoch: 1, Attempt: 1},
		{Delivery: deliveries[2], Attempt: 1},
		{Delivery: deliveries[0], Attempt: 2},
		{Delivery: deliveries[0], Attempt: 1},
		{Delivery: id.New(), Attempt: 1},
	})
	require.NoError(t, err)
	for i, right := range []bool{true, false, true, false, true, false} {
		if !right {
			require.ErrorIs(t, loaded[i].Err, postgres.ErrMoved, i)
			require.Empty(t, loaded[i].Body, i)
			continue
		}
		require.NoError(t, loaded[i].Err, i)
		require.Equal(t, "{}", string(loaded[i].Body), i)
		require.Equal(t, "https://example.com/in", loaded[i].URL, i)
	}
	require.Equal(t, loaded[0].EventID, loaded[4].EventID)
	require.NotEqual(t, loaded[0].EventID, loaded[2].EventID)
}

func TestRequeueFencesTheOldCarrierOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	b.claim(t, b.worker(t), 1)
	moved, err := postgres.Requeue(t.Context(), b.engine, delivery, 0, 1, 0, 0)
	require.NoError(t, err)
	require.True(t, moved)
	_, err = b.start(t, delivery, 0, 1, false)
	require.ErrorIs(t, err, postgres.ErrMoved)
	moved, err = postgres.Requeue(t.Context(), b.engine, delivery, 0, 1, 0, 0)
	require.NoError(t, err)
	require.False(t, moved, "once per epoch")
	claimed := b.claim(t, b.worker(t), 1)
	require.Len(t, claimed, 1)
	require.Equal(t, 1, claimed[0].Epoch)
}

func TestNotificationsReachListeners(t *testing.T) {
	t.Parallel()
	b := setup(t)
	woken := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wait sync.WaitGroup
	wait.Go(func() { _ = postgres.Listen(ctx, b.url, func() { woken <- struct{}{} }) })
	notifier := postgres.NewNotifier(b.engine)
	wait.Go(func() { notifier.Run(ctx) })
	require.Eventually(t, func() bool {
		notifier.Notify()
		select {
		case <-woken:
			return true
		default:
			return false
		}
	}, 10*time.Second, 10*time.Millisecond)
	cancel()
	wait.Wait()
}
