package worker

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// tellEvery is how often a worker looks for what is to be told.
const tellEvery = 250 * time.Millisecond

// Teller makes operational webhooks of what happened. Each step is a transaction of its own, taken by whichever worker comes
// first, so a worker that dies leaves what it was telling to the others as it was.
type Teller struct {
	db    *pgxpool.Pool
	log   *zap.Logger
	onDue func() // something in the queue became due
	told  func(eventType string, n int)
	after uuid.UUID // the tenant that was told of last
}

// Run tells until ctx ends.
func (t *Teller) Run(ctx context.Context) {
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := t.tell(ctx); err != nil && ctx.Err() == nil {
			t.log.Warn("operational webhooks not made", zap.Error(err))
		}
	}
}

// tell tells all that waits, step by step.
func (t *Teller) tell(ctx context.Context) error {
	for ctx.Err() == nil {
		began := t.after
		step, err := postgres.TellOccurrences(ctx, t.db, t.after, operationalEvent)
		if err != nil {
			return err
		}
		t.after = step.Next
		for eventType, n := range step.Types {
			t.told(eventType, n)
		}
		if len(step.Types) > 0 {
			t.onDue()
		}
		if t.after == uuid.Nil && began == uuid.Nil { // all tenants were looked at, and there was room for more
			return nil
		}
	}
	return nil
}

// operationalEvent makes an event as the way in makes one of a webhook. Its type, once events have one, is o.Type.
func operationalEvent(o *postgres.Occurrence) (*postgres.Acceptance, error) {
	event, salt := id.New(), attestation.NewSecret()
	body, err := operationalWebhook(o).Encode()
	if err != nil {
		return nil, err
	}
	row := &postgres.Acceptance{
		EventID:     event,
		TenantID:    o.TenantID,
		EndpointID:  o.Teller,
		LogID:       o.LogID,
		ContentType: "application/json",
		Headers:     operationalHeaders(o),
		Body:        body,
		PayloadHash: verify.Commitment(verify.LabelPayload, salt, body),
		Salt:        salt,
		Secret:      attestation.NewSecret(),
	}
	for _, destination := range o.To {
		row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(event), DestinationID: destination})
	}
	return row, nil
}

func operationalWebhook(o *postgres.Occurrence) webhook.Operational {
	tenant, endpoint, destination := id.Tenant.Format(o.TenantID), id.Endpoint.Format(o.EndpointID), id.Destination.Format(o.DestinationID)
	told := webhook.Operational{Type: o.Type, Timestamp: webhook.MillisecondTime(o.At)}
	switch o.Type {
	case webhook.TypeDeliveryDead:
		told.Data = webhook.DeliveryDead{
			TenantID: tenant, EndpointID: endpoint, DestinationID: destination,
			EventID: id.Event.Format(o.EventID), DeliveryID: id.Delivery.Format(o.DeliveryID),
			AcceptedAt: webhook.MillisecondTime(id.Time(o.EventID)),
			Attempts:   o.Attempts, Reason: o.Reason, LastStatus: o.LastStatus, LastError: o.LastError,
		}
	case webhook.TypeCircuitOpened:
		told.Data = webhook.CircuitOpened{
			TenantID: tenant, EndpointID: endpoint, DestinationID: destination,
			FailingSince: (*webhook.MillisecondTime)(o.FailingSince), LastStatus: o.LastStatus, LastError: o.LastError,
		}
	default:
		told.Data = webhook.DestinationDisabled{
			TenantID: tenant, EndpointID: endpoint, DestinationID: destination, Reason: o.Reason,
			FailingSince: (*webhook.MillisecondTime)(o.FailingSince), LastStatus: o.LastStatus, LastError: o.LastError,
		}
	}
	return told
}

func operationalHeaders(o *postgres.Occurrence) []byte {
	if o.DeliveryID == uuid.Nil {
		return webhook.EncodeHeaders(webhook.OperationalHeaders("", nil))
	}
	original, _ := webhook.DecodeHeaders(o.Headers) // if they were erased it counts as if it had come from its source
	return webhook.EncodeHeaders(webhook.OperationalHeaders(id.Delivery.Format(o.DeliveryID), original))
}
