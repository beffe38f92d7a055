package activities_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/postgres"
)

// loseEvent takes away the event of a delivery, as who drops its partition too early, and returns what brings it back.
func (b *testBundle) loseEvent(t testing.TB, delivery uuid.UUID) (restore func()) {
	t.Helper()
	b.tamper(t, "create table if not exists lost (like events)")
	b.tamper(t, "insert into lost select e.* from events e join deliveries d on d.event_id = e.id where d.id = $1", delivery)
	b.tamper(t, "delete from events where id in (select id from lost)")
	return func() { b.tamper(t, "insert into events select * from lost") }
}

// Nothing true can be said of a delivery whose event's row is gone. It is put back, and goes on when the row is restored.
func TestADeliveryWhoseEventIsGoneWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	r := newReceiver(t, says(200, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	restore := b.loseEvent(t, delivery)
	result, err := send(t, a, first(delivery))
	require.NoError(t, err, "an error would be tried again at once, for ever")
	require.True(t, result.Held)
	require.True(t, result.Unused)
	require.Greater(t, result.Wait, time.Minute)
	require.Equal(t, "pending", b.standing(t, delivery).State)
	require.Empty(t, r.got())

	restore()
	require.Equal(t, "delivered", recorded(t, a, first(delivery)).State)
	b.explained(t, delivery)
}

// Nor can it be canceled before that: there would be no leaf.
func TestADeliveryWhoseEventIsGoneIsCanceledLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1, b.destination)[0]
	restore := b.loseEvent(t, delivery)
	_, err := activities.Cancel(t.Context(), b.engine, nil, delivery)
	require.ErrorIs(t, err, postgres.ErrEventGone)
	require.Equal(t, "pending", b.standing(t, delivery).State)
	restore()
	at, err := activities.Cancel(t.Context(), b.engine, nil, delivery)
	require.NoError(t, err)
	require.Equal(t, "canceled", at.State)
	b.explained(t, delivery)
}

// One of them holds up neither the rest of its batch, nor what is recorded in the same commit.
func TestADeliveryWhoseEventIsGoneHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination := b.addDestination(t, r.URL)
	deliveries := b.accept(t, 4, destination)
	in := b.claimBatch(t, 4, destination)
	b.loseEvent(t, deliveries[1])
	mustSendBatch(t, b.sender(t), in, 3, 1)
	require.Equal(t, 3, value[int](t, b, "select count(*) from deliveries where state = 'delivered'"))
	require.Equal(t, 1, value[int](t, b, "select count(*) from delivery_queue where claim_id is null and due_at > now() + interval '1 minute'"))

	other := b.accept(t, 1, b.destination)[0]
	lost := postgres.Start{Delivery: deliveries[1], Epoch: 1, Attempt: 1}
	results, err := activities.CommitRecordings(t.Context(), b.engine, []activities.Recording{
		{Delivery: lost.Delivery, Epoch: lost.Epoch, Attempt: lost.Attempt, Outcome: delivered()},
		{Delivery: other, Attempt: 1, Outcome: delivered()},
	})
	require.NoError(t, err)
	require.ErrorIs(t, results[0].Err, postgres.ErrEventGone)
	require.NoError(t, results[1].Err)
	b.explained(t, other)
}
