package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
)

// Fan-out with filters, in both lanes: each destination gets what it wants, and the auditor's program says of the rest that
// it was not delivered.
func TestFilteredFanOut(t *testing.T) {
	t.Parallel()
	s := startTestStack(t)
	all, even := startReceiver(t, ok), startReceiver(t, ok)
	expression, eventType := "body.even", "$.kind"
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		answer, err := s.api.CreateEndpointWithResponse(t.Context(), client.NewEndpoint{
			Name: "test", Verification: client.Verification{Scheme: client.VerificationSchemeNone}, Lane: &lane,
			EventType: &client.EventType{Source: client.EventTypeSourceJsonpath, Path: &eventType},
			Destinations: []client.NewDestination{
				{URL: all.URL + "/all"},
				{URL: even.URL + "/even", Filter: &client.Filter{Expression: &expression, EventTypes: &[]string{"number.*"}}},
			},
		})
		require.NoError(t, err)
		require.NotNil(t, answer.JSON201, string(answer.Body))
		for i := range 40 {
			s.mustIngest(t, *answer.JSON201, fmt.Sprintf(`{"kind":"number.whole","even":%t,"n":%d}`, i%2 == 0, i))
		}
	}
	s.awaitSealed(t, time.Minute)
	s.checkRecord(t)
	require.Len(t, all.counts(), 80)
	require.Len(t, even.counts(), 40)
	require.Equal(t, 40, s.count(t, "select count(*) from deliveries where state = 'skipped'"))
	require.Equal(t, 120, s.count(t, "select count(*) from deliveries where state = 'delivered'"))

	whole := "number.whole"
	page, err := s.api.ListEventsWithResponse(t.Context(), &client.ListEventsParams{EventType: &whole})
	require.NoError(t, err)
	require.NotNil(t, page.JSON200, string(page.Body))
	require.Len(t, page.JSON200.Data, 50, "a whole page")
	event, err := s.api.GetEventWithResponse(t.Context(), page.JSON200.Data[0].ID) // the newest: n is 39
	require.NoError(t, err)
	require.NotNil(t, event.JSON200, string(event.Body))
	skipped := 0
	for _, d := range event.JSON200.Deliveries {
		if d.State == "skipped" {
			skipped++
			require.Contains(t, s.verify(t, d.Attempts[0].ID, `{"kind":"number.whole","even":false,"n":39}`),
				"Webhook NOT delivered to "+even.URL+"/even: skipped/filter")
		}
	}
	require.Equal(t, 1, skipped)
}

// A filter that was wrong is mended, and what it left out delivered after all, by either lane. The auditor's replay says of a
// skipped delivery that nothing carried it, and of its redelivery what it says of any delivery.
func TestWhatAFilterLeftOutIsDeliveredAfterAll(t *testing.T) {
	t.Parallel()
	a := newAuditor(t, startTestStack(t))
	receiver := startReceiver(t, ok)
	never, always := "false", "true"
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		endpoint := a.createLane(t, lane, client.NewDestination{URL: receiver.URL, Filter: &client.Filter{Expression: &never}})
		var left []client.Delivery
		for i := range 5 {
			left = append(left, a.delivery(t, a.mustIngest(t, endpoint, fmt.Sprintf(`{"lane":%q,"n":%d}`, lane, i)), ""))
			require.Equal(t, "skipped", left[i].State)
		}
		a.awaitSealed(t, time.Minute)
		report := a.replay(t, 0, "--complete", left[0].ID)
		require.Equal(t, []string{"agreement", "skipped"}, []string{report.Verdict, report.State})
		require.Empty(t, report.Carriers)
		stdout, _, _ := a.run(t, "replay", left[0].ID)
		require.Contains(t, stdout, "a filter left the event out when it was accepted: no workflow carried the delivery")

		destination := endpoint.Destinations[0].ID
		changed, err := a.api.UpdateDestinationWithResponse(t.Context(), destination, client.DestinationChange{Filter: &client.Filter{Expression: &always}})
		require.NoError(t, err)
		require.NotNil(t, changed.JSON200, string(changed.Body))
		one, err := a.api.RedeliverWithResponse(t.Context(), left[0].ID, nil)
		require.NoError(t, err)
		require.NotNil(t, one.JSON202, string(one.Body))
		job, err := a.api.CreateRedeliveryJobWithResponse(t.Context(), client.NewRedeliveryJob{DestinationID: &destination, States: &[]string{"skipped"}})
		require.NoError(t, err)
		require.NotNil(t, job.JSON202, string(job.Body))
		done := a.awaitJob(t, job.JSON202.ID)
		require.Equal(t, []int64{5, 4, 1}, []int64{done.Total, done.Done, done.Skipped.Redelivered})
		a.awaitSealed(t, time.Minute)
		redelivered := a.awaitState(t, left[0].EventID, one.JSON202.DeliveryID, "delivered")
		require.Equal(t, left[0].ID, *redelivered.RedeliveryOf)
	}
	require.Len(t, receiver.counts(), 10)
	require.Equal(t, 10, a.count(t, "select count(*) from deliveries where state = 'skipped' and leaves = 1"))
	require.Equal(t, 10, a.count(t, "select count(*) from deliveries d join deliveries o on o.id = d.redelivery_of where d.state = 'delivered' and o.state = 'skipped'"))
	a.checkRecord(t)
	requireReplays(t, a.dbURL, a.temporal)
}

// verify downloads the proof package of an attempt and returns what kapsel-verify says of it and of the payload.
func (s *site) verify(t *testing.T, attempt, payload string) string {
	t.Helper()
	dir := t.TempDir()
	verifier := filepath.Join(dir, "kapsel-verify")
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", verifier, "github.com/kapsel-io/kapsel/verify/cmd/kapsel-verify").CombinedOutput()
	require.NoError(t, err, string(output))
	answer, err := s.api.DownloadProofWithResponse(context.Background(), attempt, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode(), string(answer.Body))
	proof, body := filepath.Join(dir, "proof.json"), filepath.Join(dir, "payload")
	require.NoError(t, os.WriteFile(proof, answer.Body, 0o600))
	require.NoError(t, os.WriteFile(body, []byte(payload), 0o600))
	output, err = exec.CommandContext(t.Context(), verifier, "--proof", proof, "--public-key", s.made.PublicKey, "--payload", body).CombinedOutput()
	require.NoError(t, err, string(output))
	return string(output)
}
