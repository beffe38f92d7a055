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
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// eventRow is an event as it is read, by whichever statement.
type eventRow db.SearchEventsRow

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
		s.addAcceptance(&answer, row)
		answer.Deliveries, err = readDeliveries(ctx, q, eventID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get event: %w", err)
	}
	return answer, nil
}

// addAcceptance tells of the leaf that attests the event's acceptance, and of what was erased.
func (s *Server) addAcceptance(answer *openapi.GetEvent200JSONResponse, row db.GetEventRow) {
	if row.LeafHash != nil {
		answer.Acceptance = &openapi.Acceptance{
			LeafHash:   hex.EncodeToString(row.LeafHash),
			ProofURL:   s.config.PublicURL + "/api/v1/attestation/proof/" + answer.ID,
			PackageURL: s.config.PublicURL + "/api/v1/attestation/download-proof/" + answer.ID,
		}
	}
	if row.ErasedAt != nil {
		answer.Erasure = &openapi.Erasure{ErasedAt: *row.ErasedAt, Leaves: value(row.LeavesErased)}
	}
}

// readDeliveries reads an event's deliveries and their attempts.
func readDeliveries(ctx context.Context, q *db.Queries, eventID uuid.UUID) ([]openapi.Delivery, error) {
	low, high := millisecond(eventID)
	rows, err := q.DeliveriesOf(ctx, eventID, low, high)
	if err != nil {
		return nil, err
	}
	deliveries := make([]deliveryRow, len(rows))
	for i, row := range rows {
		deliveries[i] = deliveryRow(row)
	}
	return deliveryAnswers(ctx, q, deliveries)
}

// deliveryAnswers adds the attempts, with one statement for all.
func deliveryAnswers(ctx context.Context, q *db.Queries, rows []deliveryRow) ([]openapi.Delivery, error) {
	answers := make([]openapi.Delivery, len(rows))
	place := map[uuid.UUID]int{}
	for i, row := range rows {
		place[row.ID] = i
		answers[i] = openapi.Delivery{
			ID: id.Delivery.Format(row.ID), EventID: id.Event.Format(row.EventID), EndpointID: id.Endpoint.Format(row.EndpointID),
			DestinationID: id.Destination.Format(row.DestinationID), CreatedAt: id.Time(row.ID), State: row.State, Lane: row.Lane,
			FilterError: row.FilterError, DueAt: row.DueAt, FinishedAt: row.FinishedAt, OrderSeq: row.OrderSeq, Attempts: []openapi.Attempt{},
			RedeliveryOf: optionalID(id.Delivery, row.RedeliveryOf),
		}
	}
	found, err := attemptsOf(ctx, q, rows)
	for _, a := range found {
		d := &answers[place[a.DeliveryID]]
		d.Attempts = append(d.Attempts, attemptAnswer(a))
	}
	return answers, err
}

// attemptsOf reads by their derived IDs all attempts that deliveries may have.
func attemptsOf(ctx context.Context, q *db.Queries, deliveries []deliveryRow) ([]db.AttemptsByIDRow, error) {
	if len(deliveries) == 0 {
		return nil, nil
	}
	var attempts []uuid.UUID
	low, high := millisecond(deliveries[0].ID)
	for _, d := range deliveries {
		for n := id.Decision; n <= int(d.NextAttempt); n++ {
			attempts = append(attempts, id.AttemptOf(d.ID, n))
		}
		from, to := millisecond(d.ID)
		low, high = earliest(low, from), latest(high, to)
	}
	return q.AttemptsByID(ctx, attempts, low, high)
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
