package workflows_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// onCancel lets CancelDelivery fail some times.
func (c *carrier) onCancel(failures int) {
	var a *activities.Activities
	c.env.OnActivity(a.CancelDelivery, mock.Anything, activities.CancelInput{DeliveryID: "dlv_1"}).Return(
		func(context.Context, activities.CancelInput) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.note("CancelDelivery")
			if failures--; failures >= 0 {
				return errors.New("no connection to Postgres")
			}
			return nil
		}).Maybe()
}

// signal sends a signal after a while.
func (c *carrier) signal(after time.Duration, name string, arg any) {
	c.env.RegisterDelayedCallback(func() { c.env.SignalWorkflow(name, arg) }, after)
}

// elapsed is how long the delivery was carried, in virtual time.
func (c *carrier) elapsed(start time.Time) time.Duration { return c.env.Now().Sub(start) }

func TestCancelEndsTheWait(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("pending", time.Hour), answered(activities.SendResult{Canceled: true}))
	c.onCancel(2)
	c.signal(time.Minute, workflows.CancelSignal, nil)
	start := c.env.Now()
	require.Equal(t, workflows.DeliverResult{Outcome: "canceled", Attempts: 1}, c.run(t, localInput()))
	require.Less(t, c.elapsed(start), 2*time.Minute)
	require.Equal(t, []string{"SendAttempt", "CancelDelivery", "CancelDelivery", "CancelDelivery", "SendAttempt", "upsert"}, c.order)
	require.Zero(t, c.spy.options["CancelDelivery"].RetryPolicy.MaximumAttempts)
	require.Zero(t, c.spy.options["CancelDelivery"].ScheduleToCloseTimeout)
}

// A signal that comes while a request is in flight takes effect with its record: the delivered one wins.
func TestCancelDuringARequest(t *testing.T) {
	t.Parallel()
	for state, order := range map[string][]string{
		"delivered": {"SendAttempt", "upsert"},
		"canceled":  {"SendAttempt", "upsert"}, // the api had asked for it too
		"pending":   {"SendAttempt", "CancelDelivery", "SendAttempt", "upsert"},
	} {
		answers := []answer{recorded(state, time.Hour)}
		if state == "pending" { // somebody sent the signal by hand
			answers = append(answers, answered(activities.SendResult{Canceled: true}))
		}
		c := newCarrier(t, answers...)
		c.onCancel(0)
		c.signal(0, workflows.CancelSignal, nil)
		start := c.env.Now()
		c.run(t, input())
		require.Equal(t, order, c.order, state)
		require.Less(t, c.elapsed(start), time.Minute)
	}
}

// What was canceled before it was sent the sender ends.
func TestADeliveryThatWasCanceledUnsentEndsItsWorkflow(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, answered(activities.SendResult{Canceled: true}))
	require.Equal(t, workflows.DeliverResult{Outcome: "canceled"}, c.run(t, localInput()))
	require.Equal(t, []string{"canceled"}, c.outcomes)
}

func TestRetryNowEndsTheWaitBeforeItsAttempt(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("pending", time.Hour), recorded("pending", 30*time.Minute), recorded("delivered", 0))
	c.signal(0, workflows.RetryNowSignal, workflows.RetryNow{Attempt: 1})           // made already
	c.signal(time.Minute, workflows.RetryNowSignal, workflows.RetryNow{Attempt: 3}) // not waited for yet
	c.signal(2*time.Minute, workflows.RetryNowSignal, "what is this?")
	c.signal(3*time.Minute, workflows.RetryNowSignal, nil)
	c.signal(10*time.Minute, workflows.RetryNowSignal, workflows.RetryNow{Attempt: 2})
	c.signal(10*time.Minute, workflows.RetryNowSignal, workflows.RetryNow{Attempt: 2}) // twice
	start := c.env.Now()
	require.Equal(t, workflows.DeliverResult{Outcome: "delivered", Attempts: 3}, c.run(t, localInput()))
	require.InDelta(t, 40*time.Minute, c.elapsed(start), float64(time.Minute), "the second wait is whole")
	require.Equal(t, []time.Duration{time.Hour, 30 * time.Minute}, c.waits)
	for i, s := range c.sent {
		require.Equal(t, i+1, s.Attempt)
	}
}

// Workflows that wait when signals are introduced go on waiting: their histories must be replayed as they are.
func TestAWaitFromBeforeSignalsHearsNone(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("pending", time.Hour), answered(activities.SendResult{Canceled: true}))
	c.env.OnGetVersion("signals", workflow.DefaultVersion, workflow.Version(1)).Return(workflow.DefaultVersion)
	c.signal(time.Minute, workflows.CancelSignal, nil)
	start := c.env.Now()
	require.Equal(t, workflows.DeliverResult{Outcome: "canceled", Attempts: 1}, c.run(t, localInput()))
	require.InDelta(t, time.Hour, c.elapsed(start), float64(time.Second))
}

// Temporal's own cancellation isn't Kapsel's: the workflow ends, and the sweeper hands the delivery over.
func TestAWorkflowThatTemporalCancelsStops(t *testing.T) {
	t.Parallel()
	c := newCarrier(t, recorded("pending", time.Hour))
	c.env.RegisterDelayedCallback(c.env.CancelWorkflow, time.Minute)
	c.env.ExecuteWorkflow(workflows.DeliverWebhookName, localInput())
	var canceled *temporal.CanceledError
	require.ErrorAs(t, c.env.GetWorkflowError(), &canceled)
}
