package api_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres/pgserver"
)

// Invariant 2: the api needs only Postgres, and finds it again by itself.
func TestPostgresGoesAndComesBack(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: filepath.Join(t.TempDir(), "postgres"), Settings: map[string]string{"fsync": "off"}}
	server, err := pgserver.Start(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop(context.Background()) })
	_, err = migrations.Up(t.Context(), server.URL("postgres"), 2)
	require.NoError(t, err)
	b := prepare(t, server.URL("postgres"))
	b.serve(t)
	endpoint := b.endpoint(t)
	acceptedID(t, b.ingest(t, endpoint, "before"))
	require.Equal(t, 200, b.do(t, "GET", "/health/ready", nil).status)

	config.Port = server.Port()
	require.NoError(t, server.Stop(t.Context()))
	requireUnavailable(t, b.ingest(t, endpoint, "during"))
	requireUnavailable(t, b.ingest(t, "ep_01h455vb4pex5vsknk084sn02q", "during")) // not known not to exist
	requireUnavailable(t, b.get(t, "/api/v1/events"))
	requireUnavailable(t, b.post(t, "/api/v1/endpoints", plainEndpoint))
	requireUnavailable(t, b.do(t, "GET", "/api/v1/attestation/sth", nil))
	b.awaitReady(t, 503)
	p := problem(t, b.do(t, "GET", "/health/ready", nil), 503, "unavailable")
	require.Equal(t, "Postgres does not answer", (*p.Checks)["postgres"])
	require.NotContains(t, string(b.do(t, "GET", "/health/ready", nil).body), "127.0.0.1", "nor where it was looked for")
	require.Equal(t, 200, b.do(t, "GET", "/health/live", nil).status)
	require.Equal(t, 200, b.do(t, "GET", "/health/startup", nil).status, "it had started")

	server, err = pgserver.Start(t.Context(), config)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return b.ingest(t, endpoint, "after").status == 200 }, 20*time.Second, 10*time.Millisecond)
	b.awaitReady(t, 200)
	require.Equal(t, 2, b.count(t, "events"), "what was refused wasn't kept")
}

func requireUnavailable(t *testing.T, a answer) {
	t.Helper()
	problem(t, a, 503, "unavailable")
	after, err := strconv.Atoi(a.header.Get("Retry-After"))
	require.NoError(t, err, fmt.Sprint(a.header))
	require.Positive(t, after)
}

func (b *testBundle) awaitReady(t *testing.T, status int) {
	t.Helper()
	require.Eventually(t, func() bool { return b.do(t, "GET", "/health/ready", nil).status == status }, 30*time.Second, 20*time.Millisecond)
}
