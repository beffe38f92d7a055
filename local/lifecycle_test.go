package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/freeport"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/workflows"
)

// freeAddress is one that nobody listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := freeport.Find()
	require.NoError(t, err)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// with is the same production with other variables.
func (p *production) with(variables ...string) *production {
	other := *p
	other.environ = append(slices.Clone(p.environ), variables...)
	return &other
}

// health asks a process how it is; status 0: it doesn't answer.
func health(address, name string) (status int, checks map[string]string) {
	response, err := http.Get("http://" + address + "/health/" + name)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = response.Body.Close() }()
	var body struct{ Checks map[string]string }
	if json.NewDecoder(response.Body).Decode(&body) != nil {
		return 0, nil
	}
	return response.StatusCode, body.Checks
}

func awaitHealth(t *testing.T, address, name string, status int) {
	t.Helper()
	require.Eventually(t, func() bool {
		got, _ := health(address, name)
		return got == status
	}, 2*time.Minute, 50*time.Millisecond, "%s/health/%s never was %d", address, name, status)
}

// balanced is a client of two apis as a load balancer is one: what one doesn't answer with 200 is sent once more, to the other.
type balanced struct {
	client    http.Client
	addresses [2]string
	retried   atomic.Int64
}

// send returns the event's ID.
func (b *balanced) send(endpoint client.Endpoint, number int) (string, error) {
	key := strconv.Itoa(number)
	event, err := b.sendTo(b.addresses[number%2], endpoint, key)
	if err != nil {
		b.retried.Add(1)
		if event, again := b.sendTo(b.addresses[(number+1)%2], endpoint, key); again != nil {
			return "", fmt.Errorf("%w; and then: %w", err, again)
		} else {
			return event, nil
		}
	}
	return event, nil
}

func (b *balanced) sendTo(address string, endpoint client.Endpoint, key string) (string, error) {
	request, err := http.NewRequest(http.MethodPost, "http://"+address+"/ingest/"+endpoint.ID, strings.NewReader("webhook "+key))
	if err != nil {
		return "", err
	}
	request.Header.Set("Idempotency-Key", key)
	response, err := b.client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	var accepted client.Accepted
	if err := json.Unmarshal(body, &accepted); err != nil || response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s: %s", address, response.Status, body)
	}
	return accepted.EventID, nil
}

// Two apis and two workers are restarted one after the other, twice, under load: not one request fails that is sent once more to the
// other, each becomes one event, and each is delivered and in the log.
func TestRollingRestarts(t *testing.T) {
	p := prepareProduction(t)
	b := &balanced{addresses: [2]string{freeAddress(t), freeAddress(t)}}
	start := func(name string, i int) *service {
		if name == "worker" {
			return p.start(t, name)
		}
		s := p.with("LISTEN_ADDR="+b.addresses[i], "STOP_DELAY=1s").start(t, name)
		awaitHealth(t, b.addresses[i], "ready", http.StatusOK)
		return s
	}
	running := map[string]*[2]*service{"api": {}, "worker": {}}
	for name, both := range running {
		both[0], both[1] = start(name, 0), start(name, 1)
	}
	site := newSite(t, "http://"+b.addresses[0], environment(p.environ, "DATABASE_URL"), p.state)
	receiver := startReceiver(t, ok)
	endpoint := site.createEndpoint(t, client.NewDestination{URL: receiver.URL})

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var callers sync.WaitGroup
	var mu sync.Mutex
	accepted := map[string]bool{}
	var next atomic.Int64
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				event, err := b.send(endpoint, int(next.Add(1)))
				if !assertNoError(t, err) {
					return
				}
				mu.Lock()
				accepted[event] = true
				mu.Unlock()
				pause := time.NewTimer(5 * time.Millisecond)
				<-pause.C
			}
		})
	}
	for range 2 {
		for _, name := range []string{"api", "worker"} {
			for i, s := range running[name] {
				require.NoError(t, s.Process.Signal(syscall.SIGTERM))
				require.NoError(t, s.Wait(), "exit status 0")
				running[name][i] = start(name, i)
			}
		}
	}
	stop()
	callers.Wait()
	t.Logf("%d webhooks accepted, %d of them by a second request", len(accepted), b.retried.Load())
	require.NotEmpty(t, accepted)
	require.Len(t, accepted, int(next.Load()), "each request was one event")
	require.Equal(t, len(accepted), site.count(t, "select count(*) from events"))
	site.awaitSealed(t, 2*time.Minute)
	require.Len(t, receiver.counts(), len(accepted))
	site.checkRecord(t)
}

// A worker that is started long before Temporal, and one from which it goes away, wait and say so, and then go on by themselves;
// meanwhile webhooks are accepted. A worker can be stopped while it is away.
func TestAWorkerOutlastsTemporal(t *testing.T) {
	s := prepareServers(t)
	address := freeAddress(t)
	s.temporal = address
	p := prepareOn(t, s)
	_, portText, err := net.SplitHostPort(address)
	require.NoError(t, err)
	port, err := strconv.Atoi(portText)
	require.NoError(t, err)
	var attributes []string
	for _, key := range workflows.SearchAttributes() {
		attributes = append(attributes, key.GetName())
	}
	startTemporal := func() *temporal.Server {
		server, err := temporal.Start(t.Context(), temporal.Config{DatabaseURL: s.dbURL, FrontendPort: port, SearchAttributes: attributes})
		require.NoError(t, err)
		return server
	}
	startWorker := func() (*exec.Cmd, string) {
		at := freeAddress(t)
		worker := exec.Command(p.binary, "worker")
		worker.Env = append(slices.Clone(p.environ), "METRICS_ADDR="+at)
		require.NoError(t, worker.Start())
		t.Cleanup(func() { _ = worker.Process.Kill() })
		awaitHealth(t, at, "live", http.StatusOK)
		return worker, at
	}
	early, at := startWorker()
	api := p.start(t, "api")
	awaitHealth(t, api.address, "ready", http.StatusOK)
	site := newSite(t, "http://"+api.address, s.dbURL, p.state)
	receiver := startReceiver(t, ok)
	endpoint := site.createEndpoint(t, client.NewDestination{URL: receiver.URL})
	site.mustIngest(t, endpoint, "before Temporal was ever there")
	awaitHealth(t, at, "startup", http.StatusServiceUnavailable)
	_, checks := health(at, "startup")
	require.Equal(t, "ok", checks["schema"])
	require.NotEqual(t, "ok", checks["temporal"])

	server := startTemporal()
	awaitHealth(t, at, "startup", http.StatusOK)
	awaitHealth(t, at, "ready", http.StatusOK)
	site.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending'")

	worked, workedAt := startWorker()
	awaitHealth(t, workedAt, "ready", http.StatusOK)
	require.NoError(t, server.Stop(t.Context()))
	awaitHealth(t, at, "ready", http.StatusServiceUnavailable)
	for i := range 20 {
		site.mustIngest(t, endpoint, fmt.Sprint("while it is away ", i))
	}
	live, _ := health(at, "live")
	require.Equal(t, http.StatusOK, live)
	waiting, _ := startWorker()
	for _, worker := range []*exec.Cmd{waiting, worked} {
		start := time.Now()
		require.NoError(t, worker.Process.Signal(syscall.SIGTERM))
		require.NoError(t, worker.Wait(), "exit status 0")
		t.Logf("a worker stopped within %s", time.Since(start).Round(time.Millisecond))
	}

	server = startTemporal()
	t.Cleanup(func() { _ = server.Stop(context.Background()) })
	awaitHealth(t, at, "ready", http.StatusOK)
	site.awaitSealed(t, 2*time.Minute)
	require.Len(t, receiver.counts(), 21)
	site.checkRecord(t)
	for _, process := range []*exec.Cmd{early, api.Cmd} {
		require.NoError(t, process.Process.Signal(syscall.SIGTERM))
		require.NoError(t, process.Wait(), "exit status 0")
	}
}
