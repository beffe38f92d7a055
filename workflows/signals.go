package workflows

import (
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
)

// The signals of DeliverWebhook. Workers send them for commands that the API was given; a person may send them too.
const (
	// CancelSignal, without an argument, ends the delivery. An attempt under way is recorded first, and counts if it
	// was delivered.
	CancelSignal = "Cancel"
	// RetryNowSignal, with a RetryNow, ends the wait before an attempt.
	RetryNowSignal = "RetryNow"
)

// RetryNow is the argument of RetryNowSignal. One that comes when its attempt isn't waited for (any more) does nothing, so
// it may come twice, and late.
type RetryNow struct {
	Attempt int
}

// await waits for the timer or for a signal that ends the wait. A canceled delivery is ended here; that it is over its
// carrier finds out by itself.
func (d *deliverer) await(ctx workflow.Context, timer workflow.Future) error {
	cancel, retry := workflow.GetSignalChannel(ctx, CancelSignal), workflow.GetSignalChannel(ctx, RetryNowSignal)
	for over := false; !over; {
		var err error
		selector := workflow.NewSelector(ctx)
		selector.AddReceive(cancel, func(c workflow.ReceiveChannel, _ bool) {
			c.ReceiveAsync(nil)
			over, err = true, d.cancel(ctx)
		})
		selector.AddReceive(retry, func(c workflow.ReceiveChannel, _ bool) {
			var now RetryNow
			over = c.ReceiveAsync(&now) && now.Attempt == d.attempt // one that can't be read is dropped
		})
		selector.AddFuture(timer, func(f workflow.Future) {
			over, err = true, f.Get(ctx, nil)
		})
		selector.Select(ctx)
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *deliverer) cancel(ctx workflow.Context) error {
	var a *activities.Activities
	return workflow.ExecuteActivity(recordOptions(ctx), a.CancelDelivery, activities.CancelInput{DeliveryID: d.in.DeliveryID}).Get(ctx, nil)
}
