package api

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kapsel-io/kapsel/postgres"
)

// metrics are what an api process tells of what it accepts.
type metrics struct {
	skipped      prometheus.Counter
	filterErrors *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_deliveries_skipped_total", Help: "Deliveries that a filter left out and that were recorded as skipped.",
		}),
		filterErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_filter_errors_total", Help: "Deliveries made because their filter failed, by why it did.",
		}, []string{"error"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.skipped, m.filterErrors)
	}
	return m
}

// accepted counts what filters did with an event that was stored.
func (m *metrics) accepted(row *postgres.Acceptance) {
	for _, d := range row.Deliveries {
		if d.Skipped != nil {
			m.skipped.Inc()
		}
		if d.FilterError != "" {
			m.filterErrors.WithLabelValues(d.FilterError).Inc()
		}
	}
}
