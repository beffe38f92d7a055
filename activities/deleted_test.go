package activities_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/verify"
)

// requireCanceled wants one leaf more than there were attempts, which says why.
func requireCanceled(t testing.TB, leaves []*verify.Leaf, attempts int) {
	t.Helper()
	require.Len(t, leaves, attempts+1)
	last := leaves[attempts]
	require.Equal(t, "canceled", last.Kind)
	require.Equal(t, "destination_deleted", last.Outcome)
	require.EqualValues(t, attempts, last.AttemptNumber)
}

// What waits for a destination that is deleted ends with a leaf that says so; nothing is sent.
func TestSendToADeletedDestinationCancels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	for _, counted := range []bool{true, false} {
		r := newReceiver(t, says(200, ""))
		delivery, destination := b.claimedFor(t, r.URL)
		b.exec(t, "update destinations set deleted_at = now(), paused_at = now() where id = $1", destination)
		in := first(delivery)
		in.Counted = counted
		for _, want := range []activities.SendResult{
			{Canceled: true, Progress: &activities.Progress{State: "canceled"}},
			{Canceled: true, Moved: true}, // the second time it finds that it was recorded
		} {
			result, err := send(t, a, in)
			require.NoError(t, err)
			require.Equal(t, want, result)
		}
		d, _, leaves := b.explained(t, delivery)
		require.Equal(t, "canceled", d.State)
		require.False(t, d.Queued)
		requireCanceled(t, leaves, 0)
		lost := map[bool]int{true: 0, false: 1}[counted] // a start that may have become a request is told
		require.EqualValues(t, lost, leaves[0].LostStarts)
		require.Empty(t, r.got())
	}
}

// A carrier that was fenced off cancels nothing.
func TestOnlyTheCarrierCancels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery, destination := b.claimedFor(t, "https://example.com/in")
	b.exec(t, "update destinations set deleted_at = now() where id = $1", destination)
	in := first(delivery)
	in.Epoch = 1
	result, err := send(t, b.sender(t), in)
	require.NoError(t, err)
	require.Equal(t, activities.SendResult{Moved: true}, result)
	require.Equal(t, "pending", b.standing(t, delivery).State)
}

func TestADeliveryIsCanceledBetweenAttempts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	r := newReceiver(t, says(503, ""))
	delivery, destination := b.claimedFor(t, r.URL)
	require.Equal(t, "pending", recorded(t, a, first(delivery)).State)
	b.exec(t, "update destinations set deleted_at = now() where id = $1", destination)
	in := first(delivery)
	in.Attempt, in.Counted = 2, false
	result, err := send(t, a, in)
	require.NoError(t, err)
	require.True(t, result.Canceled)
	_, _, leaves := b.explained(t, delivery)
	requireCanceled(t, leaves, 1)
	require.Len(t, r.got(), 1)
}

func TestBatchToADeletedDestinationCancels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, healthy := newReceiver(t, says(200, "")), newReceiver(t, says(200, ""))
	deleted, other := b.addDestination(t, r.URL), b.addDestination(t, healthy.URL)
	canceled, delivered := b.accept(t, 4, deleted), b.accept(t, 2, other)
	in := b.claimBatch(t, 6, deleted, other)
	b.exec(t, "update destinations set deleted_at = now() where id = $1", deleted)
	mustSendBatch(t, b.sender(t), in, 2, 0)
	require.Empty(t, r.got())
	healthy.requireOnce(t, delivered)
	for _, delivery := range canceled {
		d, _, leaves := b.explained(t, delivery)
		require.Equal(t, "canceled", d.State)
		require.False(t, d.Queued)
		requireCanceled(t, leaves, 0)
		require.Zero(t, leaves[0].LostStarts)
	}
}
