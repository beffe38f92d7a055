package activities_test

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// openCircuit opens the circuit of a destination, by so many recorded failures as that takes.
func (b *testBundle) openCircuit(t testing.TB, destination uuid.UUID) {
	t.Helper()
	r := b.recorder(t)
	for _, delivery := range b.accept(t, 5, destination) {
		require.Equal(t, "closed", b.circuit(t, destination).State)
		record(t, r, delivery, 0, 1, retried(time.Hour))
	}
	require.Equal(t, circuitRow{State: "open", Ring: 31, Opened: true, Failing: true, LastIsFailed: true}, b.circuit(t, destination))
}

// probeDue lets the time pass until the circuit may be probed.
func (b *testBundle) probeDue(t testing.TB, destination uuid.UUID) {
	t.Helper()
	b.exec(t, "update circuits set probe_until = now() where destination_id = $1", destination)
}

func TestRecordOfSuccessesWritesNoCircuit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	deliveries := b.claimed(t, 12)
	record(t, r, deliveries[0], 0, 1, delivered())
	record(t, r, deliveries[1], 0, 1, failed("rejected"))
	interrupted := retried(time.Minute)
	interrupted.ResponseStatus, interrupted.Error, interrupted.ResponseHash = 0, "interrupted", ""
	interrupted.ResponseSize = 0
	record(t, r, deliveries[2], 0, 1, interrupted)
	require.Zero(t, value[int](t, b, "select count(*) from circuits"), "nothing has failed")

	version := func() string {
		return value[string](t, b, "select xmin::text || ctid::text from circuits where destination_id = $1", b.destination)
	}
	b.exec(t, "insert into circuits (destination_id, tenant_id) values ($1, $2)", b.destination, b.tenant)
	before := version()
	record(t, r, deliveries[3], 0, 1, delivered())
	require.Equal(t, before, version(), "a circuit at rest isn't written")
	record(t, r, deliveries[4], 0, 1, retried(time.Hour))
	require.Equal(t, circuitRow{State: "closed", Ring: 1, Failing: true, LastIsFailed: true}, b.circuit(t, b.destination))
	record(t, r, deliveries[5], 0, 1, delivered())
	require.Equal(t, circuitRow{State: "closed", Ring: 2}, b.circuit(t, b.destination))
}

// Groups of several workers that move the same circuits lock them in one order, whatever the order of their recordings,
// also those that make the rows.
func TestRecordMovesCircuitsWithoutDeadlock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	destinations := []uuid.UUID{b.destination}
	for range 5 {
		destinations = append(destinations, b.addDestination(t, "https://example.com/in"))
	}
	var all sync.WaitGroup
	for worker := range 3 {
		for round := range 8 {
			var rows []activities.Recording
			for i := range destinations {
				destination := destinations[(i*(2*worker+1)+round)%len(destinations)]
				outcome := delivered()
				if (i+round+worker)%3 == 0 {
					outcome = retried(time.Hour)
				}
				rows = append(rows, activities.Recording{Delivery: b.accept(t, 1, destination)[0], Attempt: 1, Outcome: outcome})
			}
			all.Go(func() {
				if _, err := activities.CommitRecordings(context.Background(), b.engine, rows); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
}

// Nothing is sent to an open circuit: what is carried goes back into the queue, due when it may be probed, and has used up
// neither an attempt nor a start.
func TestSendToAnOpenCircuitParks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	r := newReceiver(t, says(200, ""))
	for _, counted := range []bool{true, false} {
		delivery, destination := b.claimedFor(t, r.URL)
		b.openCircuit(t, destination)
		in := first(delivery)
		in.Counted = counted
		result, err := send(t, a, in)
		require.NoError(t, err)
		require.True(t, result.Held)
		require.True(t, result.Unused, "also the start that this activity counted")
		require.InDelta(t, 31, result.Wait.Seconds(), 5)
		require.NoError(t, requeue(a, activities.RequeueInput{DeliveryID: in.DeliveryID, Attempt: 1, Delay: result.Wait, Unused: result.Unused}))
		lost := map[bool]int{true: 0, false: 1}[counted] // the claim's, of which this activity knows nothing
		require.Equal(t, standing{State: "pending", Epoch: 1, NextAttempt: 1, LostStarts: lost, Queued: true}, b.standing(t, delivery))
		d, _, _ := b.read(t, delivery)
		require.InDelta(t, 31, d.QueueDueIn, 5)
	}
	require.Empty(t, r.got())
}

func TestRequeueSaysWhatIsFree(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	freed := make(chan uuid.UUID, 1)
	a.Recorder = activities.NewRecorder(activities.RecorderConfig{DB: b.engine, OnRecord: func(delivery uuid.UUID) { freed <- delivery }})
	t.Cleanup(a.Recorder.Close)
	delivery := b.claimed(t, 1)[0]
	require.NoError(t, requeue(a, activities.RequeueInput{DeliveryID: id.Delivery.Format(delivery), Attempt: 1}))
	require.Equal(t, delivery, <-freed)
}

// gated is a receiver that answers a request once it is let through, and tells of each that comes.
type gated struct {
	*receiver
	came chan struct{}
	let  chan int // the status
}

func newGated(t testing.TB) *gated {
	g := &gated{came: make(chan struct{}, 100), let: make(chan int)}
	g.receiver = newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		g.came <- struct{}{}
		select {
		case status := <-g.let:
			w.WriteHeader(status)
		case <-r.Context().Done():
		}
	})
	return g
}

// sendAll sends first attempts of deliveries at once, divided among workers.
func sendAll(t testing.TB, workers []*activities.Activities, deliveries []uuid.UUID, done func(activities.SendResult)) *sync.WaitGroup {
	all := &sync.WaitGroup{}
	for i, delivery := range deliveries {
		a := workers[i%len(workers)]
		all.Go(func() {
			var result activities.SendResult
			encoded, err := environment(a).ExecuteActivity(a.SendAttempt, first(delivery))
			if err == nil {
				err = encoded.Get(&result)
			}
			if err != nil {
				t.Error(err)
			}
			done(result)
		})
	}
	return all
}

// Of many that want to probe a circuit at once, on two workers, one sends; the others go back into the queue. Three that
// work close it, one that fails opens it again.
func TestSendProbesOneAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := newGated(t)
	destination := b.addDestination(t, g.URL)
	b.openCircuit(t, destination)
	workers := []*activities.Activities{b.sender(t), b.sender(t)}
	for _, step := range []struct {
		status int
		want   circuitRow
	}{
		{503, circuitRow{State: "open", Ring: 63, Opened: true, Failing: true, LastIsFailed: true}},
		{200, circuitRow{State: "half_open", Ring: 126, Opened: true, ProbeDue: true, Successes: 1}},
		{503, circuitRow{State: "open", Ring: 253, Opened: true, Failing: true, LastIsFailed: true}},
		{200, circuitRow{State: "half_open", Ring: 506, Opened: true, ProbeDue: true, Successes: 1}},
		{400, circuitRow{State: "half_open", Ring: 1012, Opened: true, ProbeDue: true, Successes: 2}},
		{200, circuitRow{State: "closed", ClosedLater: true}},
	} {
		b.probeDue(t, destination)
		var held, probes atomic.Int64
		othersHeld := make(chan struct{})
		all := sendAll(t, workers, b.accept(t, 6, destination), func(result activities.SendResult) {
			switch {
			case result.Progress != nil:
				probes.Add(1)
			case result.Held && result.Unused && result.Wait > 0 && result.Wait < 5*time.Second: // the probe may be over soon
				if held.Add(1) == 5 {
					close(othersHeld)
				}
			}
		})
		<-othersHeld
		<-g.came
		require.Empty(t, g.came)
		require.Equal(t, "half_open", b.circuit(t, destination).State)
		g.let <- step.status
		all.Wait()
		require.EqualValues(t, 1, probes.Load())
		require.Equal(t, step.want, b.circuit(t, destination))
	}
	require.Len(t, g.got(), 6)
}

// A worker that dies with a probe doesn't keep the circuit open: when its time is over, another one tries. What the first
// one may have to say afterwards moves nothing.
func TestSendProbesAgainAfterAProbeIsLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination := b.addDestination(t, r.URL)
	b.openCircuit(t, destination)
	b.probeDue(t, destination)
	lost := id.New()
	probe, err := postgres.WinProbe(t.Context(), b.engine, destination, lost, time.Minute)
	require.NoError(t, err)
	require.Equal(t, lost, probe.Token)

	a := b.sender(t)
	deliveries := b.accept(t, 3, destination)
	result, err := send(t, a, first(deliveries[0]))
	require.NoError(t, err)
	require.True(t, result.Held, "the probe is under way, for all that is known")
	b.probeDue(t, destination)
	require.Equal(t, "delivered", recorded(t, a, first(deliveries[0])).State)
	want := circuitRow{State: "half_open", Ring: 62, Opened: true, ProbeDue: true, Successes: 1}
	require.Equal(t, want, b.circuit(t, destination))

	late := retried(time.Hour)
	late.Probe = lost.String()
	record(t, a.Recorder, deliveries[1], 0, 1, late)
	require.Equal(t, circuitRow{State: "half_open", Ring: 125, Opened: true, ProbeDue: true, Successes: 1, Failing: true, LastIsFailed: true},
		b.circuit(t, destination))
}

// A probe's outcome that its sender couldn't record moves the circuit when the workflow records it.
func TestRecordAttemptOfAProbe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	destination := b.addDestination(t, r.URL)
	b.openCircuit(t, destination)
	b.probeDue(t, destination)
	a, broken := b.sender(t), b.sender(t)
	broken.Recorder.Close()
	in := first(b.accept(t, 1, destination)[0])
	result, err := send(t, broken, in)
	require.NoError(t, err)
	require.NotNil(t, result.Unrecorded)
	require.True(t, b.circuit(t, destination).Probing)
	_, err = environment(a).ExecuteActivity(a.RecordAttempt, activities.RecordInput{DeliveryID: in.DeliveryID, Attempt: 1, Outcome: *result.Unrecorded})
	require.NoError(t, err)
	require.Equal(t, circuitRow{State: "half_open", Ring: 62, Opened: true, ProbeDue: true, Successes: 1}, b.circuit(t, destination))
}

// A batch that opens a circuit stops sending there; what it hasn't sent is due when the circuit may be probed.
func TestBatchStopsWhenACircuitOpens(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dead, healthy := newReceiver(t, says(500, "")), newReceiver(t, says(200, ""))
	failing, working := b.addDestination(t, dead.URL), b.addDestination(t, healthy.URL)
	b.exec(t, `update destinations set schedule = '{"type":"list","delays_ms":[1000000,2000000]}' where id = $1`, failing)
	waiting, delivered := b.accept(t, 400, failing), b.accept(t, 20, working)
	result, err := sendBatch(t, b.sender(t), b.claimBatch(t, 420, failing, working))
	require.NoError(t, err)
	require.Equal(t, 420, result.Sent+result.Deferred)
	require.Empty(t, result.Unrecorded)
	require.Equal(t, "open", b.circuit(t, failing).State)
	sent := dead.times()
	require.GreaterOrEqual(t, len(sent), 5)
	require.Less(t, len(sent), 300, "not many more than were in flight together")
	require.Equal(t, 400-len(sent), result.Deferred)
	for _, delivery := range waiting {
		if sent[id.Delivery.Format(delivery)] == 0 {
			b.requireUnsent(t, delivery, 35*time.Second)
		}
	}
	healthy.requireOnce(t, delivered)
}

// To a circuit that is open already a batch sends nothing, and one probe when that is due.
func TestBatchToAnOpenCircuit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := newGated(t)
	destination := b.addDestination(t, g.URL)
	b.openCircuit(t, destination)
	a := b.sender(t)
	waiting := b.accept(t, 30, destination)
	mustSendBatch(t, a, b.claimBatch(t, 30, destination), 0, 30)
	require.Empty(t, g.got())
	for _, delivery := range waiting {
		b.requireUnsent(t, delivery, 35*time.Second)
	}

	b.probeDue(t, destination)
	b.exec(t, "update delivery_queue set due_at = now() where delivery_id = any($1)", waiting)
	go func() {
		<-g.came
		g.let <- 503
	}()
	mustSendBatch(t, a, b.claimBatch(t, 30, destination), 1, 29)
	require.Equal(t, "open", b.circuit(t, destination).State)
	require.Equal(t, 1, value[int](t, b, "select count(*) from deliveries where id = any($1) and next_attempt = 2", waiting))
	require.Equal(t, 29, value[int](t, b, "select count(*) from deliveries where id = any($1) and next_attempt = 1 and lost_starts = 0", waiting))

	// Another worker has closed it: this one's memory doesn't hold anything back.
	b.exec(t, "delete from circuits where destination_id = $1", destination)
	b.exec(t, "update delivery_queue set due_at = now() where delivery_id = any($1)", waiting)
	go func() {
		for range 30 {
			g.let <- 200
		}
	}()
	mustSendBatch(t, a, b.claimBatch(t, 30, destination), 30, 0)
}
