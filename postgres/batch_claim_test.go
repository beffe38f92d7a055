package postgres_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

func deliveriesOf(claimed []postgres.Claimed, lane postgres.Lane) (deliveries []uuid.UUID) {
	for _, c := range claimed {
		if c.Lane == lane {
			deliveries = append(deliveries, c.DeliveryID)
		}
	}
	return deliveries
}

func TestClaimForABatchHasOneNameAndCountsEachStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 5)
	claim, worker := id.New(), b.worker(t)
	claimed, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: worker, Claim: claim, Destinations: []uuid.UUID{b.destination}, Quotas: []int{3}, Lane: postgres.LaneBatch})
	require.NoError(t, err)
	require.Len(t, claimed, 3, "no more than the quota")
	for _, c := range claimed {
		require.Contains(t, deliveries, c.DeliveryID)
		require.Equal(t, claim, c.ClaimID)
		require.Equal(t, postgres.LaneBatch, c.Lane)
		require.False(t, c.DueAt.IsZero())
	}
	require.Equal(t, 3, b.count(t, "select count(*) from delivery_queue where claim_id = $1 and claim_owner = $2", claim, worker))
	require.Equal(t, 3, b.count(t, "select count(*) from deliveries where lane = 'batch' and lost_starts = 1 and due_at is null"))
	require.Equal(t, 2, b.count(t, "select count(*) from deliveries where lane is null and lost_starts = 0"))
}

// Under backlog a retry gets a workflow of its own while the budget lasts; a first attempt never does.
func TestClaimGivesOnlySoManyRetriesAWorkflow(t *testing.T) {
	t.Parallel()
	for workflows, want := range map[int]int{0: 0, 3: 3, 4: 4, 9: 4} {
		t.Run(fmt.Sprint(workflows), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			deliveries := b.accept(t, 7)
			b.triedOnce(t, deliveries[:4])
			claim, claimed := b.claimBatch(t, workflows)
			require.Len(t, claimed, 7)
			single, batched := deliveriesOf(claimed, postgres.LaneWorkflow), deliveriesOf(claimed, postgres.LaneBatch)
			require.Len(t, single, want)
			require.Subset(t, deliveries[:4], single)
			require.Subset(t, batched, deliveries[4:])
			require.Equal(t, want, b.count(t, "select count(*) from deliveries where lane = 'workflow'"))
			rows, err := postgres.LoadBatch(t.Context(), b.engine, claim, uuid.Nil, 1<<20)
			require.NoError(t, err)
			var loaded []uuid.UUID
			for _, r := range rows {
				loaded = append(loaded, r.DeliveryID)
			}
			require.Equal(t, inOrder(batched), loaded, "the batch carries the others only")
		})
	}
}

// What was due before the hint is passed over, until somebody asks without one.
func TestClaimDueAfterIsAHint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	second := b.addDestination(t, b.tenant, b.endpoint)
	row := b.acceptance("{}")
	row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: second})
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	earlier, late, elsewhere := row.Deliveries[0].ID, b.accept(t, 1)[0], row.Deliveries[1].ID
	b.exec(t, "update delivery_queue set due_at = now() - interval '1 hour' where delivery_id = any($1)", []uuid.UUID{earlier, elsewhere})
	worker := b.worker(t)
	claim := func(after []time.Time) (deliveries []uuid.UUID) {
		claimed, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
			Worker: worker, Claim: id.New(), Destinations: []uuid.UUID{b.destination, second}, Quotas: []int{10, 10},
			DueAfter: after, Lane: postgres.LaneBatch})
		require.NoError(t, err)
		return deliveriesOf(claimed, postgres.LaneBatch)
	}
	hint := time.Now().Add(-10 * time.Minute)
	require.Equal(t, []uuid.UUID{late}, claim([]time.Time{hint, hint}))
	require.Equal(t, []uuid.UUID{elsewhere}, claim([]time.Time{hint, {}}), "each destination has its own hint")
	require.Equal(t, []uuid.UUID{earlier}, claim(nil))
}

// Whoever takes a batch over finds what was started by the same names, with the same rows.
func TestTakeOverKeepsTheBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 5)
	b.triedOnce(t, deliveries[:2])
	claim, claimed := b.claimBatch(t, 1)
	recorded := deliveriesOf(claimed, postgres.LaneBatch)[0]
	b.recorded(t, recorded)
	b.exec(t, "update workers set alive_until = now()")
	taken, err := postgres.TakeOver(t.Context(), b.engine, b.worker(t), 10)
	require.NoError(t, err)
	left := slices.DeleteFunc(claimed, func(c postgres.Claimed) bool { return c.DeliveryID == recorded })
	require.ElementsMatch(t, left, taken)
	require.Len(t, deliveriesOf(taken, postgres.LaneWorkflow), 1)
	for _, c := range taken {
		require.Equal(t, claim, c.ClaimID)
	}
	require.Equal(t, 4, b.count(t, "select count(*) from deliveries where lost_starts = 1"), "nothing is counted again")
}
