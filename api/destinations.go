package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

const (
	maxDestinations  = 100 // of an endpoint
	defaultTimeoutMS = 30_000
	minTimeoutMS     = 100
	maxTimeoutMS     = 120_000
	mostAllowed      = 10_000 // of concurrency and rate
)

// newDestination is a request to create a destination that was found to be right.
type newDestination struct {
	row      db.InsertDestinationParams
	schedule delivery.Schedule
	circuit  delivery.CircuitSettings
	headers  http.Header
	secret   string // whsec_…; empty: not signed by v1
	filter   *openapi.Filter
	created  time.Time
	sending  newSending
}

// AddDestination stores one more destination of an endpoint.
func (s *Server) AddDestination(ctx context.Context, request openapi.AddDestinationRequestObject) (openapi.AddDestinationResponseObject, error) {
	endpointID, err := id.Endpoint.Parse(request.EndpointID)
	if err != nil {
		return nil, notFound("endpoint")
	}
	d, err := s.parseDestination("", request.Body)
	if err != nil {
		return nil, err
	}
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		if _, err := q.LockEndpoint(ctx, endpointID); errors.Is(err, pgx.ErrNoRows) {
			return notFound("endpoint")
		} else if err != nil {
			return err
		}
		n, err := q.CountDestinations(ctx, endpointID)
		if err != nil {
			return err
		}
		if n >= maxDestinations {
			return &problem{kind: kindLimitReached, detail: fmt.Sprintf("The endpoint has %d destinations, the most there can be. Use another endpoint.", n)}
		}
		return d.insert(ctx, q, tenant, endpointID)
	})
	if err != nil {
		return nil, fmt.Errorf("add destination: %w", err)
	}
	s.endpoints.forget(endpointID)
	return openapi.AddDestination201JSONResponse(d.answer()), nil
}

func (s *Server) parseDestinations(body []openapi.NewDestination) ([]*newDestination, error) {
	if len(body) < 1 || len(body) > maxDestinations {
		return nil, invalidField("destinations", "must be 1 to %d, not %d", maxDestinations, len(body))
	}
	var destinations []*newDestination
	for i := range body {
		d, err := s.parseDestination(fmt.Sprintf("destinations[%d]", i), &body[i])
		if err != nil {
			return nil, err
		}
		destinations = append(destinations, d)
	}
	return destinations, nil
}

// parseDestination names the first member that is wrong; base is where the destination stands in the request.
func (s *Server) parseDestination(base string, body *openapi.NewDestination) (*newDestination, error) {
	if err := webhook.ValidateURL(body.URL, s.config.Allow...); err != nil {
		return nil, invalidBecause(base, err)
	}
	d := &newDestination{row: db.InsertDestinationParams{ID: id.New(), Url: body.URL, TimeoutMs: defaultTimeoutMS}}
	d.row.SecretPath = attestation.SecretPath(body.URL)
	if body.SecretPath != nil {
		d.row.SecretPath = *body.SecretPath
	}
	// The log must be able to name every URL that is stored: no attempt may fail to be recorded.
	if _, err := attestation.EndpointURL(body.URL, d.row.SecretPath); err != nil {
		return nil, unprovable(join(base, "url"))
	}
	var err error
	if ms := body.TimeoutMs; ms != nil {
		if d.row.TimeoutMs, err = parseTimeout(join(base, "timeout_ms"), *ms); err != nil {
			return nil, err
		}
	}
	if d.row.MaxConcurrency, err = parseLimit(join(base, "max_concurrency"), body.MaxConcurrency); err != nil {
		return nil, err
	}
	if d.row.RatePerSecond, err = parseLimit(join(base, "rate_per_second"), body.RatePerSecond); err != nil {
		return nil, err
	}
	if d.schedule, err = parseSchedule(join(base, "schedule"), body.Schedule); err != nil {
		return nil, err
	}
	if d.circuit, err = parseCircuit(join(base, "circuit"), body.Circuit); err != nil {
		return nil, err
	}
	d.row.ProofToken = value(body.ProofToken)
	d.filter = body.Filter
	if d.row.Filter, err = parseFilter(join(base, "filter"), body.Filter); err != nil {
		return nil, err
	}
	if d.headers, err = parseHeaders(join(base, "headers"), value(body.Headers)); err != nil {
		return nil, err
	}
	if d.row.Schedule, err = json.Marshal(d.schedule); err != nil {
		return nil, fmt.Errorf("write schedule: %w", err)
	}
	if d.row.Circuit, err = json.Marshal(d.circuit); err != nil {
		return nil, fmt.Errorf("write circuit: %w", err)
	}
	if d.row.Headers, err = json.Marshal(d.headers); err != nil {
		return nil, fmt.Errorf("write headers: %w", err)
	}
	return d, s.parseSending(base, body, d)
}

// unprovable refuses a URL that a leaf can't name.
func unprovable(field string) *problem {
	return invalidField(field, "must have a host name or address that can be written in a proof, and a path that is not too long")
}

func parseTimeout(field string, ms int) (int32, error) {
	if ms < minTimeoutMS || ms > maxTimeoutMS {
		return 0, invalidField(field, "must be %d to %d, not %d", minTimeoutMS, maxTimeoutMS, ms)
	}
	return int32(ms), nil
}

// parseLimit returns nil for no limit.
func parseLimit(field string, limit *int) (*int32, error) {
	if limit == nil {
		return nil, nil
	}
	if *limit < 1 || *limit > mostAllowed {
		return nil, invalidField(field, "must be 1 to %d, not %d. Leave it out for no limit", mostAllowed, *limit)
	}
	n := int32(*limit)
	return &n, nil
}

// limitAnswer leaves out a limit that there isn't.
func limitAnswer(limit *int32) *int {
	if limit == nil {
		return nil
	}
	n := int(*limit)
	return &n
}

// parseSchedule stores a schedule with its defaults written out, so that it stays what it was when defaults change.
func parseSchedule(base string, body *openapi.Schedule) (delivery.Schedule, error) {
	if body == nil {
		return delivery.DefaultSchedule(), nil
	}
	for member, zero := range map[string]bool{
		"max_attempts":   body.MaxAttempts != nil && *body.MaxAttempts == 0,
		"first_delay_ms": body.FirstDelayMs != nil && *body.FirstDelayMs == 0,
		"factor":         body.Factor != nil && *body.Factor == 0,
		"max_delay_ms":   body.MaxDelayMs != nil && *body.MaxDelayMs == 0,
	} {
		if zero { // which would mean the default
			return delivery.Schedule{}, invalidField(join(base, member), "must not be 0. Leave it out for the default")
		}
	}
	schedule := delivery.Schedule{
		Type:         delivery.ScheduleType(value(body.Type)),
		MaxAttempts:  value(body.MaxAttempts),
		FirstDelayMS: value(body.FirstDelayMs),
		Factor:       value(body.Factor),
		MaxDelayMS:   value(body.MaxDelayMs),
		DelaysMS:     value(body.DelaysMs),
	}.Resolved()
	if err := schedule.Validate(); err != nil {
		return delivery.Schedule{}, invalidBecause(base, err)
	}
	return schedule, nil
}

// parseHeaders stores names in their canonical case; two spellings of one name would be two values of it.
func parseHeaders(base string, body map[string]string) (http.Header, error) {
	headers := http.Header{}
	for _, name := range slices.Sorted(maps.Keys(body)) {
		canonical := http.CanonicalHeaderKey(name)
		if headers[canonical] != nil {
			return nil, invalidField(base, "names %s twice", canonical)
		}
		headers[canonical] = []string{body[name]}
	}
	if err := webhook.ValidateConfiguredHeaders(headers); err != nil {
		return nil, &problem{kind: kindField, field: base, detail: base + " can't be used: " + err.Error() + "."}
	}
	return headers, nil
}

func (d *newDestination) insert(ctx context.Context, q *db.Queries, tenant, endpointID uuid.UUID) error {
	d.row.TenantID, d.row.EndpointID = tenant, endpointID
	var err error
	if d.created, err = q.InsertDestination(ctx, d.row); err != nil {
		return err
	}
	return d.insertSending(ctx, q)
}

// answer is the only one that holds the signing secret.
func (d *newDestination) answer() openapi.Destination {
	answer := openapi.Destination{
		ID: id.Destination.Format(d.row.ID), EndpointID: id.Endpoint.Format(d.row.EndpointID), URL: d.row.Url, TimeoutMs: int(d.row.TimeoutMs), Schedule: scheduleAnswer(d.schedule),
		HeaderNames: append([]string{}, slices.Sorted(maps.Keys(d.headers))...), SecretPath: d.row.SecretPath,
		MaxConcurrency: limitAnswer(d.row.MaxConcurrency), RatePerSecond: limitAnswer(d.row.RatePerSecond),
		Filter: d.filter, CreatedAt: d.created, Circuit: newCircuitAnswer(d.circuit), ProofToken: d.row.ProofToken,
	}
	d.addSending(&answer)
	return answer
}

func destinationAnswer(row db.DestinationsOfRow) (openapi.Destination, error) {
	name := id.Destination.Format(row.ID)
	var schedule delivery.Schedule
	if err := json.Unmarshal(row.Schedule, &schedule); err != nil {
		return openapi.Destination{}, fmt.Errorf("read schedule of %s: %w", name, err)
	}
	circuit, err := circuitAnswer(row)
	if err != nil {
		return openapi.Destination{}, fmt.Errorf("read circuit of %s: %w", name, err)
	}
	filter, err := filterAnswer(row.Filter)
	if err != nil {
		return openapi.Destination{}, fmt.Errorf("%s: %w", name, err)
	}
	return openapi.Destination{
		ID: name, EndpointID: id.Endpoint.Format(row.EndpointID), URL: row.Url, Circuit: circuit, TimeoutMs: int(row.TimeoutMs), Schedule: scheduleAnswer(schedule), HeaderNames: row.HeaderNames,
		SecretPath: row.SecretPath, MaxConcurrency: limitAnswer(row.MaxConcurrency), RatePerSecond: limitAnswer(row.RatePerSecond),
		PausedAt: row.PausedAt, DisabledAt: row.DisabledAt, DisabledReason: row.DisabledReason,
		Filter: filter, CreatedAt: row.CreatedAt, ProofToken: row.ProofToken,
	}, nil
}

// scheduleAnswer leaves out what has no meaning for the schedule's type.
func scheduleAnswer(s delivery.Schedule) openapi.Schedule {
	kind := openapi.ScheduleType(s.Type)
	answer := openapi.Schedule{Type: &kind, MaxAttempts: &s.MaxAttempts}
	switch s.Type {
	case delivery.Exponential:
		answer.FirstDelayMs, answer.Factor, answer.MaxDelayMs = &s.FirstDelayMS, &s.Factor, &s.MaxDelayMS
	case delivery.List:
		answer.DelaysMs = &s.DelaysMS
	}
	return answer
}
