package postgres_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/postgres"
)

func TestNoStatementReadsThePartitionsOfOtherDays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	postgres.CheckPlans(t, func(sql string, args ...any) (pgx.Rows, error) {
		return b.engine.Query(t.Context(), sql, args...)
	})
}
