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
		return endCanceled(d, endpointURL, 0)
	})
}

// endCanceled makes the leaf of the decision to send no more, because somebody asked for it. unused is how many counted
// starts surely never became a request; the others were lost.
func endCanceled(d *postgres.Delivery, endpointURL string, unused int) (postgres.Change, error) {
	before := *d
	d.LostStarts = max(d.LostStarts-unused, 0)
	end, err := decisionAttempt(d, delivery.KindCanceled, string(delivery.ReasonRequested), endpointURL)
	if err != nil {
		*d = before
		return postgres.Change{}, err
	}
	d.State, d.LostStarts = string(delivery.Canceled), 0
	return postgres.Change{Delivery: d, Attempts: []postgres.Attempt{end}}, nil
}

// endUnsent ends a delivery that was canceled before its carrier could send it. counted: its start had been counted.
func (a *Activities) endUnsent(ctx context.Context, in SendInput, to *postgres.Destination, counted bool) (SendResult, error) {
	recording, err := cancelRecording(to, counted)
	if err == nil {
		recording.Delivery, err = id.Delivery.Parse(in.DeliveryID)
	}
	if err != nil {
		return SendResult{}, temporal.NewApplicationErrorWithCause("end canceled delivery", notSent, err)
	}
	recording.Epoch, recording.Attempt = in.Epoch, in.Attempt
	progress, err := a.Recorder.Record(ctx, recording)
	switch {
	case err != nil:
		return SendResult{}, temporal.NewApplicationErrorWithCause("end canceled delivery", notSent, err)
	case progress.State == string(delivery.Canceled):
		return SendResult{Canceled: true}, nil
	default:
		return SendResult{Moved: true}, nil
	}
}

func cancelRecording(to *postgres.Destination, counted bool) (Recording, error) {
	endpointURL, err := attestation.EndpointURL(to.URL, to.SecretPath)
	r := Recording{Cancel: true, Outcome: Outcome{EndpointURL: endpointURL}}
	if counted {
		r.Unused = 1
	}
	return r, err
}

// endUnsent ends a delivery of the batch that was canceled before it was sent. If that fails it goes back into the queue,
// where whoever carries out the command finds it.
func (b *batch) endUnsent(ctx context.Context, row postgres.BatchRow, to *batchTarget) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	recording, err := cancelRecording(to.Destination, true)
	if err == nil {
		recording.Delivery, recording.Epoch, recording.Attempt = row.DeliveryID, row.Epoch, row.Attempt
		recording.Commitment = &row.Payload.Commitment
		_, err = b.Recorder.Record(ctx, recording)
	}
	if err != nil {
		b.putOff(row, 0)
	}
}
