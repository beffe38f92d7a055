package api

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// fromOutside is the end of a sentence about a member that an operational endpoint has no use for.
const fromOutside = "an operational endpoint, which takes nothing from outside"

// validOperational refuses what says how webhooks arrive: to an operational endpoint none do.
func validOperational(body *openapi.NewEndpoint) error {
	if body.Verification.Scheme != openapi.VerificationScheme(webhook.SchemeNone) {
		return invalidField("verification.scheme", `must be "none" for %s`, fromOutside)
	}
	for _, member := range []struct {
		name  string
		given bool
	}{{"secrets", body.Secrets != nil}, {"duplicates", body.Duplicates != nil}, {"ordering", body.Ordering != nil}, {"event_type", body.EventType != nil},
		{"attest_acceptance", body.AttestAcceptance != nil}} {
		if member.given {
			return invalidField(member.name, "must be left out for %s", fromOutside)
		}
	}
	return nil
}

// keepOperational refuses to change how webhooks arrive at an operational endpoint.
func (c *endpointChange) keepOperational(ctx context.Context, q *db.Queries) error {
	if c.source == nil && c.row.Duplicates == nil && c.row.EventType == nil && c.row.AttestAcceptance == nil {
		return nil
	}
	operational, err := q.IsOperational(ctx, c.row.ID)
	if err != nil || !operational {
		return err
	}
	field := "event_type"
	switch {
	case c.source != nil:
		field = "verification"
	case c.row.Duplicates != nil:
		field = "duplicates"
	case c.row.AttestAcceptance != nil:
		field = "attest_acceptance"
	}
	return invalidField(field, "can't be changed for %s", fromOutside)
}

// onlyOperational explains why an endpoint wasn't stored, if the tenant has an operational one already.
func onlyOperational(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.ConstraintName == "endpoints_operational" {
		return &problem{kind: kindLimitReached, detail: "There is an operational endpoint already, and there can be one. " +
			"Add a destination to it, or delete it first."}
	}
	return err
}
