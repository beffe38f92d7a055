package activities_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
)

func TestBatchWithoutLeaseSendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination := b.addDestination(t, r.URL)
	delivery := b.accept(t, 1, destination)[0]
	in := b.claimBatch(t, 1, destination)
	before := b.standing(t, delivery)
	a := b.sender(t)
	a.Alive = func() bool { return false }
	_, err := sendBatch(t, a, in)
	require.True(t, activities.NotSent(err), err)
	require.Empty(t, r.got())
	require.Equal(t, before, b.standing(t, delivery))
}

// When the lease lapses under way, what isn't sent yet goes back, and uses up no attempt.
func TestBatchWhoseLeaseLapsesPutsBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination := b.addDestination(t, r.URL)
	deliveries, a := b.accept(t, 40, destination), b.sender(t)
	var asked atomic.Int64
	a.Alive = func() bool { return asked.Add(1) == 1 }
	mustSendBatch(t, a, b.claimBatch(t, 40, destination), 0, 40)
	require.Zero(t, len(r.got()))
	for _, delivery := range deliveries {
		b.requireUnsent(t, delivery, 0)
	}
}

// A worker that has no more time begins no request, and uses up no attempt of what it didn't send: it may be the only one
// that its schedule allows. Whether it puts back or fails, so that another runs the batch, is all the same.
func TestBatchOfAStoppingWorkerSendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination := b.addDestination(t, r.URL)
	b.exec(t, `update destinations set schedule = '{"type":"none"}' where id = $1`, destination)
	deliveries, a, stopped := b.accept(t, 40, destination), b.sender(t), make(chan struct{})
	close(stopped)
	a.Interrupt = stopped
	_, err := sendBatch(t, a, b.claimBatch(t, 40, destination))
	require.Zero(t, len(r.got()))
	for _, delivery := range deliveries {
		if err == nil {
			b.requireUnsent(t, delivery, 0)
			continue
		}
		require.Equal(t, standing{State: "pending", NextAttempt: 1, LostStarts: 1, Queued: true, Claimed: true}, b.standing(t, delivery))
	}
}

// When the worker has no more time, the requests in flight end and are recorded as interrupted; what had no place goes back.
func TestBatchInterrupted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hung, a := newHanging(t, false), b.sender(t)
	destination := b.addDestination(t, hung.URL)
	deliveries, interrupt := b.accept(t, 140, destination), make(chan struct{})
	a.Interrupt = interrupt
	in, ended := b.claimBatch(t, 140, destination), make(chan struct{})
	var result activities.BatchResult
	var err error
	go func() {
		defer close(ended)
		result, err = sendBatch(t, a, in)
	}()
	eventually(t, func() bool { return len(hung.got()) == 128 }, "every place is taken")
	close(interrupt)
	<-ended
	require.NoError(t, err)
	require.Equal(t, activities.BatchResult{Sent: 128, Deferred: 12}, result)
	sent := hung.times()
	for _, delivery := range deliveries {
		if sent[id.Delivery.Format(delivery)] == 0 {
			b.requireUnsent(t, delivery, 0)
			continue
		}
		_, _, leaves := b.explained(t, delivery)
		require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 2, Leaves: 1, Queued: true}, b.standing(t, delivery))
		require.Equal(t, "interrupted", leaves[0].Error)
	}
}

// A worker is cut off after some of its batch was recorded, with other requests in flight. The second run sends only
// these again, and its leaves say that a start was lost. Whatever the first still does is fenced off.
func TestBatchRunAgainSendsOnlyWhatWasNotRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	healthy, hung := newReceiver(t, says(200, "")), newHanging(t, true)
	fast, slow := b.addDestination(t, healthy.URL), b.addDestination(t, hung.URL)
	b.exec(t, "update destinations set timeout_ms = 120000 where id = $1", slow)
	delivered, inFlight := b.accept(t, 12, fast), b.accept(t, 7, slow)
	in := b.claimBatch(t, 19, fast, slow)
	var cutOff sync.WaitGroup
	first, second := b.sender(t), b.sender(t)
	result, err := runTwice(t, in, second, func(ctx context.Context) {
		ctx = context.WithoutCancel(ctx)
		cutOff.Go(func() { _, _ = first.SendBatch(ctx, in) })
		eventually(t, func() bool { return b.recordedOf(t, fast) == 12 && len(hung.got()) == 7 }, "the first run is in the middle")
	})
	require.NoError(t, err)
	require.Equal(t, activities.BatchResult{Sent: 7}, result)
	healthy.requireOnce(t, delivered)
	before := map[uuid.UUID]standing{}
	for _, delivery := range inFlight {
		require.Equal(t, 2, hung.times()[id.Delivery.Format(delivery)])
		_, _, leaves := b.explained(t, delivery)
		require.Len(t, leaves, 1)
		require.EqualValues(t, 1, leaves[0].LostStarts)
		before[delivery] = b.standing(t, delivery)
	}
	hung.release()
	cutOff.Wait()
	for delivery, standing := range before {
		b.explained(t, delivery)
		require.Equal(t, standing, b.standing(t, delivery))
	}
	for _, delivery := range delivered {
		_, _, leaves := b.explained(t, delivery)
		require.Zero(t, leaves[0].LostStarts)
	}
}

// A run that was cut off may still have requests in flight when the next one sends. It puts nothing back then that the
// other has taken on: its outcome would be fenced off, and the webhook sent once more.
func TestBatchThatWasCutOffPutsNothingBackLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var isSecond atomic.Bool
	firstReleased, secondReleased := make(chan struct{}), make(chan struct{})
	r := newReceiver(t, func(_ http.ResponseWriter, request *http.Request) {
		released := firstReleased
		if isSecond.Load() {
			released = secondReleased
		}
		select {
		case <-released:
		case <-request.Context().Done():
		}
	})
	destination := b.addDestination(t, r.URL)
	b.exec(t, "update destinations set timeout_ms = 120000 where id = $1", destination)
	deliveries, in := b.accept(t, 10, destination), b.claimBatch(t, 10, destination)
	first, second, asked := b.sender(t), b.sender(t), atomic.Int64{}
	first.Alive = func() bool { return asked.Add(1) <= 9 } // for 8 of the 10
	var background sync.WaitGroup
	_, err := runTwice(t, in, second, func(ctx context.Context) {
		from, ended := time.Now(), make(chan struct{})
		background.Go(func() {
			defer close(ended)
			_, _ = first.SendBatch(context.WithoutCancel(ctx), in)
		})
		eventually(t, func() bool { return len(r.got()) == 8 && time.Since(from) > activities.BatchBudget+time.Second }, "its budget is over")
		left := value[int](t, b, "select count(*) from delivery_queue where claim_id is not null")
		isSecond.Store(true)
		background.Go(func() {
			eventually(t, func() bool { return len(r.got()) == 8+left }, "the second run sends what is left")
			close(firstReleased)
			<-ended
			close(secondReleased)
		})
	})
	require.NoError(t, err)
	background.Wait()
	sent := r.times()
	for _, delivery := range deliveries {
		if sent[id.Delivery.Format(delivery)] == 0 {
			b.requireUnsent(t, delivery, 0)
			continue
		}
		d, _, _ := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
	}
}

// runTwice has Temporal run SendBatch twice: first is what its first run does, before it is given up.
func runTwice(t testing.TB, in activities.BatchInput, a *activities.Activities, first func(ctx context.Context)) (result activities.BatchResult, _ error) {
	t.Helper()
	env := newSuite().NewTestWorkflowEnvironment()
	env.SetTestTimeout(time.Minute)
	env.RegisterActivityWithOptions(func(ctx context.Context, in activities.BatchInput) (activities.BatchResult, error) {
		if activity.GetInfo(ctx).Attempt == 1 {
			first(ctx)
			return activities.BatchResult{}, errors.New("the worker was cut off")
		}
		return a.SendBatch(ctx, in)
	}, activity.RegisterOptions{Name: "SendBatch"})
	env.ExecuteWorkflow(func(ctx workflow.Context) (result activities.BatchResult, err error) {
		ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: time.Minute, RetryPolicy: &temporal.RetryPolicy{InitialInterval: time.Second},
		})
		err = workflow.ExecuteActivity(ctx, "SendBatch", in).Get(ctx, &result)
		return result, err
	})
	if err := env.GetWorkflowError(); err != nil {
		return result, err
	}
	return result, env.GetWorkflowResult(&result)
}

// What can't be sent to one destination holds up no other, however its settings came to be as they are.
func TestBatchWithADestinationWhoseSettingsAreBroken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, set := range []string{`schedule = '{"first_delay_ms":"x"}'`, `headers = '{"X-Api-Key":"x"}'`, `url = 'http://127.0.0.1/%zz'`} {
		r := newReceiver(t, says(200, ""))
		broken, other := b.addDestination(t, r.URL), b.addDestination(t, r.URL)
		b.exec(t, "update destinations set "+set+" where id = $1", broken)
		waiting, delivered := b.accept(t, 2, broken), b.accept(t, 2, other)
		mustSendBatch(t, b.sender(t), b.claimBatch(t, 4, broken, other), 2, 2)
		r.requireOnce(t, delivered)
		for _, delivery := range waiting {
			b.requireUnsent(t, delivery, 30*time.Second)
		}
	}
}

// A batch either has nothing left in the end, or fails, so that Temporal runs it again.
func TestBatchThatCannotLoadAllLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination, broken := b.addDestination(t, r.URL), b.addDestination(t, r.URL)
	b.exec(t, `update destinations set schedule = '{"first_delay_ms":"x"}' where id = $1`, broken)
	for range 2 {
		b.acceptLarge(t, destination)
	}
	b.acceptLarge(t, broken)
	_, err := sendBatch(t, b.sender(t), b.claimBatch(t, 3, destination, broken))
	left := value[int](t, b, "select count(*) from delivery_queue where claim_id is not null")
	require.True(t, left == 0 || err != nil, "%d deliveries are left in a batch that is over", left)
}
