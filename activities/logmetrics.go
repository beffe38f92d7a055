package activities

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// logMetrics tell how logs grow.
type logMetrics struct {
	leaves, heads     prometheus.Counter
	sequence, publish prometheus.Histogram
}

func newLogMetrics(registerer prometheus.Registerer) *logMetrics {
	buckets := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	m := &logMetrics{
		leaves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_log_leaves_sequenced_total", Help: "Leaves that this worker took from the queue and gave a place in a log.",
		}),
		heads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_log_heads_published_total", Help: "Tree heads that this worker signed and published.",
		}),
		sequence: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kapsel_log_sequence_duration_seconds", Help: "How long it took to give leaves that waited their place, one transaction.", Buckets: buckets,
		}),
		publish: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kapsel_log_publish_duration_seconds", Help: "How long heads took from their timestamp until both signatures were stored.", Buckets: buckets,
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.leaves, m.heads, m.sequence, m.publish)
	}
	return m
}

// sequenced counts one transaction that began at start.
func (m *logMetrics) sequenced(start time.Time, leaves int) {
	if leaves > 0 {
		m.leaves.Add(float64(leaves))
		m.sequence.Observe(time.Since(start).Seconds())
	}
}

// published counts a head of the given time, in Unix milliseconds.
func (m *logMetrics) published(timestamp int64) {
	m.heads.Inc()
	m.publish.Observe(max(time.Since(time.UnixMilli(timestamp)), 0).Seconds())
}
