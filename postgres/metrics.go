package postgres

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// CommitMetrics tell of a Group's commits: its Observe goes into GroupConfig.Observe.
type CommitMetrics struct {
	rows     prometheus.Histogram
	duration prometheus.Histogram
	failures prometheus.Counter
}

// NewCommitMetrics registers the metrics of the group of that name; nil: nowhere.
func NewCommitMetrics(registerer prometheus.Registerer, group string) *CommitMetrics {
	labels := prometheus.Labels{"group": group}
	m := &CommitMetrics{
		rows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kapsel_commit_rows", Help: "Rows that share one commit, by what is committed.", ConstLabels: labels,
			Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500},
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kapsel_commit_duration_seconds", Help: "How long shared commits take, also those that fail.", ConstLabels: labels,
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_commit_failures_total", Help: "Shared commits that failed, or of which nobody knows.", ConstLabels: labels,
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.rows, m.duration, m.failures)
	}
	return m
}

// Observe is told of each commit.
func (m *CommitMetrics) Observe(rows int, took time.Duration, err error) {
	m.rows.Observe(float64(rows))
	m.duration.Observe(took.Seconds())
	if err != nil {
		m.failures.Inc()
	}
}

// poolCollector reads a pool's own counters when Prometheus asks.
type poolCollector struct {
	pool                                          *pgxpool.Pool
	connections, most, acquires, waited, waitTime *prometheus.Desc
}

// NewPoolCollector tells how the connections of a pool are used, under a name for the pool.
func NewPoolCollector(name string, pool *pgxpool.Pool) prometheus.Collector {
	labels := prometheus.Labels{"pool": name}
	return &poolCollector{
		pool:        pool,
		connections: prometheus.NewDesc("kapsel_postgres_connections", "Connections to Postgres, by what they do: acquired, idle or connecting.", []string{"state"}, labels),
		most:        prometheus.NewDesc("kapsel_postgres_connections_max", "How many connections the pool may have.", nil, labels),
		acquires:    prometheus.NewDesc("kapsel_postgres_acquires_total", "Connections taken from the pool.", nil, labels),
		waited:      prometheus.NewDesc("kapsel_postgres_acquires_waited_total", "Of these, those that had to wait for one to be free or made.", nil, labels),
		waitTime:    prometheus.NewDesc("kapsel_postgres_acquire_seconds_total", "The time it took to take connections from the pool.", nil, labels),
	}
}

// Describe sends what Collect will send.
func (c *poolCollector) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect sends the pool's figures.
func (c *poolCollector) Collect(to chan<- prometheus.Metric) {
	stat := c.pool.Stat()
	gauge := func(desc *prometheus.Desc, value int32, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(c.connections, stat.AcquiredConns(), "acquired")
	gauge(c.connections, stat.IdleConns(), "idle")
	gauge(c.connections, stat.ConstructingConns(), "connecting")
	gauge(c.most, stat.MaxConns())
	counter := func(desc *prometheus.Desc, value float64) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value)
	}
	counter(c.acquires, float64(stat.AcquireCount()))
	counter(c.waited, float64(stat.EmptyAcquireCount()))
	counter(c.waitTime, stat.AcquireDuration().Seconds())
}
