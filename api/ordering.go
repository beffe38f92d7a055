package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

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
