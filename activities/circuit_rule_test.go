package activities_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// circuitFigures are the defaults as the recorder hands them to Postgres.
func circuitFigures(moved func(uuid.UUID, time.Duration)) postgres.Circuits {
	s := delivery.DefaultCircuit()
	return postgres.Circuits{
		FailuresInRow: s.FailuresInRow, FailuresOfLast10: s.FailuresOfLast10, Successes: s.Successes,
		Open: time.Duration(s.OpenMS) * time.Millisecond, Moved: moved,
	}
}

// circuitRow is a circuit as it is stored, compared with the rule by what both can say: not by the clock.
type circuitRow struct {
	State                              string
	Ring                               int
	Successes                          int
	Opened, Probing, ProbeDue          bool
	ClosedLater, Failing, LastIsFailed bool
}

func (b *testBundle) circuit(t testing.TB, destination uuid.UUID) (row circuitRow) {
	t.Helper()
	err := b.engine.QueryRow(context.Background(), `select coalesce(c.state, 'closed'), coalesce(c.ring, 0), coalesce(c.successes, 0),
			c.opened_at is not null, c.probe_token is not null, coalesce(c.probe_until <= now(), false), c.closed_at is not null,
			c.failing_since is not null, coalesce(c.ring & 1 = 1, false)
		from (values (1)) one left join circuits c on c.destination_id = $1`, destination).
		Scan(&row.State, &row.Ring, &row.Successes, &row.Opened, &row.Probing, &row.ProbeDue, &row.ClosedLater, &row.Failing, &row.LastIsFailed)
	require.NoError(t, err)
	return row
}

func ruled(c delivery.Circuit, now time.Time) circuitRow {
	return circuitRow{
		State: string(c.State), Ring: int(c.Ring), Successes: c.Successes, Opened: !c.OpenedAt.IsZero(), Probing: c.Token != "",
		ProbeDue: c.State != delivery.CircuitClosed && !c.ProbeAt.After(now), ClosedLater: !c.ClosedAt.IsZero(),
		Failing: !c.FailingSince.IsZero(), LastIsFailed: c.Ring&1 == 1,
	}
}

// Postgres moves circuits by the rule in package delivery, whatever is recorded in whatever groups, with the token of
// whichever probe, and whoever tries to win one.
func TestCircuitPropertyPostgresFollowsTheRule(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(rt *rapid.T) {
		destination := b.addDestination(t, "https://example.com/in")
		settings := delivery.CircuitSettings{
			FailuresInRow:    rapid.IntRange(1, 10).Draw(rt, "in a row"),
			FailuresOfLast10: rapid.IntRange(1, 10).Draw(rt, "of the last 10"),
			Successes:        rapid.IntRange(1, 3).Draw(rt, "successes"),
			OpenMS:           3_600_000,
		}
		off := rapid.IntRange(0, 9).Draw(rt, "off") == 0
		switch {
		case off:
			settings = delivery.CircuitSettings{Off: true}
			b.exec(t, `update destinations set circuit = '{"off":true}' where id = $1`, destination)
		case rapid.IntRange(0, 4).Draw(rt, "default") == 0:
			settings = delivery.CircuitSettings{}
		default:
			b.exec(t, `update destinations set circuit = $2 where id = $1`, destination, fmt.Sprintf(
				`{"failures_in_row":%d,"failures_of_last_10":%d,"successes":%d,"open_ms":3600000,"ramp_per_second":1}`,
				settings.FailuresInRow, settings.FailuresOfLast10, settings.Successes))
		}
		m := &circuitModel{testBundle: b, destination: destination, delivery: b.accept(t, 1, destination)[0], settings: settings,
			Circuit: delivery.Circuit{State: delivery.CircuitClosed}}
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			switch rapid.IntRange(0, 4).Draw(rt, "what") {
			case 0:
				m.lapse(t)
				m.probe(t)
			case 1:
				m.probe(t)
			case 2: // the way to closing
				m.lapse(t)
				m.probe(t)
				if len(m.won) > 0 {
					m.record(t, []delivery.Verdict{delivery.ReceiverWorks}, m.won[len(m.won)-1], delivery.ReceiverWorks)
				}
			default:
				m.recordAny(t, rt)
			}
			require.Equal(t, ruled(m.Circuit, now), b.circuit(t, destination))
		}
	})
}

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// circuitModel is a circuit in Postgres and what the rule makes of the same events. For the rule the clock stands still.
type circuitModel struct {
	*testBundle
	delivery.Circuit
	destination, delivery uuid.UUID
	settings              delivery.CircuitSettings
	won                   []uuid.UUID
}

// lapse lets the wait for a probe, or for the outcome of one, be over.
func (m *circuitModel) lapse(t *testing.T) {
	if m.State != delivery.CircuitClosed {
		m.ProbeAt = now
	}
	m.exec(t, "update circuits set probe_until = now() where destination_id = $1 and state <> 'closed'", m.destination)
}

func (m *circuitModel) probe(t *testing.T) {
	token := id.New()
	probe, err := postgres.WinProbe(t.Context(), m.engine, m.destination, token, time.Hour)
	require.NoError(t, err)
	wasClosed := m.State == delivery.CircuitClosed
	var won bool
	m.Circuit, won = m.Probe(token.String(), time.Hour, now)
	require.Equal(t, won, probe.Token == token)
	require.Equal(t, wasClosed, probe == postgres.Probe{}, "a closed circuit lets everything pass")
	if won {
		m.won = append(m.won, token)
	}
}

// recordAny records any outcomes, perhaps with the token of any probe that was won.
func (m *circuitModel) recordAny(t *testing.T, rt *rapid.T) {
	all := []delivery.Verdict{delivery.ReceiverWorks, delivery.ReceiverFails, delivery.NoVerdict}
	verdicts := rapid.SliceOfN(rapid.SampledFrom(all), 0, 13).Draw(rt, "verdicts")
	if rapid.IntRange(0, 9).Draw(rt, "many") == 0 { // where a shift by as many bits would go round
		verdicts = append(slices.Repeat([]delivery.Verdict{delivery.ReceiverWorks}, 64), verdicts[:min(len(verdicts), 2)]...)
	}
	if len(m.won) == 0 || rapid.Bool().Draw(rt, "no probe") {
		m.record(t, verdicts, uuid.Nil, delivery.NoVerdict)
		return
	}
	token := m.won[max(len(m.won)-1-rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(rt, "an older one"), 0)]
	m.record(t, verdicts, token, rapid.SampledFrom(all).Draw(rt, "its verdict"))
}

func (m *circuitModel) record(t *testing.T, others []delivery.Verdict, probe uuid.UUID, verdict delivery.Verdict) {
	var verdicts []postgres.Verdict
	var o delivery.Outcomes
	add := func(v delivery.Verdict, probe uuid.UUID) {
		verdicts = append(verdicts, postgres.Verdict{Counts: v != delivery.NoVerdict, Failed: v == delivery.ReceiverFails, Probe: probe})
		o = o.Add(v)
	}
	for _, v := range others {
		add(v, uuid.Nil)
	}
	token := ""
	if probe != uuid.Nil {
		token = probe.String()
		add(verdict, probe)
	}
	m.Circuit = m.Record(m.settings, o, token, verdict, now)
	told := map[uuid.UUID]time.Duration{}
	err := postgres.RecordAttempts(t.Context(), m.engine, []uuid.UUID{m.delivery}, nil,
		circuitFigures(func(d uuid.UUID, wait time.Duration) { told[d] = wait }),
		func(locked map[uuid.UUID]*postgres.Delivery) (changes []postgres.Change, _ error) {
			for _, v := range verdicts {
				changes = append(changes, postgres.Change{Delivery: locked[m.delivery], Verdict: v})
			}
			return changes, nil
		})
	require.NoError(t, err)
	if wait, moved := told[m.destination]; moved {
		require.Equal(t, m.State == delivery.CircuitClosed, wait == 0)
	}
}
