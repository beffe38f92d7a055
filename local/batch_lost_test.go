package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	sdk "go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/workflows"
)

// A batch that somebody terminates in the Web UI, with all its requests in flight, takes no delivery with it.
func TestATerminatedBatchLosesNothing(t *testing.T) {
	s := startTestStack(t)
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
	endpoint := s.createLane(t, client.Batch, client.NewDestination{URL: hanging.URL, TimeoutMs: &twoMinutes, Schedule: schedule(100, 100, 100)})
	s.burst(t, endpoint, 20)
	require.Eventually(t, func() bool { return len(hanging.counts()) == 20 }, time.Minute, 20*time.Millisecond, "all are in flight")
	var claim uuid.UUID
	require.NoError(t, s.db.QueryRow(t.Context(), "select distinct claim_id from delivery_queue").Scan(&claim))
	require.NoError(t, s.temporalClient(t).TerminateWorkflow(t.Context(), workflows.BatchWorkflowID(id.Claim.Format(claim)), "", "by hand"))
	s.awaitZero(t, 90*time.Second, "select count(*) from deliveries where state = 'pending'")
	close(release)
	s.awaitSealed(t, time.Minute)
	hanging.requireTimes(t, 20, 2)
	require.Equal(t, 20, s.to(t, endpoint.Destinations[0], "state = 'delivered' and epoch > 0"))
	s.checkRecord(t)
	s.requireExplained(t, hanging)
	requireReplays(t, s.dbURL, s.temporal)
}

// claimedByTheDead makes n due deliveries the batch of a worker that is alive until it is buried.
func (s *testStack) claimedByTheDead(t *testing.T, endpoint client.Endpoint, n int) (claim string, bury func()) {
	t.Helper()
	engine, err := postgres.Open(s.dbURL, postgres.Engine, 2)
	require.NoError(t, err)
	t.Cleanup(engine.Close)
	s.pause(t, true) // so that the stack's own worker claims nothing
	for i := range n {
		s.mustIngest(t, endpoint, fmt.Sprint(i))
	}
	destination, err := id.Destination.Parse(endpoint.Destinations[0].ID)
	require.NoError(t, err)
	worker, claimID := id.New(), id.New()
	require.NoError(t, postgres.AddWorker(t.Context(), engine, worker, "test"))
	claimed, err := postgres.Claim(t.Context(), engine, postgres.ClaimRequest{
		Worker: worker, Claim: claimID, Destinations: []uuid.UUID{destination}, Quotas: []int{n}, Lane: postgres.LaneBatch})
	require.NoError(t, err)
	require.Len(t, claimed, n)
	return id.Claim.Format(claimID), func() {
		s.pause(t, false)
		require.NoError(t, postgres.RemoveWorker(t.Context(), engine, worker))
	}
}

// A worker that dies after its claim and before it has started anything: another starts the batch under the claim's name.
func TestABatchThatWasNeverStartedIsTakenOver(t *testing.T) {
	s := startTestStack(t)
	healthy := startReceiver(t, ok)
	endpoint := s.createLane(t, client.Batch, client.NewDestination{URL: healthy.URL})
	claim, bury := s.claimedByTheDead(t, endpoint, 30)
	bury()
	s.awaitSealed(t, time.Minute)
	healthy.requireTimes(t, 30, 1)
	var result activities.BatchResult
	require.NoError(t, s.temporalClient(t).GetWorkflow(t.Context(), workflows.BatchWorkflowID(claim), "").Get(t.Context(), &result))
	require.Equal(t, activities.BatchResult{Sent: 30}, result)
	require.Equal(t, 30, s.to(t, endpoint.Destinations[0], "epoch = 0 and lane = 'batch' and state = 'delivered'"))
	require.Zero(t, s.lostStarts(t))
	s.checkRecord(t)
}

// A batch that is taken over and turns out to have been terminated before it did anything: its deliveries are handed over
// and carried under the next epoch.
func TestABatchThatWasTerminatedIsHandedOver(t *testing.T) {
	s := startTestStack(t)
	temporalClient := s.temporalClient(t)
	healthy := startReceiver(t, ok)
	endpoint := s.createLane(t, client.Batch, client.NewDestination{URL: healthy.URL})
	claim, bury := s.claimedByTheDead(t, endpoint, 30)
	workflowID := workflows.BatchWorkflowID(claim)
	in := workflows.BatchInput{BatchInput: activities.BatchInput{ClaimID: claim}, Deliveries: 30}
	_, err := temporalClient.ExecuteWorkflow(t.Context(), sdk.StartWorkflowOptions{ID: workflowID, TaskQueue: "nobody"}, workflows.DeliverBatchName, in)
	require.NoError(t, err)
	require.NoError(t, temporalClient.TerminateWorkflow(t.Context(), workflowID, "", "by hand"))
	bury()
	s.awaitSealed(t, time.Minute)
	healthy.requireTimes(t, 30, 1)
	require.Equal(t, 30, s.to(t, endpoint.Destinations[0], "epoch = 1 and lane = 'batch' and state = 'delivered'"))
	require.Equal(t, 30, s.lostStarts(t), "nobody knows what the batch had sent")
	s.checkRecord(t)
	s.requireExplained(t, healthy)
}
