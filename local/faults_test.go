package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	sdk "go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/worker"
	"github.com/kapsel-io/kapsel/workflows"
)

func decodeKey(t *testing.T, s string) []byte {
	t.Helper()
	key, err := hex.DecodeString(s)
	require.NoError(t, err)
	return key
}

// Invariant 2: the api needs only Postgres. What is accepted while Temporal is away is delivered when it is back.
func TestIngestGoesOnWithoutTemporal(t *testing.T) {
	s := startTestStack(t)
	healthy := startReceiver(t, ok)
	endpoint := s.createEndpoint(t, client.NewDestination{URL: healthy.URL})
	s.mustIngest(t, endpoint, "before")
	s.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending'")

	port, stop := s.temporalServer(t)
	require.NoError(t, stop(t.Context()))
	for i := range 20 {
		s.mustIngest(t, endpoint, fmt.Sprint("while it is away ", i))
	}
	require.Equal(t, 20, s.count(t, "select count(*) from deliveries where state = 'pending'"))
	server, err := temporal.Start(t.Context(), temporal.Config{DatabaseURL: s.dbURL, FrontendPort: port})
	require.NoError(t, err)
	s.replaceTemporal(server.Stop)
	s.awaitSealed(t, 2*time.Minute)
	require.Len(t, healthy.counts(), 21)
	s.checkRecord(t)
}

// temporalServer returns the port of the running Temporal and what stops it.
func (s *testStack) temporalServer(t *testing.T) (int, func(context.Context) error) {
	t.Helper()
	_, portText, err := net.SplitHostPort(s.temporal)
	require.NoError(t, err)
	port, err := strconv.Atoi(portText)
	require.NoError(t, err)
	for _, part := range s.stops {
		if part.name == "Temporal" {
			return port, part.stop
		}
	}
	t.Fatal("Temporal isn't running")
	return 0, nil
}

func (s *testStack) replaceTemporal(stop func(context.Context) error) {
	for i := range s.stops {
		if s.stops[i].name == "Temporal" {
			s.stops[i].stop = stop
		}
	}
}

// A workflow that somebody terminates in the Web UI takes no delivery with it: before its first record the dispatcher
// finds out, afterwards the sweeper. The carrier that was cut off can't record any more.
func TestTerminatedWorkflowsLoseNothing(t *testing.T) {
	s := startTestStack(t)
	temporalClient := s.temporalClient(t)
	release := make(chan struct{})
	hanging := startReceiver(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		w.WriteHeader(http.StatusOK)
	})
	flaky := startReceiver(t, failing(1))
	endpoint := s.createEndpoint(t,
		client.NewDestination{URL: hanging.URL},
		client.NewDestination{URL: flaky.URL, Schedule: schedule(2_000_000, 100)}) // waits about 33 min before the second attempt
	event := s.mustIngest(t, endpoint, "x")
	require.Eventually(t, func() bool { return len(hanging.counts()) == 1 && s.attempts(t) == 1 }, time.Minute, 50*time.Millisecond)

	answer, err := s.api.GetEventWithResponse(t.Context(), event)
	require.NoError(t, err)
	for _, d := range answer.JSON200.Deliveries {
		require.NoError(t, temporalClient.TerminateWorkflow(t.Context(), workflows.DeliveryWorkflowID(d.ID, 0), "", "by hand"))
	}
	// The sweeper looks 5 min after the attempt was due; let that be over.
	_, err = s.db.Exec(t.Context(), "update deliveries set check_after = now() where check_after is not null")
	require.NoError(t, err)
	s.awaitZero(t, 90*time.Second, "select count(*) from deliveries where state = 'pending'")
	close(release) // the request of the terminated carrier is answered only now
	s.awaitSealed(t, time.Minute)
	require.Equal(t, 2, s.count(t, "select count(*) from deliveries where epoch = 1 and state = 'delivered'"))
	for _, n := range hanging.counts() {
		require.Equal(t, 2, n)
	}
	require.Equal(t, 1, s.count(t, `select count(*) from merkle_leaves where convert_from(leaf, 'UTF8')::jsonb->>'lost_starts' = '1'`),
		"the send whose outcome was lost is in the leaf")
	s.checkRecord(t)
	requireReplays(t, s.dbURL, s.temporal)
}

func (s *site) attempts(t *testing.T) int {
	t.Helper()
	return s.count(t, "select count(*) from attempts")
}

// Several workers share the work: nothing is sent twice, and nothing is lost when one is stopped under load.
func TestWorkersShareTheWork(t *testing.T) {
	s := startTestStack(t)
	engine, err := postgres.Open(s.dbURL, postgres.Engine, 16)
	require.NoError(t, err)
	defer engine.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var second sync.WaitGroup
	second.Go(func() {
		_ = worker.Run(ctx, worker.Config{
			Engine: engine, Log: zap.NewNop(), Allow: loopback,
			Temporal: sdk.Options{HostPort: s.temporal, Namespace: temporal.Namespace},
		})
	})
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from workers where alive_until > now()") == 2
	}, time.Minute, 50*time.Millisecond)
	healthy, flaky := startReceiver(t, ok), startReceiver(t, failing(1))
	endpoint := s.createEndpoint(t, client.NewDestination{URL: healthy.URL},
		client.NewDestination{URL: flaky.URL, Schedule: schedule(200, 200, 200)})
	const events = 200
	for i := range events {
		s.mustIngest(t, endpoint, strconv.Itoa(i))
		if i == events/2 {
			stop()
		}
	}
	second.Wait()
	s.awaitSealed(t, 2*time.Minute)
	require.Len(t, healthy.counts(), events)
	for id, n := range healthy.counts() {
		require.Equal(t, 1, n, id)
	}
	for id, n := range flaky.counts() {
		require.Equal(t, 2, n, id)
	}
	s.checkRecord(t)
}

// What the Web UI can search for.
func TestWorkflowsCanBeFound(t *testing.T) {
	s := startTestStack(t)
	healthy := startReceiver(t, ok)
	endpoint := s.createEndpoint(t, client.NewDestination{URL: healthy.URL})
	event := s.mustIngest(t, endpoint, "x")
	s.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending'")
	temporalClient := s.temporalClient(t)
	for _, query := range []string{
		fmt.Sprintf("KapselEvent = '%s' and KapselOutcome = 'delivered'", event),
		fmt.Sprintf("KapselTenant = '%s' and KapselEndpoint = '%s'", s.made.TenantID, endpoint.ID),
		fmt.Sprintf("KapselDestination = '%s'", endpoint.Destinations[0].ID),
	} {
		require.Eventually(t, func() bool {
			found, err := temporalClient.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Query: query})
			return err == nil && len(found.GetExecutions()) == 1
		}, 30*time.Second, 100*time.Millisecond, query)
	}
	res, err := http.Get(s.uiURL) //nolint:noctx // one page, on loopback
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusOK, res.StatusCode)
}
