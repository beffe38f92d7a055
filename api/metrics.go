package api

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/webhook"
)

// metrics are what an api process tells of what it accepts.
type metrics struct {
	events       *prometheus.CounterVec // by whether they were new
	size         prometheus.Histogram
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
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_events_total", Help: "Webhooks by result: accepted (stored, operational ones too), or duplicate of one that was accepted before.",
		}, []string{"result"}),
		size: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kapsel_event_body_bytes", Help: "Sizes of the bodies of accepted webhooks.",
			Buckets: prometheus.ExponentialBuckets(256, 4, 9), // to 16 MiB
		}),
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
		registerer.MustRegister(m.events, m.size, m.skipped, m.filterErrors, m.operational)
	}
	return m
}

// watch registers what is read from the server when Prometheus asks.
func (*metrics) watch(registerer prometheus.Registerer, s *Server) {
	if registerer == nil {
		return
	}
	gauge := func(name, help string, value func() float64) {
		registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("kapsel_ingest_body_bytes", "Bytes of webhooks' bodies in memory: being read, or waiting for their commit.", s.bodies.held)
	gauge("kapsel_ingest_body_bytes_max", "How many there may be; beyond it webhooks are answered 503.", func() float64 { return float64(s.bodies.max) })
	registerer.MustRegister(postgres.NewPoolCollector("ingest", s.config.Engine), postgres.NewPoolCollector("management", s.config.API))
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

// accepted counts an event that was stored, and what filters did with it.
func (m *metrics) accepted(row *postgres.Acceptance) {
	m.events.WithLabelValues("accepted").Inc()
	m.size.Observe(float64(len(row.Body)))
	for _, d := range row.Deliveries {
		if d.Skipped != nil {
			m.skipped.Inc()
		}
		if d.FilterError != "" {
			m.filterErrors.WithLabelValues(d.FilterError).Inc()
		}
	}
}
