package activities

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// CancelInput names a delivery that shall end.
type CancelInput struct {
	DeliveryID string
}

// CancelDelivery ends a delivery for which nothing is being sent, and lets no further attempt begin of any other.
// Timeout 30 s, retried without end. It may run twice: what is over stays as it is.
func (a *Activities) CancelDelivery(ctx context.Context, in CancelInput) error {
	deliveryID, err := id.Delivery.Parse(in.DeliveryID)
	if err != nil {
		return temporal.NewNonRetryableApplicationError("delivery ID", "Input", err)
	}
	_, err = Cancel(ctx, a.DB, deliveryID)
	return err
}

// Cancel ends a delivery with its canceled leaf, unless a request of it may be under way: see postgres.Cancel.
func Cancel(ctx context.Context, db *pgxpool.Pool, deliveryID uuid.UUID) (postgres.Standing, error) {
	return postgres.Cancel(ctx, db, deliveryID, func(d *postgres.Delivery, url string, secretPath bool) (postgres.Change, error) {
		endpointURL, err := attestation.EndpointURL(url, secretPath)
		if err != nil {
			return postgres.Change{}, fmt.Errorf("destination of delivery %s: %w", id.Delivery.Format(d.ID), err)
		}
		return endCanceled(d, delivery.ReasonRequested, endpointURL)
	})
}

// endCanceled makes the leaf that says why no (more) requests are sent, and ends d. Starts that are still counted were lost.
func endCanceled(d *postgres.Delivery, reason delivery.Reason, endpointURL string) (postgres.Change, error) {
	end, err := decisionAttempt(d, delivery.KindCanceled, string(reason), endpointURL)
	if err != nil {
		return postgres.Change{}, err
	}
	d.State, d.LostStarts = string(delivery.Canceled), 0
	return postgres.Change{Delivery: d, Attempts: []postgres.Attempt{end}}, nil
}

// cancel ends d without an attempt.
func (r *Recording) cancel(d *postgres.Delivery) (postgres.Change, error) {
	before := *d
	if r.Unused {
		d.LostStarts = max(d.LostStarts-1, 0)
	}
	change, err := endCanceled(d, r.Cancel, r.Outcome.EndpointURL)
	if err != nil {
		*d = before
	}
	return change, err
}

// canceling is the recording that ends a delivery before it is sent: somebody canceled it, or deleted its destination. Unused
// says that the start that was counted for it never became a request.
func canceling(to *postgres.Destination, start postgres.Start, reason delivery.Reason, unused bool) (Recording, error) {
	endpointURL, err := attestation.EndpointURL(to.URL, to.SecretPath)
	return Recording{
		Delivery: start.Delivery, Epoch: start.Epoch, Attempt: start.Attempt,
		Cancel: reason, Unused: unused, Outcome: Outcome{EndpointURL: endpointURL},
	}, err
}

// cancelUnsent ends a delivery before its carrier sends it. An error is one of SendAttempt, and nothing was
// sent: it is tried again, and finds the delivery over if it was recorded after all.
func (a *Activities) cancelUnsent(ctx context.Context, to *postgres.Destination, start postgres.Start, reason delivery.Reason, unused bool) (SendResult, error) {
	recording, err := canceling(to, start, reason, unused)
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

// cancel ends a delivery of the batch before it is sent. If it can't be recorded it goes back into the queue, where whoever
// carries it next, or carries out the command, finds it.
func (b *batch) cancel(ctx context.Context, row postgres.BatchRow, to *batchTarget, reason delivery.Reason) {
	b.decided.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	recording, err := canceling(to.Destination, postgres.Start{Delivery: row.DeliveryID, Epoch: row.Epoch, Attempt: row.Attempt}, reason, true)
	if err == nil {
		recording.Commitment = &row.Payload.Commitment
		_, err = b.recordInTime(ctx, recording)
	}
	if err != nil {
		b.putOff(row, unusableDelay)
	}
}
