package activities_test

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// counting is a receiver that notes how many requests are in flight at most.
type counting struct {
	*receiver
	now, most atomic.Int64
}

func newCounting(t testing.TB, takes time.Duration) *counting {
	t.Helper()
	c := &counting{}
	c.receiver = newReceiver(t, func(_ http.ResponseWriter, _ *http.Request) {
		now := c.now.Add(1)
		for most := c.most.Load(); now > most && !c.most.CompareAndSwap(most, now); most = c.most.Load() {
		}
		<-time.After(takes)
		c.now.Add(-1)
	})
	return c
}

func (b *testBundle) limit(t testing.TB, destination uuid.UUID, concurrency, rate int) {
	t.Helper()
	b.exec(t, "update destinations set max_concurrency = nullif($2, 0), rate_per_second = nullif($3, 0) where id = $1", destination, concurrency, rate)
}

// Without a permit nothing is sent, no attempt is used up, and nothing shows as lost, whichever attempt it is.
func TestSendWithoutAPermitUsesUpNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(503, ""))
	destination := b.addDestination(t, r.URL)
	b.limit(t, destination, 1, 0)
	delivery := b.accept(t, 1, destination)[0]
	b.claim(t, 1, destination)
	a := b.sender(t)
	taken, ok := a.Permits.Take(activities.Send{Destination: destination, Limits: postgres.Limits{MaxConcurrency: 1}, Claimed: true})
	require.True(t, ok)
	deferred := activities.SendResult{Held: true, Unused: true, Wait: 500 * time.Millisecond}
	for _, how := range []func(testing.TB, *activities.Activities, activities.SendInput) (activities.SendResult, error){send, sendLocally} {
		result, err := how(t, a, first(delivery))
		require.NoError(t, err)
		require.Equal(t, deferred, result)
	}
	require.NoError(t, a.Requeue(t.Context(), activities.RequeueInput{DeliveryID: id.Delivery.Format(delivery), Attempt: 1, Unused: true}))
	require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 1, Queued: true}, b.standing(t, delivery))

	taken.Return()
	b.claim(t, 1, destination)
	in := first(delivery)
	in.Epoch = 1
	result, err := send(t, a, in)
	require.NoError(t, err)
	require.Equal(t, "pending", result.Progress.State, "a failed one")
	_, ok = a.Permits.Take(activities.Send{Destination: destination, Limits: postgres.Limits{MaxConcurrency: 1}, Claimed: true})
	require.True(t, ok, "its permit is back")
	result, err = send(t, a, activities.SendInput{DeliveryID: in.DeliveryID, Epoch: 1, Attempt: 2}) // as the workflow does when it is due
	require.NoError(t, err)
	require.Equal(t, deferred, result)
	require.NoError(t, a.Requeue(t.Context(), activities.RequeueInput{DeliveryID: in.DeliveryID, Epoch: 1, Attempt: 2, Unused: true}))
	require.Equal(t, standing{State: "pending", Epoch: 2, NextAttempt: 2, Leaves: 1, Queued: true}, b.standing(t, delivery))
	require.Len(t, r.got(), 1)
}

// A request that is interrupted gives its permit back too.
func TestPermitsComeBackFromInterruptedRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newHanging(t, false)
	destination := b.addDestination(t, r.URL)
	b.limit(t, destination, 1, 0)
	delivery := b.accept(t, 1, destination)[0]
	b.claim(t, 1, destination)
	a, interrupt := b.sender(t), make(chan struct{})
	a.Interrupt = interrupt
	go func() {
		eventually(t, func() bool { return len(r.got()) == 1 }, "it is sent")
		close(interrupt)
	}()
	result, err := send(t, a, first(delivery))
	require.NoError(t, err)
	require.NotNil(t, result.Progress)
	_, ok := a.Permits.Take(activities.Send{Destination: destination, Limits: postgres.Limits{MaxConcurrency: 1}, Claimed: true})
	require.True(t, ok)
}

// A batch sends what it has one after the other where only one may be under way, and no more than the rate allows; what is
// left when its time is over goes back as if it had never been claimed.
func TestBatchKeepsToTheLimitsOfItsDestinations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	single, slow, rated := newCounting(t, 5*time.Millisecond), newCounting(t, 300*time.Millisecond), newCounting(t, 0)
	one, two, three := b.addDestination(t, single.URL), b.addDestination(t, slow.URL), b.addDestination(t, rated.URL)
	b.limit(t, one, 1, 0)
	b.limit(t, two, 2, 0)
	b.limit(t, three, 0, 5)
	toOne, toTwo, toThree := b.accept(t, 30, one), b.accept(t, 60, two), b.accept(t, 60, three)
	in, a := b.claimBatch(t, 150, one, two, three), b.sender(t)
	result, err := sendBatch(t, a, in)
	require.NoError(t, err)
	require.EqualValues(t, 1, single.most.Load())
	require.EqualValues(t, 2, slow.most.Load())
	require.LessOrEqual(t, len(rated.got()), 15, "it begins for two seconds")
	require.NotEmpty(t, rated.got())
	sent := len(single.got()) + len(slow.got()) + len(rated.got())
	require.Equal(t, activities.BatchResult{Sent: sent, Deferred: 150 - sent}, result)
	times := []map[string]int{single.times(), slow.times(), rated.times()}
	for i, deliveries := range [][]uuid.UUID{toOne, toTwo, toThree} {
		for _, delivery := range deliveries {
			if times[i][id.Delivery.Format(delivery)] == 0 {
				b.requireUnsent(t, delivery, time.Second)
			} else {
				d, _, leaves := b.explained(t, delivery)
				require.Equal(t, "delivered", d.State)
				require.Zero(t, leaves[0].LostStarts)
			}
		}
	}
}

// A batch that runs where another worker has all permits puts back what needs them.
func TestBatchPutsBackWhatThisWorkerMayNotSend(t *testing.T) {
	t.Parallel()
	b := setup(t)
	healthy, limited := newReceiver(t, says(200, "")), newReceiver(t, says(200, ""))
	free, bound := b.addDestination(t, healthy.URL), b.addDestination(t, limited.URL)
	b.limit(t, bound, 1, 0)
	b.accept(t, 5, free)
	b.accept(t, 5, bound)
	in, a := b.claimBatch(t, 10, free, bound), b.sender(t)
	a.Permits.Divide(division(b.worker, longAgo(), uuid.Nil, b.worker))
	mustSendBatch(t, a, in, 5, 5)
	require.Empty(t, limited.got())
	require.Len(t, healthy.got(), 5)
}

// Nor does a panic keep a permit.
func TestPermitsComeBackFromAPanic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	destination := b.addDestination(t, "https://example.com/in")
	b.limit(t, destination, 1, 0)
	delivery := b.accept(t, 1, destination)[0]
	b.claim(t, 1, destination)
	a := b.sender(t)
	a.Client = nil
	_, err := send(t, a, first(delivery))
	require.ErrorContains(t, err, "nil pointer")
	_, ok := a.Permits.Take(activities.Send{Destination: destination, Limits: postgres.Limits{MaxConcurrency: 1}, Claimed: true})
	require.True(t, ok)
}
