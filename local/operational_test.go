package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// arrival is a request as its receiver got it.
type arrival struct {
	header http.Header
	body   []byte
	at     time.Time
}

// startCollector takes everything, and hands it on.
func startCollector(t *testing.T) (url string, arrivals <-chan arrival) {
	t.Helper()
	came := make(chan arrival, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		came <- arrival{r.Header.Clone(), body, time.Now()}
	}))
	t.Cleanup(server.Close)
	return server.URL, came
}

// createOperational makes the tenant's operational endpoint.
func (s *site) createOperational(t *testing.T, lane client.Lane, url string) client.Endpoint {
	t.Helper()
	operational := true
	answer, err := s.api.CreateEndpointWithResponse(t.Context(), client.NewEndpoint{
		Name: "operations", Operational: &operational, Lane: &lane,
		Verification: client.Verification{Scheme: client.VerificationSchemeNone},
		Destinations: []client.NewDestination{{URL: url}},
	})
	require.NoError(t, err)
	require.NotNil(t, answer.JSON201, string(answer.Body))
	return *answer.JSON201
}

// A receiver is dead and its delivery dies, in each lane: another receiver is told of it by a webhook that it can verify,
// and that has its place in the log like any other.
func TestOperationalWebhooksGoOutThroughKapsel(t *testing.T) {
	for _, lane := range bothLanes {
		t.Run(string(lane), func(t *testing.T) {
			s := startTestStack(t)
			url, told := startCollector(t)
			operational := s.createOperational(t, lane, url)
			dead := startReceiver(t, failing(1000))
			endpoint := s.createLane(t, lane, client.NewDestination{URL: dead.URL, Schedule: schedule(50, 50)})
			event := s.mustIngest(t, endpoint, `{"card":"4111"}`)
			delivery := s.awaitState(t, event, "", "dead")

			arrived := <-told
			secrets, standard := [][]byte{[]byte(*operational.Destinations[0].SigningSecret)}, webhook.Source{Scheme: webhook.SchemeStandard}
			require.NoError(t, standard.Verify(arrived.header, arrived.body, secrets, arrived.at))
			require.Error(t, standard.Verify(arrived.header, []byte("{}"), secrets, arrived.at))
			var p struct {
				Type      string               `json:"type"`
				Timestamp time.Time            `json:"timestamp"`
				Data      webhook.DeliveryDead `json:"data"`
			}
			require.NoError(t, json.Unmarshal(withoutTimes(t, arrived.body), &p))
			require.Equal(t, "delivery_dead", p.Type)
			require.Equal(t, webhook.DeliveryDead{
				TenantID: s.made.TenantID, EndpointID: endpoint.ID, DestinationID: endpoint.Destinations[0].ID, EventID: event, DeliveryID: delivery.ID,
				Attempts: 3, Reason: "attempts_exhausted", LastStatus: 503,
			}, p.Data)
			require.NotContains(t, string(arrived.body), "4111")

			telling := arrived.header.Get(webhook.HeaderEventID)
			require.NotEqual(t, event, telling)
			s.awaitState(t, telling, "", "delivered")
			s.awaitSealed(t, time.Minute)
			attempt := s.delivery(t, telling, "").Attempts[0].ID
			proof, err := s.api.DownloadProofWithResponse(t.Context(), attempt, nil)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, proof.StatusCode(), string(proof.Body))
			_, err = verify.Package(proof.Body, verify.Options{VKey: s.made.VKey, Payload: &arrived.body})
			require.NoError(t, err, "its attempt has a leaf, which is about these very bytes")
			s.checkRecord(t)
			s.findsByEndpoint(t, operational.ID, telling)
			require.Empty(t, told, "once")
		})
	}
}

// withoutTimes leaves out what a time.Time can't be compared by.
func withoutTimes(t *testing.T, body []byte) []byte {
	t.Helper()
	var whole map[string]any
	require.NoError(t, json.Unmarshal(body, &whole))
	delete(whole["data"].(map[string]any), "accepted_at")
	left, err := json.Marshal(whole)
	require.NoError(t, err)
	return left
}

// findsByEndpoint finds an event by the search.
func (s *site) findsByEndpoint(t *testing.T, endpoint, event string) {
	t.Helper()
	answer, err := s.api.ListEventsWithResponse(t.Context(), &client.ListEventsParams{EndpointID: &endpoint})
	require.NoError(t, err)
	require.NotNil(t, answer.JSON200, string(answer.Body))
	require.Len(t, answer.JSON200.Data, 1)
	require.Equal(t, event, answer.JSON200.Data[0].ID)
}

// An operational endpoint that leads to the very endpoint whose destination is dead makes some webhooks, and comes to an end.
func TestOperationalWebhooksDontGoRound(t *testing.T) {
	s := startTestStack(t)
	dead := startReceiver(t, failing(1000))
	endpoint := s.createEndpoint(t, client.NewDestination{URL: dead.URL, Schedule: schedule(20)})
	s.createOperational(t, client.Workflow, endpoint.IngestURL)
	s.mustIngest(t, endpoint, "{}")
	// The webhook, and what is told of it, which arrives there too; what is told of that is refused with 508, for good or until
	// its schedule ends, and isn't told.
	require.Eventually(t, func() bool {
		return s.count(t, "select count(*) from attempts where response_status = 508") > 0
	}, time.Minute, 50*time.Millisecond)
	require.Equal(t, 2, s.count(t, "select count(*) from events e join endpoints p on p.id = e.endpoint_id and not p.operational"))
	require.Equal(t, 2, s.count(t, "select count(*) from events e join endpoints p on p.id = e.endpoint_id and p.operational"))
	require.Zero(t, s.count(t, "select count(*) from operational_outbox"))
}
