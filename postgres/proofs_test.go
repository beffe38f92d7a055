package postgres_test

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// planner keeps the plan of each statement that is sent through it.
type planner struct {
	*pgxpool.Pool
	plan string
}

func (p *planner) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := p.Pool.Query(ctx, "explain "+sql, args...)
	if err != nil {
		return nil, err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	p.plan = strings.Join(lines, "\n")
	return p.Pool.Query(ctx, sql, args...)
}

// Proofs of many attempts name the rows that they need of partitioned tables, so that only their partitions are read,
// however many years there are.
func TestProofsReadOnlyThePartitionsOfTheirRows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := &planner{Pool: b.api}
	q := db.New(p)
	attempts := make([]uuid.UUID, 1000)
	for i := range attempts {
		attempts[i] = id.New()
	}
	_, err := q.AttemptAges(t.Context(), attempts)
	require.NoError(t, err)
	parts := map[string]bool{}
	for _, part := range regexp.MustCompile(`attempts_\d{8}`).FindAllString(p.plan, -1) {
		parts[part] = true
	}
	require.Len(t, parts, 1, p.plan)

	log := b.log.ID
	_, err = q.LeavesAt(t.Context(), log, []int64{3, 5, 1 << 20})
	require.NoError(t, err)
	require.Regexp(t, `Index Cond: \(\(log_id = '[-0-9a-f]*'::uuid\) AND \(leaf_index = i.leaf_index\)\)`, p.plan)
	require.NotContains(t, p.plan, "Seq Scan on merkle_leaves")

	_, err = q.FirstSignedHeadsAbove(t.Context(), log, []int64{0, 3, 5})
	require.NoError(t, err)
	require.NotContains(t, p.plan, "Seq Scan on signed_tree_heads", p.plan)
}
