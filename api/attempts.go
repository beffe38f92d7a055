package api

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/webhook"
)

// GetAttempt reads one attempt: what went out, what came back, and where the log has it.
func (s *Server) GetAttempt(ctx context.Context, request openapi.GetAttemptRequestObject) (openapi.GetAttemptResponseObject, error) {
	attemptID, err := id.Attempt.Parse(request.AttemptID)
	if err != nil {
		return nil, notFound("attempt")
	}
	var answer openapi.GetAttempt200JSONResponse
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		row, err := q.GetAttempt(ctx, attemptID)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("attempt")
		}
		if err != nil {
			return err
		}
		answer.Attempt = attemptAnswer(db.AttemptsByIDRow{
			ID: row.ID, DeliveryID: row.DeliveryID, Number: row.Number, Kind: row.Kind, Outcome: row.Outcome, Error: row.Error,
			AttemptedAt: row.AttemptedAt, DurationMs: row.DurationMs, EndpointUrl: row.EndpointUrl, ResponseStatus: row.ResponseStatus,
			ResponseSize: row.ResponseSize, ResponseTruncated: row.ResponseTruncated, LeafHash: row.LeafHash, RecordedAt: row.RecordedAt,
		})
		answer.DeliveryID, answer.EventID = id.Delivery.Format(row.DeliveryID), id.Event.Format(row.EventID)
		answer.EndpointID, answer.DestinationID = id.Endpoint.Format(row.EndpointID), id.Destination.Format(row.DestinationID)
		if row.Number != id.Decision {
			if answer.Request, err = s.sentRequest(ctx, q, row); err != nil {
				return err
			}
		}
		if answer.Response, err = receivedResponse(row); err != nil {
			return err
		}
		answer.Leaf, err = s.leafAnswer(ctx, q, row)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get attempt: %w", err)
	}
	return answer, nil
}

// sentRequest tells of the request what is recorded, or follows from what is recorded.
func (s *Server) sentRequest(ctx context.Context, q *db.Queries, row db.GetAttemptRow) (*openapi.SentRequest, error) {
	event, err := q.EventAsSent(ctx, row.EventID)
	if err != nil {
		return nil, fmt.Errorf("read event of attempt: %w", err)
	}
	sent := &openapi.SentRequest{
		Method: openapi.POST, URL: row.EndpointUrl, BodySize: int(event.BodySize),
		BodyURL: s.config.PublicURL + "/api/v1/events/" + id.Event.Format(row.EventID) + "/payload",
	}
	if event.Headers == nil {
		return sent, nil
	}
	original, err := webhook.DecodeHeaders(event.Headers)
	if err != nil {
		return nil, fmt.Errorf("read headers of event: %w", err)
	}
	headers := webhook.OutgoingHeaders(original, nil, webhook.Outgoing{
		EventID: id.Event.Format(row.EventID), DeliveryID: id.Delivery.Format(row.DeliveryID), Attempt: int(row.Number),
		AcceptedAt: event.AcceptedAt, SentAt: row.AttemptedAt,
		Traceparent: s.config.Tracing.Traceparent(tracing.Root(row.EventID).At(row.ID)),
	})
	headers.Set(webhook.HeaderWebhookSignature, "") // every destination has a secret
	names := slices.Sorted(maps.Keys(headers))
	sent.HeaderNames = &names
	return sent, nil
}

// receivedResponse is nil if there was no answer.
func receivedResponse(row db.GetAttemptRow) (*openapi.ReceivedResponse, error) {
	if row.ResponseStatus == 0 {
		return nil, nil //nolint:nilnil // absent is absent
	}
	response := &openapi.ReceivedResponse{Status: int(row.ResponseStatus), Size: row.ResponseSize, Truncated: row.ResponseTruncated}
	if row.ResponseHeaders == nil { // erased, or lost with the worker that had it; the body as well
		return response, nil
	}
	headers, err := webhook.DecodeHeaders(row.ResponseHeaders)
	if err != nil {
		return nil, fmt.Errorf("read headers of response: %w", err)
	}
	asJSON := map[string][]string(headers) // what isn't UTF-8 is replaced
	response.Headers = &asJSON
	if row.ResponseBody != nil || row.ResponseSize == 0 {
		body := base64.StdEncoding.EncodeToString(row.ResponseBody)
		response.Body = &body
	}
	return response, nil
}

func (s *Server) leafAnswer(ctx context.Context, q *db.Queries, row db.GetAttemptRow) (openapi.AttemptLeaf, error) {
	name := id.Attempt.Format(row.ID)
	leaf := openapi.AttemptLeaf{
		Hash:       hex.EncodeToString(row.LeafHash),
		ProofURL:   s.config.PublicURL + "/api/v1/attestation/proof/" + name,
		PackageURL: s.config.PublicURL + "/api/v1/attestation/download-proof/" + name,
	}
	place, err := q.PublishedPlace(ctx, row.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return leaf, nil
	}
	log := id.Log.Format(place.LogID)
	leaf.Sealed, leaf.Index, leaf.LogID = true, &place.LeafIndex, &log
	return leaf, err
}
