package main

import (
	"context"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	sdk "go.temporal.io/sdk/client"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/replay"
	"github.com/kapsel-io/kapsel/workflows"
)

var saveHistories = flag.Bool("save-histories", false, "write the histories of this run to workflows/testdata/histories, beside those that are there")

// Runs each way through the workflows once, against a real Temporal. With -save-histories it keeps the histories, which
// package workflows replays: do so when a workflow gets a new way, under a new name.
func TestEveryWayThroughTheWorkflows(t *testing.T) {
	s := startTestStack(t)
	temporalClient := s.temporalClient(t)
	healthy := startReceiver(t, ok)
	dead := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	gone := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	slow := startReceiver(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(time.Second): // in which its delivery's row is locked
		case <-r.Context().Done():
		}
	})
	for _, way := range []struct {
		name        string
		destination client.NewDestination
		during      func(t *testing.T, delivery string)
		state       string // of the delivery afterwards
		outcome     string // of the workflow
	}{
		{name: "delivered", destination: client.NewDestination{URL: healthy.URL}, state: "delivered", outcome: "delivered"},
		{name: "retried", destination: client.NewDestination{URL: startReceiver(t, failing(2)).URL, Schedule: schedule(100, 200)},
			state: "delivered", outcome: "delivered"},
		{name: "dead", destination: client.NewDestination{URL: dead.URL, Schedule: schedule(100)}, state: "dead", outcome: "dead"},
		{name: "gone", destination: client.NewDestination{URL: gone.URL}, state: "dead", outcome: "dead"},
		{name: "parked", destination: client.NewDestination{URL: dead.URL, Schedule: schedule(80_000_000)}, state: "pending", outcome: "parked"},
		{name: "held", destination: client.NewDestination{URL: dead.URL, Schedule: schedule(1000)}, during: s.holdAfterFirstAttempt,
			state: "pending", outcome: "parked"},
		{name: "destination-deleted", destination: client.NewDestination{URL: dead.URL, Schedule: schedule(1000)}, during: s.deleteAfterFirstAttempt,
			state: "canceled", outcome: "canceled"},
		{name: "payload-erased", destination: client.NewDestination{URL: dead.URL, Schedule: schedule(1000)}, during: s.eraseAfterFirstAttempt,
			state: "dead", outcome: "dead"},
		{name: "recorded-late", destination: client.NewDestination{URL: slow.URL}, during: s.blockRecording,
			state: "delivered", outcome: "delivered"},
		{name: "canceled", destination: client.NewDestination{URL: dead.URL, Schedule: schedule(2_000_000)}, during: s.cancelWhenItWaits,
			state: "canceled", outcome: "canceled"},
		{name: "retried-now", destination: client.NewDestination{URL: startReceiver(t, failing(1)).URL, Schedule: schedule(2_000_000)},
			during: s.retryWhenItWaits, state: "delivered", outcome: "delivered"},
	} {
		t.Run(way.name, func(t *testing.T) {
			endpoint := s.createEndpoint(t, way.destination)
			if way.name == "recorded-late" {
				s.pause(t, true) // until its row is locked
			}
			event, err := s.api.GetEventWithResponse(t.Context(), s.mustIngest(t, endpoint, way.name))
			require.NoError(t, err)
			delivery := event.JSON200.Deliveries[0].ID
			if way.during != nil {
				way.during(t, delivery)
			}
			var result workflows.DeliverResult
			workflowID := workflows.DeliveryWorkflowID(delivery, 0)
			require.Eventually(t, func() bool {
				_, err := temporalClient.DescribeWorkflowExecution(t.Context(), workflowID, "")
				return err == nil
			}, time.Minute, 50*time.Millisecond)
			require.NoError(t, temporalClient.GetWorkflow(t.Context(), workflowID, "").Get(t.Context(), &result))
			require.Equal(t, way.outcome, result.Outcome)
			event, err = s.api.GetEventWithResponse(t.Context(), event.JSON200.ID)
			require.NoError(t, err)
			require.Equal(t, way.state, event.JSON200.Deliveries[0].State)
			save(t, temporalClient, workflowID, "deliver-"+way.name)
		})
	}
	save(t, temporalClient, workflows.AttestWorkflowID(s.made.LogID), "attest-running")
	require.Zero(t, requireReplays(t, s.dbURL, s.temporal)[replay.Partial])
}

// holdAfterFirstAttempt pauses every destination once the delivery has failed once.
func (s *testStack) holdAfterFirstAttempt(t *testing.T, delivery string) {
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from deliveries where next_attempt = 2 and state = 'pending' and check_after is not null") == 1
	}, time.Minute, 20*time.Millisecond, delivery)
	s.pause(t, true)
	t.Cleanup(func() { s.pause(t, false) })
}

// deleteAfterFirstAttempt deletes a delivery's destination once the delivery has failed once.
func (s *testStack) deleteAfterFirstAttempt(t *testing.T, delivery string) {
	deliveryID, err := id.Delivery.Parse(delivery)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from deliveries where id = $1 and next_attempt = 2 and state = 'pending'", deliveryID) == 1
	}, time.Minute, 20*time.Millisecond)
	_, err = s.db.Exec(t.Context(), "update destinations d set deleted_at = now() from deliveries v where v.id = $1 and d.id = v.destination_id", deliveryID)
	require.NoError(t, err)
}

// eraseAfterFirstAttempt erases a delivery's payload once the delivery has failed once.
func (s *testStack) eraseAfterFirstAttempt(t *testing.T, delivery string) {
	deliveryID, err := id.Delivery.Parse(delivery)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from deliveries where id = $1 and next_attempt = 2 and state = 'pending'", deliveryID) == 1
	}, time.Minute, 20*time.Millisecond)
	_, err = s.db.Exec(t.Context(), "delete from event_payloads p using deliveries v where v.id = $1 and p.event_id = v.event_id", deliveryID)
	require.NoError(t, err)
}

// blockRecording keeps the delivery's row locked for longer than the sender tries to record, so that the outcome goes
// through the workflow.
func (s *testStack) blockRecording(t *testing.T, _ string) {
	s.pause(t, false)
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from deliveries where lost_starts = 1 and state = 'pending' and next_attempt = 1") == 1
	}, time.Minute, time.Millisecond)
	tx, err := s.db.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select from deliveries where lost_starts = 1 and state = 'pending' for update")
	require.NoError(t, err)
	time.AfterFunc(7*time.Second, func() { _ = tx.Rollback(t.Context()) })
}

func (s *testStack) pause(t *testing.T, paused bool) {
	t.Helper()
	_, err := s.db.Exec(context.Background(), "update destinations set paused_at = case when $1 then now() end", paused)
	require.NoError(t, err)
}

// Both hold the name of the machine.
var (
	identity = regexp.MustCompile(`"identity": *"[^"]*"`)
	sticky   = regexp.MustCompile(`"name": *"[^":]*:([0-9a-f-]{36})"`) // a worker's own task queue
)

func save(t *testing.T, temporalClient sdk.Client, workflowID, name string) {
	t.Helper()
	if !*saveHistories {
		return
	}
	events := temporalClient.GetWorkflowHistory(t.Context(), workflowID, "", false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	var all history.History
	for events.HasNext() {
		event, err := events.Next()
		require.NoError(t, err)
		all.Events = append(all.Events, event)
	}
	text, err := protojson.MarshalOptions{Multiline: true, Indent: "  "}.Marshal(&all)
	require.NoError(t, err)
	text = identity.ReplaceAll(text, []byte(`"identity": "worker"`))
	text = sticky.ReplaceAll(text, []byte(`"name": "worker:$1"`))
	require.NoError(t, os.WriteFile(filepath.Join("..", "workflows", "testdata", "histories", name+".json"), append(text, '\n'), 0o600))
}
