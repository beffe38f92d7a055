// Package admin is what an operator does by hand and rarely: making a log, a tenant, an API key. It works as the role
// kapsel_owner.
package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// CreateTenant makes a tenant whose deliveries are recorded in log; uuid.Nil means the only log there is.
func CreateTenant(ctx context.Context, owner *pgxpool.Pool, name string, log uuid.UUID) (uuid.UUID, error) {
	if name == "" || utf8.RuneCountInString(name) > 200 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return uuid.Nil, errors.New("a tenant's name has 1 to 200 characters of UTF-8, none of them a control character")
	}
	tenant := id.New()
	err := pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error {
		q := db.New(tx)
		logs, err := q.ListOpenLogs(ctx)
		if err != nil {
			return err
		}
		switch {
		case len(logs) == 0:
			return errors.New("there is no log yet; make one with `kapsel log init`")
		case log == uuid.Nil && len(logs) > 1:
			return fmt.Errorf("there are %d logs; name the tenant's with --log", len(logs))
		case log == uuid.Nil:
			log = logs[0].ID
		}
		if !slices.ContainsFunc(logs, func(open db.ListOpenLogsRow) bool { return open.ID == log }) {
			return fmt.Errorf("there is no open log %s", id.Log.Format(log))
		}
		return q.InsertTenant(ctx, tenant, name, log)
	})
	if err != nil {
		return uuid.Nil, fmt.Errorf("create tenant: %w", err)
	}
	return tenant, nil
}

// APIKey is a new key. Key is shown once; only its hash is kept.
type APIKey struct {
	ID  uuid.UUID
	Key string // "kapsel_" and 256 random bits in base64url
}

// CreateAPIKey makes a key for a tenant. expires nil: it doesn't.
func CreateAPIKey(ctx context.Context, owner *pgxpool.Pool, tenant uuid.UUID, name string, expires *time.Time) (APIKey, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	key := APIKey{ID: id.New(), Key: "kapsel_" + base64.RawURLEncoding.EncodeToString(secret)}
	hash := sha256.Sum256([]byte(key.Key))
	err := db.New(owner).InsertAPIKey(ctx, db.InsertAPIKeyParams{
		ID: key.ID, TenantID: tenant, Name: name, KeyHash: hash[:], ExpiresAt: expires,
	})
	if err != nil {
		return APIKey{}, fmt.Errorf("create API key: %w", err)
	}
	return key, nil
}
