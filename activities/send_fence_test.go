package activities_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// standing is what a send that isn't made must leave as it was.
type standing struct {
	State                                  string
	Epoch, NextAttempt, LostStarts, Leaves int
	Queued, Claimed                        bool
}

func (b *testBundle) standing(t testing.TB, delivery uuid.UUID) standing {
	t.Helper()
	d, _, _ := b.read(t, delivery)
	return standing{d.State, d.Epoch, d.NextAttempt, d.LostStarts, d.Leaves, d.Queued, d.Claimed}
}

func TestSendWithoutLeaseSendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	before := b.standing(t, delivery)
	a := b.sender(t)
	a.Alive = func() bool { return false }
	_, err := send(t, a, first(delivery))
	require.True(t, activities.NotSent(err), err)
	_, err = sendLocally(t, a, first(delivery))
	require.True(t, activities.NotSent(err), err)
	require.Empty(t, r.got())
	require.Equal(t, before, b.standing(t, delivery))
}

func TestNotSentIsOnlyWhatSaysSo(t *testing.T) {
	t.Parallel()
	require.False(t, activities.NotSent(nil))
	require.False(t, activities.NotSent(temporal.NewTimeoutError(0, nil)))
	require.False(t, activities.NotSent(temporal.NewApplicationError("something", "Other")))
}

// Invariant 5: a carrier that was fenced off sends nothing, and counts nothing.
func TestSendByAFencedOffCarrierSendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(503, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	a := b.sender(t)
	recorded(t, a, first(delivery))
	require.NoError(t, requeue(a, activities.RequeueInput{DeliveryID: id.Delivery.Format(delivery), Attempt: 2, Delay: time.Hour}))
	before := b.standing(t, delivery) // epoch 1, waits for attempt 2
	for _, in := range []activities.SendInput{
		{Epoch: 0, Attempt: 1}, {Epoch: 0, Attempt: 2}, {Epoch: 0, Attempt: 3}, {Epoch: 1, Attempt: 3}, {Epoch: 2, Attempt: 2},
	} {
		in.DeliveryID = id.Delivery.Format(delivery)
		for _, in.Counted = range []bool{true, false} {
			result, err := send(t, a, in)
			require.NoError(t, err)
			require.Equal(t, activities.SendResult{Moved: true}, result, "%+v", in)
		}
	}
	require.Len(t, r.got(), 1)
	require.Equal(t, before, b.standing(t, delivery))
}

// A delivery that is handed over while its request is in flight belongs to the next carrier, whose leaf counts the send
// that the first one couldn't record.
func TestSendOvertakenInFlightRecordsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var delivery uuid.UUID
	r := newReceiver(t, func(w http.ResponseWriter, request *http.Request) {
		if _, err := postgres.Requeue(request.Context(), b.engine, delivery, 0, 1, 0, 0); err != nil {
			t.Error(err)
		}
		says(200, "")(w, request)
	})
	delivery, destination := b.claimedFor(t, r.URL)
	a := b.sender(t)
	require.Equal(t, activities.Progress{State: "pending", Moved: true}, recorded(t, a, first(delivery)))
	_, attempts, _ := b.read(t, delivery)
	require.Empty(t, attempts)

	b.claim(t, 1, destination)
	in := first(delivery)
	in.Epoch = 1
	require.Equal(t, activities.Progress{State: "delivered"}, recorded(t, a, in))
	_, _, leaves := b.explained(t, delivery)
	require.EqualValues(t, 1, leaves[0].LostStarts)
	require.Len(t, r.got(), 2)
}

// An attempt that is recorded already, by a run that Temporal never heard of, isn't made again.
func TestSendAgainAnswersFromTheRecord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for status, state := range map[int]string{200: "delivered", 400: "dead", 503: "pending"} {
		r := newReceiver(t, says(status, ""))
		delivery, _ := b.claimedFor(t, r.URL)
		a := b.sender(t)
		once := recorded(t, a, first(delivery))
		before := b.standing(t, delivery)
		again := recorded(t, a, first(delivery))
		require.Equal(t, state, again.State)
		require.False(t, again.Moved)
		require.InDelta(t, once.Delay, again.Delay, float64(time.Second), "what is left of the wait")
		require.Equal(t, before, b.standing(t, delivery))
		require.Len(t, r.got(), 1)
	}
}

// holds are the ways in which a destination may be sent nothing.
var holds = map[string]string{
	"paused":   "paused_at = now()",
	"disabled": "disabled_at = now(), disabled_reason = 'by hand'",
}

func TestSendToAHeldDestinationSendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	for name, hold := range holds {
		r := newReceiver(t, says(200, ""))
		delivery, destination := b.claimedFor(t, r.URL)
		b.exec(t, "update destinations set "+hold+" where id = $1", destination)
		before := b.standing(t, delivery)
		in := first(delivery)
		for _, in.Counted = range []bool{true, false} {
			result, err := send(t, a, in)
			require.NoError(t, err)
			require.Equal(t, activities.SendResult{Held: true, Unused: in.Counted}, result, name)
			require.Equal(t, before, b.standing(t, delivery), name)
		}
		require.Empty(t, r.got(), name)
	}
}

// The claim's count of a start that was never used is taken back with the delivery. If it may have been used, it stays.
func TestRequeueOfAHeldDelivery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	for _, unused := range []bool{true, false} {
		r := newReceiver(t, says(200, ""))
		delivery, destination := b.claimedFor(t, r.URL)
		b.exec(t, "update destinations set paused_at = now() where id = $1", destination)
		in := first(delivery)
		in.Counted = unused
		held, err := send(t, a, in)
		require.NoError(t, err)
		back := activities.RequeueInput{DeliveryID: in.DeliveryID, Epoch: 0, Attempt: 1, Unused: held.Unused}
		require.NoError(t, requeue(a, back))
		require.NoError(t, requeue(a, back), "the second time nothing happens")
		lost := map[bool]int{true: 0, false: 1}[unused]
		require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 1, LostStarts: lost, Queued: true}, b.standing(t, delivery))

		b.exec(t, "update destinations set paused_at = null where id = $1", destination)
		b.claim(t, 1, destination)
		in.Epoch, in.Counted = 1, true
		require.Equal(t, "delivered", recorded(t, a, in).State)
		_, _, leaves := b.explained(t, delivery)
		require.EqualValues(t, lost, leaves[0].LostStarts)
	}
}

func TestRequeueKeepsTheDelay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery, _ := b.claimedFor(t, "https://example.com/in")
	a := b.sender(t)
	in := activities.RequeueInput{DeliveryID: id.Delivery.Format(delivery), Attempt: 1, Delay: 2 * time.Hour}
	require.NoError(t, requeue(a, in))
	d, attempts, _ := b.read(t, delivery)
	require.Empty(t, attempts, "no attempt is used up")
	require.InDelta(t, 2*3600, d.QueueDueIn, 60)
	require.InDelta(t, 2*3600, *d.DueIn, 60)
	require.Nil(t, d.CheckIn, "nobody carries it")

	in.Epoch, in.Attempt = 1, 2
	require.NoError(t, requeue(a, in), "not where the caller thinks: nothing to do")
	require.Equal(t, 1, b.standing(t, delivery).Epoch)
}

func requeue(a *activities.Activities, in activities.RequeueInput) error {
	_, err := environment(a).ExecuteActivity(a.Requeue, in)
	return err
}

// A worker that took a request's outcome with it leaves its start behind: the next leaf says so.
func TestSendCountsLostStarts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(503, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	a, in := b.sender(t), first(delivery)
	err := b.start(t, delivery, 0, 1, true) // and then it died
	require.NoError(t, err)
	in.Counted = false
	recorded(t, a, in)
	in.Attempt = 2
	for range 2 {
		err = b.start(t, delivery, 0, 2, false)
		require.NoError(t, err)
	}
	recorded(t, a, in)
	in.Attempt = 3
	recorded(t, a, in)
	d, _, leaves := b.explained(t, delivery)
	require.Zero(t, d.LostStarts)
	require.Equal(t, []int64{1, 2, 0, 0}, []int64{leaves[0].LostStarts, leaves[1].LostStarts, leaves[2].LostStarts, leaves[3].LostStarts})
}

// Nobody knows how far an activity came before Temporal runs it again, so the second run doesn't rely on the start that
// the claim counted.
func TestSendRunAgainByTemporalCountsItsOwnStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	a := b.sender(t)
	runs := 0
	a.Alive = func() bool { runs++; return runs > 1 }
	env := newSuite().NewTestWorkflowEnvironment()
	env.SetTestTimeout(time.Minute)
	env.RegisterActivity(a)
	env.ExecuteWorkflow(func(ctx workflow.Context, in activities.SendInput) (result activities.SendResult, err error) {
		ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: time.Minute, RetryPolicy: &temporal.RetryPolicy{InitialInterval: time.Second},
		})
		err = workflow.ExecuteActivity(ctx, a.SendAttempt, in).Get(ctx, &result)
		return result, err
	}, first(delivery))
	require.NoError(t, env.GetWorkflowError())
	require.Equal(t, 2, runs)
	_, _, leaves := b.explained(t, delivery)
	require.Equal(t, "delivered", leaves[0].Outcome)
	require.EqualValues(t, 1, leaves[0].LostStarts)
	require.Len(t, r.got(), 1)
}
