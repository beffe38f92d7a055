package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// EraseEvent takes away an event's payload and what opens its leaves, and their bytes if that is asked for.
func (s *Server) EraseEvent(ctx context.Context, request openapi.EraseEventRequestObject) (openapi.EraseEventResponseObject, error) {
	eventID, err := id.Event.Parse(request.EventID)
	if err != nil {
		return nil, notFound("event")
	}
	var erased *postgres.Erased
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) (err error) {
		erased, err = postgres.Erase(ctx, tx, eventID, value(request.Body.Leaves))
		if errors.Is(err, postgres.ErrNoEvent) {
			return notFound("event")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("erase event: %w", err)
	}
	return openapi.EraseEvent200JSONResponse{
		EventID: request.EventID, ErasedAt: erased.ErasedAt, Leaves: erased.Leaves,
		ResponsesErased: erased.Responses, LeavesErased: erased.LeavesErased,
	}, nil
}
