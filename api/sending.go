package api

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// The schemes of Standard Webhooks.
const (
	schemeHMAC    = "v1"
	schemeEd25519 = "v1a"
)

// newSending is how a destination that is being created is signed for and reached.
type newSending struct {
	key       *newSigningKey // nil: not signed by v1a
	transport *newTransport  // nil: as usual
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// parseSending completes a destination by how it is signed for and reached.
func (s *Server) parseSending(base string, body *openapi.NewDestination, d *newDestination) error {
	schemes := []string{schemeHMAC}
	if body.Signing != nil {
		schemes = *body.Signing
	}
	if len(schemes) < 1 || len(schemes) > 2 {
		return invalidField(join(base, "signing"), `must hold "v1", "v1a" or both`)
	}
	for i, scheme := range schemes {
		at := join(base, fmt.Sprintf("signing[%d]", i))
		switch {
		case slices.Contains(schemes[:i], scheme):
			return invalidField(at, "must not repeat another")
		case scheme == schemeHMAC:
			d.secret = webhook.NewSigningSecret()
		case scheme == schemeEd25519:
			d.sending.key = makeSigningKey()
		default:
			return invalidField(at, `must be "v1" or "v1a"`)
		}
	}
	if body.Transport == nil {
		return nil
	}
	t, err := s.parseTransport(join(base, "transport"), body.Transport)
	if err == nil && !t.usual() {
		d.sending.transport = t
	}
	return err
}

// insertSending stores what signs for the destination and how it is reached.
func (d *newDestination) insertSending(ctx context.Context, q *db.Queries) error {
	destination, tenant := d.row.ID, d.row.TenantID
	if d.secret != "" {
		secret, err := webhook.ParseSigningSecret(d.secret)
		if err != nil {
			return err
		}
		if err := q.InsertDestinationSecret(ctx, id.New(), destination, tenant, secret); err != nil {
			return err
		}
	}
	if d.sending.key != nil {
		if err := d.sending.key.insert(ctx, q, tenant, destination); err != nil {
			return err
		}
	}
	if d.sending.transport != nil {
		return d.sending.transport.insert(ctx, q, tenant, destination)
	}
	return nil
}

// addSending completes the answer to a destination's creation.
func (d *newDestination) addSending(answer *openapi.Destination) {
	answer.SigningSecret = unlessEmpty(d.secret)
	if d.sending.key != nil {
		answer.SigningKeys = &[]openapi.SigningKey{d.sending.key.answer()}
	}
	if d.sending.transport != nil {
		transport := d.sending.transport.answer()
		answer.Transport = &transport
	}
}

// inSending runs f in a transaction that holds the lock under which a destination's keys and transport change.
func (s *Server) inSending(ctx context.Context, name string, f func(q *db.Queries, tenant, destination uuid.UUID) error) error {
	destination, err := id.Destination.Parse(name)
	if err != nil {
		return notFound("destination")
	}
	return s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		if _, err := q.LockForSending(ctx, destination); errors.Is(err, pgx.ErrNoRows) {
			return notFound("destination")
		} else if err != nil {
			return err
		}
		return f(q, tenant, destination)
	})
}

// reading runs f in a transaction for a destination that is there.
func (s *Server) reading(ctx context.Context, name string, f func(q *db.Queries, destination uuid.UUID) error) error {
	destination, err := id.Destination.Parse(name)
	if err != nil {
		return notFound("destination")
	}
	return s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		there, err := q.DestinationExists(ctx, destination)
		if err != nil {
			return err
		}
		if !there {
			return notFound("destination")
		}
		return f(q, destination)
	})
}
