package activities_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// acceptInLine accepts one webhook for each key, together.
func (b *testBundle) acceptInLine(t testing.TB, keys ...string) []uuid.UUID {
	t.Helper()
	var rows []*postgres.Acceptance
	var deliveries []uuid.UUID
	for _, key := range keys {
		row := b.acceptance("{}", "", b.destination)
		if key != "" {
			hash := sha256.Sum256([]byte(key))
			row.OrderKey = hash[:]
		}
		rows, deliveries = append(rows, row), append(deliveries, row.Deliveries[0].ID)
	}
	_, err := postgres.Accept(t.Context(), b.engine, rows)
	require.NoError(t, err)
	return deliveries
}

func (b *testBundle) onDead(t testing.TB, policy string) {
	t.Helper()
	b.exec(t, `update endpoints set ordering = jsonb_build_object('source', 'header', 'header', 'X-Key', 'on_dead', $1::text)`, policy)
}

// claimable are the deliveries that could be claimed now.
func (b *testBundle) claimable(t testing.TB) []uuid.UUID {
	t.Helper()
	rows, err := b.owner.Query(context.Background(), "select delivery_id from delivery_queue where claim_id is null order by delivery_id")
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	require.NoError(t, err)
	return ids
}

func TestOnlyTheFirstOfALineIsQueued(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.onDead(t, "skip")
	r := b.recorder(t)
	d := b.acceptInLine(t, "a", "a", "b", "", "a", "")
	later := b.acceptInLine(t, "a", "b")
	require.ElementsMatch(t, []uuid.UUID{d[0], d[2], d[3], d[5]}, b.claimable(t))
	b.claim(t, 4, b.destination)

	record(t, r, d[0], 0, 1, retried(time.Minute))
	require.Empty(t, b.claimable(t), "a retry keeps its turn")
	record(t, r, d[0], 0, 2, delivered())
	require.Equal(t, []uuid.UUID{d[1]}, b.claimable(t))
	record(t, r, d[2], 0, 1, failed("rejected"))
	require.ElementsMatch(t, []uuid.UUID{d[1], later[1]}, b.claimable(t), "a dead one is left behind")
	b.claim(t, 2, b.destination)
	record(t, r, d[1], 0, 1, delivered())
	require.Equal(t, []uuid.UUID{d[4]}, b.claimable(t))
	b.claim(t, 1, b.destination)
	record(t, r, d[4], 0, 1, delivered())
	b.claim(t, 1, b.destination)
	record(t, r, later[0], 0, 1, delivered())
	record(t, r, later[1], 0, 1, delivered())
	require.Zero(t, value[int](t, b, "select count(*) from ordered_deliveries"))
	require.Equal(t, 2, value[int](t, b, "select count(*) from order_keys where head_seq = next_seq"))
	next := b.acceptInLine(t, "a")
	require.Equal(t, next, b.claimable(t), "an empty line is entered at its head")
}

func TestADeadDeliveryBlocksItsLineUntilItIsReleased(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.onDead(t, "block")
	r := b.recorder(t)
	d := b.acceptInLine(t, "a", "a", "b")
	b.claim(t, 2, b.destination)
	require.ErrorIs(t, postgres.ReleaseTurn(t.Context(), b.engine, b.tenant, d[0]), postgres.ErrNotBlocking, "it isn't over")
	record(t, r, d[0], 0, 1, failed("rejected"))
	record(t, r, d[2], 0, 1, delivered())
	require.Empty(t, b.claimable(t))
	behind := b.acceptInLine(t, "a")
	require.Empty(t, b.claimable(t), "who comes later waits, too")

	require.ErrorIs(t, postgres.ReleaseTurn(t.Context(), b.engine, id.New(), d[0]), postgres.ErrNotBlocking, "another tenant's")
	require.Empty(t, b.claimable(t))
	require.NoError(t, postgres.ReleaseTurn(t.Context(), b.engine, b.tenant, d[0]))
	require.Equal(t, []uuid.UUID{d[1]}, b.claimable(t))
	require.ErrorIs(t, postgres.ReleaseTurn(t.Context(), b.engine, b.tenant, d[0]), postgres.ErrNotBlocking, "once")
	b.claim(t, 1, b.destination)
	record(t, r, d[1], 0, 1, delivered())
	require.Equal(t, behind, b.claimable(t))
}

func TestIdleLinesAreForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.recorder(t)
	d := b.acceptInLine(t, "a", "b", "b")
	b.claim(t, 2, b.destination)
	record(t, r, d[0], 0, 1, delivered())
	record(t, r, d[1], 0, 1, delivered())
	forgotten, err := postgres.ForgetLines(t.Context(), b.engine, time.Hour)
	require.NoError(t, err)
	require.Zero(t, forgotten)
	forgotten, err = postgres.ForgetLines(t.Context(), b.engine, -time.Hour)
	require.NoError(t, err)
	require.EqualValues(t, 1, forgotten, "somebody waits in the other")
	again := b.acceptInLine(t, "a")
	require.ElementsMatch(t, []uuid.UUID{d[2], again[0]}, b.claimable(t))
}

// Many accept and several record at once: nobody is lost in a line, one of each is under way at a time, and lines are served
// in the order of their numbers, which is that of the commits.
func TestLinesUnderConcurrency(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.onDead(t, "skip")
	const acceptors, rounds, lines = 6, 15, 4
	var accepting, serving sync.WaitGroup
	for range acceptors {
		accepting.Go(func() {
			for range rounds {
				var keys []string
				for range 1 + rand.IntN(4) {
					keys = append(keys, fmt.Sprint("line ", rand.IntN(lines)))
				}
				b.acceptInLine(t, keys...)
			}
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r := b.recorder(t)
	for range 3 {
		serving.Go(func() { b.serveLines(t, ctx, r) })
	}
	accepting.Wait()
	require.Eventually(t, func() bool {
		var pending int
		err := b.owner.QueryRow(context.Background(), "select count(*) from deliveries where state = 'pending'").Scan(&pending)
		return err == nil && pending == 0
	}, 60*time.Second, 20*time.Millisecond, "somebody was lost in a line")
	stop()
	serving.Wait()
	require.Zero(t, value[int](t, b, "select count(*) from ordered_deliveries"))
	require.Zero(t, value[int](t, b, `select count(*) from (
		select finished_at < lag(finished_at) over (partition by order_key order by order_seq) as early from deliveries) as d where early`),
		"somebody was served before those who came first")
	require.Equal(t, lines, value[int](t, b, `select count(*) from (
		select order_key from deliveries group by order_key having count(*) = max(order_seq) and min(order_seq) = 1) as l`), "numbers have gaps")
}

// serveLines claims what is due and records how it ended, until ctx ends.
func (b *testBundle) serveLines(t testing.TB, ctx context.Context, r *activities.Recorder) {
	for ctx.Err() == nil {
		claimed, err := postgres.Claim(context.Background(), b.engine, postgres.ClaimRequest{
			Worker: b.worker, Claim: id.New(), Destinations: []uuid.UUID{b.destination}, Quotas: []int{3}, Lane: postgres.LaneWorkflow})
		require.NoError(t, err)
		for _, c := range claimed {
			outcome := delivered()
			if rand.IntN(4) == 0 {
				outcome = failed("rejected")
			}
			record(t, r, c.DeliveryID, c.Epoch, c.Attempt, outcome)
		}
	}
}
