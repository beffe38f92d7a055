package activities

import (
	"context"

	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/postgres"
)

// A carrier that may send nothing any more ends its delivery instead: it was canceled, or its payload is erased.

// erasing is the recording that ends a delivery of which nothing is left to send.
func erasing(start postgres.Start) Recording {
	return Recording{Delivery: start.Delivery, Epoch: start.Epoch, Attempt: start.Attempt, Erased: true}
}

// endErased makes the leaf that says why nothing (more) can be sent, and ends d. Starts that are still counted were lost.
func endErased(d *postgres.Delivery, endpointURL string) (postgres.Change, error) {
	end, err := decisionAttempt(d, delivery.KindDead, string(delivery.ReasonErased), endpointURL)
	if err != nil {
		return postgres.Change{}, err
	}
	d.State, d.LostStarts = string(delivery.Dead), 0
	return postgres.Change{Delivery: d, Attempts: []postgres.Attempt{end}}, nil
}

// endUnsent ends d without an attempt.
func (r *Recording) endUnsent(d *postgres.Delivery, end func() (postgres.Change, error)) (postgres.Change, error) {
	before := *d
	if r.Unused {
		d.LostStarts = max(d.LostStarts-1, 0)
	}
	change, err := end()
	if err != nil {
		*d = before
	}
	return change, err
}

// endUnsent records the end of a delivery before its carrier sends it. unused says that the start that was counted for it never
// became a request. An error is one of SendAttempt, and nothing was sent: it is tried again, and finds the delivery over if it was
// recorded after all.
func (a *Activities) endUnsent(ctx context.Context, to *postgres.Destination, recording Recording, unused bool) (SendResult, error) {
	recording.Unused = unused
	var progress Progress
	var err error
	if recording.Outcome.EndpointURL, err = attestation.EndpointURL(to.URL, to.SecretPath); err == nil {
		progress, err = a.Recorder.Record(ctx, recording)
	}
	switch {
	case err != nil:
		return SendResult{}, temporal.NewApplicationErrorWithCause("end delivery", notSent, err)
	case progress.State == string(delivery.Canceled) && recording.Cancel != "":
		return SendResult{Canceled: true, Progress: &progress}, nil
	case progress.State == string(delivery.Dead) && recording.Erased:
		return SendResult{Dead: true, Progress: &progress}, nil
	}
	return SendResult{Moved: true}, nil
}

// endUnsent ends a delivery of the batch before it is sent. If it can't be recorded it goes back into the queue, where whoever
// carries it next, or carries out the command, finds it.
func (b *batch) endUnsent(ctx context.Context, row postgres.BatchRow, to *batchTarget, recording Recording) {
	b.decided.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	recording.Unused, recording.Commitment = true, &row.Payload.Commitment
	recording.Outcome.EndpointURL = to.endpointURL
	if _, err := b.recordInTime(ctx, sending{Delivery: row.DeliveryID, Attempt: row.Attempt, Payload: row.Payload}, recording); err != nil {
		b.putOff(row, unusableDelay)
	}
}
