package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/migrations"
)

// askFor bounds one question to Postgres at the start.
const askFor = 5 * time.Second

// checkSchema returns migrations.ErrBehind if the schema isn't there; any other error says that Postgres can't be asked.
func checkSchema(ctx context.Context, pool *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	return migrations.Check(ctx, pool)
}

// schemaCurrent reports whether the schema is there; the error says that Postgres can't be asked.
func schemaCurrent(ctx context.Context, pool *pgxpool.Pool) (bool, error) {
	err := checkSchema(ctx, pool)
	if errors.Is(err, migrations.ErrBehind) {
		return false, nil
	}
	return err == nil, err
}

// awaitSchema waits for Postgres if it is away. The error is migrations.ErrBehind, or that of ctx.
func awaitSchema(ctx context.Context, pool *pgxpool.Pool, log *zap.Logger) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var told time.Time
	for {
		err := checkSchema(ctx, pool)
		if err == nil || errors.Is(err, migrations.ErrBehind) {
			return err
		}
		if time.Since(told) >= time.Minute {
			told = time.Now()
			log.Warn("waiting for Postgres", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
