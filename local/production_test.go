package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/verify"
)

// production is the binary that production runs, and the Postgres and Temporal that it finds.
type production struct {
	binary  string
	environ []string
	state   state
}

// prepareProduction starts what Kapsel needs, builds the binary, and does an operator's first steps: two processes
// migrate at once, as two of them that are deployed together would.
func prepareProduction(t *testing.T) *production {
	t.Helper()
	s := prepareServers(t)
	require.NoError(t, s.startTemporal(t.Context(), stackConfig{}))
	return prepareOn(t, s)
}

// prepareServers starts Postgres only.
func prepareServers(t *testing.T) *stack {
	t.Helper()
	s := &stack{dir: openDir(t), failed: make(chan error, 4)}
	t.Cleanup(func() { require.NoError(t, s.stop(nil)) })
	require.NoError(t, s.openLog("warn"))
	require.NoError(t, s.startPostgres(t.Context(), stackConfig{}))
	return s
}

// prepareOn does all the rest, for which Temporal needn't run.
func prepareOn(t *testing.T, s *stack) *production {
	t.Helper()
	p := &production{binary: filepath.Join(s.dir, "kapsel"), environ: append(os.Environ(),
		"DATABASE_URL="+s.dbURL, "TEMPORAL_ADDRESS="+s.temporal, "TEMPORAL_NAMESPACE="+temporal.Namespace,
		"LISTEN_ADDR=127.0.0.1:0", "STOP_DELAY=0s", "ALLOW_NETWORKS=127.0.0.0/8",
		"LOG_KEY_DIR="+keyDir(s.dir), "LOG_HIGH_WATER_DIR="+highWaterDir(s.dir))}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", p.binary, "github.com/kapsel-io/kapsel/cmd/kapsel")
	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))

	var migrations sync.WaitGroup
	for range 2 {
		migrations.Go(func() { p.do(t, nil, "migrate", "--json") })
	}
	migrations.Wait()
	p.do(t, &p.state, "log", "init", "--host", "localhost", "--json")
	p.do(t, &p.state, "tenant", "create", "--name", "Example Bank", "--json")
	return p
}

// do runs a command to its end and reads the JSON that it prints.
func (p *production) do(t *testing.T, into any, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.binary, args...)
	cmd.Env = p.environ
	output, err := cmd.Output()
	if !assertNoError(t, err, args) || into == nil {
		return
	}
	require.NoError(t, json.Unmarshal(output, into))
}

// assertNoError may be called beside the test's own goroutine.
func assertNoError(t *testing.T, err error, what ...any) bool {
	t.Helper()
	if err != nil {
		t.Errorf("%v: %v", what, err)
	}
	return err == nil
}

// service is a process that serves until it is told to stop.
type service struct {
	*exec.Cmd
	address string // of an api
}

// start runs a service and returns once its log says that it has started.
func (p *production) start(t *testing.T, name string) *service {
	t.Helper()
	s := &service{Cmd: exec.Command(p.binary, name)}
	s.Env = p.environ
	logs, err := s.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, s.Start())
	t.Cleanup(func() { _ = s.Process.Kill() })
	lines := bufio.NewScanner(logs)
	for lines.Scan() {
		var line struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == name+" started" {
			s.address = line.Address
			go func() { _, _ = io.Copy(io.Discard, logs) }()
			return s
		}
	}
	t.Fatalf("kapsel %s ended before it had started", name)
	return nil
}

// The binary that production runs, two of each process against a Postgres and a Temporal that aren't its own: the work is
// shared, a worker that is killed loses nothing, SIGTERM ends every process with status 0, and an auditor's proof holds.
func TestProductionBinary(t *testing.T) {
	p := prepareProduction(t)
	first, second := p.start(t, "api"), p.start(t, "api")
	steady, killed := p.start(t, "worker"), p.start(t, "worker")
	databaseURL := environment(p.environ, "DATABASE_URL")
	site := newSite(t, "http://"+first.address, databaseURL, p.state)
	other := newSite(t, "http://"+second.address, databaseURL, p.state)

	healthy, flaky := startReceiver(t, ok), startReceiver(t, failing(1))
	endpoint := site.createEndpoint(t, client.NewDestination{URL: healthy.URL},
		client.NewDestination{URL: flaky.URL, Schedule: schedule(100, 100, 100)})
	const events = 100
	for i := range events {
		at := site
		if i%2 == 1 {
			at = other
		}
		at.mustIngest(t, endpoint, strconv.Itoa(i))
		if i == events/2 {
			require.NoError(t, killed.Process.Kill())
		}
	}
	site.awaitSealed(t, 2*time.Minute)
	require.Len(t, healthy.counts(), events)
	require.Len(t, flaky.counts(), events)
	site.checkRecord(t)
	p.checkProof(t, other)
	for _, s := range []*service{first, second, steady} {
		require.NoError(t, s.Process.Signal(syscall.SIGTERM))
		require.NoError(t, s.Wait(), "exit status 0")
	}
}

// checkProof downloads the proof of the newest event's first attempt and checks it with the key that log init printed.
func (p *production) checkProof(t *testing.T, at *site) {
	t.Helper()
	events, err := at.api.ListEventsWithResponse(t.Context(), nil)
	require.NoError(t, err)
	event, err := at.api.GetEventWithResponse(t.Context(), events.JSON200.Data[0].ID)
	require.NoError(t, err)
	proof, err := at.api.DownloadProofWithResponse(t.Context(), event.JSON200.Deliveries[0].Attempts[0].ID, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, proof.StatusCode(), string(proof.Body))
	_, err = verify.Package(proof.Body, verify.Options{VKey: p.state.VKey})
	require.NoError(t, err)
}

// environment returns the last value of a variable.
func environment(environ []string, name string) (value string) {
	for _, entry := range environ {
		if len(entry) > len(name) && entry[:len(name)+1] == name+"=" {
			value = entry[len(name)+1:]
		}
	}
	return value
}
