package workflows

import (
	"fmt"

	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
)

// BatchInput names a batch of deliveries. IDs are TypeIDs.
type BatchInput struct {
	activities.BatchInput
	Deliveries int // how many were claimed
}

// DeliverBatch carries up to some hundred deliveries through one attempt each. What isn't over then is in the queue again,
// and is carried from there under the next epoch; nothing waits here.
func DeliverBatch(ctx workflow.Context, in BatchInput) (activities.BatchResult, error) {
	var a *activities.Activities
	var result activities.BatchResult
	if err := workflow.ExecuteActivity(sendOptions(ctx), a.SendBatch, in.BatchInput).Get(ctx, &result); err != nil {
		return result, err
	}
	if len(result.Unrecorded) > 0 {
		workflow.SetCurrentDetails(ctx, fmt.Sprintf("%d outcomes are still to be recorded", len(result.Unrecorded)))
		if err := workflow.ExecuteActivity(recordOptions(ctx), a.RecordBatch, result.Unrecorded).Get(ctx, nil); err != nil {
			return result, err
		}
		workflow.SetCurrentDetails(ctx, "")
		result.Unrecorded = nil
	}
	return result, nil
}
