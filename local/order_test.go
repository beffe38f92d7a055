package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
)

// orderedReceiver keeps what it took, by key, and fails the first attempts of some bodies.
type orderedReceiver struct {
	*httptest.Server
	mu    sync.Mutex
	took  map[string][]string // by key
	tries map[string]int      // by body
}

func startOrderedReceiver(t *testing.T, fails func(body string, try int) int) *orderedReceiver {
	t.Helper()
	r := &orderedReceiver{took: map[string][]string{}, tries: map[string]int{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		read, _ := io.ReadAll(req.Body)
		body := string(read)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tries[body]++
		if status := fails(body, r.tries[body]); status != 0 {
			w.WriteHeader(status)
			return
		}
		key, _, _ := strings.Cut(body, " ")
		r.took[key] = append(r.took[key], body)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *orderedReceiver) of(key string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.took[key]...)
}

// An endpoint that keeps an order sends the webhooks of a key one after the other. One that fails holds up its own key and no
// other; one that is dead is passed, or blocks its key until it is released. In both lanes.
func TestOrderByKey(t *testing.T) {
	s := startTestStack(t)
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		t.Run(string(lane), func(t *testing.T) { testOrderByKey(t, s, lane) })
	}
	s.checkRecord(t)
}

func testOrderByKey(t *testing.T, s *testStack, lane client.Lane) {
	const keys, each = 5, 20
	r := startOrderedReceiver(t, func(body string, try int) int {
		switch {
		case body == "k0 3" && try <= 3:
			return http.StatusServiceUnavailable // for about a second
		case body == "k1 5":
			return http.StatusBadRequest // dead at once
		}
		return 0
	})
	header := "X-Order-Key"
	answer, err := s.api.CreateEndpointWithResponse(t.Context(), client.NewEndpoint{
		Name: "ordered", Verification: client.Verification{Scheme: client.VerificationSchemeNone}, Lane: &lane,
		Ordering:     &client.Ordering{Source: client.OrderingSourceHeader, Header: &header, OnDead: client.Block},
		Destinations: withoutCircuits([]client.NewDestination{{URL: r.URL, Schedule: schedule(400, 400, 400, 400)}}),
	})
	require.NoError(t, err)
	require.NotNil(t, answer.JSON201, string(answer.Body))
	endpoint := *answer.JSON201
	events := map[string]string{}
	for i := range each {
		for k := range keys {
			body := fmt.Sprintf("k%d %d", k, i)
			events[body] = s.ingestOrdered(t, endpoint, fmt.Sprintf("k%d", k), body)
		}
	}
	want := func(key string, from, to int) (bodies []string) {
		for i := from; i < to; i++ {
			bodies = append(bodies, fmt.Sprintf("%s %d", key, i))
		}
		return bodies
	}
	for _, key := range []string{"k2", "k3", "k4", "k0"} {
		require.Eventually(t, func() bool { return len(r.of(key)) == each }, 60*time.Second, 50*time.Millisecond, key)
		require.Equal(t, want(key, 0, each), r.of(key))
	}
	// The fifth of k1 is dead, and blocks those behind it.
	delivery := s.deliveryOf(t, events["k1 5"])
	require.Equal(t, "dead", delivery.State)
	require.EqualValues(t, 6, *delivery.OrderSeq)
	require.Equal(t, want("k1", 0, 5), r.of("k1"))
	require.Equal(t, "pending", s.deliveryOf(t, events["k1 6"]).State)
	released, err := s.api.ReleaseDeliveryWithResponse(t.Context(), delivery.ID)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, released.StatusCode())
	require.Eventually(t, func() bool { return len(r.of("k1")) == each-1 }, 60*time.Second, 50*time.Millisecond)
	require.Equal(t, append(want("k1", 0, 5), want("k1", 6, each)...), r.of("k1"))
	released, err = s.api.ReleaseDeliveryWithResponse(t.Context(), delivery.ID)
	require.NoError(t, err)
	require.Equal(t, http.StatusConflict, released.StatusCode())
	s.awaitSealed(t, time.Minute)
}

func (s *site) ingestOrdered(t *testing.T, endpoint client.Endpoint, key, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.base+"/ingest/"+endpoint.ID, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("X-Order-Key", key)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, string(answer))
	event := strings.TrimSuffix(strings.TrimPrefix(string(answer), `{"event_id":"`), "\"}\n")
	return event
}

func (s *site) deliveryOf(t *testing.T, event string) client.Delivery {
	t.Helper()
	answer, err := s.api.GetEventWithResponse(t.Context(), event)
	require.NoError(t, err)
	require.NotNil(t, answer.JSON200, string(answer.Body))
	require.Len(t, answer.JSON200.Deliveries, 1)
	return answer.JSON200.Deliveries[0]
}
