package migrations_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// daily are the tables that have a partition for each day.
var daily = []string{"events", "event_payloads", "deliveries", "attempts", "dedup"}

// days returns for which days a table has partitions, oldest first.
func days(t *testing.T, conn *pgx.Conn, table string) []time.Time {
	t.Helper()
	rows, err := conn.Query(t.Context(), `select to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') from pg_inherits
		where inhparent = $1::regclass order by 1`, table)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	require.NoError(t, err)
	return found
}

func today(t *testing.T, conn *pgx.Conn) time.Time {
	t.Helper()
	return value[time.Time](t, conn, "select (now() at time zone 'utc')::date")
}

// partitions counts all partitions.
func partitions(t *testing.T, conn *pgx.Conn) int {
	t.Helper()
	return value[int](t, conn, "select count(*) from pg_class where relispartition and relkind = 'r'")
}

func TestPartitionsAreMadeFromYesterdayToTheLastDayAhead(t *testing.T) {
	t.Parallel()
	database := emptyDatabase(t)
	conn := connect(t, database)
	before := today(t, conn)
	_, err := migrations.Up(t.Context(), database, 5)
	require.NoError(t, err)
	after := today(t, conn) // another day, if this ran over midnight
	for _, table := range daily {
		made := days(t, conn, table)
		require.Len(t, made, 7, table)
		require.Contains(t, []time.Time{before.AddDate(0, 0, -1), after.AddDate(0, 0, -1)}, made[0], table)
		for i, day := range made {
			require.Equal(t, made[0].AddDate(0, 0, i), day, "%s has no gap", table)
		}
	}
	_, err = migrations.Up(t.Context(), database, 9)
	require.NoError(t, err)
	for _, table := range daily {
		require.GreaterOrEqual(t, len(days(t, conn, table)), 11, "%s goes on where it ended", table)
	}
}

func TestMakingPartitionsManyTimesAtOnceMakesEachOnce(t *testing.T) {
	t.Parallel()
	database := postgrestest.New(t)
	engine := postgrestest.Pool(t, database, postgres.Engine)
	conn := connect(t, database)
	before := partitions(t, conn)
	made, errs := make([]int, 8), make([]error, 8)
	var all sync.WaitGroup
	for i := range made {
		all.Go(func() {
			errs[i] = engine.QueryRow(context.Background(), "select ensure_partitions(20)").Scan(&made[i])
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	sum := 0
	for _, n := range made {
		sum += n
	}
	require.GreaterOrEqual(t, sum, 19*len(daily), "the template has one day ahead")
	require.Equal(t, partitions(t, conn)-before, sum)
	require.Zero(t, value[int](t, conn, "select ensure_partitions(19)"), "nothing is left to do")
}

func TestTheHorizonIsBounded(t *testing.T) {
	t.Parallel()
	conn := connect(t, postgrestest.New(t))
	for _, ahead := range []int{-1, 0, 61} {
		_, err := conn.Exec(t.Context(), "select ensure_partitions($1)", ahead)
		require.ErrorContains(t, err, "allowed are 1 to 60")
	}
	_, err := migrations.Up(t.Context(), emptyDatabase(t), 0)
	require.ErrorContains(t, err, "allowed are 1 to 60")
}

// Rows of a day without a partition are refused, not misplaced.
func TestRowsHaveAPlaceUpToTheHorizonOnly(t *testing.T) {
	t.Parallel()
	database := postgrestest.New(t)
	_, err := migrations.Up(t.Context(), database, 3)
	require.NoError(t, err)
	engine := postgrestest.Pool(t, database, postgres.Engine)
	for table, insert := range map[string]string{
		"events": `insert into events (id, tenant_id, endpoint_id, content_type, body_size, payload_hash)
			select uuid_floor($1), i, i, '', 0, sha256('') from gen_random_uuid() i`,
		"event_payloads": `insert into event_payloads (event_id, tenant_id, headers, body, salt, secret)
			select uuid_floor($1), gen_random_uuid(), '', '', sha256(''), sha256('')`,
		"deliveries": `insert into deliveries (id, event_id, tenant_id, endpoint_id, destination_id, log_id)
			select uuid_floor($1), i, i, i, i, i from gen_random_uuid() i`,
		"attempts": `insert into attempts (id, delivery_id, event_id, tenant_id, endpoint_id, destination_id, log_id, number, epoch, kind,
				outcome, error, attempted_at, duration_ms, endpoint_url, response_status, response_size, response_truncated, leaf_hash)
			select uuid_floor($1), i, i, i, i, i, i, 1, 0, 'attempt', 'delivered', '', now(), 0, '', 200, 0, false, sha256('') from gen_random_uuid() i`,
		"dedup": `insert into dedup (day, endpoint_id, key_hash, event_id, body_hash, accepted_at, expires_at)
			select ($1::timestamptz at time zone 'utc')::date, i, sha256(''), i, sha256(''), now(), now() from gen_random_uuid() i`,
	} {
		for _, near := range []time.Duration{0, 24 * time.Hour} {
			_, err := engine.Exec(t.Context(), insert, time.Now().Add(near))
			require.NoError(t, err, "%s, %s ahead", table, near)
		}
		for _, far := range []time.Duration{-3 * 24 * time.Hour, 6 * 24 * time.Hour} {
			_, err := engine.Exec(t.Context(), insert, time.Now().Add(far))
			var pgErr *pgconn.PgError
			require.ErrorAs(t, err, &pgErr, "%s, %s ahead", table, far)
			require.Equal(t, "23514", pgErr.Code)
			require.Contains(t, pgErr.Message, "no partition")
		}
	}
	require.Zero(t, value[int](t, connect(t, database), "select count(*) from pg_partitioned_table where partdefid <> 0"), "no DEFAULT partition")
}

// The partition that a log grows into next is there before the log needs it.
func TestALogHasAPartitionAhead(t *testing.T) {
	t.Parallel()
	database := postgrestest.New(t)
	conn := connect(t, database)
	perPartition := value[int64](t, conn, "select leaves_per_partition()")
	count := func() int {
		return value[int](t, conn, "select count(*) from pg_inherits where inhparent = 'merkle_leaves'::regclass")
	}
	require.Equal(t, 2, count(), "that of an empty log, and the next")
	for size, want := range map[int64]int{perPartition - 1: 2, perPartition: 3} {
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), `with l as (insert into logs (id, origin) values (gen_random_uuid(), 'kapsel.example/log/1') returning id),
			r as (insert into tree_roots (log_id, tree_size, root_hash) select id, $1, sha256('') from l)
			insert into log_heads (log_id, tree_size, root_hash) select id, $1, sha256('') from l`, size)
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "select ensure_partitions(1)")
		require.NoError(t, err)
		require.Equal(t, want, count(), "size %d", size)
		require.NoError(t, tx.Rollback(t.Context()))
	}
}
