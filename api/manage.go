package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// GetDestination reads one destination.
func (s *Server) GetDestination(ctx context.Context, request openapi.GetDestinationRequestObject) (openapi.GetDestinationResponseObject, error) {
	answer, err := s.changeDestination(ctx, request.DestinationID, func(*db.Queries, uuid.UUID) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("get destination: %w", err)
	}
	return openapi.GetDestination200JSONResponse(answer), nil
}

// PauseDestination holds back whatever isn't under way.
func (s *Server) PauseDestination(ctx context.Context, request openapi.PauseDestinationRequestObject) (openapi.PauseDestinationResponseObject, error) {
	answer, err := s.changeDestination(ctx, request.DestinationID, func(q *db.Queries, destination uuid.UUID) error {
		return foundDestination(q.PauseDestination(ctx, destination))
	})
	if err != nil {
		return nil, fmt.Errorf("pause destination: %w", err)
	}
	return openapi.PauseDestination200JSONResponse(answer), nil
}

// ResumeDestination lets go what was held back; dispatchers are told.
func (s *Server) ResumeDestination(ctx context.Context, request openapi.ResumeDestinationRequestObject) (openapi.ResumeDestinationResponseObject, error) {
	answer, err := s.changeDestination(ctx, request.DestinationID, func(q *db.Queries, destination uuid.UUID) error {
		return foundDestination(q.ResumeDestination(ctx, destination))
	})
	if err != nil {
		return nil, fmt.Errorf("resume destination: %w", err)
	}
	s.config.Notify()
	return openapi.ResumeDestination200JSONResponse(answer), nil
}

// EnableDestination lets go what has waited since the destination was disabled; dispatchers are told.
func (s *Server) EnableDestination(ctx context.Context, request openapi.EnableDestinationRequestObject) (openapi.EnableDestinationResponseObject, error) {
	answer, err := s.changeDestination(ctx, request.DestinationID, func(q *db.Queries, destination uuid.UUID) error {
		return foundDestination(q.EnableDestination(ctx, destination))
	})
	if err != nil {
		return nil, fmt.Errorf("enable destination: %w", err)
	}
	s.config.Notify()
	return openapi.EnableDestination200JSONResponse(answer), nil
}

// UpdateDestination changes what the request names, checked as at creation.
func (s *Server) UpdateDestination(ctx context.Context, request openapi.UpdateDestinationRequestObject) (openapi.UpdateDestinationResponseObject, error) {
	change, err := s.parseChange(request.Body)
	if err != nil {
		return nil, err
	}
	answer, err := s.changeDestination(ctx, request.DestinationID, func(q *db.Queries, destination uuid.UUID) error {
		row, err := q.LockDestination(ctx, destination)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("destination")
		}
		if err != nil {
			return err
		}
		change.ID = destination
		if err := settleURL(&change, request.Body, row); err != nil {
			return err
		}
		return q.UpdateDestination(ctx, change)
	})
	if err != nil {
		return nil, fmt.Errorf("update destination: %w", err)
	}
	if endpoint, err := id.Endpoint.Parse(answer.EndpointID); err == nil {
		s.endpoints.forget(endpoint) // its filter, and the URL that leaves of what is skipped name
	}
	return openapi.UpdateDestination200JSONResponse(answer), nil
}

// parseChange checks each member by itself; see settleURL for what must be right together.
func (s *Server) parseChange(body *openapi.DestinationChange) (db.UpdateDestinationParams, error) {
	var change db.UpdateDestinationParams
	if *body == (openapi.DestinationChange{}) {
		return change, malformed("Nothing is to be changed. Name at least one member of the destination.")
	}
	if body.URL != nil {
		if err := webhook.ValidateURL(*body.URL, s.config.Allow...); err != nil {
			return change, invalidBecause("", err)
		}
	}
	if body.TimeoutMs != nil {
		ms, err := parseTimeout("timeout_ms", *body.TimeoutMs)
		if err != nil {
			return change, err
		}
		change.TimeoutMs = &ms
	}
	if body.Schedule != nil {
		schedule, err := parseSchedule("schedule", body.Schedule)
		if err != nil {
			return change, err
		}
		if change.Schedule, err = json.Marshal(schedule); err != nil {
			return change, fmt.Errorf("write schedule: %w", err)
		}
	}
	if body.Circuit != nil {
		circuit, err := parseCircuit("circuit", body.Circuit)
		if err != nil {
			return change, err
		}
		if change.Circuit, err = json.Marshal(circuit); err != nil {
			return change, fmt.Errorf("write circuit: %w", err)
		}
	}
	change.ProofToken = body.ProofToken
	var err error
	if change.Filter, err = parseNewFilter("filter", body.Filter); err != nil {
		return change, err
	}
	if change.MaxConcurrency, err = parseNewLimit("max_concurrency", body.MaxConcurrency); err != nil {
		return change, err
	}
	if change.RatePerSecond, err = parseNewLimit("rate_per_second", body.RatePerSecond); err != nil {
		return change, err
	}
	if body.Headers != nil {
		headers, err := parseHeaders("headers", *body.Headers)
		if err != nil {
			return change, err
		}
		if change.Headers, err = json.Marshal(headers); err != nil {
			return change, fmt.Errorf("write headers: %w", err)
		}
	}
	return change, nil
}

// parseNewLimit returns nil for what stays as it is, and 0 for no limit.
func parseNewLimit(field string, limit *int) (*int32, error) {
	if limit != nil && *limit == 0 {
		return new(int32), nil
	}
	return parseLimit(field, limit)
}

// settleURL completes URL and secret_path by what is stored. A path that was secret stays so unless somebody says
// otherwise: what is once in the log can't be taken out of it.
func settleURL(change *db.UpdateDestinationParams, body *openapi.DestinationChange, row db.LockDestinationRow) error {
	change.Url, change.SecretPath = row.Url, row.SecretPath
	if body.URL != nil {
		change.Url = *body.URL
		change.SecretPath = row.SecretPath || attestation.SecretPath(change.Url)
	}
	if body.SecretPath != nil {
		change.SecretPath = *body.SecretPath
	}
	if _, err := attestation.EndpointURL(change.Url, change.SecretPath); err != nil {
		return unprovable("url")
	}
	return nil
}

// changeDestination runs change in a transaction and reads the destination as it is after it.
func (s *Server) changeDestination(ctx context.Context, name string, change func(*db.Queries, uuid.UUID) error) (openapi.Destination, error) {
	destination, err := id.Destination.Parse(name)
	if err != nil {
		return openapi.Destination{}, notFound("destination")
	}
	var answer openapi.Destination
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		if err := change(q, destination); err != nil {
			return err
		}
		answer, err = readDestination(ctx, q, destination)
		return err
	})
	return answer, err
}

// readDestination goes by way of the endpoint, so that there is one statement that reads destinations.
func readDestination(ctx context.Context, q *db.Queries, destination uuid.UUID) (openapi.Destination, error) {
	endpoint, err := q.EndpointOfDestination(ctx, destination)
	if errors.Is(err, pgx.ErrNoRows) {
		return openapi.Destination{}, notFound("destination")
	}
	if err != nil {
		return openapi.Destination{}, err
	}
	rows, err := q.DestinationsOf(ctx, []uuid.UUID{endpoint})
	if err != nil {
		return openapi.Destination{}, err
	}
	for _, row := range rows {
		if row.ID == destination {
			return destinationAnswer(row)
		}
	}
	return openapi.Destination{}, notFound("destination") // deleted a moment ago
}

// foundDestination turns an update that found nothing into its answer.
func foundDestination(rows int64, err error) error {
	if err == nil && rows == 0 {
		return notFound("destination")
	}
	return err
}

// DeleteDestination marks a destination deleted; workers cancel what waits for it. The endpoint's lock keeps two requests
// from deleting the last two together: an event without any delivery would be accepted and go nowhere.
func (s *Server) DeleteDestination(ctx context.Context, request openapi.DeleteDestinationRequestObject) (openapi.DeleteDestinationResponseObject, error) {
	destination, err := id.Destination.Parse(request.DestinationID)
	if err != nil {
		return nil, notFound("destination")
	}
	var endpoint uuid.UUID
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		if endpoint, err = q.EndpointOfDestination(ctx, destination); errors.Is(err, pgx.ErrNoRows) {
			return notFound("destination")
		} else if err != nil {
			return err
		}
		_, err := q.LockEndpoint(ctx, endpoint)
		isLive := err == nil
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if err := foundDestination(q.DeleteDestination(ctx, destination)); err != nil {
			return err
		}
		left, err := q.CountDestinations(ctx, endpoint)
		if err == nil && isLive && left == 0 {
			return &problem{kind: kindNeeded, detail: "It is the last destination of its endpoint. Delete the endpoint first, add another destination, or pause this one."}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("delete destination: %w", err)
	}
	s.endpoints.forget(endpoint)
	s.config.Notify()
	return openapi.DeleteDestination204Response{}, nil
}

// DeleteEndpoint ends an endpoint's ingest. What it accepted goes on to its destinations.
func (s *Server) DeleteEndpoint(ctx context.Context, request openapi.DeleteEndpointRequestObject) (openapi.DeleteEndpointResponseObject, error) {
	endpoint, err := id.Endpoint.Parse(request.EndpointID)
	if err != nil {
		return nil, notFound("endpoint")
	}
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		n, err := db.New(tx).DeleteEndpoint(ctx, endpoint)
		if err == nil && n == 0 {
			return notFound("endpoint")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("delete endpoint: %w", err)
	}
	s.endpoints.forget(endpoint)
	return openapi.DeleteEndpoint204Response{}, nil
}
