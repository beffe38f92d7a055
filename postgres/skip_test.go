package postgres_test

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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

// To list the events of a type reads these and no others, in the order in which they are shown.
func TestEventsOfATypeAreListedByTheirIndex(t *testing.T) {
	t.Parallel()
	b := setup(t)
	queries, err := os.ReadFile("queries/management.sql")
	require.NoError(t, err)
	_, statement, ok := strings.Cut(string(queries), "-- name: ListEventsOfType :many\n")
	require.True(t, ok)
	statement, _, _ = strings.Cut(statement, ";")
	for argument, value := range map[string]string{
		`sqlc.arg\(before\)`: "'ffffffff-ffff-ffff-ffff-ffffffffffff'", `sqlc.arg\(event_type\)`: "'push'", `sqlc.narg\(endpoint_id\)`: "null", `sqlc.arg\(max_rows\)`: "51",
	} {
		statement = regexp.MustCompile(argument).ReplaceAllString(statement, value)
	}
	var plan string
	err = pgx.BeginFunc(t.Context(), b.api, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "set local enable_seqscan = off"); err != nil { // the tables are empty
			return err
		}
		if _, err := tx.Exec(t.Context(), "select set_config('kapsel.tenant', $1, true)", b.tenant.String()); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), "explain "+statement)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		plan = strings.Join(lines, "\n")
		return err
	})
	require.NoError(t, err)
	require.Contains(t, plan, "tenant_id_event_type_id_idx", plan)
	require.NotContains(t, plan, "Sort", plan)
	require.Contains(t, plan, "event_type = 'push'", plan)
	require.NotContains(t, plan, "Filter", plan)
}
