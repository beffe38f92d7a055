package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// maxName is the length of the longest name in characters.
const maxName = 200

// endpointRow is an endpoint as it is read, by whichever statement.
type endpointRow db.GetEndpointRow

// newEndpoint is a request to create an endpoint that was found to be right.
type newEndpoint struct {
	row          db.InsertEndpointParams
	secrets      [][]byte
	destinations []*newDestination
}

// CreateEndpoint stores an endpoint, its secrets and its destinations in one transaction.
func (s *Server) CreateEndpoint(ctx context.Context, request openapi.CreateEndpointRequestObject) (openapi.CreateEndpointResponseObject, error) {
	e, err := s.parseEndpoint(request.Body)
	if err != nil {
		return nil, err
	}
	var created time.Time
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		e.row.TenantID = tenant
		var err error
		if created, err = q.InsertEndpoint(ctx, e.row); err != nil {
			return onlyOperational(err)
		}
		for _, secret := range e.secrets {
			if err := q.InsertEndpointSecret(ctx, id.New(), e.row.ID, tenant, secret); err != nil {
				return err
			}
		}
		for _, d := range e.destinations {
			if err := d.insert(ctx, q, tenant, e.row.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("create endpoint: %w", err)
	}
	s.endpoints.forget(e.row.ID)
	answer, err := s.endpointAnswer(endpointRow{
		ID: e.row.ID, Name: e.row.Name, Verification: e.row.Verification, Duplicates: e.row.Duplicates, Lane: e.row.Lane,
		Ordering: e.row.Ordering, EventType: e.row.EventType, RecordSkipped: e.row.RecordSkipped, Operational: e.row.Operational,
		CreatedAt: created, SecretCount: int64(len(e.secrets)), AttestAcceptance: e.row.AttestAcceptance,
	})
	if err != nil {
		return nil, err
	}
	for _, d := range e.destinations {
		answer.Destinations = append(answer.Destinations, d.answer())
	}
	return openapi.CreateEndpoint201JSONResponse(answer), nil
}

// parseEndpoint names the first member that is wrong. What it lets through is stored as it is.
func (s *Server) parseEndpoint(body *openapi.NewEndpoint) (*newEndpoint, error) {
	if err := validName(body.Name); err != nil {
		return nil, err
	}
	if value(body.Operational) {
		if err := validOperational(body); err != nil {
			return nil, err
		}
	}
	source, verification, err := parseVerification(body.Verification)
	if err != nil {
		return nil, err
	}
	e := &newEndpoint{row: db.InsertEndpointParams{ID: id.New(), Name: body.Name, Verification: verification, Lane: string(openapi.Auto)}}
	e.row.Operational = value(body.Operational)
	e.secrets = secretBytes(value(body.Secrets))
	if err := source.ValidateSecrets(e.secrets); err != nil {
		return nil, invalidBecause("", err)
	}
	if e.row.Duplicates, err = parseDuplicates(value(body.Duplicates)); err != nil {
		return nil, err
	}
	if body.Lane != nil {
		if err := validLane(*body.Lane); err != nil {
			return nil, err
		}
		e.row.Lane = string(*body.Lane)
	}
	if e.row.Ordering, err = parseOrdering(body.Ordering); err != nil {
		return nil, err
	}
	if e.row.EventType, err = parseEventType("event_type", body.EventType); err != nil {
		return nil, err
	}
	e.row.RecordSkipped = body.RecordSkipped == nil || *body.RecordSkipped
	e.row.AttestAcceptance = value(body.AttestAcceptance)
	e.destinations, err = s.parseDestinations(body.Destinations)
	return e, err
}

func validLane(lane openapi.Lane) error {
	if !lane.Valid() {
		return invalidField("lane", `must be "auto", "workflow" or "batch"`)
	}
	return nil
}

// parseDuplicates returns the policy in the form in which it is stored.
func parseDuplicates(d openapi.Duplicates) (json.RawMessage, error) {
	policy := policyOf(d)
	if err := policy.Validate(); err != nil {
		return nil, invalidBecause("duplicates", err)
	}
	if d.WindowSeconds != nil && policy.WindowSeconds == 0 {
		return nil, invalidField("duplicates.window_seconds", "must be 1 to %d, not 0", int(webhook.MaxWindow/time.Second))
	}
	stored, err := json.Marshal(policy)
	if err != nil {
		return nil, fmt.Errorf("write duplicate policy: %w", err)
	}
	return stored, nil
}

func validName(name string) error {
	if n := utf8.RuneCountInString(name); n < 1 || n > maxName || slices.ContainsFunc([]rune(name), unicode.IsControl) {
		return invalidField("name", "must have 1 to %d characters and no control characters", maxName)
	}
	return nil
}

func policyOf(d openapi.Duplicates) webhook.DuplicatePolicy {
	return webhook.DuplicatePolicy{
		Source:        webhook.DuplicateSource(value(d.Source)),
		Header:        value(d.Header),
		WindowSeconds: value(d.WindowSeconds),
	}
}

// value is what an optional member holds, or the zero value.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// GetEndpoint reads one endpoint.
func (s *Server) GetEndpoint(ctx context.Context, request openapi.GetEndpointRequestObject) (openapi.GetEndpointResponseObject, error) {
	endpointID, err := id.Endpoint.Parse(request.EndpointID)
	if err != nil {
		return nil, notFound("endpoint")
	}
	var answers []openapi.Endpoint
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		row, err := db.New(tx).GetEndpoint(ctx, endpointID)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("endpoint")
		}
		if err != nil {
			return err
		}
		answers, err = s.endpointAnswers(ctx, db.New(tx), []endpointRow{endpointRow(row)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get endpoint: %w", err)
	}
	return openapi.GetEndpoint200JSONResponse(answers[0]), nil
}

// ListEndpoints reads a page of endpoints.
func (s *Server) ListEndpoints(ctx context.Context, request openapi.ListEndpointsRequestObject) (openapi.ListEndpointsResponseObject, error) {
	p, err := parsePage(id.Endpoint, request.Params.Limit, request.Params.Cursor)
	if err != nil {
		return nil, err
	}
	var answer openapi.EndpointPage
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		rows, err := db.New(tx).ListEndpoints(ctx, p.before, p.limit+1)
		if err != nil {
			return err
		}
		rows, more := cut(rows, p.limit)
		if more {
			answer.NextCursor = p.cursor(rows[len(rows)-1].ID)
		}
		found := make([]endpointRow, len(rows))
		for i, row := range rows {
			found[i] = endpointRow(row)
		}
		answer.Data, err = s.endpointAnswers(ctx, db.New(tx), found)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return openapi.ListEndpoints200JSONResponse(answer), nil
}

// endpointAnswers adds the destinations, with one statement for all.
func (s *Server) endpointAnswers(ctx context.Context, q *db.Queries, rows []endpointRow) ([]openapi.Endpoint, error) {
	ids := make([]uuid.UUID, len(rows))
	place := map[uuid.UUID]int{}
	answers := make([]openapi.Endpoint, len(rows))
	for i, row := range rows {
		var err error
		if answers[i], err = s.endpointAnswer(row); err != nil {
			return nil, err
		}
		ids[i], place[row.ID] = row.ID, i
	}
	destinations, err := q.DestinationsOf(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, d := range destinations {
		answer, err := destinationAnswer(d)
		if err != nil {
			return nil, err
		}
		e := &answers[place[d.EndpointID]]
		e.Destinations = append(e.Destinations, answer)
	}
	return answers, nil
}

func (s *Server) endpointAnswer(row endpointRow) (openapi.Endpoint, error) {
	name := id.Endpoint.Format(row.ID)
	answer := openapi.Endpoint{
		ID: name, Name: row.Name, Lane: row.Lane, CreatedAt: row.CreatedAt, SecretCount: int(row.SecretCount),
		RecordSkipped: row.RecordSkipped, AttestAcceptance: row.AttestAcceptance,
		Operational:  row.Operational,
		Destinations: []openapi.Destination{},
	}
	if !row.Operational {
		answer.IngestURL = s.config.PublicURL + "/ingest/" + name
	}
	var policy webhook.DuplicatePolicy
	var err error
	if answer.EventType, err = eventTypeAnswer(row.EventType); err != nil {
		return answer, fmt.Errorf("%s: %w", name, err)
	}
	if answer.Verification, err = verificationAnswer(row.Verification); err != nil {
		return answer, fmt.Errorf("read verification of %s: %w", name, err)
	}
	if err := json.Unmarshal(row.Duplicates, &policy); err != nil {
		return answer, fmt.Errorf("read duplicate policy of %s: %w", name, err)
	}
	source, window := openapi.DuplicatesSource(policy.Source), int64(policy.Window()/time.Second)
	if source == "" {
		source = openapi.DuplicatesSourceNone
	}
	answer.Duplicates = openapi.Duplicates{Source: &source, WindowSeconds: &window}
	if policy.Header != "" {
		answer.Duplicates.Header = &policy.Header
	}
	if row.Ordering != nil {
		if err := json.Unmarshal(row.Ordering, &answer.Ordering); err != nil {
			return answer, fmt.Errorf("read ordering of %s: %w", name, err)
		}
	}
	return answer, nil
}
