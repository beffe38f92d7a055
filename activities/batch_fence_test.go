package activities_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
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
	"github.com/kapsel-io/kapsel/postgres"
)

// hangs answers no request until it is released; with again, it answers what it has seen before.
type hanging struct {
	*receiver
	release func()
}

func newHanging(t testing.TB, again bool) *hanging {
	t.Helper()
	released := make(chan struct{})
	h := &hanging{release: sync.OnceFunc(func() { close(released) })}
	h.receiver = newReceiver(t, func(_ http.ResponseWriter, request *http.Request) {
		if again && h.times()[request.Header.Get("Webhook-Id")] > 1 {
			return
		}
		select {
		case <-released:
		case <-request.Context().Done():
		}
	})
	t.Cleanup(h.release) // before the server is closed, which waits for its requests
	return h
}

// eventually polls for what must come.
func eventually(t testing.TB, condition func() bool, message string) {
	t.Helper()
	require.Eventually(t, condition, 30*time.Second, 10*time.Millisecond, message)
}

// recordedOf counts the attempts to a destination that are recorded.
func (b *testBundle) recordedOf(t testing.TB, destination uuid.UUID) int {
	t.Helper()
	return value[int](t, b, "select count(*) from attempts where destination_id = $1", destination)
}

// slowBatch is a batch under way, to a destination that answers and to one that hangs and has more deliveries than places.
type slowBatch struct {
	healthy              *receiver
	hanging              *hanging
	fast, slow           uuid.UUID
	deliveries, stalling []uuid.UUID
	from                 time.Time
	ended                chan struct{}
	result               activities.BatchResult
	err                  error
}

func (b *testBundle) startSlowBatch(t testing.TB) *slowBatch {
	t.Helper()
	s := &slowBatch{healthy: newReceiver(t, says(200, "")), hanging: newHanging(t, false), ended: make(chan struct{})}
	s.fast, s.slow = b.addDestination(t, s.healthy.URL), b.addDestination(t, s.hanging.URL)
	b.exec(t, "update destinations set timeout_ms = 120000 where id = $1", s.slow)
	s.deliveries, s.stalling = b.accept(t, 40, s.fast), b.accept(t, 130, s.slow)
	a, in := b.sender(t), b.claimBatch(t, 170, s.fast, s.slow)
	s.from = time.Now()
	go func() {
		defer close(s.ended)
		s.result, s.err = sendBatch(t, a, in)
	}()
	t.Cleanup(func() { s.hanging.release(); <-s.ended })
	return s
}

// requireStallingPutBack wants what was sent to the slow destination to be recorded, and the rest to be back, unsent.
func (s *slowBatch) requireStallingPutBack(t testing.TB, b *testBundle) {
	t.Helper()
	sent := s.hanging.times()
	for _, delivery := range s.stalling {
		if sent[id.Delivery.Format(delivery)] == 0 {
			b.requireUnsent(t, delivery, 0)
			continue
		}
		d, _, _ := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
	}
}

// A destination that hangs takes no place from the others, and keeps only what it was sent.
func TestBatchGoesOnBesideASlowDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.startSlowBatch(t)
	eventually(t, func() bool { return b.recordedOf(t, s.fast) == 40 }, "what the fast one was sent is recorded")
	require.Zero(t, b.recordedOf(t, s.slow), "while the slow one's requests are in flight")
	eventually(t, func() bool { return time.Since(s.from) > activities.BatchBudget+time.Second }, "the budget is over")
	sent := len(s.hanging.got())
	require.Positive(t, sent)
	require.Less(t, sent, 130)
	s.hanging.release()
	<-s.ended
	require.NoError(t, s.err)
	require.Equal(t, activities.BatchResult{Sent: 40 + sent, Deferred: 130 - sent}, s.result)
	require.Len(t, s.hanging.got(), sent, "nothing is begun after the budget")
	s.healthy.requireOnce(t, s.deliveries)
	s.requireStallingPutBack(t, b)
}

// What had no place leaves the batch once its time is over, not when the slowest request has ended: that can take two
// minutes, in which it would take up the worker's places.
func TestBatchPutsBackWhatHadNoPlaceWhileOthersHang(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.startSlowBatch(t)
	eventually(t, func() bool {
		back := value[int](t, b, "select count(*) from delivery_queue where destination_id = $1 and claim_id is null", s.slow)
		return back > 0 && back == 130-len(s.hanging.got())
	}, "put back while the requests are in flight")
	require.Zero(t, b.recordedOf(t, s.slow))
	s.hanging.release()
	<-s.ended
	require.NoError(t, s.err)
	s.requireStallingPutBack(t, b)
}

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

// A lease that lapses while a batch is under way, a worker that has no more time: what isn't sent yet goes back, and uses
// up no attempt. It may be the only one that its schedule allows.
func TestBatchThatMayNotGoOnPutsBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stopped := make(chan struct{})
	close(stopped)
	for name, stop := range map[string]func(a *activities.Activities){
		"the lease lapses": func(a *activities.Activities) {
			var asked atomic.Int64
			a.Alive = func() bool { return asked.Add(1) == 1 }
		},
		"the worker stops": func(a *activities.Activities) { a.Interrupt = stopped },
	} {
		r := newReceiver(t, says(200, ""))
		destination := b.addDestination(t, r.URL)
		b.exec(t, `update destinations set schedule = '{"type":"none"}' where id = $1`, destination)
		deliveries, a := b.accept(t, 40, destination), b.sender(t)
		stop(a)
		_, err := sendBatch(t, a, b.claimBatch(t, 40, destination))
		require.NoError(t, err, name)
		require.Zero(t, len(r.got()), name)
		for _, delivery := range deliveries {
			b.requireUnsent(t, delivery, 0)
		}
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

// acceptLarge stores a webhook of 6 MiB, of which a batch holds two at a time.
func (b *testBundle) acceptLarge(t testing.TB, destination uuid.UUID) uuid.UUID {
	t.Helper()
	row := b.acceptance(strings.Repeat("x", 6<<20), "", destination)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	return row.Deliveries[0].ID
}

// Hundreds of large webhooks don't fit into memory together: the next ones are read when those before have been sent.
func TestBatchHoldsSoManyBytesAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	silent := newReceiver(t, func(_ http.ResponseWriter, request *http.Request) { <-request.Context().Done() })
	destination, other := b.addDestination(t, silent.URL), b.addDestination(t, silent.URL)
	b.exec(t, "update destinations set timeout_ms = 200 where id = any($1)", []uuid.UUID{destination, other})
	first, second := b.acceptLarge(t, destination), b.acceptLarge(t, destination)
	third := b.acceptLarge(t, other)
	mustSendBatch(t, b.sender(t), b.claimBatch(t, 3, destination, other), 3, 0)
	require.True(t, value[bool](t, b, `select (select attempted_at from attempts where delivery_id = $3) >=
		max(attempted_at + duration_ms * interval '1 ms') from attempts where delivery_id in ($1, $2)`, first, second, third))
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
