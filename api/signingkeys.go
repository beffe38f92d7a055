package api

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

const (
	maxSigningKeys   = 5         // that are valid at once
	maxKeysOfDay     = 20        // that are made within a day: all keys that ever were are listed at /keys, for everybody
	defaultKeyExpiry = 86_400    // seconds for which the other keys go on
	maxKeyExpiry     = 2_592_000 // 30 days
)

// newSigningKey is a key pair that is to be stored.
type newSigningKey struct {
	id      uuid.UUID
	public  ed25519.PublicKey
	private ed25519.PrivateKey
	created time.Time
}

func makeSigningKey() *newSigningKey {
	public, private := webhook.NewSigningKey()
	return &newSigningKey{id: id.New(), public: public, private: private}
}

func (k *newSigningKey) insert(ctx context.Context, q *db.Queries, tenant, destination uuid.UUID) (err error) {
	k.created, err = q.InsertSigningKey(ctx, db.InsertSigningKeyParams{
		ID: k.id, DestinationID: destination, TenantID: tenant, PublicKey: k.public, PrivateKey: k.private,
	})
	return err
}

func (k *newSigningKey) answer() openapi.SigningKey {
	return openapi.SigningKey{ID: id.SigningKey.Format(k.id), PublicKey: webhook.FormatPublicKey(k.public), CreatedAt: k.created}
}

// AddSigningKey makes a key pair that signs together with the others, for as long as those don't expire.
func (s *Server) AddSigningKey(ctx context.Context, request openapi.AddSigningKeyRequestObject) (openapi.AddSigningKeyResponseObject, error) {
	expiry := defaultKeyExpiry
	if e := request.Body.ExpireOthersInSeconds; e != nil {
		if expiry = *e; expiry < 0 || expiry > maxKeyExpiry {
			return nil, invalidField("expire_others_in_seconds", "must be 0 to %d, not %d", maxKeyExpiry, expiry)
		}
	}
	key := makeSigningKey()
	err := s.inSending(ctx, request.DestinationID, func(q *db.Queries, tenant, destination uuid.UUID) error {
		if err := q.ExpireSigningKeys(ctx, destination, int32(expiry)); err != nil {
			return err
		}
		valid, err := q.SigningKeysOf(ctx, destination)
		if err != nil {
			return err
		}
		if len(valid) >= maxSigningKeys {
			return &problem{kind: kindLimitReached, detail: fmt.Sprintf(
				"The destination has %d valid signing keys, the most there can be. Expire one first.", len(valid))}
		}
		made, err := q.CountSigningKeysOfDay(ctx, destination)
		if err != nil {
			return err
		}
		if made >= maxKeysOfDay {
			return &problem{kind: kindLimitReached, detail: fmt.Sprintf(
				"%d signing keys were made for the destination within a day, the most there can be. Come back tomorrow.", made)}
		}
		return key.insert(ctx, q, tenant, destination)
	})
	if err != nil {
		return nil, fmt.Errorf("add signing key: %w", err)
	}
	return openapi.AddSigningKey201JSONResponse(key.answer()), nil
}

// ListSigningKeys lists the public keys that sign now.
func (s *Server) ListSigningKeys(ctx context.Context, request openapi.ListSigningKeysRequestObject) (openapi.ListSigningKeysResponseObject, error) {
	answer := openapi.ListSigningKeys200JSONResponse{Data: []openapi.SigningKey{}}
	err := s.reading(ctx, request.DestinationID, func(q *db.Queries, destination uuid.UUID) error {
		rows, err := q.SigningKeysOf(ctx, destination)
		for _, row := range rows {
			answer.Data = append(answer.Data, openapi.SigningKey{
				ID: id.SigningKey.Format(row.ID), PublicKey: webhook.FormatPublicKey(row.PublicKey), CreatedAt: row.CreatedAt, ExpiresAt: row.ExpiresAt,
			})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list signing keys: %w", err)
	}
	return answer, nil
}

// ExpireSigningKey ends a key. Something must go on signing: that a signature is missing is what an attacker's request has.
func (s *Server) ExpireSigningKey(ctx context.Context, request openapi.ExpireSigningKeyRequestObject) (openapi.ExpireSigningKeyResponseObject, error) {
	keyID, err := id.SigningKey.Parse(request.KeyID)
	if err != nil {
		return nil, notFound("signing key")
	}
	err = s.inSending(ctx, request.DestinationID, func(q *db.Queries, _, destination uuid.UUID) error {
		expired, err := q.ExpireSigningKey(ctx, destination, keyID)
		if err != nil {
			return err
		}
		if expired == 0 {
			return notFound("signing key")
		}
		left, err := q.CountSignatures(ctx, destination)
		if err == nil && left == 0 { // the transaction is rolled back
			return &problem{kind: kindLimitReached, detail: "This key is the last that signs. Add another one first."}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("expire signing key: %w", err)
	}
	return openapi.ExpireSigningKey204Response{}, nil
}
