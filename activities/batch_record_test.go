package activities_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// unrecorded is a batch of which nothing could be recorded: another transaction held the rows of its deliveries.
type unrecorded struct {
	r          *receiver
	deliveries []uuid.UUID
	result     activities.BatchResult
}

// sendUnrecorded sends a batch of n to a receiver, until the sender gives up recording; that has failed for good then.
func (b *testBundle) sendUnrecorded(t testing.TB, n int, answer http.HandlerFunc) *unrecorded {
	t.Helper()
	u := &unrecorded{r: newReceiver(t, answer)}
	destination := b.addDestination(t, u.r.URL+"/in?token=secret")
	u.deliveries = b.accept(t, n, destination)
	in, a, commits := b.claimBatch(t, n, destination), b.sender(t), make(chan error, 100)
	a.Recorder = activities.NewRecorder(activities.RecorderConfig{
		DB: b.engine, Observe: func(_ int, _ time.Duration, err error) { commits <- err },
	})
	blocker, err := b.owner.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = blocker.Rollback(context.Background()) }()
	_, err = blocker.Exec(t.Context(), "select from deliveries where id = any($1) for update", u.deliveries)
	require.NoError(t, err)
	u.result, err = sendBatch(t, a, in)
	require.NoError(t, err, "requests were sent, so there are outcomes and no error")
	b.tamper(t, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
	a.Recorder.Close()
	close(commits)
	require.NotEmpty(t, commits)
	for err := range commits {
		require.Error(t, err, "the sender's own recording has failed for good")
	}
	return u
}

func recordBatch(t testing.TB, a *activities.Activities, in []activities.RecordInput) {
	t.Helper()
	_, err := environment(a).ExecuteActivity(a.RecordBatch, in)
	require.NoError(t, err)
}

// What a batch couldn't record in time is its result, and another records it: with the same leaves, with what wasn't
// delivered back in the queue, and once, however often it runs.
func TestBatchUnrecordedIsRecordedByAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	u := b.sendUnrecorded(t, 6, says(503, "busy", "Retry-After", "3000"))
	require.Equal(t, []int{6, 0, 6}, []int{u.result.Sent, u.result.Deferred, len(u.result.Unrecorded)})
	for _, delivery := range u.deliveries {
		require.Equal(t, standing{State: "pending", NextAttempt: 1, LostStarts: 1, Queued: true, Claimed: true}, b.standing(t, delivery))
	}
	for range 2 {
		recordBatch(t, b.sender(t), u.result.Unrecorded)
		for _, delivery := range u.deliveries {
			require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 2, Leaves: 1, Queued: true}, b.standing(t, delivery))
		}
	}
	outcomes := map[string]activities.Outcome{}
	for _, in := range u.result.Unrecorded {
		outcomes[in.DeliveryID] = in.Outcome
	}
	for _, delivery := range u.deliveries {
		d, attempts, leaves := b.explained(t, delivery)
		require.InDelta(t, 3000, d.QueueDueIn, 60)
		require.Nil(t, attempts[0].Body, "lost with the sender; its hash isn't")
		leaf, salts, o := leaves[0], b.storedSalts(t, delivery, 1), outcomes[id.Delivery.Format(delivery)]
		require.Equal(t, []string{o.URLHash, o.HeadersHash, o.ResponseHash}, []string{leaf.URLHash, leaf.HeadersHash, leaf.ResponseHash})
		require.Equal(t, attestation.Commit(verify.LabelURL, salts.URL, []byte(u.r.URL+"/in?token=secret")), leaf.URLHash)
		require.Equal(t, attestation.Commit(verify.LabelResponse, salts.Response, []byte("busy")), leaf.ResponseHash)
		require.Zero(t, leaf.LostStarts)
	}
	u.r.requireOnce(t, u.deliveries)
}

// A delivery that is handed over while its request is in flight belongs to its next carrier; the others of its batch are
// recorded.
func TestBatchOvertakenInFlightRecordsTheOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var overtaken uuid.UUID
	r := newReceiver(t, func(_ http.ResponseWriter, request *http.Request) {
		if request.Header.Get("Webhook-Id") != id.Delivery.Format(overtaken) {
			return
		}
		if _, err := postgres.Requeue(request.Context(), b.engine, overtaken, 0, 1, 0, 0); err != nil {
			t.Error(err)
		}
	})
	destination := b.addDestination(t, r.URL)
	deliveries := b.accept(t, 5, destination)
	overtaken = deliveries[2]
	mustSendBatch(t, b.sender(t), b.claimBatch(t, 5, destination), 5, 0)
	for _, delivery := range deliveries {
		if delivery == overtaken {
			require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 1, LostStarts: 1, Queued: true}, b.standing(t, delivery))
			continue
		}
		d, _, _ := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
	}
}

// Invariant 3: whatever becomes of a batch, what SendBatch returns holds no payload, no header's value, no secret, no key,
// and no credential of a URL.
func TestBatchKeepsSecretsOutOfHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(503, mark, "X-Answer", mark, "Retry-After", mark))
	query := "/" + mark + "?token=" + mark
	for name, c := range map[string]struct {
		headers, configured, schedule string
		before                        func(a *activities.Activities, destination uuid.UUID)
		want                          string // in the history
	}{
		"recorded":             {want: `"Sent":1`},
		"unrecorded":           {want: `"Outcome":"retry"`, before: func(a *activities.Activities, _ uuid.UUID) { a.Recorder.Close() }},
		"malformed headers":    {headers: mark, want: `"Deferred":1`},
		"malformed schedule":   {schedule: `{"first_delay_ms":"` + mark + `"}`},
		"malformed configured": {configured: `{"X-Api-Key":"` + mark + `"}`},
		"lapsed": {want: "NotSent", before: func(a *activities.Activities, _ uuid.UUID) {
			a.Alive = func() bool { return false }
		}},
		"held": {want: `"Deferred":1`, before: func(_ *activities.Activities, destination uuid.UUID) {
			b.exec(t, "update destinations set paused_at = now() where id = $1", destination)
		}},
	} {
		delivery, destination := b.marked(t, r.URL+query, c.headers, c.configured, c.schedule)
		a := b.sender(t)
		if c.before != nil {
			c.before(a, destination)
		}
		encoded, err := environment(a).ExecuteActivity(a.SendBatch, b.asBatch(t, delivery))
		kept := history(t, encoded, err)
		require.Contains(t, kept, c.want, name)
		b.requireNoSecrets(t, delivery, name, kept)
	}
}

// asBatch makes a claimed delivery one of a batch.
func (b *testBundle) asBatch(t testing.TB, delivery uuid.UUID) activities.BatchInput {
	t.Helper()
	b.exec(t, "update deliveries set lane = 'batch' where id = $1", delivery)
	claim := value[uuid.UUID](t, b, "select claim_id from delivery_queue where delivery_id = $1", delivery)
	return activities.BatchInput{ClaimID: id.Claim.Format(claim)}
}

// A full batch of which nothing could be recorded still fits into the 2 MiB that Temporal takes, with URLs of any length.
func TestBatchUnrecordedFitsIntoHistory(t *testing.T) {
	t.Parallel()
	outcome := failed("attempts_exhausted")
	outcome.EndpointURL = "https://example.com/" + strings.Repeat("x", attestation.MaxEndpointURL-20)
	outcome.Duration, outcome.Delay, outcome.Grace, outcome.ResponseSize = 2*time.Minute, 24*time.Hour, time.Hour, webhook.MaxResponseBody
	outcome.Error, outcome.DisableDestination, outcome.Park = "connection_refused", true, true
	var result activities.BatchResult
	for range 500 {
		result.Unrecorded = append(result.Unrecorded, activities.RecordInput{
			DeliveryID: id.Delivery.Format(id.New()), Epoch: 1000, Attempt: 100, Outcome: outcome,
		})
	}
	payload, err := converter.GetDefaultDataConverter().ToPayload(result)
	require.NoError(t, err)
	require.Less(t, len(payload.GetData()), 2<<20)
}
