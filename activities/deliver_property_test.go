package activities_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// lives are some deliveries to one destination, in whatever happens to them.
type lives struct {
	*testBundle
	a           *activities.Activities
	receiver    *receiver
	answer      atomic.Int64 // the status of the next answers
	meanwhile   atomic.Int64 // what happens while a request is under way; see interrupt
	destination uuid.UUID
	deliveries  []uuid.UUID
	most        int                     // attempts
	carriers    []*activities.SendInput // what workflows do next; also those that are fenced off by now
	asked       sync.Map                // deliveries that somebody canceled
	erased      sync.Map                // deliveries without a payload
	fenced      sync.Map                // attempts whose carrier was fenced off while it sent; its epoch
}

// Whatever receivers answer, and carriers and people do, in both lanes and at whatever moment: no delivery is tried more often
// than its schedule allows, its attempts explain its state, every request that was sent is told of in the log, and it ends.
func TestDeliveryPropertyEveryLifeIsExplained(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := &lives{testBundle: b, a: b.sender(t)}
	l.receiver = newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		l.interrupt(t, r.Header.Get("Webhook-Id"))
		w.WriteHeader(int(l.answer.Load()))
	})
	rapid.Check(t, func(rt *rapid.T) {
		l.begin(t, rt)
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			l.step(t, rt)
			for _, delivery := range l.deliveries {
				l.check(t, delivery)
			}
		}
		l.end(t, rt)
	})
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	checkLog(t, b)
}

// begin accepts deliveries to a destination with any schedule, and perhaps a circuit.
func (l *lives) begin(t *testing.T, rt *rapid.T) {
	l.destination = l.addDestination(t, l.receiver.URL)
	l.most = rapid.IntRange(1, 4).Draw(rt, "most attempts")
	schedule := `{"type":"none"}`
	if l.most > 1 {
		wait := rapid.SampledFrom([]int{10, 7_200_000}).Draw(rt, "wait") // the second is parked
		schedule = fmt.Sprintf(`{"type":"exponential","first_delay_ms":%d,"max_delay_ms":7200000,"factor":1,"max_attempts":%d}`, wait, l.most)
	}
	circuit := rapid.SampledFrom([]string{`{"off":true}`, `{"failures_in_row":2,"open_ms":3600000,"successes":1}`}).Draw(rt, "circuit")
	l.exec(t, "update destinations set schedule = $2::jsonb, circuit = $3::jsonb where id = $1", l.destination, schedule, circuit)
	l.deliveries = l.accept(t, 2, l.destination)
	l.carriers = nil
	l.receiver.mu.Lock()
	l.receiver.requests = nil
	l.receiver.mu.Unlock()
}

// What may happen while a request is under way.
const (
	nothing = iota
	overtaken
	canceled
	erased
)

// interrupt lets something happen once. It runs beside the test, in the receiver's handler.
func (l *lives) interrupt(t *testing.T, name string) {
	what := l.meanwhile.Swap(nothing)
	if what == nothing {
		return
	}
	delivery, err := id.Delivery.Parse(name)
	if err == nil {
		switch what {
		case overtaken:
			var epoch, attempt int
			err = l.owner.QueryRow(context.Background(), `with moved as (update deliveries set epoch = epoch + 1, lane = null, check_after = null
					where id = $1 and state = 'pending' returning *)
				, queued as (insert into delivery_queue (delivery_id, destination_id, tenant_id, attempt)
					select id, destination_id, tenant_id, next_attempt from moved
					on conflict (delivery_id) do update set claim_id = null, claim_owner = null)
				select epoch - 1, next_attempt from moved`, delivery).Scan(&epoch, &attempt)
			l.fenced.Store(id.AttemptOf(delivery, attempt), epoch)
		case canceled:
			l.asked.Store(delivery, true)
			_, err = l.owner.Exec(context.Background(), "update deliveries set cancel_requested = true where id = $1 and state = 'pending'", delivery)
		case erased:
			l.erased.Store(delivery, true)
			_, err = l.owner.Exec(context.Background(), eraseSQL, delivery)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

const eraseSQL = "delete from event_payloads p using deliveries d where d.id = $1 and p.event_id = d.event_id"

func (l *lives) step(t *testing.T, rt *rapid.T) {
	delivery := rapid.SampledFrom(l.deliveries).Draw(rt, "delivery")
	l.answer.Store(rapid.SampledFrom([]int64{503, 503, 503, 503, 503, 429, 200, 404, 410}).Draw(rt, "answer"))
	l.meanwhile.Store(rapid.SampledFrom([]int64{nothing, nothing, nothing, overtaken, overtaken, canceled, erased}).Draw(rt, "meanwhile"))
	switch rapid.IntRange(0, 15).Draw(rt, "what") {
	case 0, 1:
		l.makeDue(t)
		l.claimSingles(t)
	case 2, 3:
		l.makeDue(t)
		l.batch(t)
	case 4: // the sweeper takes it from whoever has it
		l.handOver(t, delivery)
	case 5:
		l.exec(t, "update destinations set paused_at = case when paused_at is null then now() end, disabled_at = null where id = $1", l.destination)
	case 6:
		l.asked.Store(delivery, true)
		l.askForEnd(t, delivery)
		if rapid.Bool().Draw(rt, "carried out") {
			l.cancel(t, delivery)
		}
	case 7:
		l.erased.Store(delivery, true)
		l.exec(t, eraseSQL, delivery)
	default:
		if len(l.carriers) > 0 {
			l.carry(t, rapid.SampledFrom(l.carriers).Draw(rt, "carrier"))
		}
	}
}

// makeDue lets time pass.
func (l *lives) makeDue(t *testing.T) {
	l.exec(t, "update delivery_queue set due_at = now() where destination_id = $1 and claim_id is null", l.destination)
	l.exec(t, "update circuits set probe_until = now() where destination_id = $1 and state <> 'closed'", l.destination)
}

func (l *lives) claimAll(t *testing.T, lane postgres.Lane) (uuid.UUID, []postgres.Claimed) {
	claim := id.New()
	claimed, err := postgres.Claim(t.Context(), l.engine, postgres.ClaimRequest{
		Worker: l.worker, Claim: claim, Destinations: []uuid.UUID{l.destination}, Quotas: []int{10}, Lane: lane})
	require.NoError(t, err)
	return claim, claimed
}

// claimSingles gives what is due to a workflow each.
func (l *lives) claimSingles(t *testing.T) (started []*activities.SendInput) {
	_, claimed := l.claimAll(t, postgres.LaneWorkflow)
	for _, c := range claimed {
		started = append(started, &activities.SendInput{DeliveryID: id.Delivery.Format(c.DeliveryID), Epoch: c.Epoch, Attempt: c.Attempt, Counted: true})
	}
	l.carriers = append(l.carriers, started...)
	return started
}

func (l *lives) batch(t *testing.T) {
	claim, claimed := l.claimAll(t, postgres.LaneBatch)
	if len(claimed) > 0 {
		_, err := sendBatch(t, l.a, activities.BatchInput{ClaimID: id.Claim.Format(claim)})
		require.NoError(t, err)
	}
}

// carry does what a workflow does next. An error is one of an activity that is run again, and nothing was sent.
func (l *lives) carry(t *testing.T, c *activities.SendInput) {
	result, err := send(t, l.a, *c)
	c.Counted = false
	switch {
	case err != nil:
		require.True(t, activities.NotSent(err), err)
	case result.Held:
		require.NoError(t, requeue(l.a, activities.RequeueInput{
			DeliveryID: c.DeliveryID, Epoch: c.Epoch, Attempt: c.Attempt, Delay: result.Wait, Unused: result.Unused}))
	case result.Progress != nil && result.Progress.State == "pending" && !result.Progress.Moved:
		c.Attempt++
	}
}

// handOver takes a delivery from whoever carries it, or from the queue.
func (l *lives) handOver(t *testing.T, delivery uuid.UUID) {
	at := l.standing(t, delivery)
	_, err := postgres.Requeue(t.Context(), l.engine, delivery, at.Epoch, at.NextAttempt, 0, 0)
	require.NoError(t, err)
}

// end lets everything work, and wants all to be over after as many rounds as there can be attempts, and probes before them.
func (l *lives) end(t *testing.T, rt *rapid.T) {
	l.meanwhile.Store(nothing)
	for range 4*l.most + 2 {
		l.answer.Store(rapid.SampledFrom([]int64{503, 200}).Draw(rt, "last answers"))
		l.exec(t, "update destinations set paused_at = null, disabled_at = null where id = $1", l.destination)
		for _, delivery := range l.deliveries {
			l.handOver(t, delivery)
		}
		l.makeDue(t)
		for _, c := range l.claimSingles(t) {
			l.carry(t, c)
		}
	}
	for _, delivery := range l.deliveries {
		l.check(t, delivery)
		require.NotEqual(t, "pending", l.standing(t, delivery).State, "everything ends")
	}
}

// check wants a delivery's attempts to explain its state, to be no more than allowed, and to tell of every request.
func (l *lives) check(t *testing.T, delivery uuid.UUID) {
	d, attempts, leaves := l.explained(t, delivery)
	made := d.NextAttempt - 1
	require.LessOrEqual(t, made, l.most)
	told := int64(made + d.LostStarts)
	for i, leaf := range leaves {
		told += leaf.LostStarts
		if leaf.Kind == "attempt" && leaf.Outcome == "retry" {
			require.Less(t, attempts[i].Number, l.most, "retry means that more may follow")
		}
	}
	for _, a := range attempts {
		if epoch, was := l.fenced.Load(a.ID); was {
			require.Greater(t, a.Epoch, epoch, "whoever was fenced off can't record")
		}
	}
	requests := 0
	answered := map[int]bool{}
	for _, r := range l.receiver.got() {
		if r.Header.Get("Webhook-Id") != id.Delivery.Format(delivery) {
			continue
		}
		requests++
		number, err := strconv.Atoi(r.Header.Get("Kapsel-Attempt"))
		require.NoError(t, err)
		require.LessOrEqual(t, number, l.most)
		answered[number] = true
	}
	require.LessOrEqual(t, int64(requests), told, "the log tells of every request")
	require.GreaterOrEqual(t, len(answered), made, "and of no other")
	l.checkReason(t, delivery, d, leaves)
}

// checkReason wants the terminal leaf to say the truth.
func (l *lives) checkReason(t *testing.T, delivery uuid.UUID, d deliveryRow, leaves []*verify.Leaf) {
	made := d.NextAttempt - 1
	if d.State == "pending" {
		require.Less(t, made, l.most, "an attempt is left")
		return
	}
	last := leaves[len(leaves)-1]
	switch why := last.Kind + " " + last.Outcome; why {
	case "attempt delivered":
		require.EqualValues(t, 200, last.ResponseStatus)
	case "dead attempts_exhausted":
		require.Equal(t, l.most, made)
	case "dead rejected":
		require.EqualValues(t, 404, leaves[len(leaves)-2].ResponseStatus)
	case "dead gone":
		require.EqualValues(t, 410, leaves[len(leaves)-2].ResponseStatus)
	case "dead payload_erased":
		_, was := l.erased.Load(delivery)
		require.True(t, was)
	case "canceled requested":
		_, was := l.asked.Load(delivery)
		require.True(t, was)
	default:
		t.Errorf("a delivery ended with %q", why)
	}
}
