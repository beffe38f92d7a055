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
	"github.com/kapsel-io/kapsel/postgres/db"
)

// deliveryRow is a delivery as it is read, by whichever statement.
type deliveryRow db.GetDeliveryRow

// ListDeliveries reads a page of deliveries.
func (s *Server) ListDeliveries(ctx context.Context, request openapi.ListDeliveriesRequestObject) (openapi.ListDeliveriesResponseObject, error) {
	p, err := parsePage(id.Delivery, request.Params.Limit, request.Params.Cursor)
	if err != nil {
		return nil, err
	}
	filter, err := parseDeliveryFilter(request.Params)
	if err != nil {
		return nil, err
	}
	var page found[deliveryRow]
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		in := newSpan(p, tenant, request.Params.CreatedAfter, request.Params.CreatedBefore)
		if filter.EventID != nil { // none is older than its event
			first, _ := millisecond(*filter.EventID)
			in.floor = latest(in.floor, first)
		}
		page, err = searchDeliveries(db.New(tx), in, int(p.limit), filter).run(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	answer := openapi.ListDeliveries200JSONResponse{Data: []openapi.DeliverySummary{}}
	for _, row := range page.rows {
		answer.Data = append(answer.Data, deliverySummary(row))
	}
	answer.NextCursor, answer.ScannedUntil = page.cursor(id.Delivery)
	return answer, nil
}

func searchDeliveries(q *db.Queries, in span, limit int, filter db.SearchDeliveriesParams) search[deliveryRow] {
	return search[deliveryRow]{
		span: in, limit: limit, rows: searchRows, chunk: searchChunk,
		end: q.EndOfDeliveryChunk, id: func(d deliveryRow) uuid.UUID { return d.ID },
		read: func(ctx context.Context, in span, most int) ([]deliveryRow, error) {
			filter.Before, filter.Floor, filter.MaxRows = in.before, in.floor, int32(most)
			rows, err := q.SearchDeliveries(ctx, filter)
			deliveries := make([]deliveryRow, len(rows))
			for i, row := range rows {
				deliveries[i] = deliveryRow(row)
			}
			return deliveries, err
		},
	}
}

func parseDeliveryFilter(params openapi.ListDeliveriesParams) (f db.SearchDeliveriesParams, err error) {
	f.State, f.Lane = params.State, params.Lane
	if err := parseState("state", f.State); err != nil {
		return f, err
	}
	if lane := postgres.Lane(value(f.Lane)); f.Lane != nil && lane != postgres.LaneWorkflow && lane != postgres.LaneBatch {
		return f, invalidParameter("lane", "must be workflow or batch")
	}
	if f.DestinationID, err = parseID("destination_id", id.Destination, params.DestinationID); err != nil {
		return f, err
	}
	if f.EndpointID, err = parseID("endpoint_id", id.Endpoint, params.EndpointID); err != nil {
		return f, err
	}
	f.EventID, err = parseID("event_id", id.Event, params.EventID)
	return f, err
}

func deliverySummary(row deliveryRow) openapi.DeliverySummary {
	return openapi.DeliverySummary{
		ID: id.Delivery.Format(row.ID), EventID: id.Event.Format(row.EventID), EndpointID: id.Endpoint.Format(row.EndpointID),
		DestinationID: id.Destination.Format(row.DestinationID), CreatedAt: id.Time(row.ID), State: row.State, Lane: row.Lane,
		AttemptCount: int(row.NextAttempt) - 1, DueAt: row.DueAt, FinishedAt: row.FinishedAt,
		RedeliveryOf: optionalID(id.Delivery, row.RedeliveryOf),
	}
}

// GetDelivery reads one delivery with its attempts.
func (s *Server) GetDelivery(ctx context.Context, request openapi.GetDeliveryRequestObject) (openapi.GetDeliveryResponseObject, error) {
	deliveryID, err := id.Delivery.Parse(request.DeliveryID)
	if err != nil {
		return nil, notFound("delivery")
	}
	var answers []openapi.Delivery
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		row, err := q.GetDelivery(ctx, deliveryID)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("delivery")
		}
		if err != nil {
			return err
		}
		answers, err = deliveryAnswers(ctx, q, []deliveryRow{deliveryRow(row)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get delivery: %w", err)
	}
	return openapi.GetDelivery200JSONResponse(answers[0]), nil
}
