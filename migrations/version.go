package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
)

// ErrBehind says that a database has no schema, or an older one than this version of Kapsel needs.
var ErrBehind = errors.New("the database's schema is missing or older than this version of Kapsel needs; run `kapsel migrate`")

// Check returns ErrBehind unless the schema is at this version or a newer one, which old and new processes share while
// a deployment rolls; any other error says that the database can't be asked. The role of db may be any of Kapsel's.
func Check(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) error {
	newest, err := newest()
	if err != nil {
		return err
	}
	var version int64
	err = db.QueryRow(ctx, "select coalesce(max(version_id), 0) from goose_db_version where is_applied").Scan(&version)
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr) && isBehind(pgErr.Code), err == nil && version < newest:
		return ErrBehind
	case err != nil:
		return fmt.Errorf("read schema version: %w", err)
	}
	return nil
}

// isBehind says whether asking for the version failed as it does before the first migration (no such table or role) or
// in the middle of it (no grant).
func isBehind(code string) bool {
	return code == "42P01" || code == "42501" || code == "22023"
}

// newest is the version of the last file.
func newest() (int64, error) {
	names, err := files.ReadDir(".")
	if err != nil {
		return 0, fmt.Errorf("read migrations: %w", err)
	}
	return goose.NumericComponent(names[len(names)-1].Name())
}

// showVersion lets Kapsel's processes read how far the schema is; the table is the user's who migrates. Two grants at
// once would fail, so they wait for each other.
func showVersion(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, `do $$ begin
		perform pg_advisory_xact_lock(hashtext('kapsel show version'));
		if not has_table_privilege('kapsel_api', 'goose_db_version', 'select') then
			grant select on goose_db_version to kapsel_owner, kapsel_engine, kapsel_api;
		end if;
	end $$`)
	return err
}
