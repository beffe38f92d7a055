// Package postgrestest gives each test a fresh, migrated database on a real Postgres.
//
// The server is the one of KAPSEL_TEST_DATABASE_URL (a superuser of it, on any database) or, without that variable, one
// that is started from the machine's binaries and ends with the test process. Databases are copies of a template that
// is migrated once per process.
package postgrestest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/pgserver"
)

// template is a migrated database that no test uses itself.
type template struct {
	serverURL string
	name      string
}

var prepare = sync.OnceValues(func() (template, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	serverURL := os.Getenv("KAPSEL_TEST_DATABASE_URL")
	if serverURL == "" {
		server, err := StartServer(ctx)
		if err != nil {
			return template{}, err
		}
		serverURL = server.URL("postgres")
	}
	t := template{serverURL: serverURL, name: fmt.Sprintf("kapsel_template_%d_%s", os.Getpid(), id.New().String()[:8])}
	if err := execute(ctx, serverURL, "create database "+t.name); err != nil {
		return template{}, err
	}
	if _, err := migrations.Up(ctx, withDatabase(serverURL, t.name), 1); err != nil {
		return template{}, err
	}
	return t, nil
})

// StartServer starts a Postgres of its own that ends with this process. It loses everything in a crash of the machine.
func StartServer(ctx context.Context) (*pgserver.Server, error) {
	dir, err := makeDir()
	if err != nil {
		return nil, err
	}
	return pgserver.Start(ctx, pgserver.Config{
		Dir:      dir,
		Settings: map[string]string{"fsync": "off", "full_page_writes": "off", "max_connections": "400"},
	})
}

// New makes a migrated database and returns its URL. Its user may change into all of Kapsel's roles. The database is
// dropped when the test ends.
func New(t testing.TB) string {
	t.Helper()
	template, err := prepare()
	require.NoError(t, err, "no Postgres to test with")
	name := "kapsel_test_" + id.New().String()
	quoted := pgx.Identifier{name}.Sanitize()
	require.NoError(t, execute(t.Context(), template.serverURL, "create database "+quoted+" template "+template.name))
	t.Cleanup(func() {
		_ = execute(context.Background(), template.serverURL, "drop database "+quoted+" with (force)")
	})
	return withDatabase(template.serverURL, name)
}

// Pool opens a pool of a role, which is closed when the test ends.
func Pool(t testing.TB, url string, role postgres.Role) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(url, role, 8)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func withDatabase(serverURL, name string) string {
	u, err := url.Parse(serverURL)
	if err != nil {
		panic("KAPSEL_TEST_DATABASE_URL is not a URL")
	}
	u.Path = "/" + name
	return u.String()
}

func execute(ctx context.Context, url, statement string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}
