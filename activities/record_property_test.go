package activities_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// model is what should be known of a delivery.
type model struct {
	id      uuid.UUID
	epoch   int
	attempt int // the next one
	starts  int // counted for it
	state   string
	lost    []int64 // lost_starts of its leaves, in order
	where   where
	cancel  bool // somebody asked for its end
}

// where a pending delivery is.
type where int

const (
	queued  where = iota
	claimed       // in the queue, with its start counted
	waiting       // a workflow carries it
)

// Whatever carriers and commands do, in whatever order and however often, with the right fence or a wrong one: the attempts
// explain the state, the chain is whole, and a delivery that is over has exactly one terminal leaf. No attempt begins after a
// delivery was canceled, and what nothing is being sent for ends at once.
func TestRecordProperty(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(rt *rapid.T) {
		destination := b.addDestination(t, "https://example.com/in")
		var models []*model
		for _, accepted := range b.accept(t, 3, destination) {
			models = append(models, &model{id: accepted, attempt: 1, state: "pending"})
		}
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			switch m := models[rapid.IntRange(0, 2).Draw(rt, "delivery")]; rapid.IntRange(0, 8).Draw(rt, "what") {
			case 0, 1:
				m.start(t, rt, b)
			case 2:
				m.requeue(t, rt, b)
			case 3:
				claimDue(t, b, destination, models)
			case 4:
				m.command(t, b, rapid.Bool().Draw(rt, "carried out"))
			case 5:
				m.retryNow(t, b)
			default:
				recordGroup(t, rt, b, models)
			}
		}
		for _, m := range models {
			m.check(t, b)
		}
		for _, m := range models { // a command is carried out until the delivery is over, whoever loses it meanwhile
			if m.cancel && m.state == "pending" {
				moved, err := postgres.Requeue(t.Context(), b.engine, m.id, m.epoch, m.attempt, 0, 0)
				require.NoError(t, err)
				require.True(t, moved)
				m.epoch, m.where = m.epoch+1, queued
				m.command(t, b, true)
				require.Equal(t, "canceled", m.state)
				m.check(t, b)
			}
		}
	})
	require.Zero(t, value[int](t, b, `select count(*) from delivery_queue q where not exists (
		select from deliveries d where d.id = q.delivery_id and d.state = 'pending' and d.next_attempt = q.attempt)`),
		"whatever happens, what is in the queue can be carried")
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	checkLog(t, b)
	require.Zero(t, value[int](t, b, `select count(*) from attempts a
		where not exists (select from leaf_of_attempt l where l.attempt_id = a.id)`), "every attempt is in the log")
}

// claimDue claims all that is due, which counts a start of each.
func claimDue(t *testing.T, b *testBundle, destination uuid.UUID, models []*model) {
	claims, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: b.worker, Claim: id.New(), Destinations: []uuid.UUID{destination}, Quotas: []int{3}, Lane: postgres.LaneWorkflow})
	require.NoError(t, err)
	for _, c := range claims {
		for _, m := range models {
			if m.id == c.DeliveryID {
				require.Equal(t, queued, m.where)
				require.Equal(t, []int{m.epoch, m.attempt}, []int{c.Epoch, c.Attempt})
				m.where, m.starts = claimed, m.starts+1
			}
		}
	}
}

// command asks for the end of a delivery, as the api does, and may carry that out, as a worker does.
func (m *model) command(t *testing.T, b *testBundle, carriedOut bool) {
	b.exec(t, "update deliveries set cancel_requested = true where id = $1 and state = 'pending'", m.id)
	if m.state == "pending" {
		m.cancel = true
	}
	if !carriedOut {
		return
	}
	if m.state == "pending" && (m.where == queued || m.where == waiting && m.starts == 0) {
		m.lost = append(m.lost, int64(m.starts))
		m.state, m.starts = "canceled", 0
	}
	at, err := activities.Cancel(t.Context(), b.engine, nil, m.id)
	require.NoError(t, err)
	require.Equal(t, postgres.Standing{State: m.state, Epoch: m.epoch, Attempt: m.attempt}, at)
}

// retryNow ends the wait of what waits in the queue, and changes nothing else.
func (m *model) retryNow(t *testing.T, b *testBundle) {
	at, err := postgres.RetryNow(t.Context(), b.engine, m.id)
	require.NoError(t, err)
	require.Equal(t, m.state, at.State)
	require.Equal(t, m.state == "pending" && m.where == waiting, at.Carried)
	if m.state == "pending" && m.where == queued {
		require.True(t, value[bool](t, b, "select due_at <= now() from delivery_queue where delivery_id = $1", m.id))
	}
}

// fence draws what a carrier thinks: mostly the truth.
func (m *model) fence(rt *rapid.T) (epoch, attempt int, right bool) {
	epoch = m.epoch + rapid.SampledFrom([]int{0, 0, 0, 0, -1, 1}).Draw(rt, "epoch")
	attempt = m.attempt + rapid.SampledFrom([]int{0, 0, 0, 0, -1, 1}).Draw(rt, "attempt")
	return epoch, attempt, m.state == "pending" && epoch == m.epoch && attempt == m.attempt
}

func (m *model) start(t *testing.T, rt *rapid.T, b *testBundle) {
	epoch, attempt, right := m.fence(rt)
	err := b.start(t, m.id, epoch, attempt, false)
	if !right {
		require.ErrorIs(t, err, postgres.ErrMoved)
		return
	}
	if m.cancel {
		require.ErrorIs(t, err, postgres.ErrCanceled)
		return
	}
	require.NoError(t, err)
	m.starts++
}

func (m *model) requeue(t *testing.T, rt *rapid.T, b *testBundle) {
	epoch, attempt, right := m.fence(rt)
	moved, err := postgres.Requeue(t.Context(), b.engine, m.id, epoch, attempt, time.Minute, 0)
	require.NoError(t, err)
	require.Equal(t, right, moved)
	if right {
		m.epoch, m.where = m.epoch+1, queued
	}
}

// recordGroup records for some of the deliveries in one group, each once, twice or not at all.
func recordGroup(t *testing.T, rt *rapid.T, b *testBundle, models []*model) {
	outcomes := []activities.Outcome{delivered(), failed("rejected"), retried(time.Minute), retried(0), parked(2 * time.Hour)}
	var rows []activities.Recording
	for _, m := range models {
		epoch, attempt, right := m.fence(rt)
		recording := activities.Recording{Delivery: m.id, Epoch: epoch, Attempt: attempt, Outcome: rapid.SampledFrom(outcomes).Draw(rt, "outcome")}
		if m.cancel && rapid.Bool().Draw(rt, "unsent") { // its carrier saw that it is canceled
			recording.Cancel, recording.Unused = delivery.ReasonRequested, rapid.Bool().Draw(rt, "unused")
		}
		times := rapid.IntRange(0, 2).Draw(rt, "times")
		for range times {
			rows = append(rows, recording)
		}
		if right && times > 0 {
			m.recorded(recording)
		}
	}
	results, err := activities.CommitRecordings(context.Background(), b.engine, rows)
	require.NoError(t, err)
	for _, r := range results {
		require.NoError(t, r.Err)
	}
}

func (m *model) recorded(r activities.Recording) {
	if r.Cancel != "" {
		if r.Unused {
			m.starts = max(m.starts-1, 0)
		}
		m.lost = append(m.lost, int64(m.starts))
		m.state, m.starts = "canceled", 0
		return
	}
	m.lost = append(m.lost, int64(max(m.starts-1, 0)))
	m.state, m.attempt, m.starts, m.where = r.Outcome.State, m.attempt+1, 0, waiting
	switch {
	case m.state == "pending" && m.cancel: // what was under way counts, and nothing follows
		m.state = "canceled"
		m.lost = append(m.lost, 0)
	case m.state == "dead":
		m.lost = append(m.lost, 0)
	case r.Outcome.Park:
		m.epoch, m.where = m.epoch+1, queued
	}
}

func (m *model) check(t *testing.T, b *testBundle) {
	d, _, leaves := b.explained(t, m.id)
	require.Equal(t, m.state, d.State)
	require.Equal(t, m.epoch, d.Epoch)
	require.Equal(t, m.attempt, d.NextAttempt)
	require.Equal(t, m.starts, d.LostStarts)
	var lost []int64
	for _, leaf := range leaves {
		lost = append(lost, leaf.LostStarts)
	}
	require.Equal(t, m.lost, lost)
}
