package activities

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
)

// sealMetrics are what sealing tells of itself.
type sealMetrics struct {
	errors   *prometheus.CounterVec
	breakers *prometheus.GaugeVec
	aside    *prometheus.CounterVec
}

func newSealMetrics(registerer prometheus.Registerer) *sealMetrics {
	m := &sealMetrics{
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_signer_errors_total", Help: "Heads that couldn't be published, by what was in the way: signer, high_water, clock, timeout or other.",
		}, []string{"log_id", "cause"}),
		breakers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kapsel_signer_breaker", Help: "1 for the state in which this worker's breaker before the signer is: closed, open or half_open.",
		}, []string{"log_id", "state"}),
		aside: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_leaves_set_aside_total", Help: "Leaves that this worker put into attestation_dead_letters.",
		}, []string{"log_id"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.errors, m.breakers, m.aside)
	}
	return m
}

func (m *sealMetrics) breaker(log string, now breakerState) {
	for _, state := range []breakerState{breakerClosed, breakerOpen, breakerHalfOpen} {
		value := 0.0
		if state == now {
			value = 1
		}
		m.breakers.WithLabelValues(log, string(state)).Set(value)
	}
}

func (m *sealMetrics) failed(log string, err error) {
	m.errors.WithLabelValues(log, causeOf(err)).Inc()
}

// causeOf says in a word what kept a head from being published.
func causeOf(err error) string {
	for cause, targets := range map[string][]error{
		"signer":     {attestation.ErrSigner, attestation.ErrNoSeed, attestation.ErrSeed},
		"high_water": {attestation.ErrHighWaterConflict, attestation.ErrHighWaterCorrupt, attestation.ErrHighWaterMissing},
		"clock":      {postgres.ErrClock},
		"timeout":    {context.DeadlineExceeded, errHangs},
	} {
		for _, target := range targets {
			if errors.Is(err, target) {
				return cause
			}
		}
	}
	return "other"
}
