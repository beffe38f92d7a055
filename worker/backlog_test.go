package worker

import (
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// backlogSeries scrapes, and returns the series by their families.
func backlogSeries(t *testing.T, b *backlog) map[string][]*dto.Metric {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(b)
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	require.Empty(t, problems)
	gathered, err := registry.Gather()
	require.NoError(t, err)
	families := map[string][]*dto.Metric{}
	for _, family := range gathered {
		families[family.GetName()] = family.GetMetric()
	}
	return families
}

// However many destinations have something waiting, ten have series of their own; and many scrapes are one look.
func TestBacklogIsBounded(t *testing.T) {
	t.Parallel()
	url := postgrestest.New(t)
	engine, owner := postgrestest.Pool(t, url, postgres.Engine), postgrestest.Pool(t, url, postgres.Owner)
	queue := func(destination uuid.UUID, n int) {
		_, err := owner.Exec(t.Context(), `insert into delivery_queue (delivery_id, destination_id, tenant_id)
			select gen_random_uuid(), $1, $2 from generate_series(1, $3)`, destination, id.New(), n)
		require.NoError(t, err)
	}
	most := id.New()
	queue(most, 5)
	for range 30 {
		queue(id.New(), 1)
	}
	b := newBacklog(engine, zap.NewNop())
	families := backlogSeries(t, b)
	require.Len(t, families["kapsel_queue_destination_deliveries"], backlogTop)
	require.Len(t, families["kapsel_queue_deliveries"], 4)
	found := false
	for _, m := range families["kapsel_queue_destination_deliveries"] {
		found = found || m.GetLabel()[0].GetValue() == id.Destination.Format(most) && m.GetGauge().GetValue() == 5
	}
	require.True(t, found, "the one with the most is among them")

	queue(most, 100)
	require.Equal(t, families, backlogSeries(t, b), "10 s haven't passed")
	b.until = b.until.Add(-backlogAge)
	require.NotEqual(t, families, backlogSeries(t, b))
}

// Figures from before Postgres went away aren't told: they would look as if all were well.
func TestBacklogWithoutPostgres(t *testing.T) {
	t.Parallel()
	engine, err := postgres.Open(postgrestest.New(t), postgres.Engine, 2)
	require.NoError(t, err)
	b := newBacklog(engine, zap.NewNop())
	require.InDelta(t, 1, backlogSeries(t, b)["kapsel_backlog_up"][0].GetGauge().GetValue(), 0)
	engine.Close()
	b.until = b.until.Add(-backlogAge)
	families := backlogSeries(t, b)
	require.Len(t, families, 1)
	require.Zero(t, families["kapsel_backlog_up"][0].GetGauge().GetValue())
}

// Every metric of a worker follows Prometheus's conventions, also those that only tell of what goes wrong.
func TestWorkerMetricsAreWellNamed(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	m := newMetrics(registry)
	m.claimed.WithLabelValues("batch")
	m.eager.WithLabelValues("true")
	m.circuits.WithLabelValues("open")
	m.rounds.WithLabelValues("claim")
	m.failures.WithLabelValues("claim")
	m.lost.WithLabelValues("sweeper")
	(&Dispatcher{limit: 3}).watch(registry)
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	require.Empty(t, problems)
}
