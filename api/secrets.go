package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// maxExpiry is the longest that the other secrets of an endpoint can be given when one is added.
const maxExpiry = 30 * 24 * time.Hour

// AddSecret adds a secret by which an endpoint's source may sign, and makes the others expire if that is asked for. All of
// it is one transaction under the lock of the endpoint: at no time is there no secret, nor one that doesn't fit the scheme.
func (s *Server) AddSecret(ctx context.Context, request openapi.AddSecretRequestObject) (openapi.AddSecretResponseObject, error) {
	endpointID, err := id.Endpoint.Parse(request.EndpointID)
	if err != nil {
		return nil, notFound("endpoint")
	}
	expire := request.Body.ExpireOthersInSeconds
	if longest := int64(maxExpiry / time.Second); expire != nil && (*expire < 0 || *expire > longest) {
		return nil, invalidField("expire_others_in_seconds", "must be 0 to %d, not %d", longest, *expire)
	}
	var answer openapi.Secret
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		source, err := lockSource(ctx, q, endpointID)
		if err != nil {
			return err
		}
		if err := source.ValidateSecret([]byte(request.Body.Secret)); err != nil {
			return invalidBecause("", err)
		}
		if expire != nil {
			if err := q.ExpireEndpointSecrets(ctx, float64(*expire), endpointID); err != nil {
				return err
			}
		}
		valid, err := q.EndpointSecrets(ctx, endpointID)
		if err != nil {
			return err
		}
		if len(valid) >= webhook.MaxSecrets {
			return &problem{kind: kindLimitReached, detail: fmt.Sprintf("The endpoint has %d valid secrets, the most there can be. Make one expire first.", len(valid))}
		}
		secretID := id.New()
		answer.ID = id.Secret.Format(secretID)
		answer.CreatedAt, err = q.AddEndpointSecret(ctx, secretID, endpointID, tenant, []byte(request.Body.Secret))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("add secret: %w", err)
	}
	s.endpoints.forget(endpointID)
	return openapi.AddSecret201JSONResponse(answer), nil
}

// ListSecrets says which secrets are valid, and nothing that is in them.
func (s *Server) ListSecrets(ctx context.Context, request openapi.ListSecretsRequestObject) (openapi.ListSecretsResponseObject, error) {
	endpointID, err := id.Endpoint.Parse(request.EndpointID)
	if err != nil {
		return nil, notFound("endpoint")
	}
	answer := openapi.SecretList{Data: []openapi.Secret{}}
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		if _, err := q.GetEndpoint(ctx, endpointID); errors.Is(err, pgx.ErrNoRows) {
			return notFound("endpoint")
		} else if err != nil {
			return err
		}
		rows, err := q.EndpointSecrets(ctx, endpointID)
		for _, row := range rows {
			answer.Data = append(answer.Data, openapi.Secret{ID: id.Secret.Format(row.ID), CreatedAt: row.CreatedAt, ExpiresAt: row.ExpiresAt})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	return openapi.ListSecrets200JSONResponse(answer), nil
}

// ExpireSecret makes one secret expire at once, but never the last that stays: an endpoint without any would refuse every
// webhook.
func (s *Server) ExpireSecret(ctx context.Context, request openapi.ExpireSecretRequestObject) (openapi.ExpireSecretResponseObject, error) {
	endpointID, err := id.Endpoint.Parse(request.EndpointID)
	if err != nil {
		return nil, notFound("endpoint")
	}
	secretID, err := id.Secret.Parse(request.SecretID)
	if err != nil {
		return nil, notFound("secret")
	}
	err = s.inTenant(ctx, func(tx pgx.Tx, _ uuid.UUID) error {
		q := db.New(tx)
		if _, err := lockSource(ctx, q, endpointID); err != nil {
			return err
		}
		valid, err := q.EndpointSecrets(ctx, endpointID)
		if err != nil {
			return err
		}
		found, remains := false, false
		for _, secret := range valid {
			found = found || secret.ID == secretID
			remains = remains || secret.ID != secretID && secret.ExpiresAt == nil
		}
		if !found {
			return notFound("secret")
		}
		if !remains {
			return &problem{kind: kindLastSecret, detail: "It is the endpoint's last secret that doesn't expire by itself. Add another one with expire_others_in_seconds 0."}
		}
		return q.ExpireEndpointSecret(ctx, secretID)
	})
	if err != nil {
		return nil, fmt.Errorf("expire secret: %w", err)
	}
	s.endpoints.forget(endpointID)
	return openapi.ExpireSecret204Response{}, nil
}

// lockSource reads how an endpoint is verified and keeps it so until the transaction ends.
func lockSource(ctx context.Context, q *db.Queries, endpointID uuid.UUID) (source webhook.Source, err error) {
	stored, err := q.LockEndpointSource(ctx, endpointID)
	if errors.Is(err, pgx.ErrNoRows) {
		return source, notFound("endpoint")
	}
	if err != nil {
		return source, err
	}
	if err := json.Unmarshal(stored, &source); err != nil {
		return source, fmt.Errorf("read verification: %w", err)
	}
	return source, nil
}
