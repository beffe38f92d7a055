package activities_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/activities"
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
}

// Whatever carriers do, in whatever order and however often, with the right fence or a wrong one: the attempts explain
// the state, the chain is whole, and a delivery that is over has exactly one terminal leaf.
func TestRecordProperty(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(rt *rapid.T) {
		var models []*model
		for _, delivery := range b.accept(t, 3, b.destination) {
			models = append(models, &model{id: delivery, attempt: 1, state: "pending"})
		}
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			switch m := models[rapid.IntRange(0, 2).Draw(rt, "delivery")]; rapid.IntRange(0, 4).Draw(rt, "what") {
			case 0, 1:
				m.start(t, rt, b)
			case 2:
				m.requeue(t, rt, b)
			default:
				recordGroup(t, rt, b, models)
			}
		}
		for _, m := range models {
			m.check(t, b)
		}
	})
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	checkLog(t, b)
	require.Zero(t, value[int](t, b, `select count(*) from attempts a
		where not exists (select from leaf_of_attempt l where l.attempt_id = a.id)`), "every attempt is in the log")
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
	require.NoError(t, err)
	m.starts++
}

func (m *model) requeue(t *testing.T, rt *rapid.T, b *testBundle) {
	epoch, attempt, right := m.fence(rt)
	moved, err := postgres.Requeue(t.Context(), b.engine, m.id, epoch, attempt, time.Minute, 0)
	require.NoError(t, err)
	require.Equal(t, right, moved)
	if right {
		m.epoch++
	}
}

// recordGroup records for some of the deliveries in one group, each once, twice or not at all.
func recordGroup(t *testing.T, rt *rapid.T, b *testBundle, models []*model) {
	outcomes := []activities.Outcome{delivered(), failed("rejected"), retried(time.Minute), retried(0), parked(2 * time.Hour)}
	var rows []activities.Recording
	for _, m := range models {
		epoch, attempt, right := m.fence(rt)
		outcome := rapid.SampledFrom(outcomes).Draw(rt, "outcome")
		times := rapid.IntRange(0, 2).Draw(rt, "times")
		for range times {
			rows = append(rows, activities.Recording{Delivery: m.id, Epoch: epoch, Attempt: attempt, Outcome: outcome})
		}
		if right && times > 0 {
			m.recorded(outcome)
		}
	}
	results, err := activities.CommitRecordings(context.Background(), b.engine, rows)
	require.NoError(t, err)
	for _, r := range results {
		require.NoError(t, r.Err)
	}
}

func (m *model) recorded(o activities.Outcome) {
	m.lost = append(m.lost, int64(max(m.starts-1, 0)))
	m.state, m.attempt, m.starts = o.State, m.attempt+1, 0
	if o.Park {
		m.epoch++
	}
	if o.State == "dead" {
		m.lost = append(m.lost, 0)
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
