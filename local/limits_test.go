package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdk "go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/worker"
)

// startSecondWorker adds a worker until the test ends, and waits until both count each other.
func (s *testStack) startSecondWorker(t *testing.T) {
	t.Helper()
	engine, err := postgres.Open(s.dbURL, postgres.Engine, 16)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		_ = worker.Run(ctx, worker.Config{
			Engine: engine, Log: zap.NewNop(), Allow: loopback,
			Temporal: sdk.Options{HostPort: s.temporal, Namespace: temporal.Namespace},
		})
	})
	t.Cleanup(func() { stop(); ended.Wait(); engine.Close() })
	s.awaitZero(t, time.Minute, "select 2 - count(*) from workers where alive_until > now() and cardinality(counted) = 2")
}

// watched is a receiver that notes when requests come, and how many are in flight at most.
type watched struct {
	*receiver
	mu   sync.Mutex
	now  int
	most int
	came []time.Time
}

// startWatched starts one that takes so long, and turns away each delivery's first n requests.
func startWatched(t *testing.T, takes time.Duration, n int) *watched {
	t.Helper()
	w := &watched{}
	w.receiver = startReceiver(t, func(i int, out http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		w.now++
		w.most = max(w.most, w.now)
		w.came = append(w.came, time.Now())
		w.mu.Unlock()
		<-time.After(takes)
		w.mu.Lock()
		w.now--
		w.mu.Unlock()
		if i <= n {
			out.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return w
}

// mostIn is how many requests came in a time at most, wherever one begins to count.
func (w *watched) mostIn(d time.Duration) (most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortFunc(w.came, time.Time.Compare)
	for i := range w.came {
		n := 0
		for n < len(w.came)-i && w.came[i+n].Sub(w.came[i]) < d {
			n++
		}
		most = max(most, n)
	}
	return most
}

// Two workers, both lanes: a destination that takes one request at a time never gets two, first attempts and retries
// together; one that takes five a second never gets more; and waiting for either uses up no attempt and loses no start.
func TestTwoWorkersKeepToTheLimitsOfADestination(t *testing.T) {
	s := startTestStack(t)
	s.startSecondWorker(t)
	one, five, second := 1, 5, 1000
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		t.Run(string(lane), func(t *testing.T) {
			single, rated := startWatched(t, 20*time.Millisecond, 1), startWatched(t, 0, 0)
			endpoint := s.createLane(t, lane,
				client.NewDestination{URL: single.URL, MaxConcurrency: &one, TimeoutMs: &second, Schedule: schedule(100, 100, 100)},
				client.NewDestination{URL: rated.URL, RatePerSecond: &five})
			require.Equal(t, 1, *endpoint.Destinations[0].MaxConcurrency)
			require.Equal(t, 5, *endpoint.Destinations[1].RatePerSecond)
			const events = 40
			s.burst(t, endpoint, events)
			s.awaitSealed(t, 3*time.Minute)
			single.requireTimes(t, events, 2)
			rated.requireTimes(t, events, 1)
			require.Equal(t, 1, single.most)
			// What began more than a second apart may come a little closer together: 30 began in any five seconds at most.
			require.LessOrEqual(t, rated.mostIn(5*time.Second), 30)
			require.Equal(t, events, s.to(t, endpoint.Destinations[0], "state = 'delivered' and next_attempt = 3"), "no attempt is used up")
			require.Zero(t, s.lostStarts(t))
		})
	}
	s.checkRecord(t)
}

// A destination that hangs has its places, and the others go on as if it weren't there: those that are known and new ones,
// in both lanes, while retries of the one that hangs pile up.
func TestADestinationThatHangsHoldsUpNobodyInAnyLane(t *testing.T) {
	s := startTestStack(t)
	for _, lane := range []client.Lane{client.Workflow, client.Auto, client.Batch} {
		t.Run(string(lane), func(t *testing.T) {
			known, fresh := startReceiver(t, ok), startReceiver(t, ok)
			hanging, release := startStalling(t)
			defer release()
			other := s.createLane(t, lane, client.NewDestination{URL: known.URL})
			s.mustIngest(t, other, "it answers quickly")
			s.awaitDelivered(t, other.Destinations[0], 1)
			stuck := s.createLane(t, lane, client.NewDestination{URL: hanging.URL, TimeoutMs: &twoMinutes})
			s.burst(t, stuck, 1200)
			require.Eventually(t, func() bool { return len(hanging.counts()) >= 25 }, time.Minute, 20*time.Millisecond, "it has what it can get")
			for i := range 20 {
				s.mustIngest(t, other, fmt.Sprint("others ", i))
				s.awaitDelivered(t, other.Destinations[0], i+2)
			}
			late := s.createLane(t, lane, client.NewDestination{URL: fresh.URL})
			s.mustIngest(t, late, "a new one")
			s.awaitDelivered(t, late.Destinations[0], 1)
			require.Zero(t, s.to(t, stuck.Destinations[0], "next_attempt > 1"), "it hangs all the time")
			require.Less(t, len(hanging.counts()), 1200)
			release()
			s.awaitDelivered(t, stuck.Destinations[0], 1200)
			hanging.requireTimes(t, 1200, 1)
			require.Zero(t, s.lostStarts(t))
		})
	}
}
