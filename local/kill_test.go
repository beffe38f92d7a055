package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/replay"
)

// process is the command running in a process of its own.
type process struct {
	*exec.Cmd
	running running
	state   state
}

// startProcess runs the command on dir and waits until all of it is up.
func startProcess(t *testing.T, dir string) *process {
	t.Helper()
	_ = os.Remove(filepath.Join(dir, runningFile)) // of a process that was killed
	executable, err := os.Executable()
	require.NoError(t, err)
	p := &process{Cmd: exec.Command(executable, "--dir", dir, "--api-port", "0", "--temporal-port", "0", "--ui-port", "0")}
	p.Env = append(os.Environ(), asCommand+"=1")
	output, err := os.Create(filepath.Join(dir, "output"))
	require.NoError(t, err)
	p.Stdout, p.Stderr = output, output
	require.NoError(t, p.Start())
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_, _ = p.Process.Wait()
		_ = output.Close()
	})
	require.Eventually(t, func() bool {
		return readJSON(filepath.Join(dir, runningFile), &p.running) && readJSON(filepath.Join(dir, "local.json"), &p.state)
	}, 2*time.Minute, 50*time.Millisecond, "the stack did not start; see %s/output", dir)
	return p
}

func readJSON(path string, into any) bool {
	text, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(text, into) == nil
}

// The whole process is killed under load and started again: every event that got its 200 ends with one terminal leaf per
// delivery, every attempt is in the log once, and the tree recomputed from the leaves has every root that was signed.
func TestKilledUnderLoadNothingIsLost(t *testing.T) {
	dir := openDir(t)
	p := startProcess(t, dir)
	before := newSite(t, p.running.APIURL, p.running.DatabaseURL, p.state)
	healthy, flaky := startReceiver(t, ok), startReceiver(t, failing(1))
	dead := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	endpoint := before.createEndpoint(t,
		client.NewDestination{URL: healthy.URL},
		client.NewDestination{URL: flaky.URL, Schedule: schedule(300, 300, 300)},
		client.NewDestination{URL: dead.URL, Schedule: schedule(200, 400)})

	accepted := underLoad(t, before, endpoint, 60, func() { require.NoError(t, p.Process.Kill()) })
	_, _ = p.Process.Wait()
	before.db.Close()

	p = startProcess(t, dir)
	after := newSite(t, p.running.APIURL, p.running.DatabaseURL, p.state)
	require.Equal(t, before.made, after.made, "the same log, tenant and keys")
	after.awaitSealed(t, 2*time.Minute)
	for event := range accepted {
		answer, err := after.api.GetEventWithResponse(t.Context(), event)
		require.NoError(t, err)
		require.NotNil(t, answer.JSON200, "accepted event %s is gone", event)
		require.Len(t, answer.JSON200.Deliveries, 3)
		for _, d := range answer.JSON200.Deliveries {
			require.Contains(t, []string{"delivered", "dead"}, d.State)
		}
	}
	require.GreaterOrEqual(t, len(healthy.counts()), len(accepted))
	after.checkRecord(t)
	require.NotZero(t, requireReplays(t, p.running.DatabaseURL, p.running.Temporal)[replay.Agreement])

	// Ctrl-C stops everything in order: exit status 0, and nothing is left unsigned.
	require.NoError(t, p.Process.Signal(syscall.SIGINT))
	require.NoError(t, p.Wait())
}

// underLoad sends webhooks from many callers, calls kill once so many were accepted, goes on until the server is gone,
// and returns the events that got their 200.
func underLoad(t *testing.T, s *site, endpoint client.Endpoint, until int, kill func()) map[string]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	var callers sync.WaitGroup
	accepted := map[string]bool{}
	reached := make(chan struct{})
	for caller := range 8 {
		callers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				event, _ := s.ingest(ctx, endpoint, fmt.Sprintf("webhook %d of caller %d", i, caller))
				if event == "" {
					return
				}
				mu.Lock()
				accepted[event] = true
				if len(accepted) == until {
					close(reached)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-reached:
	case <-ctx.Done():
		t.Fatal("the load was never accepted")
	}
	kill()
	callers.Wait()
	return accepted
}

// A second process on the same directory is refused with a message that says what to do, and so is a taken port.
func TestStartErrorsSayWhatToDo(t *testing.T) {
	dir := openDir(t)
	s := startTestStack(t)
	_, err := startStack(t.Context(), stackConfig{Dir: s.dir, LogLevel: "warn"}, io.Discard)
	require.ErrorContains(t, err, "another process uses")
	require.ErrorContains(t, err, "--dir")
	var port int
	_, err = fmt.Sscanf(s.apiURL, "http://127.0.0.1:%d", &port)
	require.NoError(t, err)
	_, err = startStack(t.Context(), stackConfig{Dir: dir, LogLevel: "warn", APIPort: port}, io.Discard)
	require.ErrorContains(t, err, "--api-port")
	_, err = startStack(t.Context(), stackConfig{Dir: dir, LogLevel: "warn", TemporalPort: port}, io.Discard)
	require.ErrorContains(t, err, "--temporal-port")
	_, err = startStack(t.Context(), stackConfig{Dir: dir, LogLevel: "loud"}, io.Discard)
	require.ErrorContains(t, err, "--log-level")
}
