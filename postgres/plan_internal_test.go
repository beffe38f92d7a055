package postgres

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
)

// partitionOfDay finds the partitions by day that a plan names.
var partitionOfDay = regexp.MustCompile(`(?:events|event_payloads|deliveries|attempts)_(\d{8})`)

// CheckPlans fails if a statement that runs for each delivery looks into the partitions of other days: with years of them,
// that is what makes a system slow that was fast on its first day. Package postgres_test calls it, which has a database.
func CheckPlans(t *testing.T, query func(sql string, args ...any) (pgx.Rows, error)) {
	delivery := id.New()
	ids := []uuid.UUID{delivery}
	for name, statement := range map[string]struct {
		sql  string
		args []any
	}{
		"count start": {countStartSQL, []any{delivery, 0, 1}},
		"fence":       {fenceSQL, []any{ids}},
		"lock":        {lockSQL, []any{ids}},
		"commitments": {commitmentsSQL, []any{ids}},
		"update": {updateDeliveriesSQL, []any{ids, []string{"pending"}, []int{0}, []int{1}, []int{0}, []int{0}, [][]byte{nil}, []int64{0},
			[]int64{0}, []bool{false}}},
		"count starts": {countStartsSQL, []any{ids, []int{1}, []string{"batch"}}},
		"read claimed": {readClaimedSQL, []any{ids}},
		"batch rows":   {batchRowsSQL, []any{ids}},
		"events":       {eventsSQL, []any{ids}},
		"payloads":     {payloadsSQL, []any{ids}},
		"count again":  {countAgainSQL, []any{ids}},
		"defer":        {deferSQL, []any{ids, []int{0}, []int{1}, []int64{0}}},
		"account":      {accountSQL, []any{ids}},
		"of account":   {accountAttemptsSQL, []any{delivery, delivery, delivery}},
		"its event":    {accountEventSQL, []any{ids}},
		"requeue":      {requeueSQL, []any{delivery, 0, 1, time.Second.Milliseconds(), 0}},

		"headers of dead": {headersSQL, []any{ids}},
		"strays":          {removeStraysSQL, []any{ids}},

		"leaves recorded":      {recordedSQL, []any{ids, delivery}},
		"attempts recorded":    {recordedAttemptsSQL, []any{ids}},
		"acceptances recorded": {recordedAcceptancesSQL, []any{ids}},
		"requests":             {requestsSQL, []any{ids}},
		"leaf hashes":          {leafHashesSQL, []any{ids}},
		"attempts of a day":    {attemptsOfDaySQL, []any{delivery, floor(id.Time(delivery).Truncate(24*time.Hour).AddDate(0, 0, 1)), 10}},
		"leaf records":         {leafRecordsSQL, []any{ids}},
		"erased subjects":      {erasedSubjectsSQL, []any{ids}},
		"events of acceptance": {eventsThereSQL, []any{ids}},

		"cancel":           {requestCancelSQL, []any{ids}},
		"standing":         {lockStandingSQL, []any{ids}},
		"due now":          {deliveryDueNowSQL, []any{ids}},
		"told leaf hashes": {toldHashesSQL, []any{ids}},
		"whose event":      {tenantOfEventSQL, []any{ids}},
		"of an event":      {eventDeliveriesSQL, []any{delivery, delivery, delivery}},
		"hold payloads":    {holdPayloadsSQL, []any{ids}},
		"finished":         {finishedSQL, []any{ids, delivery}},
		"payloads left":    {keptSQL, []any{ids}},
		"events of tenant": {eventsOfTenantSQL, []any{delivery, floor(id.Time(delivery)), delivery, 1}},
		"candidates": {candidatesSQL, []any{ids, floor(id.Time(delivery)), delivery, delivery, []string{"dead"}, time.Now(), nil, nil,
			delivery, delivery}},
	} {
		rows, err := query("explain "+statement.sql, statement.args...)
		require.NoError(t, err, name)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err, name)
		days := map[string]bool{}
		for _, found := range partitionOfDay.FindAllStringSubmatch(strings.Join(lines, "\n"), -1) {
			days[found[1]] = true
		}
		require.Len(t, days, 1, "%s reads the partitions of so many days:\n%s", name, strings.Join(lines, "\n"))
	}
}

// CheckForgettingPlans fails if what is old is looked for among all that is young.
func CheckForgettingPlans(t *testing.T, query func(sql string, args ...any) (pgx.Rows, error)) {
	for _, sql := range []string{forgetCommandsSQL, forgetKeysSQL} {
		rows, err := query("explain "+sql, (7 * 24 * time.Hour).Milliseconds(), forgetAtOnce)
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		require.NotContains(t, strings.Join(lines, "\n"), "Seq Scan", sql)
	}
}
