// Package migrations holds the numbered SQL that makes Kapsel's schema, and applies it. Migrations only go forward.
package migrations

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// DaysAhead is for how many days partitions are made ahead; workers go on doing so.
const DaysAhead = 14

// Result is what Up did.
type Result struct {
	// Version is the schema's version now.
	Version int64
	// Applied are the file names of the migrations that this call applied, in order; empty if all were there already.
	Applied []string
}

// Up brings the schema of the database at url (a direct connection, not one through a pooler in transaction mode) to
// the newest version and makes the partitions of daysAhead days (see DaysAhead). Any number of processes may call it at once: a
// session lock in Postgres lets one go first, and the others find nothing left to do. Each migration is one
// transaction, so a crash leaves the schema at a version and never between two.
func Up(ctx context.Context, url string, daysAhead int) (Result, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return Result{}, fmt.Errorf("parse database URL: %w", err)
	}
	db := stdlib.OpenDB(*config)
	defer func() { _ = db.Close() }()

	// Looks once a second, for five minutes, whether another process is done.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return Result{}, fmt.Errorf("make migration lock: %w", err)
	}
	sub, err := fs.Sub(files, ".")
	if err != nil {
		return Result{}, err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, sub, goose.WithSessionLocker(locker))
	if err != nil {
		return Result{}, fmt.Errorf("read migrations: %w", err)
	}
	applied, err := provider.Up(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("apply migrations: %w", withHint(ctx, db, err))
	}
	var result Result
	for _, a := range applied {
		result.Applied = append(result.Applied, a.Source.Path)
	}
	if result.Version, err = provider.GetDBVersion(ctx); err != nil {
		return Result{}, fmt.Errorf("read schema version: %w", err)
	}
	if err := showVersion(ctx, db); err != nil {
		return Result{}, fmt.Errorf("show the schema's version: %w", err)
	}
	if _, err := db.ExecContext(ctx, "select ensure_partitions($1)", daysAhead); err != nil {
		return Result{}, fmt.Errorf("make partitions: %w", err)
	}
	return result, nil
}
