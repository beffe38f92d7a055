package api

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// eventRow is an event as it is read, by whichever statement.
type eventRow db.GetEventRow

// ListEvents reads a page of events.
func (s *Server) ListEvents(ctx context.Context, request openapi.ListEventsRequestObject) (openapi.ListEventsResponseObject, error) {
	p, err := parsePage(id.Event, request.Params.Limit, request.Params.Cursor)
	if err != nil {
		return nil, err
	}
	var endpointID uuid.UUID
	if name := request.Params.EndpointID; name != nil {
		if endpointID, err = id.Endpoint.Parse(*name); err != nil {
			return nil, invalidParameter("endpoint_id", "must be an ID: ep_ and 26 digits and lower-case letters")
		}
	}
	eventType := request.Params.EventType
	if eventType != nil && !delivery.ValidEventType(*eventType) {
		return nil, invalidParameter("event_type", "must be 1 to %d bytes of printable text", delivery.MaxEventType)
	}
	var rows []eventRow
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) (err error) {
		rows, err = readEvents(ctx, db.New(tx), p, endpointID, eventType)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	rows, more := cut(rows, p.limit)
	answer := openapi.ListEvents200JSONResponse{Data: []openapi.EventSummary{}}
	for _, row := range rows {
		answer.Data = append(answer.Data, openapi.EventSummary{
			ID: id.Event.Format(row.ID), EndpointID: id.Endpoint.Format(row.EndpointID), AcceptedAt: row.AcceptedAt,
			ContentType: row.ContentType, EventType: row.EventType, BodySize: int(row.BodySize), PayloadHash: hex.EncodeToString(row.PayloadHash),
		})
	}
	if more {
		answer.NextCursor = p.cursor(rows[len(rows)-1].ID)
	}
	return answer, nil
}

// readEvents reads one row more than the page holds, of all endpoints or of one, and of all types or of one.
func readEvents(ctx context.Context, q *db.Queries, p page, endpointID uuid.UUID, eventType *string) ([]eventRow, error) {
	var found []eventRow
	if eventType != nil {
		var only *uuid.UUID
		if endpointID != uuid.Nil {
			only = &endpointID
		}
		rows, err := q.ListEventsOfType(ctx, p.before, *eventType, only, p.limit+1)
		for _, row := range rows {
			found = append(found, eventRow(row))
		}
		return found, err
	}
	if endpointID == uuid.Nil {
		rows, err := q.ListEvents(ctx, p.before, p.limit+1)
		for _, row := range rows {
			found = append(found, eventRow(row))
		}
		return found, err
	}
	rows, err := q.ListEventsOfEndpoint(ctx, p.before, endpointID, p.limit+1)
	for _, row := range rows {
		found = append(found, eventRow(row))
	}
	return found, err
}

// GetEvent reads an event with its deliveries and their attempts.
func (s *Server) GetEvent(ctx context.Context, request openapi.GetEventRequestObject) (openapi.GetEventResponseObject, error) {
	eventID, err := id.Event.Parse(request.EventID)
	if err != nil {
		return nil, notFound("event")
	}
	var answer openapi.GetEvent200JSONResponse
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		row, err := q.GetEvent(ctx, eventID)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("event")
		}
		if err != nil {
			return err
		}
		answer = openapi.GetEvent200JSONResponse{
			ID: id.Event.Format(row.ID), EndpointID: id.Endpoint.Format(row.EndpointID), AcceptedAt: row.AcceptedAt,
			ContentType: row.ContentType, EventType: row.EventType, BodySize: int(row.BodySize), PayloadHash: hex.EncodeToString(row.PayloadHash),
		}
		answer.Deliveries, err = readDeliveries(ctx, q, eventID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get event: %w", err)
	}
	return answer, nil
}

// readDeliveries reads an event's deliveries, and by their derived IDs all attempts that they may have.
func readDeliveries(ctx context.Context, q *db.Queries, eventID uuid.UUID) ([]openapi.Delivery, error) {
	low, high := millisecond(eventID)
	rows, err := q.DeliveriesOf(ctx, eventID, low, high)
	if err != nil {
		return nil, err
	}
	deliveries := make([]openapi.Delivery, len(rows))
	place := map[uuid.UUID]int{}
	var attempts []uuid.UUID
	for i, row := range rows {
		place[row.ID] = i
		deliveries[i] = openapi.Delivery{
			ID: id.Delivery.Format(row.ID), DestinationID: id.Destination.Format(row.DestinationID), State: row.State, Lane: row.Lane,
			FilterError: row.FilterError, DueAt: row.DueAt, FinishedAt: row.FinishedAt, Attempts: []openapi.Attempt{},
		}
		for n := id.Decision; n <= int(row.NextAttempt); n++ {
			attempts = append(attempts, id.AttemptOf(row.ID, n))
		}
	}
	found, err := q.AttemptsByID(ctx, attempts, low, high)
	if err != nil {
		return nil, err
	}
	for _, a := range found {
		d := &deliveries[place[a.DeliveryID]]
		d.Attempts = append(d.Attempts, attemptAnswer(a))
	}
	return deliveries, nil
}

// millisecond returns the bounds of the IDs that carry the same timestamp.
func millisecond(u uuid.UUID) (low, high uuid.UUID) {
	high = uuid.Max
	copy(low[:6], u[:6])
	copy(high[:6], u[:6])
	return low, high
}

func attemptAnswer(a db.AttemptsByIDRow) openapi.Attempt {
	return openapi.Attempt{
		ID: id.Attempt.Format(a.ID), Number: int(a.Number), Kind: a.Kind, Outcome: a.Outcome, Error: a.Error,
		AttemptedAt: a.AttemptedAt, DurationMs: a.DurationMs, EndpointURL: a.EndpointUrl, ResponseStatus: int(a.ResponseStatus),
		ResponseSize: a.ResponseSize, ResponseTruncated: a.ResponseTruncated, LeafHash: hex.EncodeToString(a.LeafHash),
		RecordedAt: a.RecordedAt,
	}
}

// GetPayload hands out a body. A stranger wrote it, so it is never shown as what it says it is.
func (s *Server) GetPayload(ctx context.Context, request openapi.GetPayloadRequestObject) (openapi.GetPayloadResponseObject, error) {
	eventID, err := id.Event.Parse(request.EventID)
	if err != nil {
		return nil, notFound("event")
	}
	var body []byte
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		row, err := db.New(tx).GetPayload(ctx, eventID)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("event")
		}
		if err == nil && row.Body == nil {
			return &problem{kind: kindGone, detail: "The payload has been erased; the event and its attempts remain."}
		}
		body = row.Body
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get payload: %w", err)
	}
	return attachment{openapi.GetPayload200ApplicationOctetStreamResponse{
		Body: io.Reader(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}, id.Event.Format(eventID) + ".bin"}, nil
}

// attachment is a payload that browsers save and don't show.
type attachment struct {
	openapi.GetPayload200ApplicationOctetStreamResponse
	name string
}

func (a attachment) VisitGetPayloadResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Disposition", `attachment; filename="`+a.name+`"`)
	w.Header().Set("Cache-Control", "private, no-store")
	return a.GetPayload200ApplicationOctetStreamResponse.VisitGetPayloadResponse(w)
}
