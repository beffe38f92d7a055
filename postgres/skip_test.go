package postgres_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// skip adds a delivery to row that a filter left out.
func (b *testBundle) skip(t testing.TB, row *postgres.Acceptance) *postgres.Attempt {
	t.Helper()
	d := postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: b.addDestination(t, row.TenantID, row.EndpointID)}
	d.Skipped = &postgres.Attempt{
		ID: id.AttemptOf(d.ID, id.Decision), Kind: "skipped", Outcome: "filter", AttemptedAt: time.Now(), EndpointURL: "https://example.com/in",
		LeafHash: bytes.Repeat([]byte{7}, 32), Leaf: []byte("{leaf}"), Secrets: make([]byte, 64),
	}
	row.Deliveries = append(row.Deliveries, d)
	return d.Skipped
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
