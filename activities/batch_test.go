package activities_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// claimBatch claims the n deliveries that are due to destinations for one batch.
func (b *testBundle) claimBatch(t testing.TB, n int, destinations ...uuid.UUID) activities.BatchInput {
	t.Helper()
	r := postgres.ClaimRequest{Worker: b.worker, Claim: id.New(), Lane: postgres.LaneBatch}
	for _, destination := range destinations {
		r.Destinations, r.Quotas = append(r.Destinations, destination), append(r.Quotas, n)
	}
	claimed, err := postgres.Claim(t.Context(), b.engine, r)
	require.NoError(t, err)
	require.Len(t, claimed, n)
	return activities.BatchInput{ClaimID: id.Claim.Format(r.Claim)}
}

// sendBatch runs SendBatch as Temporal would, and returns its result as a workflow reads it.
func sendBatch(t testing.TB, a *activities.Activities, in activities.BatchInput) (result activities.BatchResult, err error) {
	t.Helper()
	encoded, err := environment(a).ExecuteActivity(a.SendBatch, in)
	if err == nil {
		require.NoError(t, encoded.Get(&result))
	}
	return result, err
}

// mustSendBatch wants a batch to have sent and put back so many, and recorded all of what it sent.
func mustSendBatch(t testing.TB, a *activities.Activities, in activities.BatchInput, sent, deferred int) {
	t.Helper()
	result, err := sendBatch(t, a, in)
	require.NoError(t, err)
	require.Equal(t, activities.BatchResult{Sent: sent, Deferred: deferred}, result)
}

// requireUnsent wants a delivery to be back in the queue as if it had never been claimed, due after so long.
func (b *testBundle) requireUnsent(t testing.TB, delivery uuid.UUID, delay time.Duration) {
	t.Helper()
	require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 1, Queued: true}, b.standing(t, delivery))
	d, _, _ := b.read(t, delivery)
	require.LessOrEqual(t, d.QueueDueIn, delay.Seconds())
	require.Greater(t, d.QueueDueIn, delay.Seconds()-60)
	require.Nil(t, d.CheckIn, "nobody carries it")
}

// times counts the requests of each delivery.
func (r *receiver) times() map[string]int {
	times := map[string]int{}
	for _, got := range r.got() {
		times[got.Header.Get("Webhook-Id")]++
	}
	return times
}

// requireOnce wants each of deliveries to have been received once, and nothing else.
func (r *receiver) requireOnce(t testing.TB, deliveries []uuid.UUID) {
	t.Helper()
	want := map[string]int{}
	for _, d := range deliveries {
		want[id.Delivery.Format(d)] = 1
	}
	require.Equal(t, want, r.times())
}

// Many webhooks to several destinations: each is received once, byte for byte, and recorded once, with a leaf that
// commits to what went over the wire.
func TestBatchDelivers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(201, "thanks", "X-Answer", "yes"))
	bodies := map[string]string{}
	var rows []*postgres.Acceptance
	var deliveries, destinations []uuid.UUID
	for i := range 3 {
		destinations = append(destinations, b.addDestination(t, fmt.Sprintf("%s/%d?token=abc", r.URL, i)))
	}
	for i := range 60 {
		row := b.acceptance(fmt.Sprintf("webhook \x00 %d", i), "X-Number: "+fmt.Sprint(i)+"\r\n", destinations[i%3])
		rows, deliveries = append(rows, row), append(deliveries, row.Deliveries[0].ID)
		bodies[id.Delivery.Format(deliveries[i])] = string(row.Body)
	}
	_, err := postgres.Accept(t.Context(), b.engine, rows)
	require.NoError(t, err)
	mustSendBatch(t, b.sender(t), b.claimBatch(t, 60, destinations...), 60, 0)

	r.requireOnce(t, deliveries)
	for _, got := range r.got() {
		require.Equal(t, bodies[got.Header.Get("Webhook-Id")], string(got.Body))
		require.Equal(t, "1", got.Header.Get("Kapsel-Attempt"))
	}
	for i, delivery := range deliveries {
		d, attempts, leaves := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
		require.Len(t, leaves, 1)
		require.Equal(t, "thanks", string(attempts[0].Body))
		require.Contains(t, string(attempts[0].Headers), "X-Answer: yes\r\n")
		require.Equal(t, fmt.Sprintf("%s/%d", r.URL, i%3), leaves[0].EndpointURL)
		require.Zero(t, leaves[0].LostStarts)
		salts := b.storedSalts(t, delivery, 1)
		require.Equal(t, attestation.Commit(verify.LabelPayload, salts.Payload, rows[i].Body), leaves[0].PayloadHash)
		require.EqualValues(t, len(rows[i].Body), leaves[0].PayloadSize)
		require.Equal(t, attestation.Commit(verify.LabelURL, salts.URL, fmt.Appendf(nil, "%s/%d?token=abc", r.URL, i%3)), leaves[0].URLHash)
	}
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	size, _ := checkLog(t, b)
	require.Equal(t, 60, size)
}

// One event to several destinations: all in one batch, each with its own leaf.
func TestBatchDeliversOneEventToManyDestinations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	row := b.acceptance(`{"amount":1}`, "", b.addDestination(t, r.URL))
	for range 9 {
		row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: b.addDestination(t, r.URL)})
	}
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	var deliveries, destinations []uuid.UUID
	for _, d := range row.Deliveries {
		deliveries, destinations = append(deliveries, d.ID), append(destinations, d.DestinationID)
	}
	mustSendBatch(t, b.sender(t), b.claimBatch(t, 10, destinations...), 10, 0)
	r.requireOnce(t, deliveries)
	for _, delivery := range deliveries {
		d, _, _ := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
	}
}

// What fails goes back into the queue, in the transaction that records it, due by the schedule under the next epoch; and
// it may be carried in a batch again.
func TestBatchPutsBackWhatFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	healthy := newReceiver(t, says(200, ""))
	busy := newReceiver(t, func(w http.ResponseWriter, request *http.Request) {
		if request.Header.Get("Kapsel-Attempt") == "1" {
			w.WriteHeader(503)
		}
	})
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	up, down, away := b.addDestination(t, healthy.URL), b.addDestination(t, busy.URL), b.addDestination(t, closed.URL)
	b.exec(t, `update destinations set schedule = '{"type":"list","delays_ms":[1000000,2000000]}'`)
	delivered, busied, refused := b.accept(t, 5, up), b.accept(t, 4, down), b.accept(t, 3, away)
	a := b.sender(t)
	mustSendBatch(t, a, b.claimBatch(t, 12, up, down, away), 12, 0)
	for _, delivery := range delivered {
		d, _, _ := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
	}
	for _, delivery := range append(busied, refused...) {
		d, _, leaves := b.explained(t, delivery)
		require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 2, Leaves: 1, Queued: true}, b.standing(t, delivery))
		require.Equal(t, 2, d.QueuedFor)
		require.InDelta(t, 1000, d.QueueDueIn, 260, "±25 %% of the schedule's delay")
		require.InDelta(t, d.QueueDueIn, *d.DueIn, 1)
		require.Nil(t, d.CheckIn, "nobody carries it")
		require.Equal(t, "retry", leaves[0].Outcome)
	}

	b.exec(t, "update delivery_queue set due_at = now() where destination_id = $1", down)
	mustSendBatch(t, a, b.claimBatch(t, 4, down), 4, 0)
	for _, delivery := range busied {
		d, _, leaves := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
		require.Len(t, leaves, 2)
		require.Zero(t, leaves[1].LostStarts)
	}
	require.Len(t, busy.got(), 8)
}

func TestBatchEndsWhatMayNotBeRetried(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy, rejecting := newReceiver(t, says(503, "")), newReceiver(t, says(400, ""))
	last, rejected := b.addDestination(t, busy.URL), b.addDestination(t, rejecting.URL)
	b.exec(t, `update destinations set schedule = '{"type":"none"}' where id = $1`, last)
	reasons := map[uuid.UUID]string{b.accept(t, 1, last)[0]: "attempts_exhausted", b.accept(t, 1, rejected)[0]: "rejected"}
	mustSendBatch(t, b.sender(t), b.claimBatch(t, 2, last, rejected), 2, 0)
	for delivery, reason := range reasons {
		d, _, leaves := b.explained(t, delivery)
		require.Equal(t, "dead", d.State)
		require.Len(t, leaves, 2)
		require.Equal(t, reason, leaves[1].Outcome)
	}
}

func TestBatchGoneDisablesTheDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, healthy := newReceiver(t, says(410, "")), newReceiver(t, says(200, ""))
	gone, other := b.addDestination(t, r.URL), b.addDestination(t, healthy.URL)
	ended, delivered := b.accept(t, 3, gone), b.accept(t, 3, other)
	mustSendBatch(t, b.sender(t), b.claimBatch(t, 6, gone, other), 6, 0)
	for _, delivery := range ended {
		_, _, leaves := b.explained(t, delivery)
		require.Equal(t, "gone", leaves[1].Outcome)
	}
	healthy.requireOnce(t, delivered)
	require.Equal(t, "gone", value[string](t, b, "select disabled_reason from destinations where id = $1 and disabled_at is not null", gone))
	require.Zero(t, value[int](t, b, "select count(*) from destinations where id = $1 and disabled_at is not null", other))
}

// Nothing goes to a destination that is held, and nothing of what goes to others waits for it.
func TestBatchToAHeldDestinationSendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	for name, hold := range holds {
		r, healthy := newReceiver(t, says(200, "")), newReceiver(t, says(200, ""))
		held, other := b.addDestination(t, r.URL), b.addDestination(t, healthy.URL)
		waiting, delivered := b.accept(t, 4, held), b.accept(t, 2, other)
		in := b.claimBatch(t, 6, held, other)
		b.exec(t, "update destinations set "+hold+" where id = $1", held)
		mustSendBatch(t, a, in, 2, 4)
		require.Empty(t, r.got(), name)
		healthy.requireOnce(t, delivered)
		for _, delivery := range waiting {
			b.requireUnsent(t, delivery, 0)
		}
	}
}

func TestBatchSaysWhatIsFree(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(503, ""))
	destination, held := b.addDestination(t, r.URL), b.addDestination(t, r.URL)
	deliveries := append(b.accept(t, 5, destination), b.accept(t, 2, held)...)
	in := b.claimBatch(t, 7, destination, held)
	b.exec(t, "update destinations set paused_at = now() where id = $1", held)
	freed := make(chan uuid.UUID, 100)
	a := b.sender(t)
	a.Recorder = activities.NewRecorder(activities.RecorderConfig{DB: b.engine, OnRecord: func(delivery uuid.UUID) { freed <- delivery }})
	t.Cleanup(a.Recorder.Close)
	mustSendBatch(t, a, in, 5, 2)
	close(freed)
	var told []uuid.UUID
	for delivery := range freed {
		told = append(told, delivery)
	}
	require.ElementsMatch(t, deliveries, told, "the places of those that were sent, and of those that were put back")
}

func TestBatchOfNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mustSendBatch(t, b.sender(t), activities.BatchInput{ClaimID: id.Claim.Format(id.New())}, 0, 0)
}

func TestBatchRefusesMalformedIDs(t *testing.T) {
	t.Parallel()
	a := &activities.Activities{Alive: func() bool { return true }}
	for _, claim := range []string{"", "clm_", id.Delivery.Format(id.New())} {
		_, err := sendBatch(t, a, activities.BatchInput{ClaimID: claim})
		requireFinal(t, err)
	}
	_, err := environment(a).ExecuteActivity(a.RecordBatch, []activities.RecordInput{{DeliveryID: "dlv_"}})
	requireFinal(t, err)
}
