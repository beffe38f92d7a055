package api_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres/pgserver"
)

// processesOf are a Postgres server and its children, by its data directory.
func processesOf(t *testing.T, dataDir string) []int {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(file), "\n")
	server, err := strconv.Atoi(first)
	require.NoError(t, err)
	processes := []int{server}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // state, parent, …
		if parent, _ := strconv.Atoi(fields[1]); parent == server {
			id, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
			processes = append(processes, id)
		}
	}
	return processes
}

// A Postgres that hangs with all its connections open is worse than none: nobody waits for it, those who are being served are let go,
// and once it goes on so does everything.
func TestPostgresHangs(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: filepath.Join(t.TempDir(), "postgres"), Settings: map[string]string{"fsync": "off"}}
	server, err := pgserver.Start(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop(context.Background()) })
	_, err = migrations.Up(t.Context(), server.URL("postgres"), 2)
	require.NoError(t, err)
	b := prepare(t, server.URL("postgres"))
	// Were it for this, they would wait for an hour.
	b.serve(t, func(c *api.Config) { c.AcceptTimeout = time.Hour })
	known, unknown := b.endpoint(t), b.endpoint(t)
	acceptedID(t, b.ingest(t, known, "before"))
	b.awaitReady(t, 200)

	stopped := processesOf(t, server.DataDir())
	signal := func(s syscall.Signal) {
		for _, process := range stopped {
			_ = syscall.Kill(process, s)
		}
	}
	signal(syscall.SIGSTOP)
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	start := time.Now()
	for i, a := range b.flood(t, 50, func(i int) string { return []string{known, unknown}[i%2] }) {
		requireUnavailable(t, a)
		if i == 0 {
			t.Logf("the flood was answered within %s", time.Since(start).Round(time.Millisecond))
		}
	}
	requireUnavailable(t, b.get(t, "/api/v1/events"))
	b.awaitReady(t, 503)
	// From now on nothing is even begun: whatever comes is answered while Postgres still hangs.
	for _, a := range b.flood(t, 300, func(int) string { return known }) {
		requireUnavailable(t, a)
	}
	signal(syscall.SIGCONT)
	b.awaitReady(t, 200)
	acceptedID(t, b.ingest(t, known, "after"))
	acceptedID(t, b.ingest(t, unknown, "after"))
}
