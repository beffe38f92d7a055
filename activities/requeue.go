package activities

import (
	"context"
	"time"

	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// RequeueInput names a delivery that its carrier can't go on with now.
type RequeueInput struct {
	DeliveryID string
	Epoch      int
	Attempt    int
	Delay      time.Duration
	// Unused: the claim counted a start of which it is certain that no request was made.
	Unused bool
}

// Requeue hands a delivery back to the queue under the next epoch; no attempt is used up.
// Timeout 30 s, retried without end. It may run twice: the second time the epoch has moved on and nothing happens.
func (a *Activities) Requeue(ctx context.Context, in RequeueInput) error {
	delivery, err := id.Delivery.Parse(in.DeliveryID)
	if err != nil {
		return temporal.NewNonRetryableApplicationError("delivery ID", "Input", err)
	}
	unused := 0
	if in.Unused {
		unused = 1
	}
	if _, err = postgres.Requeue(ctx, a.DB, delivery, in.Epoch, in.Attempt, in.Delay, unused); err != nil {
		return err
	}
	a.Recorder.released(delivery)
	return nil
}
