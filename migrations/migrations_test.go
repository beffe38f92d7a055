package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/pgserver"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// files are the migrations in their order.
func files(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.sql")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	slices.Sort(names)
	return names
}

// newest is the number of the last migration.
func newest(t *testing.T) int64 {
	t.Helper()
	names := files(t)
	number, _, _ := strings.Cut(names[len(names)-1], "_")
	version, err := strconv.ParseInt(number, 10, 64)
	require.NoError(t, err)
	return version
}

// emptyDatabase makes a database without a schema on the server for tests, on which Kapsel's roles are already.
func emptyDatabase(t *testing.T) string {
	t.Helper()
	return createDatabase(t, postgrestest.New(t))
}

// createDatabase makes an empty database on the server of another one.
func createDatabase(t *testing.T, other string) string {
	t.Helper()
	name := "kapsel_empty_" + id.New().String()
	quoted := pgx.Identifier{name}.Sanitize()
	execute(t, other, "create database "+quoted)
	t.Cleanup(func() { execute(t, other, "drop database "+quoted+" with (force)") })
	return withPath(t, other, name)
}

// serverWithoutRoles starts a server that has never seen Kapsel.
func serverWithoutRoles(t *testing.T) string {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Config{
		Dir: filepath.Join(t.TempDir(), "postgres"), Settings: map[string]string{"fsync": "off", "max_connections": "100"},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop(context.Background()) })
	return server.URL("postgres")
}

func withPath(t *testing.T, databaseURL, name string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

func databaseName(t *testing.T, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	return strings.TrimPrefix(u.Path, "/")
}

func connectAs(t *testing.T, databaseURL, role string) *pgx.Conn {
	t.Helper()
	conn := connect(t, databaseURL)
	_, err := conn.Exec(t.Context(), "set role "+role)
	require.NoError(t, err)
	return conn
}

func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, databaseURL, statement string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), databaseURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(context.Background(), statement)
	require.NoError(t, err, statement)
}

func value[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, conn.QueryRow(context.Background(), sql, args...).Scan(&v))
	return v
}

// upAll migrates all databases at once, and returns the results in their order.
func upAll(t *testing.T, databases []string) []migrations.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	results, errs := make([]migrations.Result, len(databases)), make([]error, len(databases))
	var all sync.WaitGroup
	for i, database := range databases {
		all.Go(func() { results[i], errs[i] = migrations.Up(ctx, database, 1) })
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	return results
}

func TestEachMigrationIsAppliedOnceByWhoeverComesFirst(t *testing.T) {
	t.Parallel()
	var applied []string
	for _, result := range upAll(t, slices.Repeat([]string{emptyDatabase(t)}, 8)) {
		applied = append(applied, result.Applied...)
		require.Equal(t, newest(t), result.Version)
	}
	require.Equal(t, files(t), applied, "each once, and in order")
}

// Roles belong to the whole server: the databases of a server that has none yet make them in a race.
func TestDatabasesOfOneServerMigrateAtOnce(t *testing.T) {
	t.Parallel()
	server := serverWithoutRoles(t)
	var databases []string
	for range 6 {
		databases = append(databases, createDatabase(t, server))
	}
	for _, result := range upAll(t, databases) {
		require.Equal(t, files(t), result.Applied)
	}
	roles := value[[]string](t, connect(t, server), "select array_agg(rolname::text order by rolname) from pg_roles where rolname like 'kapsel%'")
	require.Equal(t, []string{"kapsel_api", "kapsel_engine", "kapsel_owner"}, roles)
}

func TestMigratingAgainAppliesNothing(t *testing.T) {
	t.Parallel()
	database := emptyDatabase(t)
	result, err := migrations.Up(t.Context(), database, 1)
	require.NoError(t, err)
	require.Equal(t, migrations.Result{Version: newest(t), Applied: files(t)}, result)
	result, err = migrations.Up(t.Context(), database, 1)
	require.NoError(t, err)
	require.Equal(t, migrations.Result{Version: newest(t)}, result)
}

// Everything belongs to kapsel_owner, whoever migrates; only the record of what was applied is the user's.
func TestTheOwnerOwnsTheSchema(t *testing.T) {
	t.Parallel()
	conn := connect(t, postgrestest.New(t))
	foreign := value[[]string](t, conn, `select coalesce(array_agg(relname::text order by relname), '{}') from pg_class
		where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and relowner <> 'kapsel_owner'::regrole`)
	require.Equal(t, []string{"goose_db_version"}, foreign)
	require.Zero(t, value[int](t, conn, `select count(*) from pg_proc where pronamespace = 'public'::regnamespace and proowner <> 'kapsel_owner'::regrole`))
	require.False(t, value[bool](t, conn, "select rolsuper or rolcanlogin or rolbypassrls from pg_roles where rolname = 'kapsel_owner'"))
}

// limitedUser makes a user who owns a new database and may do nothing else, and returns that database as the user
// reaches it.
func limitedUser(t *testing.T, server string) string {
	t.Helper()
	user := "limited_" + strings.ReplaceAll(id.New().String(), "-", "")
	execute(t, server, "create role "+user+" login password 'limited'")
	database := createDatabase(t, server)
	u, err := url.Parse(database)
	require.NoError(t, err)
	execute(t, server, "alter database "+pgx.Identifier{databaseName(t, database)}.Sanitize()+" owner to "+user)
	u.User = url.UserPassword(user, "limited")
	return u.String()
}

// obey migrates, lets a superuser run what the error's hint says, and so on until there is no error.
// It returns how often that was needed.
func obey(t *testing.T, superuser, database string) (asked int) {
	t.Helper()
	for ; asked < 10; asked++ {
		_, err := migrations.Up(t.Context(), database, 1)
		if err == nil {
			return asked
		}
		var pgErr *pgconn.PgError
		require.ErrorAs(t, err, &pgErr)
		_, statements, found := strings.Cut(pgErr.Hint, "As a superuser run: ")
		require.True(t, found, "%v (hint: %q)", err, pgErr.Hint)
		execute(t, superuser, statements)
	}
	t.Fatal("the hints lead nowhere")
	return 0
}

// A user who may not create roles is told what a superuser has to run, and that is enough.
func TestAUserWhoMayNotCreateRolesIsToldWhatToDo(t *testing.T) {
	t.Parallel()
	server := serverWithoutRoles(t)
	database := limitedUser(t, server)
	require.Equal(t, 1, obey(t, server, database), "one hint for all roles")

	t.Run("an engine that row-level security would hide tenants from", func(t *testing.T) {
		execute(t, server, "alter role kapsel_engine nobypassrls")
		require.Equal(t, 1, obey(t, server, createDatabase(t, server)))
	})

	// Roles that are there already, from another database of this server, are of no use to a user who isn't a member.
	t.Run("roles of another database", func(t *testing.T) {
		require.Equal(t, 1, obey(t, server, limitedUser(t, server)), "one hint for all roles")
	})

	t.Run("a schema that the user may not create anything in", func(t *testing.T) {
		foreign := limitedUser(t, server)
		execute(t, server, "alter database "+pgx.Identifier{databaseName(t, foreign)}.Sanitize()+" owner to postgres")
		require.Equal(t, 1, obey(t, withPath(t, server, databaseName(t, foreign)), foreign), "roles and schema in one hint")
		require.NoError(t, migrations.Check(t.Context(), connectAs(t, foreign, "kapsel_api")))
	})
}

// The message itself must say it: it is all that `kapsel migrate` prints.
func TestTheMessageSaysWhatASuperuserHasToRun(t *testing.T) {
	t.Parallel()
	_, err := migrations.Up(t.Context(), limitedUser(t, serverWithoutRoles(t)), 1)
	require.ErrorContains(t, err, "create role kapsel_owner")
}

// Every process can tell whether the schema is there, as whichever role it works.
func TestCheckSaysWhetherTheSchemaIsThere(t *testing.T) {
	t.Parallel()
	database := emptyDatabase(t)
	for _, role := range []string{"kapsel_owner", "kapsel_engine", "kapsel_api"} {
		require.ErrorIs(t, migrations.Check(t.Context(), connectAs(t, database, role)), migrations.ErrBehind, "an empty database")
	}
	_, err := migrations.Up(t.Context(), database, 1)
	require.NoError(t, err)
	for _, role := range []string{"kapsel_owner", "kapsel_engine", "kapsel_api"} {
		require.NoError(t, migrations.Check(t.Context(), connectAs(t, database, role)))
	}
	conn := connectAs(t, database, "kapsel_api")
	execute(t, database, "update goose_db_version set is_applied = false where version_id in (3, 5)")
	err = migrations.Check(t.Context(), conn)
	require.ErrorIs(t, err, migrations.ErrBehind, "there are newer ones")
	require.ErrorContains(t, err, "(not applied: 00003, 00005)")
	execute(t, database, "update goose_db_version set is_applied = true where version_id in (3, 5)")
	execute(t, database, "insert into goose_db_version (version_id, is_applied) values (99999, true)")
	require.NoError(t, migrations.Check(t.Context(), conn), "a newer version of Kapsel has migrated")
	execute(t, database, fmt.Sprintf("delete from goose_db_version where version_id >= %d", newest(t)))
	require.ErrorIs(t, migrations.Check(t.Context(), conn), migrations.ErrBehind, "the last migration is missing")
	execute(t, database, "revoke select on goose_db_version from kapsel_api")
	require.ErrorIs(t, migrations.Check(t.Context(), conn), migrations.ErrBehind, "migrating isn't done")
	require.NoError(t, conn.Close(t.Context()))
	err = migrations.Check(t.Context(), conn)
	require.Error(t, err)
	require.NotErrorIs(t, err, migrations.ErrBehind, "that it can't be asked says nothing of the schema")

	pool, err := postgres.Open(serverWithoutRoles(t), postgres.Engine, 1)
	require.NoError(t, err)
	defer pool.Close()
	require.ErrorIs(t, migrations.Check(t.Context(), pool), migrations.ErrBehind, "a server that has never seen Kapsel")
}
