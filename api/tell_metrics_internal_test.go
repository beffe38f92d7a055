package api

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// told are the counts of one type.
func (b *tellTest) told(what string) map[string]float64 {
	counts := map[string]float64{}
	for _, result := range []string{"queued", "skipped", "dropped", "failed"} {
		if n := testutil.ToFloat64(b.metrics.operational.WithLabelValues(what, result)); n > 0 {
			counts[result] = n
		}
	}
	return counts
}

// Whatever becomes of an operational webhook is counted, once it is certain.
func TestOperationalWebhooksAreCounted(t *testing.T) {
	t.Parallel()
	b := telling(t)
	require.Equal(t, 12, testutil.CollectAndCount(b.metrics.operational), "each is there before it happens")
	with, removed := b.addTenant(t, "With", true), b.addTenant(t, "Removed", true)
	b.die(t, with, "")
	require.Empty(t, b.told("delivery_dead"))
	require.NoError(t, b.tell(t.Context()))
	require.Equal(t, map[string]float64{"queued": 1}, b.told("delivery_dead"))

	// What no destination wants, and what is left of it in the counts of filters.
	second := b.addDestination(t, with.id, with.operational)
	b.exec(t, `update destinations set filter = '{"event_types":["circuit_opened"]}' where endpoint_id = $1`, with.operational)
	b.endpoints.forget(with.operational)
	b.die(t, with, "")
	require.NoError(t, b.tell(t.Context()))
	require.Equal(t, map[string]float64{"queued": 1, "skipped": 1}, b.told("delivery_dead"))
	require.InDelta(t, 2, testutil.ToFloat64(b.metrics.skipped), 0)
	b.exec(t, `update destinations set filter = '{"expression":"body.nothing"}' where id = $1`, second)
	b.endpoints.forget(with.operational)
	b.die(t, with, "")
	require.NoError(t, b.tell(t.Context()))
	require.Equal(t, map[string]float64{"queued": 2, "skipped": 1}, b.told("delivery_dead"), "one of two destinations gets it")
	require.InDelta(t, 1, testutil.ToFloat64(b.metrics.filterErrors.WithLabelValues("no_such_key")), 0)
	b.exec(t, "update destinations set deleted_at = now() where endpoint_id = $1", with.operational)
	b.endpoints.forget(with.operational)
	b.die(t, with, "")
	require.NoError(t, b.tell(t.Context()))
	require.Equal(t, map[string]float64{"queued": 2, "skipped": 2}, b.told("delivery_dead"), "there is no destination")

	// What nobody can be told any more.
	b.die(t, removed, "")
	b.exec(t, "update endpoints set deleted_at = now() where id = $1", removed.operational)
	require.NoError(t, b.tell(t.Context()))
	require.Equal(t, map[string]float64{"queued": 2, "skipped": 2, "dropped": 1}, b.told("delivery_dead"))

	// What was made and not committed wasn't made.
	b.exec(t, "create constraint trigger failing after delete on operational_outbox deferrable initially deferred for each row execute function refuse_change()")
	b.exec(t, "update destinations set disabled_at = now(), disabled_reason = 'gone' where id = $1", with.destination)
	for range 2 {
		require.ErrorContains(t, b.tell(t.Context()), "refused")
	}
	require.Equal(t, map[string]float64{"failed": 2}, b.told("destination_disabled"))
	b.exec(t, "drop trigger failing on operational_outbox")
	require.NoError(t, b.tell(t.Context()))
	require.Equal(t, map[string]float64{"failed": 2, "skipped": 1}, b.told("destination_disabled"))
}

// Of one tenant's operational endpoint that can't be read no event is made, however much waits for it; all others are told all the
// same, and it is when the endpoint can be read again.
func TestWhatCantBeMadeHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := telling(t)
	broken, well := b.addTenant(t, "Broken", true), b.addTenant(t, "Well", true)
	b.exec(t, `update endpoints set verification = '[]' where id = $1`, broken.operational)
	b.flood(t, broken, 250)
	b.flood(t, well, 130)
	require.ErrorContains(t, b.tell(t.Context()), "read verification of endpoint "+broken.operational.String())
	require.Equal(t, 250, b.waiting(t))
	require.Empty(t, b.events(t, broken.operational))
	require.Len(t, b.events(t, well.operational), 130)
	counts := b.told("delivery_dead")
	require.InDelta(t, 130, counts["queued"], 0)
	require.GreaterOrEqual(t, counts["failed"], 100.0)

	b.exec(t, `update endpoints set verification = '{"scheme":"none"}' where id = $1`, broken.operational)
	b.endpoints.forget(broken.operational)
	require.NoError(t, b.tell(t.Context()))
	require.Zero(t, b.waiting(t))
	require.Len(t, b.events(t, broken.operational), 250)
}
