package workflows

import (
	"errors"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
)

// AttestInput names the log to grow, a TypeID.
type AttestInput struct {
	LogID string
}

// sealFor is how long one SealLog runs; its loop is inside the activity, so a seal costs the workflow no event.
const sealFor = 10 * time.Minute

// AttestLog grows one log until that is closed: one SealLog after the other, each on whichever worker takes it. Its ID is unique, so
// there is one per log; that two of its activities could overlap after a lost heartbeat does no harm, because sequencing
// and publishing are transactions under the log's own lock.
func AttestLog(ctx workflow.Context, in AttestInput) error {
	options := workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: sealFor + time.Minute,
		HeartbeatTimeout:    10 * time.Second,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: 5 * time.Second},
	})
	for {
		var s *activities.Sealing
		err := workflow.ExecuteActivity(options, s.SealLog, activities.SealInput{LogID: in.LogID, For: sealFor}).Get(ctx, nil)
		var failed *temporal.ApplicationError
		if errors.As(err, &failed) && failed.Type() == activities.LogClosed {
			return nil // there is nothing more to do; no worker of a version before this one ends a seal like that
		}
		if err != nil {
			return err
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() || workflow.GetInfo(ctx).GetCurrentHistoryLength() > 1000 {
			return workflow.NewContinueAsNewError(ctx, AttestLogName, in)
		}
	}
}
