package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
)

// reconcileParts bounds a run: what is left then is for the next.
const reconcileParts = 50

// Reconcile compares attempts and logs, in parts. A schedule starts it; how far it came is in Postgres, so that a run which
// fails or is bounded is no loss.
func Reconcile(ctx workflow.Context) (activities.Reconciled, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 5 * time.Minute,
		HeartbeatTimeout:    30 * time.Second,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: time.Minute, MaximumAttempts: 8},
	})
	in := activities.ReconcileInput{BegunMS: workflow.Now(ctx).UnixMilli()}
	var done activities.Reconciled
	for range reconcileParts {
		var r *activities.Reconciling
		var part activities.Reconciled
		if err := workflow.ExecuteActivity(ctx, r.Reconcile, in).Get(ctx, &part); err != nil {
			return done, err
		}
		done.Add(part)
		if !done.More {
			break
		}
	}
	return done, nil
}
