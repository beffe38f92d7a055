package postgres_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// skipping is the decision to send nothing for a delivery.
func skipping(delivery uuid.UUID) *postgres.Attempt {
	return &postgres.Attempt{
		ID: id.AttemptOf(delivery, id.Decision), Kind: "skipped", Outcome: "filter", AttemptedAt: time.Now(), EndpointURL: "https://example.com/in",
		LeafHash: bytes.Repeat([]byte{7}, 32), Leaf: []byte("{leaf}"), Secrets: make([]byte, 64),
	}
}

// skip adds a delivery to row that a filter left out.
func (b *testBundle) skip(t testing.TB, row *postgres.Acceptance) *postgres.Attempt {
	t.Helper()
	d := postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: b.addDestination(t, row.TenantID, row.EndpointID)}
	d.Skipped = skipping(d.ID)
	row.Deliveries = append(row.Deliveries, d)
	return d.Skipped
}

// In a line of one key what is skipped has no place: whoever comes next is not kept waiting by it, and it by nobody.
func TestWhatIsSkippedTakesNoTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := bytes.Repeat([]byte{1}, 32)
	accept := func(skips ...bool) (ids []uuid.UUID) {
		var rows []*postgres.Acceptance
		for _, skip := range skips {
			row := b.acceptance("{}")
			row.OrderKey = key
			if d := &row.Deliveries[0]; skip {
				d.Skipped = skipping(d.ID)
			}
			rows, ids = append(rows, row), append(ids, row.Deliveries[0].ID)
		}
		_, err := postgres.Accept(t.Context(), b.engine, rows)
		require.NoError(t, err)
		return ids
	}
	accept(true) // the first of its key: a line without anybody
	require.Zero(t, b.count(t, "select count(*) from order_keys"))
	d := append(accept(true, false, true, false), accept(true, false)...)
	for i, seq := range map[int]int{1: 1, 3: 2, 5: 3} {
		require.Equal(t, 1, b.count(t, "select count(*) from deliveries where id = $1 and order_seq = $2 and order_key = $3 and state = 'pending'", d[i], seq, key))
		require.Equal(t, 1, b.count(t, "select count(*) from ordered_deliveries where delivery_id = $1 and seq = $2", d[i], seq))
	}
	require.Equal(t, 1, b.count(t, "select count(*) from delivery_queue"))
	require.Equal(t, 1, b.count(t, "select count(*) from delivery_queue where delivery_id = $1", d[1]))
	require.Equal(t, 4, b.count(t, "select count(*) from deliveries where state = 'skipped' and order_seq is null and order_key is null"))
	require.Equal(t, 3, b.count(t, "select count(*) from ordered_deliveries"))
	require.Equal(t, 1, b.count(t, "select count(*) from order_keys where head_seq = 1 and next_seq = 4"))
}

// What a filter left out can be delivered after all, one by one or by a job, and the record of the skip stays as it is.
func TestWhatWasSkippedCanBeRedelivered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, second := b.acceptance("a"), b.acceptance("b")
	for _, row := range []*postgres.Acceptance{first, second} {
		row.Deliveries[0].Skipped = skipping(row.Deliveries[0].ID)
	}
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{first, second})
	require.NoError(t, err)
	redelivery, err := postgres.Redeliver(t.Context(), b.engine, b.tenant, first.Deliveries[0].ID, nil)
	require.NoError(t, err)
	require.Equal(t, 1, b.count(t, `select count(*) from deliveries d join delivery_queue q on q.delivery_id = d.id
		where d.id = $1 and d.redelivery_of = $2 and d.state = 'pending' and d.leaves = 0 and d.event_id = $3`, redelivery, first.Deliveries[0].ID, first.EventID))

	skipped := func(j *db.InsertRedeliveryJobParams) { j.States = []string{"skipped"} }
	require.Empty(t, b.finish(t, b.addJob(t, b.destination, 10)), "a job for the dead leaves them alone")
	job := b.addJob(t, b.destination, 10, skipped)
	require.Equal(t, []int{1}, b.finish(t, job))
	require.Equal(t, jobRow{State: "done", Total: 2, Done: 1, Redelivered: 1}, b.job(t, job))
	require.Equal(t, 1, b.count(t, "select count(*) from deliveries where redelivery_of = $1", second.Deliveries[0].ID))
	require.Equal(t, 2, b.count(t, "select count(*) from deliveries where state = 'skipped' and leaves = 1"))
	require.Equal(t, 2, b.count(t, "select count(*) from attempts"))
}

func TestAcceptRecordsWhatIsSkipped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row, other := b.acceptance("a"), b.acceptance("b")
	row.Deliveries[0].FilterError = "no_such_key"
	b.skip(t, row)
	b.skip(t, row)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row, other})
	require.NoError(t, err)
	require.Equal(t, 2, b.count(t, `select count(*) from deliveries d join attempts a on a.delivery_id = d.id join leaf_queue l on l.attempt_id = a.id
		where d.event_id = $1 and d.state = 'skipped' and d.finished_at is not null and d.leaves = 1 and d.last_leaf_hash = a.leaf_hash
		and d.next_attempt = 1 and d.epoch = 0 and a.number = 0 and a.kind = 'skipped' and a.outcome = 'filter' and a.event_id = $1
		and a.tenant_id = $2 and l.leaf = '{leaf}' and l.leaf_hash = a.leaf_hash and l.log_id = $3`, row.EventID, b.tenant, b.log.ID))
	require.Equal(t, 2, b.count(t, `select count(*) from deliveries d join delivery_queue q on q.delivery_id = d.id where d.state = 'pending'`))
	require.Equal(t, 2, b.count(t, "select count(*) from delivery_queue"))
	require.Equal(t, 2, b.count(t, "select count(*) from attempts"))
	require.Equal(t, 1, b.count(t, "select count(*) from deliveries where filter_error = 'no_such_key' and state = 'pending' and event_id = $1", row.EventID))
}

func TestAcceptStoresAnEventThatEveryDestinationSkips(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row, none := b.acceptance("a"), b.acceptance("b")
	row.Deliveries = nil
	b.skip(t, row)
	none.Deliveries = nil // not even recorded
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row, none})
	require.NoError(t, err)
	require.Equal(t, 2, b.count(t, "select count(*) from events"))
	require.Equal(t, 1, b.count(t, "select count(*) from deliveries"))
	require.Zero(t, b.count(t, "select count(*) from delivery_queue"))
}

func TestADuplicateSkipsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, same, later := b.keyed("a", "k", time.Hour), b.keyed("a", "k", time.Hour), b.keyed("a", "k", time.Hour)
	for _, row := range []*postgres.Acceptance{first, same, later} {
		b.skip(t, row)
	}
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{first, same})
	require.NoError(t, err)
	accepted, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{later})
	require.NoError(t, err)
	require.Equal(t, []postgres.Accepted{{EventID: first.EventID, Duplicate: true}}, accepted)
	for _, table := range []string{"attempts", "leaf_queue", "deliveries where state = 'skipped'"} {
		require.Equal(t, 1, b.count(t, "select count(*) from "+table), table)
	}
}

func TestAcceptKeepsNothingIfALeafCannotBeQueued(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row := b.acceptance("a")
	b.skip(t, row).LeafHash = []byte("short")
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{b.acceptance("b"), row})
	require.Error(t, err)
	for _, table := range []string{"events", "event_payloads", "deliveries", "delivery_queue", "attempts", "leaf_queue"} {
		require.Zero(t, b.count(t, "select count(*) from "+table), table)
	}
}

func TestAnEventHasAType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	typed, long := b.acceptance("a"), b.acceptance("b")
	typed.EventType, long.EventType = "pull_request", strings.Repeat("a", 201)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{typed, b.acceptance("c")})
	require.NoError(t, err)
	require.Equal(t, 1, b.count(t, "select count(*) from events where event_type = 'pull_request' and id = $1", typed.EventID))
	require.Equal(t, 1, b.count(t, "select count(*) from events where event_type is null"))
	_, err = postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{long})
	require.Error(t, err)
}
