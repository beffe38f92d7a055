package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

const (
	// maxSigningSecrets of a destination are valid at a time: each adds a signature to every request.
	maxSigningSecrets = 10
	// How long the other secrets go on signing beside a new one, in seconds.
	defaultOverlap = 24 * 60 * 60
	maxOverlap     = 30 * 24 * 60 * 60
)

// AddSigningSecret stores one more secret and gives the others an end. The destination's lock keeps two requests from
// passing the limit together.
func (s *Server) AddSigningSecret(ctx context.Context, request openapi.AddSigningSecretRequestObject) (openapi.AddSigningSecretResponseObject, error) {
	destination, err := id.Destination.Parse(request.DestinationID)
	if err != nil {
		return nil, notFound("destination")
	}
	secret, made, overlap, err := parseSigningSecret(request.Body)
	if err != nil {
		return nil, err
	}
	secretID := id.New()
	var answer openapi.SigningSecret
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		valid, err := lockSigningSecrets(ctx, q, destination)
		if err != nil {
			return err
		}
		if len(valid) >= maxSigningSecrets {
			return &problem{kind: kindLimitReached, detail: fmt.Sprintf("%d signing secrets are valid, the most there can be. Delete one, or wait until one has expired.", len(valid))}
		}
		if err := q.ExpireSigningSecrets(ctx, destination, overlap); err != nil {
			return err
		}
		if err := q.InsertDestinationSecret(ctx, secretID, destination, tenant, secret); err != nil {
			return err
		}
		if valid, err = q.SigningSecrets(ctx, destination); err != nil {
			return err
		}
		for _, row := range valid {
			if row.ID == secretID {
				answer = signingSecretAnswer(row)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add signing secret: %w", err)
	}
	answer.Secret = made
	return openapi.AddSigningSecret201JSONResponse(answer), nil
}

// parseSigningSecret returns the secret's bytes, its text if it was made here, and the overlap in seconds.
func parseSigningSecret(body *openapi.NewSigningSecret) (secret []byte, made *string, overlap int64, err error) {
	overlap = defaultOverlap
	if seconds := body.ExpireOthersInSeconds; seconds != nil {
		if overlap = *seconds; overlap < 0 || overlap > maxOverlap {
			return nil, nil, 0, invalidField("expire_others_in_seconds", "must be 0 to %d, not %d", maxOverlap, overlap)
		}
	}
	text := body.Secret
	if text == nil {
		fresh := webhook.NewSigningSecret()
		text, made = &fresh, &fresh
	}
	if secret, err = webhook.ParseSigningSecret(*text); err != nil {
		return nil, nil, 0, invalidField("secret", "must be whsec_ and base64 of 24 to 64 bytes")
	}
	return secret, made, overlap, nil
}

// lockSigningSecrets locks the destination and reads its valid secrets.
func lockSigningSecrets(ctx context.Context, q *db.Queries, destination uuid.UUID) ([]db.SigningSecretsRow, error) {
	if _, err := q.LockDestination(ctx, destination); errors.Is(err, pgx.ErrNoRows) {
		return nil, notFound("destination")
	} else if err != nil {
		return nil, err
	}
	return q.SigningSecrets(ctx, destination)
}

// ListSigningSecrets tells when each valid secret was added and when it ends.
func (s *Server) ListSigningSecrets(ctx context.Context, request openapi.ListSigningSecretsRequestObject) (openapi.ListSigningSecretsResponseObject, error) {
	destination, err := id.Destination.Parse(request.DestinationID)
	if err != nil {
		return nil, notFound("destination")
	}
	answer := openapi.ListSigningSecrets200JSONResponse{Data: []openapi.SigningSecret{}}
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		if _, err := q.EndpointOfDestination(ctx, destination); errors.Is(err, pgx.ErrNoRows) {
			return notFound("destination")
		} else if err != nil {
			return err
		}
		rows, err := q.SigningSecrets(ctx, destination)
		for _, row := range rows {
			answer.Data = append(answer.Data, signingSecretAnswer(row))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list signing secrets: %w", err)
	}
	return answer, nil
}

// DeleteSigningSecret ends a secret now. One stays: a request without a signature isn't what the receiver agreed to.
func (s *Server) DeleteSigningSecret(ctx context.Context, request openapi.DeleteSigningSecretRequestObject) (openapi.DeleteSigningSecretResponseObject, error) {
	destination, err := id.Destination.Parse(request.DestinationID)
	if err != nil {
		return nil, notFound("destination")
	}
	secret, err := id.Secret.Parse(request.SecretID)
	if err != nil {
		return nil, notFound("signing secret")
	}
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		valid, err := lockSigningSecrets(ctx, q, destination)
		if err != nil {
			return err
		}
		n, err := q.ExpireSigningSecret(ctx, secret, destination)
		switch {
		case err != nil:
			return err
		case n == 0:
			return notFound("signing secret")
		case !staysSigned(valid, secret):
			return &problem{kind: kindNeeded, detail: "It is the last signing secret that has no end. Add another one first."}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("delete signing secret: %w", err)
	}
	return openapi.DeleteSigningSecret204Response{}, nil
}

// staysSigned reports whether there is a secret without an end beside the one that is deleted: those that expire would
// leave the destination without any, sooner or later.
func staysSigned(valid []db.SigningSecretsRow, deleted uuid.UUID) bool {
	return slices.ContainsFunc(valid, func(row db.SigningSecretsRow) bool { return row.ExpiresAt == nil && row.ID != deleted })
}

func signingSecretAnswer(row db.SigningSecretsRow) openapi.SigningSecret {
	return openapi.SigningSecret{ID: id.Secret.Format(row.ID), CreatedAt: row.CreatedAt.UTC(), ExpiresAt: inUTC(row.ExpiresAt)}
}

func inUTC(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	utc := t.UTC()
	return &utc
}
