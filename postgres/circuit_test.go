package postgres_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// addCircuit gives a destination a circuit in such a state.
func (b *testBundle) addCircuit(t *testing.T, destination uuid.UUID, columns, values string) {
	t.Helper()
	b.exec(t, "insert into circuits (destination_id, tenant_id, "+columns+") values ($1, $2, "+values+")", destination, b.tenant)
}

const (
	openColumns = "state, ring, opened_at, probe_until, failing_since, failed_at"
	openUntil   = "'open', 31, now(), now() + interval '30 s', now(), now()"
	openBefore  = "'open', 31, now(), now() - interval '1 s', now(), now()"
)

// The dispatcher sees no destination whose circuit is open, until a probe is due; and it is told when one has closed.
func TestDueDestinationsOfCircuits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, tc := range map[string]struct {
		columns, values string
		settings        string
		seen, probing   bool
		closed          bool
	}{
		"none":                   {seen: true},
		"at rest":                {columns: "ring", values: "0", seen: true},
		"open":                   {columns: openColumns, values: openUntil},
		"to be probed":           {columns: openColumns, values: openBefore, seen: true, probing: true},
		"a probe is under way":   {columns: openColumns + ", probe_token", values: "'half_open', 31, now(), now() + interval '1 min', now(), now(), gen_random_uuid()"},
		"a probe is lost":        {columns: openColumns + ", probe_token", values: "'half_open', 31, now(), now() - interval '1 s', now(), now(), gen_random_uuid()", seen: true, probing: true},
		"closed":                 {columns: "closed_at", values: "now() - interval '3 s'", seen: true, closed: true},
		"closed, with a setting": {columns: "closed_at", values: "now() - interval '3 s'", settings: `{"ramp_per_second":7}`, seen: true, closed: true},
	} {
		destination := b.addDestination(t, b.tenant, b.endpoint)
		row := b.acceptance("{}")
		row.Deliveries[0].DestinationID = destination
		_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
		require.NoError(t, err)
		if tc.settings != "" {
			b.exec(t, "update destinations set circuit = $2 where id = $1", destination, tc.settings)
		}
		if tc.columns != "" {
			b.addCircuit(t, destination, tc.columns, tc.values)
		}
		due, err := postgres.DueDestinations(t.Context(), b.engine, uuid.Nil, 256)
		require.NoError(t, err)
		var seen *postgres.DueDestination
		for i := range due {
			if due[i].ID == destination {
				seen = &due[i]
			}
		}
		require.Equal(t, tc.seen, seen != nil, name)
		if seen == nil {
			continue
		}
		require.Equal(t, tc.probing, seen.Probing, name)
		require.Equal(t, tc.closed, !seen.ClosedAt.IsZero(), name)
		if tc.closed {
			require.InDelta(t, 3, seen.ClosedFor.Seconds(), 2.5, name)
		}
		if tc.settings == "" {
			require.Empty(t, seen.Circuit, name)
		} else {
			require.JSONEq(t, tc.settings, string(seen.Circuit), name)
		}
	}
}

// What a person changes is the reason to expect that the receiver works again.
func TestChangedDestinationsStartWithANewCircuit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for change, renewed := range map[string]bool{
		"url = 'https://example.com/new'": true, `circuit = '{"off":true}'`: true,
		"paused_at = null": true, "disabled_at = null, disabled_reason = null": true,
		"timeout_ms = 6000": false, "url = url": false, "updated_at = now()": false, "paused_at = now()": false,
	} {
		destination := b.addDestination(t, b.tenant, b.endpoint)
		b.exec(t, "update destinations set paused_at = now(), disabled_at = now(), disabled_reason = 'failing' where id = $1", destination)
		b.addCircuit(t, destination, openColumns, openUntil)
		err := postgres.InTenant(t.Context(), b.api, b.tenant, func(tx pgx.Tx) error { // as a person would
			_, err := tx.Exec(t.Context(), "update destinations set "+change+" where id = $1", destination)
			return err
		})
		require.NoError(t, err, change)
		left := b.count(t, "select count(*) from circuits where destination_id = $1", destination)
		require.Equal(t, renewed, left == 0, change)
	}
}

// Postgres itself refuses a circuit that can't be.
func TestImpossibleCircuits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, row := range map[string][2]string{
		"open without a time":             {"state, ring", "'open', 31"},
		"open without an end":             {"state, ring, opened_at", "'open', 31, now()"},
		"closed with a probe":             {"probe_until", "now()"},
		"open with a token":               {openColumns + ", probe_token", openUntil + ", gen_random_uuid()"},
		"open with successes":             {openColumns + ", successes", openUntil + ", 1"},
		"open and closed":                 {openColumns + ", closed_at", openUntil + ", now()"},
		"failing without a failure":       {"failing_since", "now()"},
		"failing since after its failure": {"ring, failing_since, failed_at", "1, now(), now() - interval '1 s'"},
		"a ring of eleven":                {"ring", "1024"},
	} {
		_, err := b.owner.Exec(t.Context(), "insert into circuits (destination_id, tenant_id, "+row[0]+") values ($1, $2, "+row[1]+")", id.New(), b.tenant)
		require.ErrorContains(t, err, "check constraint", name)
	}
}

// A destination is disabled if all that was heard of it for so long were failures, and only then.
func TestDisableFailing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const columns = "ring, failing_since, failed_at"
	add := func(columns, values, change string) uuid.UUID {
		destination := b.addDestination(t, b.tenant, b.endpoint)
		b.addCircuit(t, destination, columns, values)
		if change != "" {
			b.exec(t, "update destinations set "+change+" where id = $1", destination)
		}
		return destination
	}
	failing := add(columns, "1023, now() - interval '5 days 1 min', now()", "")
	paused := add(columns, "1023, now() - interval '6 days', now()", "paused_at = now()")
	add(columns, "1, now() - interval '9 days', now() - interval '8 days'", "") // nothing was heard of it since
	add(columns, "1023, now() - interval '4 days', now()", "")
	add("ring, failed_at", "510, now()", "") // the last outcome was a success
	add(columns, "1023, now() - interval '9 days', now()", "deleted_at = now()")
	add(columns, "1023, now() - interval '9 days', now()", "disabled_at = now(), disabled_reason = 'gone'")

	disabled, err := postgres.DisableFailing(t.Context(), b.engine, 5*24*time.Hour)
	require.NoError(t, err)
	require.ElementsMatch(t, []uuid.UUID{failing, paused}, disabled)
	require.Equal(t, 2, b.count(t, "select count(*) from destinations where disabled_reason = 'failing' and disabled_at is not null and id = any($1)",
		[]uuid.UUID{failing, paused}))
	disabled, err = postgres.DisableFailing(t.Context(), b.engine, 5*24*time.Hour)
	require.NoError(t, err)
	require.Empty(t, disabled)

	b.exec(t, "update destinations set disabled_at = null, disabled_reason = null where id = $1", failing)
	disabled, err = postgres.DisableFailing(t.Context(), b.engine, 5*24*time.Hour)
	require.NoError(t, err)
	require.Empty(t, disabled, "enabled again, it has as long as it had at first")
}

func TestCircuitStates(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, values := range []string{openUntil, openBefore, "'half_open', 31, now(), now(), now(), now()"} {
		b.addCircuit(t, b.addDestination(t, b.tenant, b.endpoint), openColumns, values)
	}
	b.addCircuit(t, b.addDestination(t, b.tenant, b.endpoint), "ring", "7")
	removed := b.addDestination(t, b.tenant, b.endpoint)
	b.addCircuit(t, removed, openColumns, openUntil)
	b.exec(t, "update destinations set deleted_at = now() where id = $1", removed)
	states, err := postgres.CircuitStates(t.Context(), b.engine)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"open": 2, "half_open": 1}, states)
}
