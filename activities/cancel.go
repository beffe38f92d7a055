package activities

import (
	"context"

	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/postgres"
)

// canceling is the recording that ends a delivery whose destination was deleted. Unused says that the claim counted a
// start for it; nothing was sent.
func canceling(to *postgres.Destination, start postgres.Start, unused bool) (Recording, error) {
	endpointURL, err := attestation.EndpointURL(to.URL, to.SecretPath)
	return Recording{
		Delivery: start.Delivery, Epoch: start.Epoch, Attempt: start.Attempt,
		Cancel: delivery.ReasonDestinationDeleted, Unused: unused, Outcome: Outcome{EndpointURL: endpointURL},
	}, err
}

// cancelDeleted ends a delivery whose destination was deleted. An error is one of SendAttempt, and nothing was sent: it is
// tried again, and finds the delivery over if it was recorded after all.
func (a *Activities) cancelDeleted(ctx context.Context, to *postgres.Destination, start postgres.Start, unused bool) (SendResult, error) {
	recording, err := canceling(to, start, unused)
	var progress Progress
	if err == nil {
		progress, err = a.Recorder.Record(ctx, recording)
	}
	switch {
	case err != nil:
		return SendResult{}, temporal.NewApplicationErrorWithCause("cancel delivery", notSent, err)
	case progress.State != string(delivery.Canceled):
		return SendResult{Moved: true}, nil
	}
	return SendResult{Canceled: true, Progress: &progress}, nil
}

// cancel makes the leaf that says why no (more) requests are sent, and ends d.
func (r *Recording) cancel(d *postgres.Delivery) (postgres.Change, error) {
	before := *d
	if r.Unused {
		d.LostStarts = max(d.LostStarts-1, 0)
	}
	end, err := decisionAttempt(d, delivery.KindCanceled, string(r.Cancel), r.Outcome.EndpointURL)
	if err != nil {
		*d = before
		return postgres.Change{}, err
	}
	d.State = string(delivery.Canceled)
	return postgres.Change{Delivery: d, Attempts: []postgres.Attempt{end}}, nil
}
