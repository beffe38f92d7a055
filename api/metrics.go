package api

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/webhook"
)

// metrics are what an api process tells of what it accepts.
type metrics struct {
	skipped      prometheus.Counter
	filterErrors *prometheus.CounterVec
	operational  *prometheus.CounterVec
}

// What became of an operational webhook.
const (
	toldQueued  = "queued"  // at least one destination gets it
	toldSkipped = "skipped" // none does: their filters leave it out, or there is none
	toldDropped = "dropped" // its tenant has removed its operational endpoint
	toldFailed  = "failed"  // it couldn't be made now, and is tried again
)

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_deliveries_skipped_total", Help: "Deliveries that a filter left out and that were recorded as skipped.",
		}),
		filterErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_filter_errors_total", Help: "Deliveries made because their filter failed, by why it did.",
		}, []string{"error"}),
		operational: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_operational_webhooks_total", Help: "Operational webhooks, by type and by what became of them; one that failed counts each time.",
		}, []string{"type", "result"}),
	}
	for _, what := range []string{webhook.TypeDeliveryDead, webhook.TypeCircuitOpened, webhook.TypeDestinationDisabled} {
		for _, result := range []string{toldQueued, toldSkipped, toldDropped, toldFailed} {
			m.operational.WithLabelValues(what, result) // so that the first one is seen as an increase
		}
	}
	if registerer != nil {
		registerer.MustRegister(m.skipped, m.filterErrors, m.operational)
	}
	return m
}

func (m *metrics) told(what, result string) { m.operational.WithLabelValues(what, result).Inc() }

// toldEvent counts an operational webhook that was stored, as an event like any other too.
func (m *metrics) toldEvent(row *postgres.Acceptance) {
	result := toldSkipped
	if slices.ContainsFunc(row.Deliveries, func(d postgres.NewDelivery) bool { return d.Skipped == nil }) {
		result = toldQueued
	}
	m.told(row.EventType, result)
	m.accepted(row)
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
