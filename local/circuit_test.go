package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdk "go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/worker"
)

// addWorker runs another worker beside the stack's own.
func (s *testStack) addWorker(t *testing.T) {
	t.Helper()
	engine, err := postgres.Open(s.dbURL, postgres.Engine, 16)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var runs sync.WaitGroup
	runs.Go(func() {
		_ = worker.Run(ctx, worker.Config{
			Engine: engine, Log: zap.NewNop(), Allow: loopback, Temporal: sdk.Options{HostPort: s.temporal, Namespace: temporal.Namespace},
		})
	})
	t.Cleanup(func() {
		stop()
		runs.Wait()
		engine.Close()
	})
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from workers where alive_until > now()") == 2
	}, time.Minute, 50*time.Millisecond)
}

// outage is a receiver that is down until it is mended. It notes when requests came.
type outage struct {
	*receiver
	mended atomic.Bool
	mu     sync.Mutex
	came   []time.Time
}

func startOutage(t *testing.T) *outage {
	t.Helper()
	o := &outage{}
	o.receiver = startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		o.mu.Lock()
		o.came = append(o.came, time.Now())
		o.mu.Unlock()
		if !o.mended.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return o
}

func (o *outage) requests() []time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]time.Time{}, o.came...)
}

// circuitOf reads the circuit of an endpoint's first destination as a client sees it.
func (s *site) circuitOf(t *testing.T, endpoint client.Endpoint) (client.Circuit, client.Destination) {
	t.Helper()
	answer, err := s.api.GetEndpointWithResponse(t.Context(), endpoint.ID)
	require.NoError(t, err)
	require.NotNil(t, answer.JSON200)
	return answer.JSON200.Destinations[0].Circuit, answer.JSON200.Destinations[0]
}

// While a receiver is down two workers leave it alone but for one request at a time, in each lane; nothing that waits
// uses up an attempt; and when it works again, everything is delivered.
func TestAnOpenCircuitKeepsAttempts(t *testing.T) {
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		t.Run(string(lane), func(t *testing.T) {
			s := startTestStack(t)
			s.addWorker(t)
			down := startOutage(t)
			openMS := int64(2000)
			endpoint := s.createLane(t, lane, client.NewDestination{URL: down.URL, Circuit: &client.CircuitSettings{OpenMs: &openMS}})
			const before, during = 15, 25
			for i := range before {
				s.mustIngest(t, endpoint, fmt.Sprint("before ", i))
			}
			require.Eventually(t, func() bool {
				circuit, _ := s.circuitOf(t, endpoint)
				return circuit.State != client.Closed
			}, time.Minute, 20*time.Millisecond)
			circuit, _ := s.circuitOf(t, endpoint)
			require.NotNil(t, circuit.OpenedAt)
			require.NotNil(t, circuit.FailingSince)
			s.awaitZero(t, time.Minute, "select count(*) from delivery_queue where claim_id is not null") // what was in flight is over
			atOnce := len(down.requests())
			for i := range during {
				s.mustIngest(t, endpoint, fmt.Sprint("during ", i))
			}
			require.Eventually(t, func() bool { return len(down.requests()) >= atOnce+4 }, time.Minute, 50*time.Millisecond, "it is tried again and again")
			down.mended.Store(true)
			s.awaitSealed(t, 2*time.Minute)

			came := down.requests()
			for i := atOnce + 1; i < atOnce+4; i++ {
				require.GreaterOrEqual(t, came[i].Sub(came[i-1]), 2*time.Second, "one request, then nothing until the circuit may be probed again")
			}
			require.Equal(t, before+during, s.to(t, endpoint.Destinations[0], "state = 'delivered'"))
			require.Equal(t, len(came), s.count(t, "select count(*) from attempts"), "each attempt is a request that was received")
			require.LessOrEqual(t, s.count(t, "select count(*) from attempts where outcome <> 'delivered'"), atOnce+5)
			require.GreaterOrEqual(t, s.to(t, endpoint.Destinations[0], "next_attempt = 2"), during-5, "what waited used up no attempt")
			require.Zero(t, s.lostStarts(t))
			circuit, _ = s.circuitOf(t, endpoint)
			require.Equal(t, client.Closed, circuit.State)
			require.Nil(t, circuit.OpenedAt)
			require.Nil(t, circuit.FailingSince)
			s.checkRecord(t)
		})
	}
}

// A destination that failed for so long is disabled; what waits for it stays, and goes on when it is enabled again.
func TestADestinationThatKeepsFailingIsDisabled(t *testing.T) {
	s := startTestStack(t)
	down := startOutage(t)
	openMS := int64(1000)
	endpoint := s.createLane(t, client.Auto, client.NewDestination{URL: down.URL, Circuit: &client.CircuitSettings{OpenMs: &openMS}})
	const events = 12
	for i := range events {
		s.mustIngest(t, endpoint, fmt.Sprint(i))
	}
	require.Eventually(t, func() bool {
		circuit, _ := s.circuitOf(t, endpoint)
		return circuit.State != client.Closed
	}, time.Minute, 20*time.Millisecond)
	_, err := s.db.Exec(t.Context(), "update circuits set failing_since = failing_since - interval '5 days'")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, destination := s.circuitOf(t, endpoint)
		return destination.DisabledAt != nil && *destination.DisabledReason == "failing"
	}, time.Minute, 100*time.Millisecond)
	require.Equal(t, events, s.to(t, endpoint.Destinations[0], "state = 'pending'"))
	s.awaitZero(t, 2*time.Minute, "select $1 - count(*) from delivery_queue where claim_id is null", events)

	down.mended.Store(true)
	destinationID, err := id.Destination.Parse(endpoint.Destinations[0].ID)
	require.NoError(t, err)
	_, err = s.db.Exec(t.Context(), "update destinations set disabled_at = null, disabled_reason = null where id = $1", destinationID)
	require.NoError(t, err)
	s.awaitSealed(t, 2*time.Minute)
	require.Equal(t, events, s.to(t, endpoint.Destinations[0], "state = 'delivered'"))
	circuit, _ := s.circuitOf(t, endpoint)
	require.Equal(t, client.Closed, circuit.State)
	s.checkRecord(t)
}
