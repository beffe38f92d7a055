package api

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// endpointChange is a request to change an endpoint, as far as it could be checked without knowing the endpoint.
type endpointChange struct {
	row     db.UpdateEndpointParams
	source  *webhook.Source // nil: it stays
	secrets [][]byte        // nil: they stay, if they can
}

// UpdateEndpoint changes what the request names and leaves all else as it is.
func (s *Server) UpdateEndpoint(ctx context.Context, request openapi.UpdateEndpointRequestObject) (openapi.UpdateEndpointResponseObject, error) {
	endpointID, err := id.Endpoint.Parse(request.EndpointID)
	if err != nil {
		return nil, notFound("endpoint")
	}
	change, err := parseChange(request.Body)
	if err != nil {
		return nil, err
	}
	change.row.ID = endpointID
	var answers []openapi.Endpoint
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		old, err := lockSource(ctx, q, endpointID)
		if err != nil {
			return err
		}
		if err := change.keepOperational(ctx, q); err != nil {
			return err
		}
		if err := change.keepOrder(ctx, q); err != nil {
			return err
		}
		if err := change.exchangeSecrets(ctx, q, old, tenant); err != nil {
			return err
		}
		if err := q.UpdateEndpoint(ctx, change.row); err != nil {
			return err
		}
		row, err := q.GetEndpoint(ctx, endpointID)
		if err != nil {
			return err
		}
		answers, err = s.endpointAnswers(ctx, q, []endpointRow{endpointRow(row)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("update endpoint: %w", err)
	}
	s.endpoints.forget(endpointID)
	return openapi.UpdateEndpoint200JSONResponse(answers[0]), nil
}

// parseChange checks each member as at creation.
func parseChange(body *openapi.EndpointChange) (*endpointChange, error) {
	change := &endpointChange{row: db.UpdateEndpointParams{Name: body.Name}}
	if body.Name != nil {
		if err := validName(*body.Name); err != nil {
			return nil, err
		}
	}
	if body.Lane != nil {
		if err := validLane(*body.Lane); err != nil {
			return nil, err
		}
		change.row.Lane = (*string)(body.Lane)
	}
	var err error
	if body.Duplicates != nil {
		if change.row.Duplicates, err = parseDuplicates(*body.Duplicates); err != nil {
			return nil, err
		}
	}
	if change.row.Ordering, err = parseOrdering(body.Ordering); err != nil {
		return nil, err
	}
	if body.EventType != nil {
		if change.row.EventType, err = parseEventType("event_type", body.EventType); err != nil {
			return nil, err
		}
	}
	change.row.RecordSkipped = body.RecordSkipped
	change.row.AttestAcceptance = body.AttestAcceptance
	if body.Verification == nil {
		if body.Secrets != nil {
			return nil, invalidField("secrets", "can be replaced together with verification only. Add one with POST …/secrets")
		}
		return change, nil
	}
	source, stored, err := parseVerification(*body.Verification)
	if err != nil {
		return nil, err
	}
	change.source, change.row.Verification = &source, stored
	if body.Secrets != nil {
		change.secrets = secretBytes(*body.Secrets)
		if err := source.ValidateSecrets(change.secrets); err != nil {
			return nil, invalidBecause("", err)
		}
	}
	return change, nil
}

// exchangeSecrets makes those of the old source expire unless they can stay, and stores the new ones. The secrets can't be
// read here, so whether they fit is decided by their form.
func (c *endpointChange) exchangeSecrets(ctx context.Context, q *db.Queries, old webhook.Source, tenant uuid.UUID) error {
	if c.source == nil || c.secrets == nil && c.source.TakesSecretsOf(old) {
		return nil
	}
	if c.source.NeedsSecrets() && c.secrets == nil {
		return invalidField("secrets", "are needed: those of scheme %q can't be used for scheme %q", old.Scheme, c.source.Scheme)
	}
	if err := q.ExpireEndpointSecrets(ctx, 0, c.row.ID); err != nil {
		return err
	}
	for _, secret := range c.secrets {
		if err := q.InsertEndpointSecret(ctx, id.New(), c.row.ID, tenant, secret); err != nil {
			return err
		}
	}
	return nil
}
