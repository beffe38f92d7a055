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
	for _, lane := range []client.NewEndpointLane{client.Workflow, client.Batch} {
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
