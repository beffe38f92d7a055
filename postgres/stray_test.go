package postgres_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// What a claim gives to nobody is removed, and nothing else is, however long it was claimed or has waited.
func TestStraysAreRemoved(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 6)
	over, claimedToo, carried, waiting := deliveries[0], deliveries[1], deliveries[2:5], deliveries[5]
	gone := id.New()
	b.exec(t, "insert into delivery_queue (delivery_id, destination_id, tenant_id) values ($1, $2, $3)", gone, b.destination, b.tenant)
	b.exec(t, "update delivery_queue set due_at = now() + interval '1 day' where delivery_id = $1", waiting)
	// By hand, so that their rows of the queue stay.
	const end = "update deliveries set state = 'dead', finished_at = now(), leaves = 1, last_leaf_hash = sha256('x'), due_at = null where id = $1"
	b.exec(t, end, over)

	worker := b.worker(t)
	var claimed []uuid.UUID
	for _, c := range b.claim(t, worker, 10) {
		claimed = append(claimed, c.DeliveryID)
	}
	require.ElementsMatch(t, append(slices.Clone(carried), claimedToo), claimed)
	require.Equal(t, 6, b.count(t, "select count(*) from delivery_queue where claim_id is not null"), "two are given to nobody")
	b.exec(t, end, claimedToo)

	removed, err := postgres.RemoveStrays(t.Context(), b.engine, time.Minute)
	require.NoError(t, err)
	require.Empty(t, removed, "they weren't claimed that long ago")
	removed, err = postgres.RemoveStrays(t.Context(), b.engine, -time.Second)
	require.NoError(t, err)
	require.ElementsMatch(t, []uuid.UUID{over, claimedToo, gone}, removed)
	require.Equal(t, 3, b.count(t, "select count(*) from delivery_queue where claim_owner = $1 and delivery_id = any($2)", worker, carried))
	require.Equal(t, 1, b.count(t, "select count(*) from delivery_queue where claim_id is null and delivery_id = $1", waiting))
	removed, err = postgres.RemoveStrays(t.Context(), b.engine, -time.Second)
	require.NoError(t, err)
	require.Empty(t, removed)
}
