// Package postgres holds every SQL statement of Kapsel but the migrations: the transactions that accept, claim, record
// and sequence, each written by hand where one statement carries many rows, and the look-ups in queries/, which sqlc
// compiles against the schema into package db.
//
// The large tables are partitioned by the day in their UUIDv7 keys. A list of keys (`id = any($1)`), given as a parameter
// to a plan made for it, lets the planner leave out the partitions of other days; a join does not. So each statement that
// touches them names the keys, and joins to other values only beside that.
//
// A process opens one pool per role (see migrations/00001_roles.sql): Engine for ingest, delivery and sealing, API for
// management requests, which see one tenant's rows only.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	pgxuuid "github.com/vgarvardt/pgx-google-uuid/v5"
)

// Role is the database role a pool's connections change into.
type Role string

// The roles of migrations/00001_roles.sql.
const (
	Owner  Role = "kapsel_owner"
	Engine Role = "kapsel_engine"
	API    Role = "kapsel_api"
)

// codeReadOnly is what a standby says to a statement that writes.
const codeReadOnly = "25006"

// connectTimeout bounds one attempt to connect, so that callers hear of an absent Postgres in time for their own.
const connectTimeout = 1500 * time.Millisecond

// Open makes a pool whose connections have changed into role. It doesn't connect yet: a process starts, and answers
// 503, while Postgres is away. maxConns 0 means pgx's default (the larger of 4 and the number of CPUs).
func Open(url string, role Role, maxConns int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	if maxConns > 0 {
		config.MaxConns = maxConns
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.PingTimeout = connectTimeout // of a connection that was idle for a second, when it is taken
	// After a failover a connection may lead to what is a standby now. It is given up with the first statement that says so, and
	// the next one is made to wherever the URL leads then.
	usual := config.ConnConfig.OnPgError
	config.ConnConfig.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		return usual(conn, err) && err.Code != codeReadOnly
	}
	config.ConnConfig.RuntimeParams["role"] = string(role)
	config.ConnConfig.RuntimeParams["application_name"] = string(role)
	config.ConnConfig.RuntimeParams["timezone"] = "UTC"
	// Plans are made anew for the values at hand: with them the planner leaves out the partitions of other days, and it
	// never goes on with a plan that it made when a partition was empty. Statements that touch partitioned tables give
	// bounds for their primary keys.
	config.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_custom_plan"
	// A transaction that a stalled process leaves open would hold its row locks; 25 s stays well below the 60 s in which
	// dedup writes into two days.
	config.ConnConfig.RuntimeParams["statement_timeout"] = "25000"
	config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "25000"
	// Without this a UUID is encoded by way of its text, which takes several times as long as a small row's other columns.
	config.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		pgxuuid.Register(conn.TypeMap())
		return nil
	}
	return pgxpool.NewWithConfig(context.Background(), config)
}

// InTenant runs f in one transaction that sees the rows of tenant only. The pool must be one of role API.
func InTenant(ctx context.Context, pool *pgxpool.Pool, tenant uuid.UUID, f func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select set_config('kapsel.tenant', $1, true)", tenant.String()); err != nil {
			return fmt.Errorf("set tenant: %w", err)
		}
		return f(tx)
	})
}

// Unavailable says whether err means that Postgres can't answer now (away, starting, stopping, out of connections or
// space) rather than that it refused these rows. What was being committed may or may not be there.
func Unavailable(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code[:2] {
		case "08", "53", "57", "58": // connection, resources, operator intervention, system error
			return true
		}
		return pgErr.Code == codeReadOnly
	}
	var here unavailable
	if errors.As(err, &here) {
		return true
	}
	var netErr net.Error
	var connectErr *pgconn.ConnectError
	return errors.As(err, &connectErr) || errors.As(err, &netErr) || pgconn.Timeout(err) ||
		errors.Is(err, context.DeadlineExceeded) || pgconn.SafeToRetry(err) || isClosed(err)
}

// isClosed recognises a connection that went away under a statement: pgx has no error type for it.
func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// badRow says whether Postgres refused a row for what it holds: data exceptions (22) and constraints (23).
func badRow(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code[:2] == "22" || pgErr.Code[:2] == "23")
}
