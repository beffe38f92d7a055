package worker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/workflows"
)

// defaultReconcileEvery is how often attempts and logs are compared.
const defaultReconcileEvery = 5 * time.Minute

// ensureReconciliation makes the schedule that compares attempts and logs, or gives it another interval. Any number of workers may do
// so at once. That somebody paused it stays.
func ensureReconciliation(ctx context.Context, temporalClient client.Client, every time.Duration) error {
	spec := client.ScheduleSpec{Intervals: []client.ScheduleIntervalSpec{{Every: every}}, Jitter: every / 10}
	_, err := temporalClient.ScheduleClient().Create(ctx, client.ScheduleOptions{
		ID:   workflows.ReconcileScheduleID,
		Spec: spec,
		Action: &client.ScheduleWorkflowAction{
			ID:                       workflows.ReconcileScheduleID,
			Workflow:                 workflows.ReconcileName,
			TaskQueue:                workflows.AttestationTaskQueue,
			WorkflowExecutionTimeout: 2 * time.Hour,
			StaticSummary:            "compares attempts and logs",
		},
		Overlap:            enums.SCHEDULE_OVERLAP_POLICY_SKIP,
		CatchupWindow:      every,
		TriggerImmediately: true,
	})
	if err == nil || !errors.Is(err, temporal.ErrScheduleAlreadyRunning) {
		return wrapped("make schedule of reconciliation", err)
	}
	handle := temporalClient.ScheduleClient().GetHandle(ctx, workflows.ReconcileScheduleID)
	described, err := handle.Describe(ctx)
	if err != nil {
		return wrapped("describe schedule of reconciliation", err)
	}
	if now := described.Schedule.Spec; now != nil && len(now.Intervals) == 1 && now.Intervals[0].Every == every {
		return nil
	}
	err = handle.Update(ctx, client.ScheduleUpdateOptions{DoUpdate: func(in client.ScheduleUpdateInput) (*client.ScheduleUpdate, error) {
		schedule := in.Description.Schedule
		schedule.Spec = &spec
		if schedule.Policy != nil {
			schedule.Policy.CatchupWindow = every
		}
		return &client.ScheduleUpdate{Schedule: &schedule}, nil
	}})
	return wrapped("change schedule of reconciliation", err)
}

func wrapped(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// sealingMetrics say how the logs stand, in the whole database: every worker says the same.
type sealingMetrics struct {
	unattested  *prometheus.GaugeVec
	deadLetters *prometheus.GaugeVec
	findings    *prometheus.GaugeVec
}

func newSealingMetrics(registerer prometheus.Registerer) *sealingMetrics {
	m := &sealingMetrics{
		unattested: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kapsel_oldest_unattested_seconds", Help: "How long the oldest leaf of a log has waited for a published head; 0 if none waits. Every worker says the same.",
		}, []string{"log_id"}),
		deadLetters: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kapsel_attestation_dead_letters", Help: "Leaves that were set aside and are not resolved. Every worker says the same.",
		}, []string{"log_id"}),
		findings: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kapsel_attestation_findings", Help: "What reconciliation found and can't repair, by problem. Every worker says the same.",
		}, []string{"problem"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.unattested, m.deadLetters, m.findings)
	}
	return m
}

// logsShown is of how many logs metrics tell one by one.
const logsShown = 10

// watchSealing reads the figures until ctx ends.
func (w *Worker) watchSealing(ctx context.Context) {
	m := newSealingMetrics(w.config.Metrics)
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		if figures, err := postgres.Figures(ctx, w.config.Engine); err == nil {
			m.set(figures)
		} else if ctx.Err() == nil {
			w.config.Log.Warn("logs not looked at", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (m *sealingMetrics) set(f postgres.SealingFigures) {
	m.unattested.Reset() // logs are closed, and problems solved
	m.deadLetters.Reset()
	m.findings.Reset()
	for _, log := range most(f.Unattested) {
		m.unattested.WithLabelValues(id.Log.Format(log)).Set(f.Unattested[log].Seconds())
	}
	for _, log := range most(f.DeadLetters) {
		m.deadLetters.WithLabelValues(id.Log.Format(log)).Set(float64(f.DeadLetters[log]))
	}
	for problem, n := range f.Findings {
		m.findings.WithLabelValues(problem).Set(float64(n))
	}
}

// most are the logs with the most, as many of them as have series of their own.
func most[N cmp.Ordered](of map[uuid.UUID]N) []uuid.UUID {
	logs := slices.SortedFunc(maps.Keys(of), func(a, b uuid.UUID) int {
		return cmp.Or(cmp.Compare(of[b], of[a]), bytes.Compare(a[:], b[:]))
	})
	return logs[:min(len(logs), logsShown)]
}
