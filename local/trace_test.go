package main

import (
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/tracing/tracingtest"
)

// traced is a receiver that refuses the first request of each delivery, and keeps what it is told of traces.
type traced struct {
	*receiver
	mu      sync.Mutex
	parents map[string][]string // by event
	states  []string
}

func startTraced(t *testing.T) *traced {
	t.Helper()
	r := &traced{parents: map[string][]string{}}
	r.receiver = startReceiver(t, func(n int, w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		event := req.Header.Get("Kapsel-Event-Id")
		if event == "" { // what another test, whose collector had this port, still exports
			t.Logf("not a webhook: %s %s %v", req.Method, req.URL.Path, req.Header)
			return
		}
		r.parents[event] = append(r.parents[event], req.Header.Get("Traceparent"))
		r.states = append(r.states, req.Header.Values("Tracestate")...)
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return r
}

// One trace tells of a webhook from its arrival to its leaves, in either lane, although api and worker hand over nothing of it; the
// receiver is told in which span it is asked.
func TestOneTraceFromIngestToLeaf(t *testing.T) {
	collector := tracingtest.New(t)
	s := startStackWith(t, stackConfig{TraceTo: collector.URL})
	const sender = "0af7651916cd43dd8448eb211c80319c"
	events := map[client.Lane]string{}
	receiver := startTraced(t)
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		endpoint := s.createLane(t, lane, client.NewDestination{URL: receiver.URL, Schedule: schedule(100)})
		require.Equal(t, http.StatusOK, s.request(t, http.MethodPost, "/ingest/"+endpoint.ID, string(lane), map[string]string{
			"Traceparent": "00-" + sender + "-b7ad6b7169203331-00", "Tracestate": "a=b",
		}))
		var event string
		require.NoError(t, s.db.QueryRow(t.Context(), "select id from events where endpoint_id = $1", mustParse(t, id.Endpoint, endpoint.ID)).Scan(&event))
		events[lane] = strings.ReplaceAll(event, "-", "")
	}
	s.awaitSealed(t, time.Minute)
	for lane, trace := range events {
		require.Eventually(t, func() bool {
			return len(collector.Named(trace, "leaf")) == 2 && len(collector.Named(trace, "deliver")) == 1
		}, time.Minute, 100*time.Millisecond, "%s: the batch of spans is exported every 5 s", lane)
		requireTrace(t, collector, trace, lane, sender)
		var event string
		for name := range receiver.parents {
			if hexOfEvent(t, name) == trace {
				event = name
			}
		}
		var said []string
		for _, attempt := range collector.Named(trace, "attempt") {
			said = append(said, "00-"+trace+"-"+attempt.ID()+"-01")
		}
		require.ElementsMatch(t, said, receiver.parents[event], "the receiver is told of the attempt's span, which is sampled")
	}
	require.Empty(t, receiver.states, "the sender's tracestate belongs to its traceparent, which was replaced")
	s.checkNoTraceInHistories(t, events)
}

func requireTrace(t *testing.T, collector *tracingtest.Collector, trace string, lane client.Lane, sender string) {
	t.Helper()
	one := func(name string) tracingtest.Span {
		found := collector.Named(trace, name)
		require.Len(t, found, 1, "%s: %s", lane, name)
		return found[0]
	}
	ingest, deliver := one("POST /ingest/:endpoint_id"), one("deliver")
	require.Empty(t, ingest.Parent())
	require.Equal(t, sender, hex.EncodeToString(ingest.GetLinks()[0].GetTraceId()))
	require.Equal(t, ingest.ID(), one("commit").Parent())
	require.Equal(t, ingest.ID(), deliver.Parent())
	require.Equal(t, "delivered", deliver.Text("kapsel.state"))
	require.Equal(t, 2, deliver.Number("kapsel.attempts"))

	carriers := map[string]bool{deliver.ID(): true}
	for _, activity := range collector.Named(trace, "SendAttempt") {
		require.Equal(t, deliver.ID(), activity.Parent())
		require.True(t, strings.HasPrefix(activity.Text("temporal.workflow_id"), "deliver/dlv_"), activity.Text("temporal.workflow_id"))
		carriers[activity.ID()] = true
	}
	attempts, leaves := collector.Named(trace, "attempt"), collector.Named(trace, "leaf")
	require.Len(t, attempts, 2)
	require.Len(t, collector.Named(trace, "record"), 2)
	statuses, above := map[int]int{}, map[string]bool{}
	for _, attempt := range attempts {
		require.True(t, carriers[attempt.Parent()])
		statuses[attempt.Number("kapsel.attempt")] = attempt.Number("http.response.status_code")
		require.Equal(t, deliver.Text("kapsel.delivery_id"), attempt.Text("kapsel.delivery_id"))
		above[attempt.ID()] = true
		if attempt.Text("kapsel.lane") == "batch" {
			batch := attempt.GetLinks()[0]
			require.Len(t, collector.Named(hex.EncodeToString(batch.GetTraceId()), "SendBatch"), 1)
		}
	}
	require.Equal(t, map[int]int{1: 503, 2: 200}, statuses)
	if lane == client.Batch {
		require.Equal(t, "batch", attempts[0].Text("kapsel.lane"))
	}
	for _, leaf := range leaves {
		require.True(t, above[leaf.Parent()], "each attempt has its leaf below it")
		delete(above, leaf.Parent())
		seal := leaf.GetLinks()[0]
		require.Len(t, collector.Named(hex.EncodeToString(seal.GetTraceId()), "seal"), 1)
	}
}

// checkNoTraceInHistories: workflows know nothing of traces, so no history was changed by them.
func (s *testStack) checkNoTraceInHistories(t *testing.T, events map[client.Lane]string) {
	t.Helper()
	histories, _ := s.histories(t)
	require.NotContains(t, string(histories), "traceparent")
	for _, trace := range events {
		require.NotContains(t, string(histories), trace)
	}
}

// A collector that never answers costs nothing but traces: webhooks are accepted, delivered and attested, and stopping goes on.
func TestDeliveryNeedsNoCollector(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-release
	}))
	t.Cleanup(hanging.Close)
	t.Cleanup(func() { close(release) })
	s := startStackWith(t, stackConfig{TraceTo: hanging.URL})
	receiver := startReceiver(t, ok)
	endpoint := s.createEndpoint(t, client.NewDestination{URL: receiver.URL})
	const webhooks = 100
	for range webhooks / 2 {
		s.mustIngest(t, endpoint, "before it hangs")
	}
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Fatal("nothing was exported")
	}
	for range webhooks / 2 {
		s.mustIngest(t, endpoint, "while it hangs")
	}
	s.awaitSealed(t, time.Minute)
	require.Equal(t, webhooks, s.count(t, "select count(*) from deliveries where state = 'delivered'"))
	s.checkRecord(t)
	require.NoError(t, s.stop(nil), "within a minute")
}

func mustParse(t *testing.T, kind id.Kind, name string) uuid.UUID {
	t.Helper()
	u, err := kind.Parse(name)
	require.NoError(t, err)
	return u
}

func hexOfEvent(t *testing.T, name string) string {
	t.Helper()
	u := mustParse(t, id.Event, name)
	return hex.EncodeToString(u[:])
}
