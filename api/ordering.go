package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// parseOrdering returns the policy as it is stored; nil: none.
func parseOrdering(o *openapi.Ordering) ([]byte, error) {
	if o == nil {
		return nil, nil
	}
	policy := webhook.OrderPolicy{
		Source: webhook.OrderSource(o.Source), Header: value(o.Header), Path: value(o.Path), OnDead: webhook.OnDead(o.OnDead),
	}
	if err := policy.Validate(); err != nil {
		return nil, invalidBecause("ordering", err)
	}
	stored, err := json.Marshal(policy)
	if err != nil {
		return nil, fmt.Errorf("write ordering: %w", err)
	}
	return stored, nil
}

// keepOrder refuses to exchange what an endpoint orders by. The deliveries that wait are in lines of the old key, and nobody can say
// which of those that come later belong behind which of them; nor do all processes learn of a change at one moment. The endpoint
// is locked.
func (c *endpointChange) keepOrder(ctx context.Context, q *db.Queries) error {
	if c.row.Ordering == nil {
		return nil
	}
	stored, err := q.OrderingOfEndpoint(ctx, c.row.ID)
	if err != nil {
		return err
	}
	const instead = "Make an endpoint with the ordering that you want, and delete this one when nothing waits for it any more"
	if stored == nil {
		return invalidField("ordering", "can't be added, because what was accepted without it keeps no order. %s", instead)
	}
	var old, wanted webhook.OrderPolicy
	if err := errors.Join(json.Unmarshal(stored, &old), json.Unmarshal(c.row.Ordering, &wanted)); err != nil {
		return fmt.Errorf("read ordering: %w", err)
	}
	for _, m := range []struct {
		name string
		same bool
	}{
		{"source", old.Source == wanted.Source},
		{"header", strings.EqualFold(old.Header, wanted.Header)},
		{"path", old.Path == wanted.Path},
	} {
		if !m.same {
			return invalidField("ordering."+m.name, "can't be exchanged, because what waits keeps its place in the old order; only on_dead can. %s", instead)
		}
	}
	return nil
}

// ReleaseDelivery lets what waits behind a dead delivery go on.
func (s *Server) ReleaseDelivery(ctx context.Context, request openapi.ReleaseDeliveryRequestObject) (openapi.ReleaseDeliveryResponseObject, error) {
	deliveryID, err := id.Delivery.Parse(request.DeliveryID)
	if err != nil {
		return nil, notFound("delivery")
	}
	var owner uuid.UUID
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		owner = tenant
		_, err := db.New(tx).DeliveryExists(ctx, deliveryID)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("delivery")
		}
		return err
	})
	if err == nil {
		err = postgres.ReleaseTurn(ctx, s.config.Engine, owner, deliveryID)
	}
	if errors.Is(err, postgres.ErrNotBlocking) {
		return nil, &problem{kind: kindNotBlocking, detail: "Nothing waits for this delivery: it isn't dead, or its endpoint's ordering doesn't " +
			"block, or it was released before."}
	}
	if err != nil {
		return nil, fmt.Errorf("release delivery: %w", err)
	}
	s.config.Notify()
	return openapi.ReleaseDelivery204Response{}, nil
}
