package main

import (
	"fmt"
	"hash/fnv"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	sdk "go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
)

func (s *site) createLane(t *testing.T, lane client.Lane, destinations ...client.NewDestination) client.Endpoint {
	t.Helper()
	answer, err := s.api.CreateEndpointWithResponse(t.Context(), client.NewEndpoint{
		Name: "test", Verification: client.Verification{Scheme: client.VerificationSchemeNone}, Lane: &lane, Destinations: withoutCircuits(destinations),
	})
	require.NoError(t, err)
	require.NotNil(t, answer.JSON201, string(answer.Body))
	return *answer.JSON201
}

// burst lets n webhooks become due at once: their destinations are paused while they are sent.
func (s *testStack) burst(t *testing.T, endpoint client.Endpoint, n int) (events []string) {
	t.Helper()
	s.pause(t, true)
	events = make([]string, n)
	var next atomic.Int64
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				events[i], _ = s.ingest(t.Context(), endpoint, fmt.Sprintf("webhook %d", i))
			}
		})
	}
	callers.Wait()
	require.NotContains(t, events, "", "a webhook wasn't accepted")
	s.pause(t, false)
	return events
}

// requireTimes wants each of n deliveries to have been received so many times.
func (r *receiver) requireTimes(t *testing.T, n, times int) {
	t.Helper()
	counts := r.counts()
	require.Len(t, counts, n)
	for delivery, count := range counts {
		require.Equal(t, times, count, delivery)
	}
}

// to counts the deliveries to a destination of which a condition holds.
func (s *site) to(t *testing.T, destination client.Destination, condition string) int {
	t.Helper()
	destinationID, err := id.Destination.Parse(destination.ID)
	require.NoError(t, err)
	return s.count(t, "select count(*) from deliveries where destination_id = $1 and "+condition, destinationID)
}

// requireEnded wants every delivery of events to be over, and returns what carried those to one URL.
func (s *site) requireEnded(t *testing.T, events []string, to string) map[string]bool {
	t.Helper()
	lanes := map[string]bool{}
	for _, event := range events {
		answer, err := s.api.GetEventWithResponse(t.Context(), event)
		require.NoError(t, err)
		require.NotNil(t, answer.JSON200, "accepted event %s is gone", event)
		for _, d := range answer.JSON200.Deliveries {
			require.Contains(t, []string{"delivered", "dead"}, d.State)
			require.NotNil(t, d.Lane)
			if d.DestinationID == to {
				lanes[*d.Lane] = true
			}
		}
	}
	return lanes
}

// Lane batch from end to end: what is delivered at once was carried in batches, what fails is tried as often as its
// schedule says, and every delivery ends with one terminal leaf.
func TestBatchLane(t *testing.T) {
	s := startTestStack(t)
	healthy, flaky := startReceiver(t, ok), startReceiver(t, failing(1))
	dead := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	endpoint := s.createLane(t, client.Batch,
		client.NewDestination{URL: healthy.URL},
		client.NewDestination{URL: flaky.URL, Schedule: schedule(300, 300, 300)},
		client.NewDestination{URL: dead.URL, Schedule: schedule(200, 400)})
	const events = 300
	accepted := s.burst(t, endpoint, events)
	s.awaitSealed(t, 2*time.Minute)
	healthy.requireTimes(t, events, 1)
	flaky.requireTimes(t, events, 2)
	dead.requireTimes(t, events, 3)
	for _, d := range endpoint.Destinations {
		state := map[bool]string{true: "dead", false: "delivered"}[strings.HasPrefix(d.URL, dead.URL)]
		require.Equal(t, events, s.to(t, d, "state = '"+state+"'"), d.URL)
	}
	require.Equal(t, events, s.to(t, endpoint.Destinations[0], "lane = 'batch' and epoch = 0"))
	require.Equal(t, map[string]bool{"batch": true}, s.requireEnded(t, accepted[:20], endpoint.Destinations[0].ID))
	require.Zero(t, s.lostStarts(t), "nothing was interrupted")
	s.checkRecord(t)
}

// lostStarts counts the leaves that tell of sends whose outcome was lost.
func (s *site) lostStarts(t *testing.T) int {
	t.Helper()
	return s.count(t, "select count(*) from merkle_leaves where convert_from(leaf, 'UTF8')::jsonb->>'lost_starts' <> '0'")
}

// failsOnce reports whether a delivery is one of the 30 % whose first attempt fails.
func failsOnce(delivery string) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(delivery))
	return h.Sum32()%10 < 3
}

func countWorkflows(t *testing.T, temporalClient sdk.Client, query string) int {
	t.Helper()
	found, err := temporalClient.CountWorkflow(t.Context(), &workflowservice.CountWorkflowExecutionsRequest{Query: query})
	require.NoError(t, err)
	return int(found.GetCount())
}

// A burst is carried in batches, though nobody asked for that lane, and webhooks that fail once don't flood Temporal.
// Afterwards each delivery is its own workflow again.
func TestAutoCarriesABurstInBatches(t *testing.T) {
	s := startTestStack(t)
	temporalClient := s.temporalClient(t)
	flaky := startReceiver(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 && failsOnce(r.Header.Get("webhook-id")) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	endpoint := s.createLane(t, client.Auto, client.NewDestination{URL: flaky.URL, Schedule: schedule(1000, 1000, 1000)})
	const events = 3000
	s.burst(t, endpoint, events)
	s.awaitSealed(t, 3*time.Minute)
	failed := 0
	for delivery, n := range flaky.counts() {
		want := 1
		if failsOnce(delivery) {
			failed, want = failed+1, 2
		}
		require.Equal(t, want, n, delivery)
	}
	require.Greater(t, failed, events/5)
	require.Greater(t, s.to(t, endpoint.Destinations[0], "lane = 'batch'"), events/2)
	single := s.to(t, endpoint.Destinations[0], "lane = 'workflow'")
	require.Positive(t, single, "at first each had its own workflow")
	require.Eventually(t, func() bool { // visibility is written a little later
		return countWorkflows(t, temporalClient, "ExecutionStatus = 'Running' and WorkflowType <> 'AttestLog'") == 0 &&
			countWorkflows(t, temporalClient, "WorkflowType = 'DeliverWebhook'") >= single
	}, time.Minute, 100*time.Millisecond)
	require.Less(t, countWorkflows(t, temporalClient, "WorkflowType in ('DeliverWebhook', 'DeliverBatch')"), events/2)
	require.Positive(t, countWorkflows(t, temporalClient, "WorkflowType = 'DeliverBatch'"))
	s.checkRecord(t)

	require.Eventually(t, func() bool {
		event := s.mustIngest(t, endpoint, "afterwards")
		s.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending'")
		return s.requireEnded(t, []string{event}, endpoint.Destinations[0].ID)["workflow"]
	}, time.Minute, 200*time.Millisecond, "auto goes back")
}

// stalling is a receiver that answers nothing until it is released.
func startStalling(t *testing.T) (*receiver, func()) {
	t.Helper()
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	r := startReceiver(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		select {
		case <-released:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(release)
	return r, release
}

var twoMinutes = 120_000

// A destination that hangs holds up nobody: neither those in the same batches nor those that come later.
func TestBatchLaneGoesOnBesideADestinationThatHangs(t *testing.T) {
	s := startTestStack(t)
	healthy := startReceiver(t, ok)
	hanging, release := startStalling(t)
	endpoint := s.createLane(t, client.Batch, client.NewDestination{URL: healthy.URL},
		client.NewDestination{URL: hanging.URL, TimeoutMs: &twoMinutes})
	const events = 300
	s.burst(t, endpoint, events)
	s.awaitDelivered(t, endpoint.Destinations[0], events)
	require.NotEmpty(t, hanging.counts())
	require.Zero(t, s.to(t, endpoint.Destinations[1], "next_attempt > 1"), "its requests are in flight all the time")
	for i := range 20 {
		s.mustIngest(t, endpoint, fmt.Sprint("later ", i))
	}
	s.awaitDelivered(t, endpoint.Destinations[0], events+20)
	require.Zero(t, s.to(t, endpoint.Destinations[1], "next_attempt > 1"))
	release()
	s.awaitSealed(t, 2*time.Minute)
	healthy.requireTimes(t, events+20, 1)
	hanging.requireTimes(t, events+20, 1)
	require.Zero(t, s.lostStarts(t), "what had no place was never sent")
	s.checkRecord(t)
}

func (s *site) awaitDelivered(t *testing.T, destination client.Destination, n int) {
	t.Helper()
	destinationID, err := id.Destination.Parse(destination.ID)
	require.NoError(t, err)
	s.awaitZero(t, 30*time.Second, "select $2 - count(*) from deliveries where destination_id = $1 and state = 'delivered'",
		destinationID, n)
}

// Nor does one that hangs with more waiting for it than a worker carries at a time, however long it hangs.
func TestALongQueueOfADestinationThatHangsHoldsUpNobody(t *testing.T) {
	s := startTestStack(t)
	healthy := startReceiver(t, ok)
	hanging, release := startStalling(t)
	stuck := s.createLane(t, client.Batch, client.NewDestination{URL: hanging.URL, TimeoutMs: &twoMinutes})
	s.burst(t, stuck, 2500)
	require.Eventually(t, func() bool { return len(hanging.counts()) > 128 }, time.Minute, 50*time.Millisecond, "more than one batch hangs")
	other := s.createLane(t, client.Batch, client.NewDestination{URL: healthy.URL})
	for i := range 40 { // meanwhile the hanging one gets all that it can get
		s.mustIngest(t, other, fmt.Sprint("others ", i))
		s.awaitDelivered(t, other.Destinations[0], i+1)
	}
	require.Zero(t, s.to(t, stuck.Destinations[0], "next_attempt > 1"))
	release()
}
