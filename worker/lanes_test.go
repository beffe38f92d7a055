package worker

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// pass lets time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// inBatches returns lanes that have just gone over to batches.
func inBatches(t *testing.T) *lanes {
	t.Helper()
	l := &lanes{}
	l.claimedSingles(200, 200)
	pass(backlogAfter + time.Millisecond)
	l.claimedSingles(0, 0)
	require.True(t, l.batches)
	return l
}

func TestLanesGoOverToBatchesOnceEveryPlaceWasTakenForSoLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &lanes{}
		l.claimedSingles(200, 200)
		for range 5 {
			pass(backlogAfter / 5)
			l.claimedSingles(0, 0)
			require.Zero(t, l.batching(), "not yet")
		}
		pass(time.Millisecond)
		l.claimedSingles(1, 1)
		require.Equal(t, 1.0, l.batching())
	})
}

// A burst that the places take in isn't a backlog, however often there is one.
func TestLanesStaySingleWhilePlacesAreFree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &lanes{}
		for range 50 {
			l.claimedSingles(200, 200)
			pass(backlogAfter)
			l.claimedSingles(0, 0)
			l.claimedSingles(199, 200) // one was free
			pass(time.Millisecond)
		}
		require.Zero(t, l.batching())
	})
}

// smallFor hands the lanes batches of n for so long.
func smallFor(l *lanes, n int, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); pass(100 * time.Millisecond) {
		l.claimedBatch(n, true)
	}
}

func TestLanesGoBackOnceBatchesWereSmallForSoLong(t *testing.T) {
	t.Parallel()
	for _, small := range []int{0, 1, smallBatch - 1} {
		synctest.Test(t, func(t *testing.T) {
			l := inBatches(t)
			smallFor(l, small, calmAfter)
			require.Equal(t, 1.0, l.batching(), "not yet")
			l.claimedBatch(small, true)
			require.Equal(t, 1.0, l.batching(), "not longer than so long")
			pass(time.Millisecond)
			l.claimedBatch(small, true)
			require.Zero(t, l.batching())
			l.claimedSingles(200, 200)
			require.Zero(t, l.batching(), "it takes a backlog again")
			pass(backlogAfter)
			l.claimedSingles(0, 0)
			require.Zero(t, l.batching())
			pass(time.Millisecond)
			l.claimedSingles(0, 0)
			require.Equal(t, 1.0, l.batching())
			smallFor(l, small, calmAfter)
			require.Equal(t, 1.0, l.batching(), "and calm for as long as before")
		})
	}
}

// One batch of some size is enough to stay.
func TestLanesKeepToBatchesWhileThereIsABacklog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := inBatches(t)
		for range 20 {
			smallFor(l, smallBatch-1, calmAfter)
			l.claimedBatch(smallBatch, true)
			pass(time.Millisecond)
		}
		require.Equal(t, 1.0, l.batching())
		l.claimedSingles(3, 200) // places for singles are free: nobody asks for them now
		require.Equal(t, 1.0, l.batching())
	})
}

// A worker of its own age: calm from before the backlog doesn't count.
func TestLanesForgetTheCalmBeforeABacklog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &lanes{}
		smallFor(l, 0, time.Minute)
		l.claimedSingles(200, 200)
		pass(backlogAfter + time.Millisecond)
		l.claimedSingles(0, 0)
		require.Equal(t, 1.0, l.batching())
		l.claimedBatch(0, true)
		require.Equal(t, 1.0, l.batching())
	})
}

func TestLanesAffordEveryFreePlaceWithoutABacklog(t *testing.T) {
	t.Parallel()
	l := &lanes{}
	for _, free := range []int{0, 1, 200, 10_000} {
		require.Equal(t, free, l.affordable(free))
	}
}

// Under backlog so many workflows are started a second, whatever fails.
func TestLanesAffordSoManyWorkflowsASecondUnderBacklog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := inBatches(t)
		require.Equal(t, 7, l.affordable(7), "no more than there are places")
		require.Equal(t, startsPerSecond, l.affordable(1000))
		l.claimedSingles(startsPerSecond-1, startsPerSecond)
		require.Equal(t, 1, l.affordable(1000))
		l.claimedSingles(1, 1)
		require.Zero(t, l.affordable(1000))
		pass(time.Second / startsPerSecond / 2)
		require.Zero(t, l.affordable(1000), "half a start is none")
		pass(time.Second/startsPerSecond/2 + time.Microsecond)
		require.Equal(t, 1, l.affordable(1000), "two halves are one, however often somebody asked")
		pass(time.Hour)
		require.Equal(t, startsPerSecond, l.affordable(1000), "what isn't used for a second is gone")
		started := 0
		for range 1000 { // 10 s
			n := l.affordable(1000)
			l.claimedSingles(n, n)
			started += n
			pass(10 * time.Millisecond)
		}
		require.InDelta(t, 11*startsPerSecond, started, 1)
		require.Equal(t, 1.0, l.batching())
	})
}

func TestLanesGatherUnlessTheLastBatchWasFull(t *testing.T) {
	t.Parallel()
	for _, goneOver := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := &lanes{batches: goneOver}
			require.True(t, l.mayBatch(), "the first delivery waits for nobody")
			l.claimedBatch(1, true)
			require.False(t, l.mayBatch())
			pass(gatherFor - time.Millisecond)
			require.False(t, l.mayBatch())
			pass(time.Millisecond)
			require.True(t, l.mayBatch())
			l.claimedBatch(batchSize, true)
			require.True(t, l.mayBatch(), "more waits")
			l.claimedBatch(0, true)
			require.True(t, l.mayBatch(), "what comes next waits for nobody")
			l.claimedBatch(256, false)
			require.True(t, l.mayBatch(), "more destinations wait that weren't looked at")
			l.claimedBatch(batchSize-1, true)
			require.False(t, l.mayBatch())
		})
	}
}

func TestLanesSplitByEndpointAndSpeed(t *testing.T) {
	t.Parallel()
	slow, fast := id.New(), id.New()
	isSlow := func(destination uuid.UUID) bool { return destination == slow }
	due := func(lane postgres.Lane, destination uuid.UUID) postgres.DueDestination {
		return postgres.DueDestination{ID: destination, TenantID: id.New(), Lane: lane}
	}
	workflow, slowWorkflow := due(postgres.LaneWorkflow, fast), due(postgres.LaneWorkflow, slow)
	batch, slowBatch := due(postgres.LaneBatch, fast), due(postgres.LaneBatch, slow)
	auto, slowAuto := due(postgres.LaneAuto, fast), due(postgres.LaneAuto, slow)
	all := []postgres.DueDestination{auto, batch, slowAuto, slowBatch, slowWorkflow, workflow}

	single, batched := (&lanes{}).split(all, isSlow)
	require.Equal(t, []postgres.DueDestination{auto, slowAuto, slowWorkflow, workflow}, single)
	require.Equal(t, []postgres.DueDestination{batch, slowBatch}, batched)
	single, batched = (&lanes{batches: true}).split(all, isSlow)
	require.Equal(t, []postgres.DueDestination{slowAuto, slowWorkflow, workflow}, single)
	require.Equal(t, []postgres.DueDestination{auto, batch, slowBatch}, batched)
	single, batched = (&lanes{}).split(nil, isSlow)
	require.Empty(t, single)
	require.Empty(t, batched)
}

// Nobody needs to look at the queue while a batch gathers, unless something may be due that gets a workflow of its own.
func TestLanesAreIdleWhileABatchGathers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		workflow, batch := postgres.DueDestination{ID: id.New(), Lane: postgres.LaneWorkflow}, postgres.DueDestination{ID: id.New(), Lane: postgres.LaneBatch}
		l := &lanes{}
		look := func(due ...postgres.DueDestination) { l.split(due, func(uuid.UUID) bool { return false }) }
		look(batch)
		require.False(t, l.idle(), "it is time for a batch")
		l.claimedBatch(1, true)
		require.True(t, l.idle())
		look(batch, workflow)
		require.False(t, l.idle())
		look()
		require.False(t, l.idle(), "nobody knows what comes next")
		look(batch)
		require.True(t, l.idle())
		pass(gatherFor)
		require.False(t, l.idle())
	})
}

// Places that slow requests hold, with nothing waiting for one, are no backlog.
func TestLanesStaySingleWhileNothingWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &Dispatcher{limit: 1, inFlight: map[uuid.UUID]*flight{id.New(): {}}, metrics: newMetrics(nil)}
		for range 20 {
			n, err := d.claimSingles(t.Context(), id.New(), nil)
			require.NoError(t, err)
			require.Zero(t, n)
			pass(pollEvery)
		}
		require.Zero(t, d.lanes.batching())
	})
}
