package containers

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/postgres/pgserver"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// The compose file's first start, without an engine: its script prepares a new server, then what runs once runs in order, with
// the compose file's own commands and variables, and a second time.
func TestTheFirstStartPreparesTheDatabases(t *testing.T) {
	t.Parallel()
	server, err := postgrestest.StartServer(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop(t.Context()) })
	p := project(t)
	prepare(t, server, p.Services["postgres"].Environment.Resolve(func(string) (string, bool) { return "", false }))

	kapselAt := func(service string) []string {
		s := p.Services[service]
		var environ []string
		for name, value := range s.Environment {
			environ = append(environ, name+"="+here(t, server, *value, t.TempDir()))
		}
		return environ
	}
	require.Contains(t, run(t, kapselAt("migrate"), kapsel(t), p.Services["migrate"].Command...), "schema")
	environ := kapselAt("log-init")
	first := run(t, environ, kapsel(t), p.Services["log-init"].Command...)
	require.Contains(t, first, "localhost:8080/log/log_")
	require.Equal(t, first, run(t, environ, kapsel(t), p.Services["log-init"].Command...), "each start shows the same log")
	require.Contains(t, run(t, environ, kapsel(t), "tenant", "create", "--name", "Example Bank"), "API key kapsel_")

	temporalSchema(t, server, p.Services["temporal-schema"].Environment.Resolve(func(string) (string, bool) { return "", false }), p.Services["temporal-schema"].Command[0])

	// Neither user reaches the other's databases.
	for user, foreign := range map[string][]string{"kapsel": {"temporal", "temporal_visibility"}, "temporal": {"kapsel"}} {
		for _, database := range foreign {
			conn, err := pgx.Connect(t.Context(), at(server, user, passwords[strings.ToUpper(user)+"_DB_PASSWORD"], database))
			if err == nil {
				_ = conn.Close(t.Context())
			}
			require.ErrorContains(t, err, "permission denied for database", "%s reaches %s", user, database)
		}
	}
}

// here turns the addresses and directories of the containers into those of this machine.
func here(t *testing.T, server *pgserver.Server, value, dir string) string {
	t.Helper()
	if strings.HasPrefix(value, "/var/lib/kapsel/") {
		return filepath.Join(dir, filepath.Base(value))
	}
	return strings.ReplaceAll(value, "@postgres:5432", "@127.0.0.1:"+strconv.Itoa(server.Port()))
}

func at(server *pgserver.Server, user, password, database string) string {
	return (&url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: "127.0.0.1:" + strconv.Itoa(server.Port()), Path: "/" + database}).String()
}

// prepare runs what the image runs on an empty volume.
func prepare(t *testing.T, server *pgserver.Server, environment map[string]*string) {
	t.Helper()
	superuser, err := url.Parse(server.URL("postgres"))
	require.NoError(t, err)
	password, _ := superuser.User.Password()
	environ := []string{"PATH=" + withPostgres(t), "PGHOST=127.0.0.1", "PGPORT=" + superuser.Port(), "PGPASSWORD=" + password}
	for name, value := range environment {
		environ = append(environ, name+"="+*value)
	}
	run(t, environ, "/bin/sh", filepath.Join(root(t), "deploy", "postgres", "init.sh"))
}

// withPostgres is a PATH on which psql is.
func withPostgres(t *testing.T) string {
	t.Helper()
	bin, err := pgserver.FindBinaries(t.Context())
	require.NoError(t, err)
	return bin + string(os.PathListSeparator) + os.Getenv("PATH")
}

// temporalSchema runs the compose file's script with Temporal's own tool, twice, as two starts do.
func temporalSchema(t *testing.T, server *pgserver.Server, environment map[string]*string, script string) {
	t.Helper()
	dir := t.TempDir()
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "temporal-sql-tool"), "go.temporal.io/server/cmd/tools/sql").CombinedOutput()
	require.NoError(t, err, string(output))
	environ := []string{"PATH=" + dir + string(os.PathListSeparator) + os.Getenv("PATH")}
	for name, value := range environment {
		environ = append(environ, name+"="+*value)
	}
	environ = append(slices.DeleteFunc(environ, func(s string) bool { return strings.HasPrefix(s, "SQL_HOST=") || strings.HasPrefix(s, "SQL_PORT=") }),
		"SQL_HOST=127.0.0.1", "SQL_PORT="+strconv.Itoa(server.Port()))
	for range 2 {
		run(t, environ, "/bin/sh", "-eu", "-c", script)
	}
	for _, database := range []string{"temporal", "temporal_visibility"} {
		conn, err := pgx.Connect(t.Context(), server.URL(database))
		require.NoError(t, err)
		var version string
		require.NoError(t, conn.QueryRow(t.Context(), "select curr_version from schema_version").Scan(&version))
		require.NotEqual(t, "0.0", version)
		require.NoError(t, conn.Close(t.Context()))
	}
}
