package worker

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// claimed counts the deliveries in flight of a destination.
func (d *dispatchTest) claimedOf(destination uuid.UUID) (n int) {
	for _, f := range d.inFlight {
		if f.claimed.DestinationID == destination {
			n++
		}
	}
	return n
}

// look lets the dispatcher look at the queue n times; nothing is recorded.
func (d *dispatchTest) look(t *testing.T, n int) {
	t.Helper()
	for range n {
		require.NoError(t, d.claim(t.Context(), d.worker))
		d.starts.Wait()
		pass(pollEvery)
	}
}

// A destination that hangs has some places, others that are unknown have some too, and one that answers quickly has the
// rest; in both lanes.
func TestDispatcherKeepsPlacesForOthersWhenADestinationHangs(t *testing.T) {
	for lane, size := range map[postgres.Lane]int{postgres.LaneWorkflow: 200, postgres.LaneBatch: mostBatched} {
		t.Run(string(lane), func(t *testing.T) {
			dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
				hangs := d.accept(t, size, lane, 0)
				for range 32 {
					d.latencies.Add(hangs, 30*time.Second)
				}
				d.look(t, 5)
				require.InDelta(t, size/6, d.claimedOf(hangs), 1)
				quick := d.accept(t, size, lane, 0)
				d.look(t, 8)
				require.InDelta(t, size/6, d.claimedOf(hangs), 1)
				// A batch begins only if it may be a full one.
				require.GreaterOrEqual(t, d.claimedOf(quick), size/2)
				require.LessOrEqual(t, len(d.inFlight), size)
			})
		})
	}
}

// A destination is found to hang by its requests under way, long before they time out; nobody has to have waited for it.
func TestDispatcherNoticesThatADestinationBeginsToHang(t *testing.T) {
	dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
		destination := d.accept(t, 200, postgres.LaneWorkflow, 0) // answers quickly
		for range 20 {
			_, ok := d.places.permits.Take(activities.Send{Destination: destination, Delivery: id.New(), Timeout: time.Minute, Claimed: true})
			require.True(t, ok)
		}
		pass(activities.Quick)
		d.look(t, 5)
		require.InDelta(t, 200/6, d.claimedOf(destination), 1)
		require.Zero(t, d.starter.local, "a request that hangs doesn't hold a workflow task")
	})
}

// A destination of which nothing is known is taken for one that may hang, until it answers.
func TestDispatcherDoesNotTrustANewDestination(t *testing.T) {
	dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
		fresh := d.accept(t, 400, postgres.LaneWorkflow, 0)
		d.places.latencies = activities.NewLatencies()
		d.look(t, 3)
		require.InDelta(t, 200/6, d.claimedOf(fresh), 1)
		d.places.latencies.Add(fresh, 20*time.Millisecond)
		d.look(t, 2)
		require.Equal(t, 200, d.claimedOf(fresh), "now it may have all, as nobody else waits")
	})
}

// Of a rate no more is claimed than may be sent now, and a destination whose permits belong to others isn't claimed at all.
func TestDispatcherClaimsNoMoreThanThereArePermits(t *testing.T) {
	dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
		limited := d.accept(t, 50, postgres.LaneWorkflow, 0)
		d.exec(t, "update destinations set rate_per_second = 7")
		d.look(t, 3)
		require.Equal(t, 7, d.claimedOf(limited))
		for delivery, f := range d.inFlight {
			permit, ok := d.places.permits.Take(activities.Send{
				Destination: f.claimed.DestinationID, Delivery: delivery, Limits: postgres.Limits{RatePerSecond: 7}, Claimed: true})
			require.True(t, ok)
			permit.Return()
		}
		d.recordAll()
		<-d.wake
		d.look(t, 1)
		require.Zero(t, d.claimedOf(limited), "this second's are used up")
		select {
		case <-d.wake:
		case <-time.After(time.Second):
			t.Fatal("it wasn't woken when there are more")
		}
		d.look(t, 1)
		require.Equal(t, 7, d.claimedOf(limited))

		d.places.permits.Divide(activities.Division{Worker: d.worker, Joined: time.Now().Add(-time.Hour),
			Workers: []activities.Sharer{{ID: uuid.Nil}, {ID: d.worker}}})
		another := d.accept(t, 10, postgres.LaneBatch, 1)
		d.look(t, 5)
		require.Zero(t, d.claimedOf(another), "the other worker has the only permit")
	})
}

// More is claimed as soon as a permit is back, not with the next poll.
func TestDispatcherLooksAgainWhenAPermitIsBack(t *testing.T) {
	dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
		d.accept(t, 3, postgres.LaneWorkflow, 1)
		d.look(t, 1)
		require.Len(t, d.inFlight, 1)
		require.Empty(t, d.wake)
		d.recordAll()
		require.Len(t, d.wake, 1)
		<-d.wake
		d.look(t, 1)
		d.recordAll()
		require.Len(t, d.wake, 1)
	})
}

// The deliveries of a batch go one after the other, so that one permit of a quick destination serves many of them.
func TestDispatcherClaimsForABatchWhatItsPermitsCanSend(t *testing.T) {
	dispatching(t, 200, func(t *testing.T, d *dispatchTest) {
		destination := d.accept(t, 500, postgres.LaneBatch, 2)
		d.latencies.Add(destination, 100*time.Millisecond)
		d.look(t, 1)
		require.Equal(t, 20, d.claimedOf(destination))
	})
}
