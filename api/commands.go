package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// CancelDelivery asks for the end of a delivery. The same transaction stores the command, which a worker carries out, and lets
// no attempt begin any more (docs/adr/0013).
func (s *Server) CancelDelivery(ctx context.Context, request openapi.CancelDeliveryRequestObject) (openapi.CancelDeliveryResponseObject, error) {
	err := s.command(ctx, request.DeliveryID, postgres.OrderCancel, func(q *db.Queries, deliveryID uuid.UUID) (bool, error) {
		pending, err := q.RequestCancel(ctx, []uuid.UUID{deliveryID})
		return pending == 1, err
	})
	if err != nil {
		return nil, err
	}
	return openapi.CancelDelivery202JSONResponse{DeliveryID: request.DeliveryID, Command: string(postgres.OrderCancel)}, nil
}

// RetryDeliveryNow asks for the end of a delivery's wait; a worker ends it.
func (s *Server) RetryDeliveryNow(ctx context.Context, request openapi.RetryDeliveryNowRequestObject) (openapi.RetryDeliveryNowResponseObject, error) {
	err := s.command(ctx, request.DeliveryID, postgres.OrderRetryNow, func(q *db.Queries, deliveryID uuid.UUID) (bool, error) {
		state, err := q.DeliveryState(ctx, []uuid.UUID{deliveryID})
		return state == string(delivery.Pending), err
	})
	if err != nil {
		return nil, err
	}
	return openapi.RetryDeliveryNow202JSONResponse{DeliveryID: request.DeliveryID, Command: string(postgres.OrderRetryNow)}, nil
}

// command stores a command for a delivery that is pending.
func (s *Server) command(ctx context.Context, name string, order postgres.Order, pending func(*db.Queries, uuid.UUID) (bool, error)) error {
	deliveryID, err := id.Delivery.Parse(name)
	if err != nil {
		return notFound("delivery")
	}
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		ok, err := pending(q, deliveryID)
		if err == nil && ok {
			return q.InsertCommand(ctx, deliveryID, tenant, string(order))
		}
		if err == nil {
			_, err = q.DeliveryState(ctx, []uuid.UUID{deliveryID})
		}
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("delivery")
		}
		if err != nil {
			return err
		}
		return &problem{kind: kindFinished, detail: "The delivery is finished: nothing will be sent for it. Redeliver it to send it again."}
	})
	if err != nil {
		return fmt.Errorf("store command %s: %w", order, err)
	}
	return nil
}

// Redeliver makes a new delivery of a finished one. The engine's role writes it, as it does on the way in; that the old one is
// the asker's own is certain, because the asker's transaction sees it.
func (s *Server) Redeliver(ctx context.Context, request openapi.RedeliverRequestObject) (openapi.RedeliverResponseObject, error) {
	deliveryID, err := id.Delivery.Parse(request.DeliveryID)
	if err != nil {
		return nil, notFound("delivery")
	}
	keyHash, err := redeliveryKey(request.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	var owner uuid.UUID
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		owner = tenant
		_, err := db.New(tx).DeliveryState(ctx, []uuid.UUID{deliveryID})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, notFound("delivery")
	}
	if err != nil {
		return nil, fmt.Errorf("look up delivery: %w", err)
	}
	redelivery, err := postgres.Redeliver(ctx, s.config.Engine, owner, deliveryID, keyHash)
	if err != nil {
		return nil, redeliverProblem(err)
	}
	s.config.Notify()
	return openapi.Redeliver202JSONResponse{DeliveryID: id.Delivery.Format(redelivery), RedeliveryOf: request.DeliveryID}, nil
}

func redeliveryKey(key *string) ([]byte, error) {
	if key == nil {
		return nil, nil
	}
	if n := len(*key); n == 0 || n > webhook.MaxIdempotencyKey {
		return nil, invalidParameter("Idempotency-Key", "must have 1 to %d bytes, not %d", webhook.MaxIdempotencyKey, n)
	}
	hash := sha256.Sum256([]byte(*key))
	return hash[:], nil
}

func redeliverProblem(err error) error {
	switch {
	case errors.Is(err, postgres.ErrNotFinished):
		return &problem{kind: kindUnfinished, detail: "The delivery is pending. Retry it now, or wait until it is finished."}
	case errors.Is(err, postgres.ErrErased):
		return &problem{kind: kindGone, detail: "The payload has been erased, so there is nothing to deliver again."}
	case errors.Is(err, postgres.ErrRemoved):
		return &problem{kind: kindRemoved, detail: "The delivery's destination is removed. Nothing can be sent there any more."}
	case errors.Is(err, postgres.ErrKeyUsed):
		return &problem{kind: kindKeyConflict, detail: "This Idempotency-Key was used for another delivery. Send a new key."}
	}
	return err
}

// optionalID writes an ID that may be absent.
func optionalID(kind id.Kind, u *uuid.UUID) *string {
	if u == nil {
		return nil
	}
	name := kind.Format(*u)
	return &name
}
