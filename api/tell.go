package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

const (
	// tellEvery is how often a process looks for what tenants are to be told, and tellAgain how soon after that failed.
	tellEvery = 250 * time.Millisecond
	tellAgain = 5 * time.Second
	// composeFor is how long a step may go on making events before it stores those that it has: what that costs is up to tenants.
	composeFor = 2 * time.Second
)

// teller takes in operational webhooks, which come from Kapsel itself and not by HTTP. Each step is a transaction of its own,
// taken by whichever process comes first; one that dies leaves what it was telling to the others as it was (ADR 23).
type teller struct {
	*Server
	after uuid.UUID // the tenant that was told last
}

// tellTenants tells until ctx ends.
func (s *Server) tellTenants(ctx context.Context) {
	t := &teller{Server: s}
	for wait := tellEvery; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = tellEvery
		if s.health.watch.Err() != nil { // which is told already
			continue
		}
		if err := t.tell(ctx); err != nil && ctx.Err() == nil {
			s.config.Log.Warn("operational webhooks not made", zap.Error(err))
			wait = tellAgain
		}
	}
}

// tell tells all that waits, step by step and tenant after tenant, until a round over all of them finds nothing that it can tell.
// What can't be made stays, and holds up none of the rest.
func (t *teller) tell(ctx context.Context) error {
	var failed error
	taken := 0 // in this round
	for ctx.Err() == nil {
		first := t.after == uuid.Nil
		told, err := t.step(ctx)
		if err != nil {
			return err
		}
		if failed == nil {
			failed = told.Failed
		}
		t.after = told.Next
		taken += told.Taken
		if told.Events > 0 {
			t.config.Notify()
		}
		if t.after != uuid.Nil {
			continue
		}
		if first || taken == 0 { // all tenants were looked at, and there was room for more; or there is nothing to be told now
			break
		}
		taken = 0
	}
	return failed
}

// step tells some of what waits, and counts what became of it: only after the commit is an event one.
func (t *teller) step(ctx context.Context) (postgres.Told, error) {
	began := time.Now()
	var made []*postgres.Acceptance
	told, err := postgres.TellOccurrences(ctx, t.config.Engine, t.after, composeFor, func(o *postgres.Occurrence) (*postgres.Acceptance, error) {
		row, err := t.operationalEvent(ctx, o)
		if err != nil {
			t.metrics.told(o.Type, toldFailed)
			return nil, err
		}
		made = append(made, row)
		return row, nil
	})
	for _, row := range made {
		if err != nil {
			t.metrics.told(row.EventType, toldFailed)
			continue
		}
		t.metrics.toldEvent(row)
		t.traceTold(row, began)
	}
	for _, dropped := range told.Dropped {
		t.metrics.told(dropped, toldDropped)
	}
	return told, err
}

// errEndpointGone is about an operational endpoint that was removed a moment ago: the next look finds that too.
var errEndpointGone = errors.New("operational endpoint was removed")

// operationalEvent makes the rows of an operational webhook, as newAcceptance does of one that arrives.
func (s *Server) operationalEvent(ctx context.Context, o *postgres.Occurrence) (*postgres.Acceptance, error) {
	e, err := s.endpoints.get(ctx, o.Teller)
	if err != nil {
		return nil, err
	}
	if e == nil {
		s.endpoints.forget(o.Teller)
		return nil, errEndpointGone
	}
	body, err := operationalWebhook(o).Encode()
	if err != nil {
		return nil, err
	}
	headers := operationalHeaders(o)
	event, salt := id.New(), attestation.NewSecret()
	row := &postgres.Acceptance{
		EventID:     event,
		TenantID:    e.tenant,
		EndpointID:  e.id,
		LogID:       e.log,
		ContentType: headers.Get("Content-Type"),
		Headers:     webhook.EncodeHeaders(headers),
		Body:        body,
		PayloadHash: verify.Commitment(verify.LabelPayload, salt, body),
		Salt:        salt,
		Secret:      attestation.NewSecret(),
	}
	// Neither its headers nor its body have to be asked for the type.
	row.EventType = o.Type
	return row, choose(ctx, e, row, delivery.Message{
		EventType: row.EventType, ContentType: row.ContentType, Headers: filterHeaders(headers), Body: webhook.NewDocument(body).Value,
	})
}

// operationalHeaders says of a dead delivery through how many its webhook had come; if its headers can't be read any more, it
// counts as if it had come from its source.
func operationalHeaders(o *postgres.Occurrence) http.Header {
	if o.DeliveryID == uuid.Nil {
		return webhook.OperationalHeaders("", nil)
	}
	original, _ := webhook.DecodeHeaders(o.Headers)
	return webhook.OperationalHeaders(id.Delivery.Format(o.DeliveryID), original)
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
