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
	for _, state := range []delivery.State{delivery.Delivered, delivery.Dead, delivery.Canceled} {
		m.ended.WithLabelValues(string(state)) // so that the first one is seen as an increase
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
