package activities_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// askForEnd does what the api does: from then on no attempt begins.
func (b *testBundle) askForEnd(t testing.TB, delivery uuid.UUID) {
	t.Helper()
	b.exec(t, "update deliveries set cancel_requested = true where id = $1 and state = 'pending'", delivery)
}

// cancel carries the command out, as a worker does, and returns the delivery's state after it.
func (b *testBundle) cancel(t testing.TB, delivery uuid.UUID) string {
	t.Helper()
	at, err := activities.Cancel(t.Context(), b.engine, nil, delivery)
	require.NoError(t, err)
	return at.State
}

// requireCanceled wants a delivery to have ended with a canceled leaf after so many attempts.
func (b *testBundle) requireCanceled(t testing.TB, delivery uuid.UUID, attempts int, lostStarts int64) *verify.Leaf {
	t.Helper()
	d, _, leaves := b.explained(t, delivery)
	require.Equal(t, "canceled", d.State)
	require.Len(t, leaves, attempts+1)
	last := leaves[attempts]
	require.Equal(t, "requested", last.Outcome)
	require.Equal(t, lostStarts, last.LostStarts)
	return last
}

func TestCancelEndsWhatWaitsInTheQueue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	destination := b.addDestination(t, "https://user:secret@EXAMPLE.com/in?token=abc")
	delivery := b.accept(t, 1, destination)[0]
	require.Equal(t, "canceled", b.cancel(t, delivery))
	leaf := b.requireCanceled(t, delivery, 0, 0)
	require.Equal(t, "https://example.com/in", leaf.EndpointURL)
	require.Equal(t, "canceled", b.cancel(t, delivery), "twice")
	b.requireCanceled(t, delivery, 0, 0)

	_, err := activities.Cancel(t.Context(), b.engine, nil, id.New())
	require.NoError(t, err, "one that isn't there")
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	checkLog(t, b)
}

func TestCancelEndsWhatWaitsForItsNextAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(503, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	a := b.sender(t)
	recorded(t, a, first(delivery))
	require.Equal(t, "canceled", b.cancel(t, delivery))
	b.requireCanceled(t, delivery, 1, 0)
	// Its workflow hears of it when it goes on, and sends nothing.
	result, err := send(t, a, activities.SendInput{DeliveryID: id.Delivery.Format(delivery), Attempt: 2})
	require.NoError(t, err)
	require.True(t, result.Canceled)
	require.Len(t, r.got(), 1)
}

// What was claimed and not sent yet is ended by its carrier. The start that the claim counted is no lost one.
func TestACarrierEndsWhatWasCanceledBeforeItWasSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	for _, local := range []bool{true, false} {
		delivery, _ := b.claimedFor(t, r.URL)
		b.askForEnd(t, delivery)
		require.Equal(t, "pending", b.cancel(t, delivery), "it is its carrier's")
		run := send
		if local {
			run = sendLocally
		}
		a := b.sender(t)
		for range 2 { // the second time for a workflow that never heard of the first
			result, err := run(t, a, first(delivery))
			require.NoError(t, err)
			require.True(t, result.Canceled)
		}
		b.requireCanceled(t, delivery, 0, 0)
	}
	require.Empty(t, r.got())
}

// A carrier that died may have sent a request. The one that follows ends the delivery, and the leaf tells of it.
func TestTheCanceledLeafTellsOfLostStarts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	b.askForEnd(t, delivery)
	in := first(delivery)
	in.Counted = false // the workflow's first task is run again
	result, err := send(t, b.sender(t), in)
	require.NoError(t, err)
	require.True(t, result.Canceled)
	b.requireCanceled(t, delivery, 0, 1)
	require.Empty(t, r.got())
}

// A request in flight is recorded first, and wins if it was delivered, or if nothing followed it anyway.
func TestARequestInFlightIsRecordedFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for status, want := range map[int]struct {
		state  string
		leaves int
	}{200: {"delivered", 1}, 503: {"canceled", 2}, 400: {"dead", 2}, 410: {"dead", 2}} {
		var delivery uuid.UUID
		r := newReceiver(t, func(w http.ResponseWriter, request *http.Request) {
			b.askForEnd(t, delivery)
			if state := b.cancel(t, delivery); state != "pending" {
				t.Error(state)
			}
			says(status, "")(w, request)
		})
		delivery, _ = b.claimedFor(t, r.URL)
		a := b.sender(t)
		for range 2 {
			progress := recorded(t, a, first(delivery))
			require.Equal(t, activities.Progress{State: want.state}, progress)
		}
		d, _, leaves := b.explained(t, delivery)
		require.Equal(t, want.state, d.State)
		require.Len(t, leaves, want.leaves)
		require.Zero(t, leaves[want.leaves-1].LostStarts)
		require.Equal(t, want.state, b.cancel(t, delivery), "it is over")
		require.Len(t, r.got(), 1)
	}
}

// The same holds of a later attempt, of which no claim tells.
func TestALaterRequestInFlightIsRecordedFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var delivery uuid.UUID
	requests := 0
	r := newReceiver(t, func(w http.ResponseWriter, request *http.Request) {
		if requests++; requests == 1 {
			says(503, "")(w, request)
			return
		}
		if state := b.cancel(t, delivery); state != "pending" {
			t.Error(state)
		}
		says(200, "")(w, request)
	})
	delivery, _ = b.claimedFor(t, r.URL)
	a := b.sender(t)
	recorded(t, a, first(delivery))
	second := activities.SendInput{DeliveryID: id.Delivery.Format(delivery), Attempt: 2}
	require.Equal(t, activities.Progress{State: "delivered"}, recorded(t, a, second))
	d, _, leaves := b.explained(t, delivery)
	require.Equal(t, "delivered", d.State)
	require.Len(t, leaves, 2)
}

// A batch ends what was canceled before it was sent, and records what it had sent.
func TestABatchEndsWhatWasCanceled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var sent uuid.UUID
	r := newReceiver(t, func(w http.ResponseWriter, request *http.Request) {
		b.askForEnd(t, sent)
		says(503, "")(w, request)
	})
	destination := b.addDestination(t, r.URL)
	deliveries := b.accept(t, 2, destination)
	in := b.claimBatch(t, 2, destination)
	sent = deliveries[0]
	b.askForEnd(t, deliveries[1])
	require.Equal(t, "pending", b.cancel(t, deliveries[1]), "it is its batch's")
	mustSendBatch(t, b.sender(t), in, 1, 0)
	b.requireCanceled(t, deliveries[0], 1, 0)
	b.requireCanceled(t, deliveries[1], 0, 0)
	r.requireOnce(t, deliveries[:1])
}

// Claims lock the queue first and then the delivery, commands the delivery first: neither waits for the other for ever.
func TestCancelAndClaimMeet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 20 {
		deliveries := b.accept(t, 10, b.destination)
		claimed := make(chan []postgres.Claimed, 1)
		go func() {
			claims, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
				Worker: b.worker, Claim: id.New(), Destinations: []uuid.UUID{b.destination}, Quotas: []int{10}, Lane: postgres.LaneWorkflow})
			if err != nil {
				t.Error(err)
			}
			claimed <- claims
		}()
		for _, delivery := range deliveries {
			b.cancel(t, delivery)
		}
		carried := map[uuid.UUID]bool{}
		for _, c := range <-claimed {
			carried[c.DeliveryID] = true
		}
		for _, delivery := range deliveries {
			d, _, _ := b.explained(t, delivery)
			require.Equal(t, map[bool]string{true: "pending", false: "canceled"}[carried[delivery]], d.State)
			require.Equal(t, carried[delivery], d.Claimed)
			if carried[delivery] {
				_, err := postgres.Requeue(t.Context(), b.engine, delivery, 0, 1, time.Hour, 1)
				require.NoError(t, err)
				require.Equal(t, "canceled", b.cancel(t, delivery))
				b.requireCanceled(t, delivery, 0, 0)
			}
		}
	}
}
