package worker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// circuit gives a destination a circuit. Postgres's clock isn't the bubble's, so times are said by it.
func (d *dispatchTest) circuit(t *testing.T, destination uuid.UUID, state, probeIn string) {
	t.Helper()
	d.exec(t, `insert into circuits (destination_id, tenant_id, state, ring, opened_at, probe_until)
		values ($1, $2, $3, 31, now(), now() + $4::interval)
		on conflict (destination_id) do update set state = excluded.state, probe_until = excluded.probe_until, closed_at = null,
			opened_at = now(), ring = 31`, destination, d.tenant, state, probeIn)
}

// Nothing is claimed for an open circuit, one delivery for one that may be probed, and no other one while that is under way.
// The others of the tenant are carried meanwhile.
func TestDispatcherClaimsOneProbe(t *testing.T) {
	for _, lane := range []postgres.Lane{postgres.LaneWorkflow, postgres.LaneBatch, postgres.LaneAuto} {
		t.Run(fmt.Sprint(lane), func(t *testing.T) {
			dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
				failing := d.accept(t, 20, lane, 0)
				d.circuit(t, failing, "open", "1 hour")
				d.accept(t, 30, lane, 0)
				d.rounds(t, 3)
				require.Equal(t, 30, d.claimedInAll, "the others")

				d.circuit(t, failing, "open", "-1 second")
				for range 3 {
					require.NoError(t, d.claim(t.Context(), d.worker))
					d.starts.Wait()
					require.Len(t, d.inFlight, 1)
					pass(pollEvery)
				}
				d.rounds(t, 1)
				require.Equal(t, 31, d.claimedInAll)
				d.circuit(t, failing, "half_open", "1 hour") // the probe was won elsewhere and is under way
				d.rounds(t, 3)
				require.Equal(t, 31, d.claimedInAll)
				d.circuit(t, failing, "half_open", "0")
				d.rounds(t, 1)
				require.Equal(t, 32, d.claimedInAll, "the next one")
			})
		})
	}
}

// After a circuit has closed traffic grows, 1, 2, 4 … a second, and then there is no limit.
func TestCircuitLimitsGrow(t *testing.T) {
	t.Parallel()
	c := &circuitLimits{}
	d := postgres.DueDestination{ID: id.New(), ClosedAt: time.Now(), Circuit: []byte(`{"ramp_per_second":2}`)}
	idle := func(uuid.UUID) bool { return false }
	claim := func(n int) {
		c.claimed([]postgres.DueDestination{d}, slices.Repeat([]postgres.Claimed{{DestinationID: d.ID}}, n))
	}
	for second, want := range []int{2, 4, 8, 16, 32} {
		d.ClosedFor = time.Duration(second)*time.Second + time.Second/2
		require.Equal(t, want, c.limit(d, 1000, idle))
		require.Equal(t, 1, c.limit(d, 1, idle))
		claim(want - 1)
		require.Equal(t, 1, c.limit(d, 1000, idle))
		claim(1)
		require.Zero(t, c.limit(d, 1000, idle))
	}
	d.ClosedFor = 9 * time.Second
	require.Equal(t, 1000, c.limit(d, 1000, idle))
	require.Equal(t, 2046-62, c.limit(d, 5000, idle))
	d.ClosedFor = time.Minute
	require.Equal(t, 5000, c.limit(d, 5000, idle))
	require.Empty(t, c.ramps)

	d.ClosedFor = 0
	require.Equal(t, 2, c.limit(d, 5000, idle))
	claim(2)
	require.Zero(t, c.limit(d, 5000, idle))
	d.ClosedAt = d.ClosedAt.Add(time.Hour) // it has opened and closed again
	require.Equal(t, 2, c.limit(d, 5000, idle))
}

// The same with Postgres's clock: never more than the ramp allows by then, never less than it had allowed before.
func TestDispatcherRampsUp(t *testing.T) {
	for _, lane := range []postgres.Lane{postgres.LaneWorkflow, postgres.LaneBatch} {
		t.Run(fmt.Sprint(lane), func(t *testing.T) {
			dispatching(t, 300, func(t *testing.T, d *dispatchTest) {
				destination := d.accept(t, 300, lane, 0)
				d.exec(t, "insert into circuits (destination_id, tenant_id, closed_at) values ($1, $2, now())", destination, d.tenant)
				elapsed := func() (since time.Duration) {
					var ms float64
					require.NoError(t, d.db.QueryRow(t.Context(),
						"select (extract(epoch from now() - closed_at) * 1000)::float8 from circuits where destination_id = $1", destination).Scan(&ms))
					return time.Duration(ms * float64(time.Millisecond))
				}
				for d.claimedInAll < 15 { // about three seconds
					least, _ := delivery.DefaultCircuit().Ramp(elapsed())
					d.rounds(t, 1)
					most, _ := delivery.DefaultCircuit().Ramp(elapsed())
					require.GreaterOrEqual(t, d.claimedInAll, least)
					require.LessOrEqual(t, d.claimedInAll, most)
				}
				d.exec(t, "update circuits set closed_at = now() - interval '1 minute' where destination_id = $1", destination)
				d.rounds(t, 2)
				require.Equal(t, 300, d.claimedInAll)
			})
		})
	}
}

// What failed for so long is disabled, and the metrics say how many circuits are in which state.
func TestWorkerLooksAtCircuits(t *testing.T) {
	dispatching(t, 50, func(t *testing.T, d *dispatchTest) {
		failing, open := d.accept(t, 3, postgres.LaneAuto, 0), d.accept(t, 1, postgres.LaneAuto, 0)
		d.circuit(t, failing, "half_open", "0")
		d.circuit(t, open, "open", "1 hour")
		d.exec(t, "update circuits set failing_since = now() - interval '5 days', failed_at = now() where destination_id = $1", failing)
		w := &Worker{config: Config{Engine: d.db, Log: zap.NewNop(), DisableAfter: -1}, metrics: d.metrics}
		require.NoError(t, w.lookAtCircuits(t.Context()))
		require.Equal(t, 1.0, metric(t, d.registry, "kapsel_circuits", "open"))
		require.Equal(t, 1.0, metric(t, d.registry, "kapsel_circuits", "half_open"))
		require.Zero(t, metric(t, d.registry, "kapsel_destinations_disabled_total", ""))
		w.config.DisableAfter = defaultDisableAfter
		for range 2 {
			require.NoError(t, w.lookAtCircuits(t.Context()))
			require.Equal(t, 1.0, metric(t, d.registry, "kapsel_destinations_disabled_total", ""))
		}
		d.rounds(t, 2)
		require.Zero(t, d.claimedInAll)
		d.exec(t, "update destinations set disabled_at = null, disabled_reason = null where id = $1", failing)
		d.rounds(t, 2)
		require.Equal(t, 3, d.claimedInAll, "what waited goes on")
		require.NoError(t, w.lookAtCircuits(t.Context()))
		require.Zero(t, metric(t, d.registry, "kapsel_circuits", "half_open"))
	})
}
