package workflows_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdkpb "go.temporal.io/api/sdk/v1"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// input names the delivery of these tests, in its first epoch.
func input() workflows.DeliverInput {
	return workflows.DeliverInput{DeliveryID: "dlv_1", EventID: "evt_1", EndpointID: "ep_1", DestinationID: "dst_1", TenantID: "ten_1", Attempt: 1}
}

func localInput() workflows.DeliverInput {
	in := input()
	in.Local = true
	return in
}

func recorded(state string, delay time.Duration) answer {
	return func() (activities.SendResult, error) {
		return activities.SendResult{Progress: &activities.Progress{State: state, Delay: delay}}, nil
	}
}

func answered(result activities.SendResult) answer {
	return func() (activities.SendResult, error) { return result, nil }
}

func fails(err error) answer {
	return func() (activities.SendResult, error) { return activities.SendResult{}, err }
}

// errNotSent is an error of SendAttempt that says that no request was made.
var errNotSent = temporal.NewApplicationErrorWithCause("start attempt", "NotSent", errors.New("no connection to Postgres"))

func TestAFastDestinationIsSentToInTheFirstTask(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("delivered", 0))
	require.Equal(t, workflows.DeliverResult{Outcome: "delivered", Attempts: 1}, c.run(t, localInput()))
	require.Equal(t, []sent{{SendInput: activities.SendInput{DeliveryID: "dlv_1", Attempt: 1, Counted: true}, Local: true, Run: 1}}, c.sent)
	require.Empty(t, c.waits)
}

func TestASlowDestinationIsSentToByAnOrdinaryActivity(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("delivered", 0))
	require.Equal(t, workflows.DeliverResult{Outcome: "delivered", Attempts: 1}, c.run(t, input()))
	require.Equal(t, []sent{{SendInput: activities.SendInput{DeliveryID: "dlv_1", Attempt: 1, Counted: true}, Run: 1}}, c.sent)
	require.Equal(t, 8*time.Second, c.spy.options["SendAttempt"].HeartbeatTimeout)
}

// The claim counted one start. A local activity that says that it sent nothing leaves it to the ordinary one; any other
// error says nothing, so the ordinary one counts itself, and the other may show as lost.
func TestAFailedLocalActivityIsFollowedByAnOrdinaryOne(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		first   answer
		counted bool
	}{
		"nothing was sent": {first: fails(errNotSent), counted: true},
		"an error":         {first: fails(errors.New("connection reset"))},
		"another type":     {first: fails(temporal.NewApplicationError("delivery ID", "Input"))},
		"a panic":          {first: func() (activities.SendResult, error) { panic("a bug") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCarrier(t, test.first, recorded("delivered", 0))
			require.Equal(t, workflows.DeliverResult{Outcome: "delivered", Attempts: 1}, c.run(t, localInput()))
			require.Equal(t, []sent{
				{SendInput: activities.SendInput{DeliveryID: "dlv_1", Attempt: 1, Counted: true}, Local: true, Run: 1},
				{SendInput: activities.SendInput{DeliveryID: "dlv_1", Attempt: 1, Counted: test.counted}, Run: 1},
			}, c.sent, "one local try, then one ordinary one")
		})
	}
}

// A first task that was started before may have sent a request of which nothing is known.
func TestARepeatedFirstTaskCountsItsStart(t *testing.T) {
	t.Parallel()
	for _, local := range []bool{true, false} {
		c := newCarrier(t, fails(errNotSent), recorded("delivered", 0))
		c.env.SetCurrentHistoryLength(6)
		in := input()
		in.Local = local
		c.run(t, in)
		for _, s := range c.sent {
			require.False(t, s.Counted, "local: %t", local)
		}
	}
}

// A delivery that was parked goes on where it was, under its new epoch; only the claimed attempt was counted.
func TestALaterEpochGoesOnWithItsAttempt(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("pending", time.Second), recorded("delivered", 0))
	in := localInput()
	in.Epoch, in.Attempt = 2, 4
	require.Equal(t, workflows.DeliverResult{Outcome: "delivered", Attempts: 5}, c.run(t, in))
	require.Equal(t, []sent{
		{SendInput: activities.SendInput{DeliveryID: "dlv_1", Epoch: 2, Attempt: 4, Counted: true}, Local: true, Run: 1},
		{SendInput: activities.SendInput{DeliveryID: "dlv_1", Epoch: 2, Attempt: 5}, Run: 1},
	}, c.sent)
}

func TestRetriesWaitAsLongAsWasRecorded(t *testing.T) {
	t.Parallel()
	delays := []time.Duration{time.Second, 2345 * time.Millisecond, 59 * time.Minute}
	c := newCarrier(t, recorded("pending", delays[0]), recorded("pending", delays[1]), recorded("pending", delays[2]), recorded("delivered", 0))
	require.Equal(t, workflows.DeliverResult{Outcome: "delivered", Attempts: 4}, c.run(t, localInput()))
	require.Equal(t, delays, c.waits)
	require.Equal(t, []string{"until attempt 2", "until attempt 3", "until attempt 4"}, c.spy.summaries)
	for i, s := range c.sent {
		require.Equal(t, i+1, s.Attempt)
		require.Equal(t, i == 0, s.Local, "attempt %d", s.Attempt)
	}
}

func TestADeliveryThatIsOverEndsItsWorkflow(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"delivered", "dead", "canceled"} {
		c := newCarrier(t, recorded("pending", time.Second), recorded(state, 0))
		require.Equal(t, workflows.DeliverResult{Outcome: state, Attempts: 2}, c.run(t, localInput()))
		require.Equal(t, []string{state}, c.outcomes)
	}
}

// An attempt that was recorded back into the queue ends the workflow at once: the wait is the queue's.
func TestALongWaitIsParked(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, answered(activities.SendResult{Progress: &activities.Progress{State: "pending", Delay: 2 * time.Hour, Moved: true}}))
	require.Equal(t, workflows.DeliverResult{Outcome: workflows.OutcomeParked, Attempts: 1}, c.run(t, localInput()))
	require.Equal(t, []string{workflows.OutcomeParked}, c.outcomes)
	require.Empty(t, c.waits)
	require.Empty(t, c.requeued, "it is in the queue already")
}

// What is held goes back into the queue and uses up no attempt; whether a counted start was used up is the sender's word.
func TestAHeldDeliveryGoesBackIntoTheQueue(t *testing.T) {
	t.Parallel()
	for _, unused := range []bool{true, false} {
		c := newCarrier(t, recorded("pending", time.Second), answered(activities.SendResult{Held: true, Unused: unused}))
		c.onRequeue(0)
		in := localInput()
		in.Epoch = 3
		require.Equal(t, workflows.DeliverResult{Outcome: workflows.OutcomeParked, Attempts: 1}, c.run(t, in))
		require.Equal(t, []activities.RequeueInput{{DeliveryID: "dlv_1", Epoch: 3, Attempt: 2, Unused: unused}}, c.requeued)
		require.Equal(t, []string{workflows.OutcomeParked}, c.outcomes)
	}
}

// A delivery whose destination was deleted is over without another attempt.
func TestACanceledDeliveryEnds(t *testing.T) {
	t.Parallel()
	for _, how := range []activities.SendResult{
		{Canceled: true, Progress: &activities.Progress{State: "canceled"}},
		{Canceled: true, Moved: true}, // it was recorded by a run of which Temporal never heard
	} {
		c := newCarrier(t, recorded("pending", time.Second), answered(how))
		require.Equal(t, workflows.DeliverResult{Outcome: "canceled", Attempts: 1}, c.run(t, localInput()))
		require.Equal(t, []string{"canceled"}, c.outcomes)
		require.Empty(t, c.requeued)
	}
}

// A delivery whose payload is erased is over without another attempt.
func TestAnErasedDeliveryEnds(t *testing.T) {
	t.Parallel()
	for _, how := range []activities.SendResult{
		{Dead: true, Progress: &activities.Progress{State: "dead"}},
		{Dead: true, Moved: true}, // it was recorded by a run of which Temporal never heard
	} {
		c := newCarrier(t, recorded("pending", time.Second), answered(how))
		require.Equal(t, workflows.DeliverResult{Outcome: "dead", Attempts: 1}, c.run(t, localInput()))
		require.Equal(t, []string{"dead"}, c.outcomes)
		require.Empty(t, c.requeued)
	}
}

// What an open circuit holds is due when that may be probed.
func TestADeliveryWaitsInTheQueueForItsCircuit(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, answered(activities.SendResult{Held: true, Unused: true, Wait: 17 * time.Second}))
	c.onRequeue(0)
	require.Equal(t, workflows.DeliverResult{Outcome: workflows.OutcomeParked}, c.run(t, localInput()))
	require.Equal(t, []activities.RequeueInput{{DeliveryID: "dlv_1", Attempt: 1, Delay: 17 * time.Second, Unused: true}}, c.requeued)
}

func TestADeliveryThatIsElsewhereIsLeftAlone(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, answered(activities.SendResult{Moved: true}))
	require.Equal(t, workflows.DeliverResult{Outcome: workflows.OutcomeSuperseded}, c.run(t, localInput()))
	require.Equal(t, []string{"SendAttempt", "upsert"}, c.order, "nothing is recorded or requeued")
	require.Equal(t, []string{workflows.OutcomeSuperseded}, c.outcomes)
}

func TestAnUnrecordedOutcomeIsRecordedByTheWorkflow(t *testing.T) {
	t.Parallel()
	outcome := activities.Outcome{
		AttemptedAt: time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC), Duration: 41 * time.Millisecond, EndpointURL: "https://example.com/in",
		URLHash: "aa", HeadersHash: "bb", ResponseStatus: 503, ResponseHash: "cc", ResponseSize: 2, ResponseTruncated: true,
		Outcome: "retry", State: "pending", Delay: time.Second, Grace: 5 * time.Minute,
	}
	c := newCarrier(t, answered(activities.SendResult{Unrecorded: &outcome}), recorded("delivered", 0))
	c.onRecord(9, activities.Progress{State: "pending", Delay: 7 * time.Second})
	in := localInput()
	in.Epoch = 1
	require.Equal(t, workflows.DeliverResult{Outcome: "delivered", Attempts: 2}, c.run(t, in))
	require.Len(t, c.recorded, 10, "it is tried until it succeeds")
	for _, r := range c.recorded {
		require.Equal(t, activities.RecordInput{DeliveryID: "dlv_1", Epoch: 1, Attempt: 1, Outcome: outcome}, r)
	}
	require.Equal(t, []time.Duration{7 * time.Second}, c.waits, "what was recorded counts")
}

// An attempt that was recorded late may have been recorded by somebody else before, who then has the delivery.
func TestAnOutcomeThatIsRecordedLateMayEndTheCarrying(t *testing.T) {
	t.Parallel()
	for outcome, progress := range map[string]activities.Progress{
		"dead":                  {State: "dead"},
		workflows.OutcomeParked: {State: "pending", Moved: true},
	} {
		c := newCarrier(t, answered(activities.SendResult{Unrecorded: &activities.Outcome{}}))
		c.onRecord(0, progress)
		require.Equal(t, workflows.DeliverResult{Outcome: outcome, Attempts: 1}, c.run(t, localInput()))
	}
}

// What fails is ours and will be mended: no activity of a delivery may ever give up. (The test environment ends even an
// unlimited policy after ten runs, so the policies themselves are looked at too.)
func TestActivitiesAreRetriedWithoutEnd(t *testing.T) {
	t.Parallel()
	answers := slices.Repeat([]answer{fails(errNotSent)}, 9)
	answers = append(answers, answered(activities.SendResult{Unrecorded: &activities.Outcome{}}))
	answers = append(answers, slices.Repeat([]answer{fails(errors.New("heartbeat lost"))}, 9)...)
	c := newCarrier(t, append(answers, answered(activities.SendResult{Held: true}))...)
	c.onRecord(9, activities.Progress{State: "pending", Delay: time.Second})
	c.onRequeue(9)
	require.Equal(t, workflows.DeliverResult{Outcome: workflows.OutcomeParked, Attempts: 1}, c.run(t, input()))
	require.Len(t, c.requeued, 10)
	require.Len(t, c.spy.options, 3)
	for name, options := range c.spy.options {
		require.NotNil(t, options.RetryPolicy, name)
		require.Zero(t, options.RetryPolicy.MaximumAttempts, name)
		require.Empty(t, options.RetryPolicy.NonRetryableErrorTypes, name)
		require.Zero(t, options.ScheduleToCloseTimeout, name)
		require.Zero(t, options.ScheduleToStartTimeout, name)
		require.Positive(t, options.StartToCloseTimeout, name)
	}
}

func TestAnAttemptWithoutAnOutcomeIsABug(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, answered(activities.SendResult{}))
	c.env.ExecuteWorkflow(workflows.DeliverWebhookName, localInput())
	require.ErrorContains(t, c.env.GetWorkflowError(), "without an outcome")
}

// metadataQuery is the SDK's own query, by which the Web UI shows a workflow's current details.
const metadataQuery = "__temporal_workflow_metadata"

func TestStateTellsOfTheWait(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("pending", 4*time.Second), recorded("pending", 10*time.Second), recorded("delivered", 0))
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	c.env.SetStartTime(start)
	due := []time.Time{start.Add(4 * time.Second), start.Add(14 * time.Second)}
	asked := 0
	for i, moment := range []time.Duration{time.Second, 13 * time.Second} {
		c.env.RegisterDelayedCallback(func() {
			asked++
			state := query[workflows.DeliverState](t, c, "State")
			require.Equal(t, &workflows.DeliverState{Attempt: i + 2, Waiting: true, NextAt: due[i]}, state)
			details := query[sdkpb.WorkflowMetadata](t, c, metadataQuery)
			require.Equal(t, []string{
				"attempt 2 is due at 2026-11-23T12:00:04Z",
				"attempt 3 is due at 2026-11-23T12:00:14Z",
			}[i], details.CurrentDetails)
		}, moment)
	}
	c.run(t, localInput())
	require.Equal(t, 2, asked)
	require.Equal(t, &workflows.DeliverState{Attempt: 3}, query[workflows.DeliverState](t, c, "State"))
	details := query[sdkpb.WorkflowMetadata](t, c, metadataQuery)
	require.Empty(t, details.CurrentDetails, "nothing is due any more")
}

func query[T any](t *testing.T, c *carrier, name string) *T {
	t.Helper()
	value, err := c.env.QueryWorkflow(name)
	require.NoError(t, err)
	var result T
	require.NoError(t, value.Get(&result))
	return &result
}

// The outcome goes into the closing task, where it costs no write of its own.
func TestTheOutcomeIsUpsertedLast(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, answered(activities.SendResult{Unrecorded: &activities.Outcome{}}), answered(activities.SendResult{Held: true}))
	c.onRecord(0, activities.Progress{State: "pending", Delay: time.Second})
	c.onRequeue(0)
	c.run(t, localInput())
	require.Equal(t, []string{"SendAttempt", "RecordAttempt", "SendAttempt", "Requeue", "upsert"}, c.order)
	require.Equal(t, []string{workflows.OutcomeParked}, c.outcomes)
}

// What got no permit goes back like what is held, but not for as long.
func TestADeliveryWithoutAPermitWaitsAsLongAsItsSenderSays(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, answered(activities.SendResult{Held: true, Unused: true, Wait: 500 * time.Millisecond}))
	c.onRequeue(0)
	require.Equal(t, workflows.DeliverResult{Outcome: workflows.OutcomeParked, Attempts: 0}, c.run(t, localInput()))
	require.Equal(t, []activities.RequeueInput{{DeliveryID: "dlv_1", Attempt: 1, Delay: 500 * time.Millisecond, Unused: true}}, c.requeued)
}
