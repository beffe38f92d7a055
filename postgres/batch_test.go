package postgres_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// claimBatch claims for a batch whatever is due to the bundle's destination. So many retries get a workflow of their own.
func (b *testBundle) claimBatch(t testing.TB, workflows int) (uuid.UUID, []postgres.Claimed) {
	t.Helper()
	claim := id.New()
	claimed, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: b.worker(t), Claim: claim, Destinations: []uuid.UUID{b.destination}, Quotas: []int{500},
		Lane: postgres.LaneBatch, Workflows: workflows})
	require.NoError(t, err)
	return claim, claimed
}

// triedOnce lets deliveries wait for their second attempt.
func (b *testBundle) triedOnce(t testing.TB, deliveries []uuid.UUID) {
	t.Helper()
	b.exec(t, "update deliveries set next_attempt = 2 where id = any($1)", deliveries)
	b.exec(t, "update delivery_queue set attempt = 2 where delivery_id = any($1)", deliveries)
}

// recorded ends a delivery as a recorder does, apart from its attempt.
func (b *testBundle) recorded(t testing.TB, delivery uuid.UUID) {
	t.Helper()
	b.exec(t, `update deliveries set state = 'delivered', leaves = 1, last_leaf_hash = decode(repeat('ab', 32), 'hex'),
		lost_starts = 0, due_at = null, finished_at = now() where id = $1`, delivery)
	b.exec(t, "delete from delivery_queue where delivery_id = $1", delivery)
}

func inOrder(deliveries []uuid.UUID) []uuid.UUID {
	return slices.SortedFunc(slices.Values(deliveries), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
}

// acceptSized stores webhooks with bodies of so many bytes, each to the bundle's destination and another one.
func (b *testBundle) acceptSized(t testing.TB, sizes ...int) (rows []*postgres.Acceptance, other uuid.UUID) {
	t.Helper()
	other = b.addDestination(t, b.tenant, b.endpoint)
	for i, size := range sizes {
		row := b.acceptance(string(bytes.Repeat([]byte{byte('a' + i)}, size)))
		row.Salt[0], row.Secret[0], row.Headers = byte(i), byte(100+i), fmt.Appendf(nil, "X-Number: %d\r\n", i)
		row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: other})
		rows = append(rows, row)
	}
	_, err := postgres.Accept(t.Context(), b.engine, rows)
	require.NoError(t, err)
	return rows, other
}

// However a batch is cut into pages, each delivery is loaded once, with all of its own payload.
func TestLoadBatchPagesByBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const maxBytes = 1000
	rows, other := b.acceptSized(t, 10, 400, 5000, 0, 999, 1000, 1)
	events, destinations := map[uuid.UUID]*postgres.Acceptance{}, map[uuid.UUID]uuid.UUID{}
	for _, row := range rows {
		for _, d := range row.Deliveries {
			events[d.ID], destinations[d.ID] = row, d.DestinationID
		}
	}
	claim := id.New()
	claimed, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: b.worker(t), Claim: claim, Destinations: []uuid.UUID{b.destination, other}, Quotas: []int{100, 100}, Lane: postgres.LaneBatch})
	require.NoError(t, err)

	var loaded []uuid.UUID
	for after, pages := uuid.Nil, 0; ; pages++ {
		page, err := postgres.LoadBatch(t.Context(), b.engine, claim, after, maxBytes)
		require.NoError(t, err)
		if len(page) == 0 {
			require.Greater(t, pages, 6)
			break
		}
		after = page[len(page)-1].DeliveryID
		held := 0
		for _, r := range page {
			held += len(r.Payload.Body)
			loaded = append(loaded, r.DeliveryID)
			requireRow(t, r, events[r.DeliveryID], destinations[r.DeliveryID])
		}
		require.True(t, held <= maxBytes || len(page) == 1, "%d deliveries with %d bytes", len(page), held)
	}
	require.Equal(t, inOrder(deliveriesOf(claimed, postgres.LaneBatch)), loaded)
}

func requireRow(t *testing.T, r postgres.BatchRow, event *postgres.Acceptance, destination uuid.UUID) {
	t.Helper()
	require.Equal(t, event.EventID, r.EventID)
	require.Equal(t, destination, r.DestinationID)
	require.Equal(t, []int{0, 1}, []int{r.Epoch, r.Attempt})
	p := r.Payload
	require.Equal(t, event.EventID, p.EventID)
	require.WithinDuration(t, time.Now(), p.AcceptedAt, time.Hour)
	require.Equal(t, string(event.Headers), string(p.Headers))
	require.Equal(t, string(event.Body), string(p.Body))
	require.Equal(t, postgres.Commitment{
		PayloadSize: len(event.Body), PayloadHash: event.PayloadHash, Salt: event.Salt, Secret: event.Secret,
	}, p.Commitment)
}

// A run of a batch, the second as well as the first, gets only what nobody has recorded, handed over or claimed since.
func TestLoadBatchLeavesOutWhatHasMovedOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.accept(t, 6)
	claim, claimed := b.claimBatch(t, 0)
	deliveries := inOrder(deliveriesOf(claimed, postgres.LaneBatch))
	load := func(claim, after uuid.UUID) (ids []uuid.UUID) {
		rows, err := postgres.LoadBatch(t.Context(), b.engine, claim, after, 1<<20)
		require.NoError(t, err)
		for _, r := range rows {
			ids = append(ids, r.DeliveryID)
		}
		return ids
	}
	require.Equal(t, deliveries, load(claim, uuid.Nil))
	b.recorded(t, deliveries[1])
	for _, requeued := range deliveries[3:5] {
		moved, err := postgres.Requeue(t.Context(), b.engine, requeued, 0, 1, 0, 0)
		require.NoError(t, err)
		require.True(t, moved)
	}
	left := []uuid.UUID{deliveries[0], deliveries[2], deliveries[5]}
	require.Equal(t, left, load(claim, uuid.Nil))
	require.Equal(t, left[1:], load(claim, deliveries[0]))

	next, _ := b.claimBatch(t, 0)
	require.Equal(t, deliveries[3:5], load(next, uuid.Nil), "under the next epoch they are another batch's")
	require.Equal(t, left, load(claim, uuid.Nil))
	require.Empty(t, load(id.New(), uuid.Nil), "unknown")
}

// Without its payload a delivery can't be sent; an empty body must never go out in place of the one that arrived, nor one that
// arrived empty be taken for an erased one.
func TestLoadBatchTellsErasedFromEmpty(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, size := range []int{4, 0} {
		rows, _ := b.acceptSized(t, size, size, size)
		claim, _ := b.claimBatch(t, 0)
		b.exec(t, "delete from event_payloads where event_id = $1", rows[0].EventID)
		loaded, err := postgres.LoadBatch(t.Context(), b.engine, claim, uuid.Nil, 1<<20)
		require.NoError(t, err)
		require.Len(t, loaded, 3, "all are to end")
		for _, r := range loaded {
			erased := r.EventID == rows[0].EventID
			require.Equal(t, erased, r.Payload.Erased())
			require.Equal(t, size, r.Payload.PayloadSize)
			if !erased {
				require.Len(t, r.Payload.Body, size)
			}
		}
	}
}

func TestLoadDestinations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	held := b.addDestination(t, b.tenant, b.endpoint)
	key := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 32) }
	b.exec(t, "update destinations set timeout_ms = 100, secret_path = true, headers = '{\"A\": [\"b\"]}' where id = $1", b.destination)
	for i, expires := range []string{"null", "now() + interval '1 hour'", "now() - interval '1 second'"} {
		b.exec(t, "insert into destination_secrets (id, destination_id, tenant_id, secret, expires_at) values ($1, $2, $3, $4, "+expires+")",
			uuid.UUID{byte(9 - i), 6: 0x70, 8: 0x80}, b.destination, b.tenant, key(i))
	}
	pair := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 64) }
	for i, expires := range []string{"null", "now() + interval '1 hour'", "now() - interval '1 second'"} {
		b.exec(t, "insert into destination_keys (id, destination_id, tenant_id, public_key, private_key, expires_at) values ($1, $2, $3, $4, $5, "+expires+")",
			uuid.UUID{byte(9 - i), 6: 0x70, 8: 0x80}, b.destination, b.tenant, key(i), pair(i))
	}
	b.exec(t, "insert into destination_transports (destination_id, tenant_id, min_tls, ca_pem) values ($1, $2, '1.3', 'ca')", b.destination, b.tenant)
	b.exec(t, "update destinations set paused_at = now() where id = $1", held)
	found, err := postgres.LoadDestinations(t.Context(), b.engine, []uuid.UUID{held, b.destination, id.New()})
	require.NoError(t, err)
	require.Len(t, found, 2)
	require.True(t, found[held].Held)
	require.False(t, found[held].Deleted)
	require.Nil(t, found[held].Transport)
	d := found[b.destination]
	require.JSONEq(t, `{"A": ["b"]}`, string(d.ExtraHeaders))
	require.Equal(t, [][]byte{key(0), key(1)}, d.SigningKeys, "newest first, without those that have expired")
	require.Equal(t, [][]byte{pair(0), pair(1)}, d.PrivateKeys, "newest first, without those that have expired")
	var transport map[string]any
	require.NoError(t, json.Unmarshal(d.Transport, &transport))
	require.Equal(t, "1.3", transport["min_tls"])
	require.Equal(t, "ca", transport["ca_pem"])
	d.ExtraHeaders, d.SigningKeys, d.PrivateKeys, d.Transport = nil, nil, nil, nil
	require.Equal(t, &postgres.Destination{ID: b.destination, URL: "https://example.com/in", SecretPath: true,
		Timeout: 100 * time.Millisecond, Schedule: []byte("{}")}, d)
}

// Before a second run sends what is left, it counts: the first may have sent it.
func TestCountAgainCountsWhatIsLeft(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 6)
	b.triedOnce(t, deliveries[:1])
	claim, claimed := b.claimBatch(t, 1)
	single := deliveriesOf(claimed, postgres.LaneWorkflow)
	require.Equal(t, deliveries[:1], single)
	b.recorded(t, deliveries[1])
	_, err := postgres.Requeue(t.Context(), b.engine, deliveries[2], 0, 1, 0, 1)
	require.NoError(t, err)
	require.NoError(t, postgres.CountAgain(t.Context(), b.engine, claim))
	starts := func() (counts []int) {
		for _, d := range deliveries {
			counts = append(counts, b.count(t, "select lost_starts from deliveries where id = $1", d))
		}
		return counts
	}
	require.Equal(t, []int{1, 0, 0, 2, 2, 2}, starts())
	require.NoError(t, postgres.CountAgain(t.Context(), b.engine, claim))
	require.Equal(t, []int{1, 0, 0, 3, 3, 3}, starts())
	require.NoError(t, postgres.CountAgain(t.Context(), b.engine, id.New()), "nothing is left of it")
	require.Equal(t, []int{1, 0, 0, 3, 3, 3}, starts())
}

// putBack is how a delivery is stored that may have been deferred.
type putBack struct {
	Epoch, Attempt, Starts int
	Lane                   string
	Queued, Claimed        bool
	QueuedFor              int
	DueIn, QueueDueIn      time.Duration // to the minute
	Checked                bool
}

func (b *testBundle) putBack(t testing.TB, delivery uuid.UUID) (p putBack) {
	t.Helper()
	var due, queueDue int
	err := b.engine.QueryRow(t.Context(), `select d.epoch, d.next_attempt, d.lost_starts, coalesce(d.lane, ''), q.delivery_id is not null,
			q.claim_id is not null or q.claim_owner is not null, coalesce(q.attempt, 0), d.check_after is not null,
			coalesce(round(extract(epoch from d.due_at - now()) / 60), 0)::int, coalesce(round(extract(epoch from q.due_at - now()) / 60), 0)::int
		from deliveries d left join delivery_queue q on q.delivery_id = d.id where d.id = $1`, delivery).
		Scan(&p.Epoch, &p.Attempt, &p.Starts, &p.Lane, &p.Queued, &p.Claimed, &p.QueuedFor, &p.Checked, &due, &queueDue)
	require.NoError(t, err)
	p.DueIn, p.QueueDueIn = time.Duration(due)*time.Minute, time.Duration(queueDue)*time.Minute
	return p
}

// What a batch hasn't sent goes back as if it had never been claimed, except that whoever still believes to carry it is
// fenced off. Said twice, or by somebody who is fenced off, it changes nothing.
func TestDeferPutsBackOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 4)
	b.triedOnce(t, deliveries[1:2])
	b.claimBatch(t, 0)
	kept := putBack{Attempt: 1, Starts: 1, Lane: "batch", Queued: true, Claimed: true, QueuedFor: 1}
	require.Equal(t, kept, b.putBack(t, deliveries[3]))
	deferred := []postgres.Deferred{
		{DeliveryID: deliveries[0], Attempt: 1},
		{DeliveryID: deliveries[1], Attempt: 2, Delay: time.Hour},
		{DeliveryID: deliveries[2], Epoch: 1, Attempt: 1}, // not its epoch
		{DeliveryID: deliveries[3], Attempt: 2},           // not its attempt
	}
	want := []putBack{
		{Epoch: 1, Attempt: 1, Queued: true, QueuedFor: 1},
		{Epoch: 1, Attempt: 2, Queued: true, QueuedFor: 2, DueIn: time.Hour, QueueDueIn: time.Hour},
		kept, kept,
	}
	for range 2 {
		require.NoError(t, postgres.Defer(t.Context(), b.engine, deferred))
		for i, d := range deliveries {
			require.Equal(t, want[i], b.putBack(t, d), "delivery %d", i)
		}
	}
	require.NoError(t, postgres.Defer(t.Context(), b.engine, nil))

	_, again := b.claimBatch(t, 0)
	require.Equal(t, deliveries[:1], deliveriesOf(again, postgres.LaneBatch), "due at once; the other waits")
	require.Equal(t, 1, again[0].Epoch)
	require.Equal(t, 1, b.putBack(t, deliveries[0]).Starts)
}

// A start that another run of the batch has counted, because an earlier one may have sent, stays.
func TestDeferTakesBackOneStartOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	claim, _ := b.claimBatch(t, 0)
	require.NoError(t, postgres.CountAgain(t.Context(), b.engine, claim))
	require.NoError(t, postgres.Defer(t.Context(), b.engine, []postgres.Deferred{{DeliveryID: delivery, Attempt: 1}}))
	require.Equal(t, putBack{Epoch: 1, Attempt: 1, Starts: 1, Queued: true, QueuedFor: 1}, b.putBack(t, delivery))
}

// What is over stays over.
func TestDeferOfARecordedDeliveryChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	b.claimBatch(t, 0)
	b.recorded(t, delivery)
	require.NoError(t, postgres.Defer(t.Context(), b.engine, []postgres.Deferred{{DeliveryID: delivery, Attempt: 1}}))
	require.Equal(t, putBack{Attempt: 1, Lane: "batch"}, b.putBack(t, delivery))
}
