package activities_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// erase takes away the payload of a delivery's event, and with it what opens its commitments.
func (b *testBundle) erase(t testing.TB, delivery uuid.UUID) {
	t.Helper()
	require.Equal(t, 1, value[int](t, b, `with gone as (delete from event_payloads p using deliveries d
		where d.id = $1 and p.event_id = d.event_id returning 1) select count(*) from gone`, delivery))
}

// requireErased wants a delivery to have died of its erased payload after so many attempts.
func (b *testBundle) requireErased(t testing.TB, delivery uuid.UUID, attempts int, lostStarts int64) {
	t.Helper()
	d, rows, leaves := b.explained(t, delivery)
	require.Equal(t, "dead", d.State)
	require.Zero(t, d.LostStarts)
	require.Len(t, leaves, attempts+1)
	last := leaves[attempts]
	require.Equal(t, "dead", last.Kind)
	require.Equal(t, "payload_erased", last.Outcome)
	require.Equal(t, "payload_erased", last.Error)
	require.Equal(t, "payload_erased", value[string](t, b, "select error from attempts where id = $1", rows[attempts].ID))
	require.Equal(t, lostStarts, last.LostStarts)
	require.EqualValues(t, attempts, last.AttemptNumber)
	require.Positive(t, last.PayloadSize, "of the payload its size remains,")
	require.Len(t, last.PayloadHash, 2*verify.HashSize, "and its commitment, which nobody can open")
	require.Empty(t, value[[]byte](t, b, "select secrets from leaf_queue where attempt_id = $1", rows[attempts].ID),
		"what is left must not be a secret that anybody could derive")
}

// What has no payload any more ends with a leaf that says so; nothing is sent.
func TestADeliveryWhosePayloadIsErasedDies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	for _, counted := range []bool{true, false} {
		r := newReceiver(t, says(200, ""))
		delivery, _ := b.claimedFor(t, r.URL)
		b.erase(t, delivery)
		in := first(delivery)
		in.Counted = counted
		for _, want := range []activities.SendResult{
			{Dead: true, Progress: &activities.Progress{State: "dead"}},
			{Dead: true, Moved: true}, // the second time it finds that it was recorded
		} {
			result, err := send(t, a, in)
			require.NoError(t, err)
			require.Equal(t, want, result)
		}
		b.requireErased(t, delivery, 0, map[bool]int64{true: 0, false: 1}[counted]) // a start that may have become a request is told
		require.Empty(t, r.got())
	}
}

// A receiver that failed is not asked again once there is nothing to send, also if it is held.
func TestADeliveryDiesWhenItsPayloadIsErasedBetweenAttempts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	for _, paused := range []bool{false, true} {
		r := newReceiver(t, says(503, ""))
		delivery, destination := b.claimedFor(t, r.URL)
		require.Equal(t, "pending", recorded(t, a, first(delivery)).State)
		b.erase(t, delivery)
		if paused {
			b.exec(t, "update destinations set paused_at = now() where id = $1", destination)
		}
		in := first(delivery)
		in.Attempt, in.Counted = 2, false
		result, err := send(t, a, in)
		require.NoError(t, err)
		require.True(t, result.Dead)
		b.requireErased(t, delivery, 1, 0)
		require.Len(t, r.got(), 1)
		require.Equal(t, "closed", value[string](t, b, "select coalesce((select state from circuits where destination_id = $1), 'closed')", destination),
			"it says nothing about the receiver")
	}
}

// A carrier that was fenced off ends nothing.
func TestOnlyTheCarrierOfAnErasedDeliveryEndsIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery, _ := b.claimedFor(t, "https://example.com/in")
	b.erase(t, delivery)
	in := first(delivery)
	in.Epoch = 1
	result, err := send(t, b.sender(t), in)
	require.NoError(t, err)
	require.Equal(t, activities.SendResult{Moved: true}, result)
	require.Equal(t, "pending", b.standing(t, delivery).State)
}

// In a batch those without a payload end, whether they are all there is, or come first, and the others are sent.
func TestABatchEndsWhatIsErased(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination := b.addDestination(t, r.URL)
	for _, sent := range []int{3, 0} {
		deliveries := b.accept(t, 4+sent, destination)
		in := b.claimBatch(t, 4+sent, destination)
		for _, delivery := range deliveries[:4] {
			b.erase(t, delivery)
		}
		mustSendBatch(t, b.sender(t), in, sent, 0)
		for _, delivery := range deliveries[:4] {
			b.requireErased(t, delivery, 0, 0)
		}
		for _, delivery := range deliveries[4:] {
			d, _, _ := b.explained(t, delivery)
			require.Equal(t, "delivered", d.State)
		}
		require.Zero(t, value[int](t, b, "select count(*) from delivery_queue"))
	}
	require.Len(t, r.got(), 3)
}

// The request under way counts, and its outcome is recorded although what opens its commitments is gone; whoever canceled gets
// what they asked for.
func TestWhatWasSentBeforeTheErasureIsRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	deliveries := b.claimed(t, 2)
	for _, delivery := range deliveries {
		b.erase(t, delivery)
		var suite testsuite.WorkflowTestSuite
		env := suite.NewTestActivityEnvironment()
		env.RegisterActivity(a)
		encoded, err := env.ExecuteActivity(a.RecordAttempt, activities.RecordInput{
			DeliveryID: id.Delivery.Format(delivery), Attempt: 1, Outcome: retried(time.Hour),
		})
		require.NoError(t, err)
		var progress activities.Progress
		require.NoError(t, encoded.Get(&progress))
		require.Equal(t, activities.Progress{State: "pending", Delay: time.Hour}, progress)
	}
	require.Equal(t, "canceled", b.cancel(t, deliveries[0]))
	b.requireCanceled(t, deliveries[0], 1, 0)

	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	size, _ := checkLog(t, b)
	require.EqualValues(t, 3, size)
	require.Equal(t, 3, value[int](t, b, "select count(*) from merkle_leaves where secrets is null and leaf is not null"),
		"a proof of them has no salts")
}

// A line goes on behind a delivery that can't be sent any more, or stays, as its endpoint says.
func TestALineGoesOnBehindAnErasedDelivery(t *testing.T) {
	t.Parallel()
	for policy, want := range map[string]int{"skip": 1, "block": 0} {
		b := setup(t)
		b.onDead(t, policy)
		d := b.acceptInLine(t, "a", "a")
		b.claim(t, 1, b.destination)
		b.erase(t, d[0])
		result, err := send(t, b.sender(t), first(d[0]))
		require.NoError(t, err)
		require.True(t, result.Dead)
		require.Equal(t, want, len(b.claimable(t)), policy)
		if policy == "block" {
			require.NoError(t, postgres.ReleaseTurn(t.Context(), b.engine, b.tenant, d[0]))
			require.Equal(t, []uuid.UUID{d[1]}, b.claimable(t))
		}
	}
}
