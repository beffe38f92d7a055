package activities

import (
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
)

// Metrics tell of attempts and of what becomes of deliveries, in both lanes alike. A nil one counts nothing.
type Metrics struct {
	attempts *prometheus.CounterVec
	duration *prometheus.HistogramVec
	ended    *prometheus.HistogramVec
}

// NewMetrics registers the metrics; nil: nowhere.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_attempts_total",
			Help: "Requests that were sent to receivers, by outcome (delivered, retry, failed), by the class of the answer's status (none if " +
				"there was no answer), and by the class of the error (none if there was none).",
		}, []string{"outcome", "status", "error"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kapsel_attempt_duration_seconds", Help: "How long receivers took to answer, or requests to fail, by outcome.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
		}, []string{"outcome"}),
		ended: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kapsel_delivery_duration_seconds",
			Help:    "How long deliveries took from their acceptance to their end, by how they ended; counted by the worker that recorded it.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400, 432000},
		}, []string{"state"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.attempts, m.duration, m.ended)
	}
	return m
}

// sent counts a request.
func (m *Metrics) sent(o *Outcome) {
	if m == nil {
		return
	}
	m.attempts.WithLabelValues(o.Outcome, statusClass(o.ResponseStatus), orNone(o.Error)).Inc()
	m.duration.WithLabelValues(o.Outcome).Observe(o.Duration.Seconds())
}

// recorded counts a delivery that has ended.
func (m *Metrics) recorded(deliveryID uuid.UUID, r recorded) {
	if m == nil || !r.applied || r.progress.State == string(delivery.Pending) {
		return
	}
	m.ended.WithLabelValues(r.progress.State).Observe(max(time.Since(id.Time(deliveryID)), 0).Seconds())
}

// statusClass is 2xx and the like; a receiver may answer with any three digits.
func statusClass(status int) string {
	if status < 100 || status > 599 {
		if status == 0 {
			return "none"
		}
		return "other"
	}
	return strconv.Itoa(status/100) + "xx"
}

func orNone(class string) string {
	if class == "" {
		return "none"
	}
	return class
}

// SealMetrics tell how logs grow. A nil one counts nothing.
type SealMetrics struct {
	leaves, heads, failures prometheus.Counter
	sequence, publish       prometheus.Histogram
}

// NewSealMetrics registers the metrics; nil: nowhere.
func NewSealMetrics(registerer prometheus.Registerer) *SealMetrics {
	buckets := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	m := &SealMetrics{
		leaves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_log_leaves_sequenced_total", Help: "Leaves that this worker took from the queue and gave a place in a log.",
		}),
		heads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_log_heads_published_total", Help: "Tree heads that this worker signed and published.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_log_seal_failures_total", Help: "Rounds of sealing that ended with an error; the log is tried again.",
		}),
		sequence: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kapsel_log_sequence_duration_seconds", Help: "How long it took to give leaves that waited their place, a transaction.", Buckets: buckets,
		}),
		publish: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kapsel_log_publish_duration_seconds", Help: "How long it took to sign a head: from its timestamp until both signatures were stored.", Buckets: buckets,
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.leaves, m.heads, m.failures, m.sequence, m.publish)
	}
	return m
}

// sequenced counts one transaction that began at start.
func (m *SealMetrics) sequenced(start time.Time, leaves int) {
	if m == nil || leaves == 0 {
		return
	}
	m.leaves.Add(float64(leaves))
	m.sequence.Observe(time.Since(start).Seconds())
}

// published counts a head of the given time, in Unix milliseconds.
func (m *SealMetrics) published(timestamp int64) {
	if m != nil {
		m.heads.Inc()
		m.publish.Observe(max(time.Since(time.UnixMilli(timestamp)), 0).Seconds())
	}
}

// failed counts a round that ended with an error.
func (m *SealMetrics) failed() {
	if m != nil {
		m.failures.Inc()
	}
}
