package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
)

// ErrBehind says that a database has no schema, or an older one than this version of Kapsel needs.
var ErrBehind = errors.New("the database's schema is missing or older than this version of Kapsel needs; run `kapsel migrate`")

// Check returns ErrBehind, with what is missing, unless every migration of this version was applied; of a newer one there may be
// more, since old and new processes share a schema while a deployment rolls. Any other error says that the database can't be
// asked. The role of db may be any of Kapsel's.
func Check(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) error {
	wanted, err := versions()
	if err != nil {
		return err
	}
	var missing []int64
	err = db.QueryRow(ctx, `select coalesce(array_agg(w order by w), '{}') from unnest($1::bigint[]) w
		where not exists (select from goose_db_version where version_id = w and is_applied)`, wanted).Scan(&missing)
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr) && isBehind(pgErr.Code):
		return ErrBehind
	case err != nil:
		return fmt.Errorf("read schema version: %w", err)
	case len(missing) > 0:
		return fmt.Errorf("%w (not applied: %s)", ErrBehind, list(missing))
	}
	return nil
}

// list writes the first few of versions.
func list(versions []int64) string {
	const most = 5
	var names []string
	for _, version := range versions[:min(len(versions), most)] {
		names = append(names, fmt.Sprintf("%05d", version))
	}
	if more := len(versions) - most; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// isBehind says whether asking for the version failed as it does before the first migration (no such table or role) or
// in the middle of it (no grant).
func isBehind(code string) bool {
	return code == "42P01" || code == "42501" || code == "22023"
}

// versions are those of all files, in order.
func versions() ([]int64, error) {
	names, err := files.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	var versions []int64
	for _, name := range names {
		version, err := goose.NumericComponent(name.Name())
		if err != nil {
			return nil, fmt.Errorf("read migrations: %w", err)
		}
		versions = append(versions, version)
	}
	return versions, nil
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
