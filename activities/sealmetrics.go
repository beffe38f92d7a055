package activities

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
)

// sealMetrics are what sealing tells of itself, of all logs together: tenants may have logs of their own, and the lines of the log say which.
type sealMetrics struct {
	errors   *prometheus.CounterVec
	breakers *prometheus.GaugeVec
	aside    prometheus.Counter
}

func newSealMetrics(registerer prometheus.Registerer) *sealMetrics {
	m := &sealMetrics{
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_signer_errors_total", Help: "Heads that couldn't be published, by what was in the way: signer, high_water, clock, timeout or other.",
		}, []string{"cause"}),
		breakers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kapsel_signer_breaker", Help: "Logs by the state of this worker's breaker before their signer: closed, open or half_open.",
		}, []string{"state"}),
		aside: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_leaves_set_aside_total", Help: "Leaves that this worker put into attestation_dead_letters.",
		}),
	}
	for _, state := range []breakerState{breakerClosed, breakerOpen, breakerHalfOpen} {
		m.breakers.WithLabelValues(string(state))
	}
	for cause := range causes {
		m.errors.WithLabelValues(cause) // so that the first one is seen as an increase
	}
	m.errors.WithLabelValues("other")
	if registerer != nil {
		registerer.MustRegister(m.errors, m.breakers, m.aside)
	}
	return m
}

// breaker counts a log under the state that its breaker has now, and no longer under the one it had; "": it had none.
func (m *sealMetrics) breaker(before, now breakerState) {
	if before != "" {
		m.breakers.WithLabelValues(string(before)).Dec()
	}
	m.breakers.WithLabelValues(string(now)).Inc()
}

func (m *sealMetrics) failed(err error) { m.errors.WithLabelValues(causeOf(err)).Inc() }

// causes are what is in the way, by the errors that say so.
var causes = map[string][]error{
	"signer":     {attestation.ErrSigner, attestation.ErrNoSeed, attestation.ErrSeed},
	"high_water": {attestation.ErrHighWaterConflict, attestation.ErrHighWaterCorrupt, attestation.ErrHighWaterMissing},
	"clock":      {postgres.ErrClock},
	"timeout":    {context.DeadlineExceeded, errHangs},
}

// causeOf says in a word what kept a head from being published.
func causeOf(err error) string {
	for cause, targets := range causes {
		for _, target := range targets {
			if errors.Is(err, target) {
				return cause
			}
		}
	}
	return "other"
}
