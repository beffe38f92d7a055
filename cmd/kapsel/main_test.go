package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kapsel": main})
}

// Each script gets a fresh, migrated database as $DATABASE_URL.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: func(env *testscript.Env) error {
		tb, ok := env.T().(testing.TB)
		require.True(t, ok)
		database := postgrestest.New(tb)
		parsed, err := url.Parse(database)
		if err != nil {
			return err
		}
		env.Setenv("DATABASE_URL", database)
		env.Setenv("DATABASE_NAME", strings.TrimPrefix(parsed.Path, "/"))
		env.Setenv("EMPTY_DATABASE_URL", emptyDatabase(tb, database))
		return nil
	}})
}

// emptyDatabase makes a database without a schema on the server of another one.
func emptyDatabase(t testing.TB, other string) string {
	t.Helper()
	name := "kapsel_empty_" + id.New().String()
	execute := func(statement string) {
		conn, err := pgx.Connect(context.Background(), other)
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(context.Background(), statement+pgx.Identifier{name}.Sanitize())
		require.NoError(t, err)
	}
	execute("create database ")
	t.Cleanup(func() { execute("drop database ") })
	parsed, err := url.Parse(other)
	require.NoError(t, err)
	parsed.Path = "/" + name
	return parsed.String()
}

// SIGTERM ends a worker with status 0 also while it waits for what it needs.
func TestAWorkerThatWaitsCanBeStopped(t *testing.T) {
	t.Parallel()
	for waits, environ := range map[string][]string{
		"waiting for Postgres":         {"DATABASE_URL=postgres://kapsel:secret@127.0.0.1:1/kapsel"},
		"not now: connect to Temporal": {"DATABASE_URL=" + postgrestest.New(t), "TEMPORAL_ADDRESS=127.0.0.1:1"},
	} {
		cmd := exec.CommandContext(t.Context(), "kapsel", "worker")
		cmd.Env = append(os.Environ(), environ...)
		stderr, err := cmd.StderrPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stderr)
		for lines.Scan() && !strings.Contains(lines.Text(), waits) {
			continue
		}
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		_, _ = io.Copy(io.Discard, stderr)
		require.NoError(t, cmd.Wait(), waits)
	}
}

// Every command explains itself: a sentence or more, and for those that take flags an example.
func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	for _, command := range append(newCommand().Commands(), newCommand()) {
		for _, c := range append(command.Commands(), command) {
			require.NotEmpty(t, c.Short, c.CommandPath())
			if c.Runnable() && !c.HasSubCommands() && c.Name() != "health" { // which reads none
				require.Contains(t, c.Long, "Variables:\n  DATABASE_URL\n", c.CommandPath())
			}
		}
	}
}

// stoppingAPI starts an api with these variables, and tells it to stop. What it still writes is the caller's to read.
func stoppingAPI(t *testing.T, variables ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "kapsel", "api")
	cmd.Env = append(append(os.Environ(), "DATABASE_URL="+postgrestest.New(t), "LISTEN_ADDR=127.0.0.1:0"), variables...)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	await := func(line string) {
		for lines.Scan() && !strings.Contains(lines.Text(), line) {
			continue
		}
		require.NoError(t, lines.Err())
	}
	await("api started")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	await("api stopping")
	return cmd, stderr
}

// A second signal ends an api at once that would go on for minutes yet.
func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	cmd, stderr := stoppingAPI(t, "STOP_DELAY=5m")
	ended := make(chan struct{})
	go func() { // one that comes within the same millisecond as the first is part of it
		for ticker := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-ended:
				return
			case <-ticker.C:
				_ = cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}()
	_, _ = io.Copy(io.Discard, stderr)
	close(ended)
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	require.Equal(t, syscall.SIGTERM, status.Signal())
}

// Prometheus is answered as long as an api goes on after SIGTERM: what becomes of the last requests is seen.
func TestMetricsAreServedToTheEnd(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	cmd, stderr := stoppingAPI(t, "METRICS_ADDR="+address, "STOP_DELAY=5s")
	ticker := time.NewTicker(20 * time.Millisecond) // the listener closed within that time before
	defer ticker.Stop()
	for range 10 {
		<-ticker.C
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Contains(t, string(text), "kapsel_ingest_body_bytes_max")
	}
	_, _ = io.Copy(io.Discard, stderr)
	require.NoError(t, cmd.Wait())
}
