package activities_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// longAgo is before everything that can be under way.
func longAgo() time.Time { return time.Now().Add(-time.Hour) }

// member returns the permits of one of workers, which all know each other.
func member(worker uuid.UUID, workers ...uuid.UUID) *activities.Permits {
	permits := activities.NewPermits(400, func() (uuid.UUID, bool) { return worker, true })
	permits.Divide(division(worker, longAgo(), workers...))
	return permits
}

func division(worker uuid.UUID, joined time.Time, workers ...uuid.UUID) activities.Division {
	d := activities.Division{Worker: worker, Joined: joined}
	for _, w := range workers {
		d.Workers = append(d.Workers, activities.Sharer{ID: w})
	}
	return d
}

func workerIDs(n int) []uuid.UUID {
	ids := make([]uuid.UUID, n)
	for i := range ids {
		ids[i] = id.New()
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// takeAll takes permits until there are none.
func takeAll(permits *activities.Permits, send activities.Send) (taken []*activities.Permit) {
	for {
		permit, ok := permits.Take(send)
		if !ok {
			return taken
		}
		taken = append(taken, permit)
	}
}

func limited(concurrency, rate int) activities.Send {
	return activities.Send{
		Destination: id.New(), Limits: postgres.Limits{MaxConcurrency: concurrency, RatePerSecond: rate}, Timeout: 30 * time.Second, Claimed: true}
}

func TestPermitsBoundConcurrencyAndComeBackOnce(t *testing.T) {
	t.Parallel()
	worker := id.New()
	permits, send := member(worker, worker), limited(3, 0)
	taken := takeAll(permits, send)
	require.Len(t, taken, 3)
	for range 5 {
		taken[0].Return()
	}
	require.Len(t, takeAll(permits, send), 1, "one is back, once")
	other := send
	other.Destination = id.New()
	require.Len(t, takeAll(permits, other), 3, "each destination has its own")
}

// In whichever second one looks, at most so many began.
func TestPermitsBoundTheRateInAnySecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		worker := id.New()
		permits, send := member(worker, worker), limited(0, 5)
		var began []time.Time
		for range 700 { // 7 s
			for _, permit := range takeAll(permits, send) {
				permit.Return()
				began = append(began, time.Now())
			}
			<-time.After(10 * time.Millisecond)
		}
		require.Len(t, began, 35)
		for i := 5; i < len(began); i++ {
			require.GreaterOrEqual(t, began[i].Sub(began[i-5]), time.Second)
		}
	})
}

// Both or none: a send that the concurrency doesn't allow uses up nothing of the rate, nor the other way round.
func TestPermitsAreTakenWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		worker := id.New()
		permits, send := member(worker, worker), limited(1, 2)
		first := takeAll(permits, send)
		require.Len(t, first, 1)
		first[0].Return()
		second := takeAll(permits, send)
		require.Len(t, second, 1, "refused ones used up nothing of the rate")
		second[0].Return()
		require.Empty(t, takeAll(permits, send), "two began in this second")
		<-time.After(time.Second)
		require.Len(t, takeAll(permits, send), 1, "refused ones hold no place")
	})
}

// Limits are those of the moment of sending.
func TestPermitsFollowChangedLimits(t *testing.T) {
	t.Parallel()
	worker := id.New()
	permits, send := member(worker, worker), limited(10, 0)
	taken := takeAll(permits, send)
	require.Len(t, taken, 10)
	send.Limits.MaxConcurrency = 2
	for _, permit := range taken[:8] {
		permit.Return()
	}
	require.Empty(t, takeAll(permits, send))
	taken[8].Return()
	require.Len(t, takeAll(permits, send), 1)
	send.Limits.MaxConcurrency = 0
	permit, ok := permits.Take(send)
	require.True(t, ok)
	permit.Return()
}

func TestPermitsForgetDestinationsThatAreNoLongerUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		workers := workerIDs(1)
		permits := member(workers[0], workers...)
		var taken []*activities.Permit
		for range 100 {
			send := limited(1, 1)
			taken = append(taken, takeAll(permits, send)...)
			permits.Expect(id.New(), id.New())
		}
		require.Equal(t, 200, permits.Remembered())
		<-time.After(time.Minute)
		permits.Divide(division(workers[0], longAgo(), workers...))
		require.Equal(t, 100, permits.Remembered(), "requests are under way")
		for _, permit := range taken {
			permit.Return()
		}
		permits.Divide(division(workers[0], longAgo(), workers...))
		require.Zero(t, permits.Remembered())
		taken[0].Return() // harmless
	})
}

// Whoever holds no lease, or another one than limits were divided for, may send nothing where there are limits.
func TestPermitsAreThoseOfALease(t *testing.T) {
	t.Parallel()
	workers := workerIDs(2)
	holder, alive := workers[0], true
	permits := activities.NewPermits(400, func() (uuid.UUID, bool) { return holder, alive })
	send := limited(4, 0)
	require.Empty(t, takeAll(permits, send), "nothing is divided yet")
	require.False(t, permits.Usable(send.Limits, send.Timeout))
	permits.Divide(division(workers[0], longAgo(), workers[0]))
	require.True(t, permits.Usable(send.Limits, send.Timeout))
	alive = false
	require.Empty(t, takeAll(permits, send))
	holder, alive = workers[1], true
	require.Empty(t, takeAll(permits, send))
	holder = workers[0]
	require.Len(t, takeAll(permits, send), 4)
}

func TestPermitsAreDividedByRank(t *testing.T) {
	t.Parallel()
	workers := workerIDs(3)
	for limit, parts := range map[int][]int{1: {1, 0, 0}, 2: {1, 1, 0}, 3: {1, 1, 1}, 5: {2, 2, 1}, 100: {34, 33, 33}} {
		for rank, part := range parts {
			permits := member(workers[rank], workers...)
			require.Len(t, takeAll(permits, limited(limit, 0)), part)
			require.Len(t, takeAll(permits, limited(0, limit)), part)
			require.Equal(t, part > 0, permits.Usable(postgres.Limits{MaxConcurrency: limit}, 0))
		}
	}
}

// However much more some workers know than others: as long as all that have joined count each other, what they may send
// together is never more than the limit.
func TestPermitsOfWorkersWhoKnowDifferentlyManyAreNeverTooMany(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := workerIDs(rapid.IntRange(1, 8).Draw(t, "workers"))
		joined := rapid.IntRange(1, len(all)).Draw(t, "joined")
		order := rapid.Permutation(all).Draw(t, "order") // the first have joined
		send := limited(rapid.IntRange(1, 20).Draw(t, "limit"), 0)
		inAll := 0
		for _, worker := range order[:joined] {
			knows := slices.Clone(order[:joined])
			for _, other := range order[joined:] {
				if rapid.Bool().Draw(t, "known") {
					knows = append(knows, other)
				}
			}
			slices.SortFunc(knows, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
			inAll += len(takeAll(member(worker, knows...), send))
		}
		require.LessOrEqual(t, inAll, send.Limits.MaxConcurrency)
	})
}

// A part grows only when what was begun under the old division is over: a request's timeout after all others count the new
// worker, or after the lease of one that was lost has lapsed; a second, where it is about the rate.
func TestPermitsGrowWhenWhatWasUnderWayIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		workers := workerIDs(2)
		first := activities.NewPermits(400, func() (uuid.UUID, bool) { return workers[0], true })
		first.Divide(division(workers[0], time.Now(), workers...)) // it has just joined
		concurrency, rate := limited(2, 0), limited(0, 2)
		require.Empty(t, takeAll(first, concurrency))
		require.Empty(t, takeAll(first, rate))
		<-time.After(time.Second)
		require.Empty(t, takeAll(first, concurrency))
		require.Len(t, takeAll(first, rate), 1)
		<-time.After(concurrency.Timeout - time.Second)
		require.Len(t, takeAll(first, concurrency), 1)

		lost := division(workers[0], longAgo(), workers...)
		lost.Workers[1].Lapsed = time.Now()
		first.Divide(lost)
		require.Empty(t, takeAll(first, concurrency))
		<-time.After(concurrency.Timeout)
		require.Len(t, takeAll(first, concurrency), 1)
		require.Len(t, takeAll(first, rate), 2)
	})
}

// What is claimed and not sent yet counts once, whatever becomes of it.
func TestPermitsTellHowManyMayBeClaimed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		worker := id.New()
		permits, send := member(worker, worker), limited(5, 8)
		free := func(turns int) int {
			n, _ := permits.Free(send.Destination, send.Limits, send.Timeout, turns, 100)
			return n
		}
		require.Equal(t, 5, free(1))
		deliveries := workerIDs(3)
		for _, delivery := range deliveries {
			permits.Expect(send.Destination, delivery)
		}
		require.Equal(t, 2, free(1))
		send.Delivery = deliveries[0]
		permit, ok := permits.Take(send)
		require.True(t, ok)
		require.Equal(t, 2, free(1), "it is no longer expected, but under way")
		permits.Forget(send.Destination, deliveries[1])
		require.Equal(t, 3, free(1))
		permit.Return()
		require.Equal(t, 4, free(1))
		require.Equal(t, 6, free(100), "of the rate one is used and one expected")
		_, again := permits.Free(send.Destination, send.Limits, send.Timeout, 100, 100)
		require.Equal(t, time.Second, time.Until(again))
		<-time.After(time.Second)
		require.Equal(t, 7, free(100))
		<-time.After(3 * time.Second)
		require.Equal(t, 8, free(100), "what is gone for so long is carried elsewhere")
		n, again := permits.Free(id.New(), postgres.Limits{}, 0, 1, 100)
		require.Equal(t, 100, n)
		require.Zero(t, again)
	})
}

// Retries of destinations that hang leave room for others: none has more than it leaves free of half of the slots.
func TestPermitsOfThoseThatStallLeaveRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		worker := id.New()
		permits := member(worker, worker)
		hangs := func() activities.Send { return activities.Send{Destination: id.New(), Timeout: time.Minute} }
		inAll := 0
		for range 100 {
			send := hangs()
			for range 1000 {
				if _, ok := permits.Take(send); ok {
					inAll++
				}
				<-time.After(activities.Quick / 4) // what comes is spread over time
				if inAll > 400 {
					t.Fatal("they have everything")
				}
			}
			require.True(t, permits.Stalls(send.Destination) || inAll >= 190, "%d", inAll)
			if inAll >= 190 {
				break
			}
		}
		require.LessOrEqual(t, inAll, 220)
		quick := hangs()
		for range 1000 {
			permit, ok := permits.Take(quick)
			require.True(t, ok)
			permit.Return()
		}
		first := hangs()
		_, ok := permits.Take(first)
		require.True(t, ok, "nothing is known against it")
	})
}

func TestPermitsAtOnce(t *testing.T) {
	t.Parallel()
	worker := id.New()
	permits, send := member(worker, worker), limited(7, 0)
	var mu sync.Mutex
	now, most := 0, 0
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for range 200 {
				permit, ok := permits.Take(send)
				if !ok {
					continue
				}
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				mu.Lock()
				now--
				mu.Unlock()
				permit.Return()
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, most, 7)
	require.Len(t, takeAll(permits, send), 7, "all are back")
}
