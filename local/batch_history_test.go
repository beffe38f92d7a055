package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/api/client"
)

// Runs each way through DeliverBatch once, against a real Temporal. With -save-histories it keeps the histories.
func TestEveryWayThroughABatch(t *testing.T) {
	s := startTestStack(t)
	temporalClient := s.temporalClient(t)
	slow := startReceiver(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(time.Second): // in which its delivery's row is locked
		case <-r.Context().Done():
		}
	})
	seen := map[string]bool{}
	for _, way := range []struct {
		name        string
		destination client.NewDestination
		events      int
		during      func(t *testing.T, delivery string)
	}{
		{name: "delivered", destination: client.NewDestination{URL: startReceiver(t, ok).URL}, events: 3},
		{name: "recorded-late", destination: client.NewDestination{URL: slow.URL}, events: 1, during: s.blockRecording},
	} {
		t.Run(way.name, func(t *testing.T) {
			endpoint := s.createLane(t, client.Batch, way.destination)
			s.pause(t, true) // until all of it is there
			for range way.events {
				s.mustIngest(t, endpoint, way.name)
			}
			s.pause(t, false)
			if way.during != nil {
				way.during(t, "")
			}
			workflowID := ""
			require.Eventually(t, func() bool {
				found, err := temporalClient.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Query: "WorkflowType = 'DeliverBatch'"})
				for _, execution := range found.GetExecutions() {
					if !seen[execution.GetExecution().GetWorkflowId()] {
						workflowID = execution.GetExecution().GetWorkflowId()
					}
				}
				return err == nil && workflowID != ""
			}, time.Minute, 50*time.Millisecond)
			seen[workflowID] = true
			var result activities.BatchResult
			require.NoError(t, temporalClient.GetWorkflow(t.Context(), workflowID, "").Get(t.Context(), &result))
			require.Equal(t, activities.BatchResult{Sent: way.events}, result)
			require.Equal(t, way.events, s.to(t, endpoint.Destinations[0], "state = 'delivered' and lane = 'batch'"))
			save(t, temporalClient, workflowID, "batch-"+way.name)
		})
	}
}
