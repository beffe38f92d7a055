package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/delivery"
)

// DeliverInput names a delivery and the fence under which this workflow carries it. IDs are TypeIDs.
type DeliverInput struct {
	DeliveryID    string
	EventID       string
	EndpointID    string
	DestinationID string
	TenantID      string
	Epoch         int
	Attempt       int
	// Local: the first attempt runs in the first workflow task, as a local activity; for destinations that answer fast.
	Local bool
}

// DeliverResult is how the carrying ended.
type DeliverResult struct {
	// Outcome is the delivery's final state; or parked: it went back into the queue, to be carried under the next
	// epoch; or superseded: somebody else carries it.
	Outcome  string
	Attempts int // HTTP attempts of this delivery so far
}

// How the carrying ends if the delivery isn't over.
const (
	OutcomeParked     = "parked"
	OutcomeSuperseded = "superseded"
)

const (
	// longestRequest is the longest timeout a destination may have, and some time to record.
	longestRequest = 2*time.Minute + 30*time.Second
)

// DeliverWebhook carries one delivery in one epoch: it makes attempts and waits between them until the delivery is
// over, goes back into the queue for a long wait, or turns out to be somebody else's.
func DeliverWebhook(ctx workflow.Context, in DeliverInput) (DeliverResult, error) {
	d := &deliverer{in: in, attempt: in.Attempt}
	if err := workflow.SetQueryHandler(ctx, "State", func() (DeliverState, error) { return d.state, nil }); err != nil {
		return DeliverResult{}, err
	}
	return d.run(ctx)
}

// DeliverState answers the query State.
type DeliverState struct {
	Attempt int       // the attempt that is being made or waited for
	Waiting bool      // for NextAt
	NextAt  time.Time // when the attempt is due
}

type deliverer struct {
	in      DeliverInput
	attempt int
	state   DeliverState
}

func (d *deliverer) run(ctx workflow.Context) (DeliverResult, error) {
	for {
		d.state = DeliverState{Attempt: d.attempt}
		sent, err := d.send(ctx)
		if err != nil {
			return DeliverResult{}, err
		}
		switch {
		case sent.Canceled:
			return d.end(ctx, string(delivery.Canceled))
		case sent.Dead:
			return d.end(ctx, string(delivery.Dead))
		case sent.Moved:
			return d.end(ctx, OutcomeSuperseded)
		case sent.Held:
			return d.park(ctx, sent)
		}
		progress, err := d.recorded(ctx, sent)
		if err != nil {
			return DeliverResult{}, err
		}
		d.attempt++
		switch {
		case delivery.State(progress.State).Terminal():
			return d.end(ctx, progress.State)
		case progress.Moved:
			return d.end(ctx, OutcomeParked)
		}
		if err := d.wait(ctx, progress.Delay); err != nil {
			return DeliverResult{}, err
		}
	}
}

// send makes one attempt. The first may run inside the first workflow task: no task queue, no extra history. If that
// fails, an ordinary activity takes over, fenced by the database.
func (d *deliverer) send(ctx workflow.Context) (activities.SendResult, error) {
	var a *activities.Activities
	var result activities.SendResult
	in := activities.SendInput{DeliveryID: d.in.DeliveryID, Epoch: d.in.Epoch, Attempt: d.attempt}
	if d.attempt == d.in.Attempt {
		in.Counted = firstWorkflowTask(ctx)
		if d.in.Local {
			err := workflow.ExecuteLocalActivity(localOptions(ctx), a.SendAttempt, in).Get(ctx, &result)
			if err == nil {
				return result, nil
			}
			in.Counted = in.Counted && activities.NotSent(err)
		}
	}
	err := workflow.ExecuteActivity(sendOptions(ctx), a.SendAttempt, in).Get(ctx, &result)
	return result, err
}

// firstWorkflowTask reports whether the workflow's first task runs for the first time: its history holds only that it
// was started, and that a task was scheduled and started, and none of that is being replayed. A task whose worker died
// leaves more behind; one that was completed while a long local activity ran (to be given another) is replayed where the
// workflow goes on elsewhere. So the send that the claim counted is told from one that repeats it.
//
// It may differ between a run and its replay, since it goes into an activity's input and decides nothing here.
func firstWorkflowTask(ctx workflow.Context) bool {
	return !workflow.IsReplaying(ctx) && workflow.GetInfo(ctx).GetCurrentHistoryLength() <= 3
}

// recorded returns where the delivery stands; an outcome that the sender couldn't record is recorded here, however
// long that takes.
func (d *deliverer) recorded(ctx workflow.Context, sent activities.SendResult) (activities.Progress, error) {
	if sent.Progress != nil {
		return *sent.Progress, nil
	}
	if sent.Unrecorded == nil {
		return activities.Progress{}, temporal.NewNonRetryableApplicationError("attempt ended without an outcome", "Bug", nil)
	}
	var a *activities.Activities
	var progress activities.Progress
	in := activities.RecordInput{DeliveryID: d.in.DeliveryID, Epoch: d.in.Epoch, Attempt: d.attempt, Outcome: *sent.Unrecorded}
	err := workflow.ExecuteActivity(recordOptions(ctx), a.RecordAttempt, in).Get(ctx, &progress)
	return progress, err
}

// wait returns when the next attempt is due, or a signal ends the wait.
func (d *deliverer) wait(ctx workflow.Context, delay time.Duration) error {
	d.state = DeliverState{Attempt: d.attempt, Waiting: true, NextAt: workflow.Now(ctx).Add(delay)}
	workflow.SetCurrentDetails(ctx, fmt.Sprintf("attempt %d is due at %s", d.attempt, d.state.NextAt.UTC().Format(time.RFC3339)))
	timerCtx, stop := workflow.WithCancel(ctx)
	timer := workflow.NewTimerWithOptions(timerCtx, delay, workflow.TimerOptions{
		Summary: fmt.Sprintf("until attempt %d", d.attempt),
	})
	// Workflows that began to wait before there were signals don't hear them. What was canceled ends with their next attempt.
	if workflow.GetVersion(ctx, "signals", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return timer.Get(ctx, nil)
	}
	err := d.await(ctx, timer)
	stop()
	return err
}

// park puts a delivery whose destination is held, has an open circuit or allows no more for now, back into the queue, where it
// waits at no cost. One that is held is due at once: nobody claims it while its destination is, and it goes out as soon as it isn't.
func (d *deliverer) park(ctx workflow.Context, sent activities.SendResult) (DeliverResult, error) {
	var a *activities.Activities
	in := activities.RequeueInput{DeliveryID: d.in.DeliveryID, Epoch: d.in.Epoch, Attempt: d.attempt, Delay: sent.Wait, Unused: sent.Unused}
	if err := workflow.ExecuteActivity(recordOptions(ctx), a.Requeue, in).Get(ctx, nil); err != nil {
		return DeliverResult{}, err
	}
	return d.end(ctx, OutcomeParked)
}

// end closes the workflow; the outcome is upserted in the closing task, which costs no write of its own.
func (d *deliverer) end(ctx workflow.Context, outcome string) (DeliverResult, error) {
	workflow.SetCurrentDetails(ctx, "")
	err := workflow.UpsertTypedSearchAttributes(ctx, OutcomeAttribute.ValueSet(outcome))
	return DeliverResult{Outcome: outcome, Attempts: d.attempt - 1}, err
}

// localOptions: one try. A local activity that fails is repeated as an ordinary one.
func localOptions(ctx workflow.Context) workflow.Context {
	return workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
		StartToCloseTimeout: longestRequest,
		RetryPolicy:         &temporal.RetryPolicy{MaximumAttempts: 1},
	})
}

// sendOptions: repeated until it says what became of the attempt. Heartbeats tell within 8 s that a worker died.
func sendOptions(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: longestRequest,
		HeartbeatTimeout:    8 * time.Second,
		RetryPolicy:         forever,
	})
}

// recordOptions: repeated until Postgres has it.
func recordOptions(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 30 * time.Second,
		RetryPolicy:         forever,
	})
}

// forever retries without end: what fails is ours, not the receiver's, and will be mended.
var forever = &temporal.RetryPolicy{
	InitialInterval:    200 * time.Millisecond,
	BackoffCoefficient: 2,
	MaximumInterval:    10 * time.Second,
}
