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
	"github.com/kapsel-io/kapsel/tracing"
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
	_, err = Cancel(ctx, a.DB, a.Tracing, deliveryID)
	return err
}

// Cancel ends a delivery with its canceled leaf, unless a request of it may be under way: see postgres.Cancel.
func Cancel(ctx context.Context, db *pgxpool.Pool, t *tracing.Tracer, deliveryID uuid.UUID) (postgres.Standing, error) {
	var ended *postgres.Delivery
	at, err := postgres.Cancel(ctx, db, deliveryID, func(d *postgres.Delivery, url string, secretPath bool) (postgres.Change, error) {
		endpointURL, err := attestation.EndpointURL(url, secretPath)
		if err != nil {
			return postgres.Change{}, fmt.Errorf("destination of delivery %s: %w", id.Delivery.Format(d.ID), err)
		}
		ended = d
		return endCanceled(d, delivery.ReasonRequested, endpointURL)
	})
	if err == nil {
		tellEnded(t, ended)
	}
	return at, err
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

// canceling is the recording that ends a delivery before it is sent: somebody canceled it, or deleted its destination.
func canceling(start postgres.Start, reason delivery.Reason) Recording {
	return Recording{Delivery: start.Delivery, Epoch: start.Epoch, Attempt: start.Attempt, Cancel: reason}
}
