package db

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
)

var partitionOfDay = regexp.MustCompile(`(?:events|event_payloads|deliveries|attempts)_(\d{8})`)

// CheckPlans fails if a statement of the management API looks into the partitions of other days than it is asked about, or
// finds a tenant's rows among those of others otherwise than by an index. Package db_test calls it, which has a database
// that holds many rows of another tenant, and a transaction that sees those of one.
func CheckPlans(t *testing.T, delivery, floor, before uuid.UUID, query func(sql string, args ...any) (pgx.Rows, error)) {
	ids := []uuid.UUID{delivery}
	var none any
	for name, statement := range map[string]struct {
		sql   string
		args  []any
		index string // that must be used
	}{
		"end of event chunk":    {endOfEventChunk, []any{before, floor, 2000}, "tenant_id"},
		"end of type chunk":     {endOfTypeChunk, []any{"push", before, floor, 2000}, "tenant_id.*event_type"},
		"search events":         {searchEvents, []any{before, floor, none, none, none, none, 51}, "tenant_id"},
		"search events of type": {searchEvents, []any{before, floor, "push", none, none, none, 51}, "tenant_id.*event_type"},
		"search events of key":  {searchEvents, []any{before, floor, none, none, make([]byte, 32), none, 51}, "tenant_id"},
		"end of delivery chunk": {endOfDeliveryChunk, []any{before, floor, 2000}, "tenant_id"},
		"search deliveries":     {searchDeliveries, []any{before, floor, "dead", none, none, none, none, 51}, "tenant_id"},
		"search of destination": {searchDeliveries, []any{before, floor, none, delivery, none, none, none, 51}, "tenant_id"},
		"search of event":       {searchDeliveries, []any{before, floor, none, none, none, delivery, none, 51}, ""},
		"events with delivery":  {eventsWithDelivery, []any{ids, delivery, delivery, "dead"}, "(tenant_id|event_id)"},
		"headers":               {headersOfEvents, []any{ids}, ""},
		"delivery":              {getDelivery, []any{delivery}, ""},
		"attempt":               {getAttempt, []any{id.AttemptOf(delivery, 1)}, ""},
		"event as sent":         {eventAsSent, []any{delivery}, ""},
		"event":                 {getEvent, []any{delivery}, ""},
		"ages of acceptances":   {acceptanceAges, []any{ids}, ""},
		"attempts by ID":        {attemptsByID, []any{ids, delivery, delivery}, ""},
	} {
		rows, err := query("explain "+statement.sql, statement.args...)
		require.NoError(t, err, name)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err, name)
		plan := strings.Join(lines, "\n")
		days := map[string]bool{}
		for _, found := range partitionOfDay.FindAllStringSubmatch(plan, -1) {
			days[found[1]] = true
		}
		require.Len(t, days, 1, "%s reads the partitions of so many days:\n%s", name, plan)
		if statement.index != "" {
			require.Regexp(t, `Index Cond: .*`+statement.index, plan, name)
			require.NotContains(t, plan, "Seq Scan", name)
		}
	}
}
