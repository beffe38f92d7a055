package activities_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// hanging answers no request until it is released; with again, it answers what it has seen before.
type hanging struct {
	*receiver
	release func()
}

func newHanging(t testing.TB, again bool) *hanging {
	t.Helper()
	released := make(chan struct{})
	h := &hanging{release: sync.OnceFunc(func() { close(released) })}
	h.receiver = newReceiver(t, func(_ http.ResponseWriter, request *http.Request) {
		if again && h.times()[request.Header.Get("Webhook-Id")] > 1 {
			return
		}
		select {
		case <-released:
		case <-request.Context().Done():
		}
	})
	t.Cleanup(h.release) // before the server is closed, which waits for its requests
	return h
}

// eventually polls for what must come.
func eventually(t testing.TB, condition func() bool, message string) {
	t.Helper()
	require.Eventually(t, condition, 30*time.Second, 10*time.Millisecond, message)
}

// recordedOf counts the attempts to a destination that are recorded.
func (b *testBundle) recordedOf(t testing.TB, destination uuid.UUID) int {
	t.Helper()
	return value[int](t, b, "select count(*) from attempts where destination_id = $1", destination)
}

// slowBatch is a batch under way, to a destination that answers and to one that hangs and has more deliveries than places.
type slowBatch struct {
	healthy              *receiver
	hanging              *hanging
	fast, slow           uuid.UUID
	deliveries, stalling []uuid.UUID
	from                 time.Time
	ended                chan struct{}
	result               activities.BatchResult
	err                  error
}

func (b *testBundle) startSlowBatch(t testing.TB) *slowBatch {
	t.Helper()
	s := &slowBatch{healthy: newReceiver(t, says(200, "")), hanging: newHanging(t, false), ended: make(chan struct{})}
	s.fast, s.slow = b.addDestination(t, s.healthy.URL), b.addDestination(t, s.hanging.URL)
	b.exec(t, "update destinations set timeout_ms = 120000 where id = $1", s.slow)
	s.deliveries, s.stalling = b.accept(t, 40, s.fast), b.accept(t, 130, s.slow)
	a, in := b.sender(t), b.claimBatch(t, 170, s.fast, s.slow)
	s.from = time.Now()
	go func() {
		defer close(s.ended)
		s.result, s.err = sendBatch(t, a, in)
	}()
	t.Cleanup(func() { s.hanging.release(); <-s.ended })
	return s
}

// requireStallingPutBack wants what was sent to the slow destination to be recorded, and the rest to be back, unsent.
func (s *slowBatch) requireStallingPutBack(t testing.TB, b *testBundle) {
	t.Helper()
	sent := s.hanging.times()
	for _, delivery := range s.stalling {
		if sent[id.Delivery.Format(delivery)] == 0 {
			b.requireUnsent(t, delivery, 0)
			continue
		}
		d, _, _ := b.explained(t, delivery)
		require.Equal(t, "delivered", d.State)
	}
}

// A destination that hangs takes no place from the others, and keeps only what it was sent.
func TestBatchGoesOnBesideASlowDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.startSlowBatch(t)
	eventually(t, func() bool { return b.recordedOf(t, s.fast) == 40 }, "what the fast one was sent is recorded")
	require.Zero(t, b.recordedOf(t, s.slow), "while the slow one's requests are in flight")
	eventually(t, func() bool { return time.Since(s.from) > activities.BatchBudget+time.Second }, "the budget is over")
	sent := len(s.hanging.got())
	require.Positive(t, sent)
	require.Less(t, sent, 130)
	s.hanging.release()
	<-s.ended
	require.NoError(t, s.err)
	require.Equal(t, activities.BatchResult{Sent: 40 + sent, Deferred: 130 - sent}, s.result)
	require.Len(t, s.hanging.got(), sent, "nothing is begun after the budget")
	s.healthy.requireOnce(t, s.deliveries)
	s.requireStallingPutBack(t, b)
}

// What had no place leaves the batch once its time is over, not when the slowest request has ended: that can take two
// minutes, in which it would take up the worker's places.
func TestBatchPutsBackWhatHadNoPlaceWhileOthersHang(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.startSlowBatch(t)
	eventually(t, func() bool {
		back := value[int](t, b, "select count(*) from delivery_queue where destination_id = $1 and claim_id is null", s.slow)
		return back > 0 && back == 130-len(s.hanging.got())
	}, "put back while the requests are in flight")
	require.Zero(t, b.recordedOf(t, s.slow))
	s.hanging.release()
	<-s.ended
	require.NoError(t, s.err)
	s.requireStallingPutBack(t, b)
}

// However many destinations hang, a batch has so many requests in flight, and each destination its part of them.
func TestBatchDividesItsPlacesAmongDestinations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const each = 128 / 4
	var destinations []uuid.UUID
	hung := newHanging(t, false)
	for i := range 4 {
		destinations = append(destinations, b.addDestination(t, fmt.Sprintf("%s/%d", hung.URL, i)))
		b.accept(t, each+5, destinations[i])
	}
	b.exec(t, "update destinations set timeout_ms = 120000")
	in, a, ended, from := b.claimBatch(t, 4*(each+5), destinations...), b.sender(t), make(chan struct{}), time.Now()
	go func() {
		defer close(ended)
		_, _ = sendBatch(t, a, in)
	}()
	t.Cleanup(func() { hung.release(); <-ended })
	eventually(t, func() bool { return time.Since(from) > activities.BatchBudget && len(hung.got()) >= 4*each }, "what has a place is sent")
	perPath := map[string]int{}
	for _, got := range hung.got() {
		perPath[got.URI]++
	}
	require.Equal(t, map[string]int{"/0": each, "/1": each, "/2": each, "/3": each}, perPath)
}

// acceptLarge stores a webhook of 6 MiB, of which a batch holds two at a time.
func (b *testBundle) acceptLarge(t testing.TB, destination uuid.UUID) uuid.UUID {
	t.Helper()
	row := b.acceptance(strings.Repeat("x", 6<<20), "", destination)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	return row.Deliveries[0].ID
}

// Hundreds of large webhooks don't fit into memory together: the next ones are read when those before have been sent.
func TestBatchHoldsSoManyBytesAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	silent := newReceiver(t, func(_ http.ResponseWriter, request *http.Request) { <-request.Context().Done() })
	for range 5 { // on a busy machine the batch's time may be over before the third one's turn
		destination, other := b.addDestination(t, silent.URL), b.addDestination(t, silent.URL)
		b.exec(t, "update destinations set timeout_ms = 200 where id = any($1)", []uuid.UUID{destination, other})
		first, second := b.acceptLarge(t, destination), b.acceptLarge(t, destination)
		third := b.acceptLarge(t, other)
		result, err := sendBatch(t, b.sender(t), b.claimBatch(t, 3, destination, other))
		require.NoError(t, err)
		if result.Sent < 3 {
			require.Equal(t, 3, result.Sent+result.Deferred)
			continue
		}
		require.True(t, value[bool](t, b, `select (select attempted_at from attempts where delivery_id = $3) >=
			max(attempted_at + duration_ms * interval '1 ms') from attempts where delivery_id in ($1, $2)`, first, second, third))
		return
	}
	t.Fatal("the third was never sent")
}
