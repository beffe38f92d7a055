package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

func (b *testBundle) backlog(t *testing.T, most int) postgres.Backlog {
	t.Helper()
	backlog, err := postgres.ReadBacklog(t.Context(), b.engine, most)
	require.NoError(t, err)
	return backlog
}

func TestBacklogOfNothing(t *testing.T) {
	t.Parallel()
	backlog := setup(t).backlog(t, 3)
	require.Len(t, backlog.Logs, 1)
	require.Positive(t, backlog.PartitionsAhead)
	backlog.Logs, backlog.PartitionsAhead = nil, 0
	require.Equal(t, postgres.Backlog{}, backlog)
}

func TestBacklogCountsWhatWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	queue := func(destination uuid.UUID, n int, due string) {
		b.exec(t, fmt.Sprintf(`insert into delivery_queue (delivery_id, destination_id, tenant_id, due_at)
			select gen_random_uuid(), $1, $2, now() + interval '%s' from generate_series(1, $3)`, due), destination, b.tenant, n)
	}
	paused, open, probing, deleted := b.addDestination(t, b.tenant, b.endpoint), b.addDestination(t, b.tenant, b.endpoint),
		b.addDestination(t, b.tenant, b.endpoint), b.addDestination(t, b.tenant, b.endpoint)
	b.exec(t, "update destinations set paused_at = now() where id = $1", paused)
	b.exec(t, "update destinations set paused_at = now(), deleted_at = now() where id = $1", deleted)
	for destination, probe := range map[uuid.UUID]string{open: "1 hour", probing: "-1 second"} {
		b.exec(t, fmt.Sprintf(`insert into circuits (destination_id, tenant_id, state, opened_at, probe_until)
			values ($1, $2, 'open', now(), now() + interval '%s')`, probe), destination, b.tenant)
	}
	queue(b.destination, 5, "-90 seconds")
	queue(b.destination, 2, "1 hour")
	queue(paused, 4, "-1 hour")
	queue(open, 3, "-1 hour")
	queue(probing, 2, "-10 seconds")
	queue(deleted, 1, "-10 seconds")
	old := id.New()
	copy(old[:6], make([]byte, 6)) // of 1970
	worker := b.worker(t)
	b.exec(t, `insert into delivery_queue (delivery_id, destination_id, tenant_id, due_at, claim_id, claim_owner)
		values ($1, $2, $3, now() - interval '1 day', $4, $4)`, old, b.destination, b.tenant, worker)

	backlog := b.backlog(t, 2)
	require.InDelta(t, 18, backlog.Waiting, 0.01)
	require.InDelta(t, 1, backlog.Claimed, 0.01)
	require.InDelta(t, 5+2+1, backlog.Due, 0.01)
	require.InDelta(t, 4+3, backlog.Held, 0.01)
	require.InDelta(t, 90, backlog.OldestDue.Seconds(), 30, "what is held or carried isn't late")
	require.InDelta(t, time.Since(time.Unix(0, 0)).Hours(), backlog.OldestWaiting.Hours(), 1)
	require.Equal(t, 1, backlog.Workers)
	require.Len(t, backlog.Destinations, 2, "the most of them, not all")
	require.Equal(t, b.destination, backlog.Destinations[0].ID)
	require.InDelta(t, 8, backlog.Destinations[0].Waiting, 0.01)
	require.Equal(t, paused, backlog.Destinations[1].ID)
}

// Of a large queue a part is read, and the whole is estimated from it.
func TestBacklogOfALargeQueueIsEstimated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n = 250_000
	b.exec(t, `insert into delivery_queue (delivery_id, destination_id, tenant_id, due_at)
		select gen_random_uuid(), $1, $2, now() - interval '90 seconds' from generate_series(1, $3)`, b.destination, b.tenant, n)
	backlog := b.backlog(t, 2)
	require.InEpsilon(t, n, backlog.Waiting, 0.1)
	require.InEpsilon(t, n, backlog.Due, 0.1)
	require.InDelta(t, 90, backlog.OldestDue.Seconds(), 60)
	require.Greater(t, b.count(t, "select pg_relation_size('delivery_queue') / 8192"), 2500, "else all of it would have been read")
}

func TestBacklogOfLogs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	secret := make([]byte, 64)
	leaf := func(n int, age string) {
		b.exec(t, fmt.Sprintf(`insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, queued_at)
			select $1, $2, gen_random_uuid(), sha256('a'), 'a', $3, now() - interval '%s' from generate_series(1, $4)`, age),
			b.log.ID, b.tenant, secret, n)
	}
	leaf(1, "200 seconds")
	leaf(4, "10 seconds")
	b.exec(t, `insert into attestation_dead_letters (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, reason)
		values ($1, $2, $3, sha256('a'), 'a', $4, 'test')`, b.log.ID, b.tenant, id.New(), secret)
	backlog := b.backlog(t, 2)
	require.InDelta(t, 5, backlog.Leaves, 0.01)
	require.Equal(t, 1, backlog.DeadLetters)
	require.InDelta(t, 200, backlog.OldestUnattested.Seconds(), 30)
	require.Equal(t, []postgres.LogBacklog{{ID: b.log.ID}}, backlog.Logs)

	// What has a place in the tree and no head yet is unattested too.
	b.exec(t, "delete from leaf_queue")
	b.exec(t, "insert into tree_roots (log_id, tree_size, root_hash, sequenced_at) values ($1, 7, sha256('r'), now() - interval '50 seconds')", b.log.ID)
	b.exec(t, "update log_heads set tree_size = 7, root_hash = sha256('r') where log_id = $1", b.log.ID)
	backlog = b.backlog(t, 2)
	require.InDelta(t, 50, backlog.OldestUnattested.Seconds(), 30)
	require.Equal(t, []postgres.LogBacklog{{ID: b.log.ID, Size: 7}}, backlog.Logs)

	b.exec(t, `insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id, signature, checkpoint)
		select $1, 7, (extract(epoch from now()) * 1000)::bigint - 30000, sha256('r'), key_id, decode(repeat('00', 64), 'hex'), 'c' from attestation_keys where log_id = $1 and purpose = 'log'`, b.log.ID)
	backlog = b.backlog(t, 2)
	require.Zero(t, backlog.OldestUnattested)
	require.InDelta(t, 30, backlog.OldestHead.Seconds(), 30)
	require.Equal(t, []postgres.LogBacklog{{ID: b.log.ID, Size: 7, Published: 7}}, backlog.Logs)
}
