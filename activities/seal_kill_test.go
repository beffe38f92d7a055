package activities_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Wherever a sealer's connection dies while it sequences, nothing of its transaction stays, and the next sealer gives
// the same leaves the same indexes.
func TestSealAfterAKillWhileSequencing(t *testing.T) {
	t.Parallel()
	for table, event := range map[string]string{
		"leaf_queue": "delete", "attestation_dead_letters": "insert", "merkle_leaves": "insert", "leaf_of_attempt": "insert",
		"merkle_tiles": "insert", "tree_roots": "insert", "log_heads": "update", "signed_tree_heads": "insert",
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.queueLeaves(t, 3)
			b.seal(t)
			b.queueLeaves(t, 5)
			b.tamper(t, "update leaf_queue set leaf_hash = sha256(leaf) where id = (select min(id) from leaf_queue)")
			const inOrder = "select leaf_hash from leaf_queue where log_id = $1 and id > (select min(id) from leaf_queue) order by id"
			want := collect[struct{ LeafHash []byte }](t, b, inOrder, b.log.ID)
			require.Len(t, want, 4)

			before := b.written(t)
			b.tamper(t, `create function die() returns trigger language plpgsql security definer as
				'begin perform pg_terminate_backend(pg_backend_pid()); return null; end'`)
			b.tamper(t, "create trigger die after "+event+" on "+table+" for each statement execute function die()")
			require.ErrorContains(t, b.sealing().SealNow(t.Context(), b.log.ID), "57P01") // admin_shutdown
			b.tamper(t, "drop trigger die on "+table)
			if table != "signed_tree_heads" { // there the leaves are committed, and no head is
				require.Equal(t, before, b.written(t))
			}
			require.Empty(t, b.unsigned(t))

			b.seal(t)
			b.newestHead(t, 7)
			require.Equal(t, want, collect[struct{ LeafHash []byte }](t, b,
				"select leaf_hash from merkle_leaves where log_id = $1 and leaf_index >= 3 order by leaf_index", b.log.ID))
			require.Equal(t, 1, b.written(t).DeadLetters, "the poisoned leaf is set aside once")
			require.Zero(t, b.queued(t))
		})
	}
}
