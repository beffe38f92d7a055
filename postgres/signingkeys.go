package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/postgres/db"
)

// SigningKey is the public half of a key that a tenant's deliveries are, or were, signed with.
type SigningKey struct {
	ID        uuid.UUID
	PublicKey []byte
	NotBefore time.Time
	NotAfter  *time.Time
}

// signingKeysSQL stands here because sqlc doesn't know what a function returns.
const signingKeysSQL = `select k.id, k.public_key, k.not_before, k.not_after from signing_keys_of_log($1, $2, $3) k`

// SigningKeysOfLog reads the public signing keys of all tenants of a log, newest first, that are older than before.
func SigningKeysOfLog(ctx context.Context, from db.DBTX, log, before uuid.UUID, limit int32) ([]SigningKey, error) {
	rows, err := from.Query(ctx, signingKeysSQL, log, before, limit)
	if err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SigningKey])
	if err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	return keys, nil
}
