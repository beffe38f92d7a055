package temporal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/schema/postgresql/v12"
	"go.temporal.io/server/tools/common/schema"
)

const (
	mainDatabase       = "temporal"
	visibilityDatabase = "temporal_visibility"
	// schemaLock is the advisory lock that lets one process at a time change a schema.
	schemaLock = 0x74656d706f72616c
	// duplicateDatabase is what Postgres answers to create database if it is there (SQLSTATE 42P04).
	duplicateDatabase = "42P04"
	// featureNotSupported is what it answers to create extension without the extension's files (SQLSTATE 0A000).
	featureNotSupported = "0A000"
)

// store is one of the two databases and what the server expects to find in it.
type store struct {
	database string
	schema   string // its directory among the schemas that the server's module embeds
	version  string
}

// stores are in the order of their making.
var stores = []store{
	{mainDatabase, "postgresql/v12/temporal", v12.Version},
	{visibilityDatabase, "postgresql/v12/visibility", v12.VisibilityVersion},
}

// setUpDatabases makes what is missing and updates what is old. It may run, and be killed, any number of times.
func setUpDatabases(ctx context.Context, server *pgx.ConnConfig, logger log.Logger) error {
	for _, s := range stores {
		if err := s.create(ctx, server); err != nil {
			return fmt.Errorf("create database %s: %w", s.database, err)
		}
		if err := s.migrate(ctx, server, logger); err != nil {
			return fmt.Errorf("set up schema of database %s: %w", s.database, err)
		}
	}
	return nil
}

func connect(ctx context.Context, server *pgx.ConnConfig, database string) (*pgx.Conn, error) {
	server = server.Copy()
	server.Database = database
	return pgx.ConnectConfig(ctx, server)
}

// create makes the empty database, unless it exists.
func (s store) create(ctx context.Context, server *pgx.ConnConfig) error {
	conn, err := connect(ctx, server, "postgres")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	var exists bool
	err = conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", s.database).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = conn.Exec(ctx, "create database "+pgx.Identifier{s.database}.Sanitize())
	if hasCode(err, duplicateDatabase) {
		return nil
	}
	return err
}

// migrate brings the schema to the server's version in one transaction, so that a crash leaves the old version or the new
// one and nothing in between. Temporal's own tool commits statement by statement and guesses at a retry, from the
// texts of errors, what the first try had done.
func (s store) migrate(ctx context.Context, server *pgx.ConnConfig, logger log.Logger) error {
	conn, err := connect(ctx, server, s.database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", int64(schemaLock)); err != nil {
			return err
		}
		db := &schemaTx{ctx: ctx, tx: tx, database: s.database}
		var made bool
		if err := tx.QueryRow(ctx, "select to_regclass('schema_version') is not null").Scan(&made); err != nil {
			return err
		}
		if err := s.makeOrUpdate(db, made, logger); err != nil {
			return err
		}
		if s.database == visibilityDatabase {
			return dropUnusedIndexes(ctx, tx)
		}
		return nil
	})
}

func (s store) makeOrUpdate(db *schemaTx, made bool, logger log.Logger) error {
	if made {
		return schema.NewUpdateSchemaTask(db, &schema.UpdateConfig{SchemaName: s.schema}, logger).Run()
	}
	setup := &schema.SetupConfig{SchemaName: s.schema, InitialVersion: s.version}
	err := schema.NewSetupSchemaTask(db, setup, logger).Run()
	if hasCode(err, featureNotSupported) {
		return fmt.Errorf("%w; install Postgres's extensions (Debian, Ubuntu: they come with postgresql; "+
			"Fedora: dnf install postgresql-contrib)", err)
	}
	return err
}

// usedIndexes are those of executions_visibility that Kapsel's queries and the Web UI's default view use. The schema has 74,
// and every workflow writes all of them three times: that was three quarters of Postgres's time per workflow. Kapsel's five
// search attributes are the first five keywords. Without the others a search by anything else reads the whole table; see
// docs/performance.md.
var usedIndexes = []string{
	"executions_visibility_pkey", "default_idx", "by_workflow_id", "by_workflow_type",
	"by_keyword_01", "by_keyword_02", "by_keyword_03", "by_keyword_04", "by_keyword_05",
}

// dropUnusedIndexes drops what isn't in usedIndexes; an update of the schema may have made some anew.
func dropUnusedIndexes(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `select indexname from pg_indexes
		where schemaname = current_schema() and tablename = 'executions_visibility' and indexname <> all($1)`, usedIndexes)
	if err != nil {
		return err
	}
	unused, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range unused {
		if _, err := tx.Exec(ctx, "drop index "+pgx.Identifier{name}.Sanitize()); err != nil {
			return err
		}
	}
	return nil
}

func hasCode(err error, code string) bool {
	var failed *pgconn.PgError
	return errors.As(err, &failed) && failed.Code == code
}

// schemaTx is a transaction in the shape that Temporal's schema tasks work on (schema.DB). Those pass no context, so it
// holds the one of the transaction that it lives and dies with.
type schemaTx struct {
	ctx      context.Context
	tx       pgx.Tx
	database string
}

var _ schema.DB = (*schemaTx)(nil)

// Exec runs a statement. Indexes can't be made concurrently within a transaction, and needn't: no server runs yet.
func (t *schemaTx) Exec(statement string, args ...any) error {
	statement = strings.Replace(statement, "INDEX CONCURRENTLY", "INDEX", 1)
	_, err := t.tx.Exec(t.ctx, statement, args...)
	return err
}

// CreateSchemaVersionTables makes the two tables in which Temporal keeps a schema's version.
func (t *schemaTx) CreateSchemaVersionTables() error {
	return t.Exec(`
		create table schema_version (
			version_partition      int not null,
			db_name                varchar(255) not null,
			creation_time          timestamp,
			curr_version           varchar(64),
			min_compatible_version varchar(64),
			primary key (version_partition, db_name));
		create table schema_update_history (
			version_partition int not null,
			year              int not null,
			month             int not null,
			update_time       timestamp not null,
			description       varchar(255),
			manifest_md5      varchar(64),
			new_version       varchar(64),
			old_version       varchar(64),
			primary key (version_partition, year, month, update_time))`)
}

// ReadSchemaVersion returns the version of the schema; an error if it has none.
func (t *schemaTx) ReadSchemaVersion() (string, error) {
	var version string
	err := t.tx.QueryRow(t.ctx,
		"select curr_version from schema_version where version_partition = 0 and db_name = $1", t.database).Scan(&version)
	return version, err
}

// UpdateSchemaVersion sets the version, and the oldest one whose server can work with it.
func (t *schemaTx) UpdateSchemaVersion(version, minCompatible string) error {
	return t.Exec(`
		insert into schema_version (version_partition, db_name, creation_time, curr_version, min_compatible_version)
		values (0, $1, $2, $3, $4)
		on conflict (version_partition, db_name) do update set creation_time = excluded.creation_time,
			curr_version = excluded.curr_version, min_compatible_version = excluded.min_compatible_version`,
		t.database, time.Now().UTC(), version, minCompatible)
}

// WriteSchemaUpdateLog records one step from a version to the next.
func (t *schemaTx) WriteSchemaUpdateLog(from, to, manifestMD5, description string) error {
	now := time.Now().UTC()
	return t.Exec(`
		insert into schema_update_history
			(version_partition, year, month, update_time, old_version, new_version, manifest_md5, description)
		values (0, $1, $2, $3, $4, $5, $6, $7)`,
		now.Year(), int(now.Month()), now, from, to, manifestMD5, description)
}

// DropAllTables refuses: only a setup that overwrites asks for it, and ours never does.
func (t *schemaTx) DropAllTables() error {
	return errors.New("tables are never dropped")
}

// Close leaves the transaction to who began it.
func (t *schemaTx) Close() {}

// Type tells the tasks which family of schemas to look in.
func (t *schemaTx) Type() string { return "sql" }
