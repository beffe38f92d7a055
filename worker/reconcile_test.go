package worker

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// Of many logs, those have series of their own that are worst.
func TestSealingMetricsTellOfTheWorstLogs(t *testing.T) {
	t.Parallel()
	figures := postgres.SealingFigures{Unattested: map[uuid.UUID]time.Duration{}, DeadLetters: map[uuid.UUID]int{}}
	var slowest, worst uuid.UUID
	for i := range 25 {
		log := id.New()
		figures.Unattested[log], figures.DeadLetters[log] = time.Duration(i)*time.Second, 100-i
		slowest = log
		if i == 0 {
			worst = log
		}
	}
	m := newSealingMetrics(prometheus.NewRegistry())
	m.set(figures)
	require.Equal(t, 10, testutil.CollectAndCount(m.unattested))
	require.Equal(t, 10, testutil.CollectAndCount(m.deadLetters))
	require.Equal(t, 24.0, testutil.ToFloat64(m.unattested.WithLabelValues(id.Log.Format(slowest))))
	require.Equal(t, 100.0, testutil.ToFloat64(m.deadLetters.WithLabelValues(id.Log.Format(worst))))
	figures.DeadLetters = map[uuid.UUID]int{}
	m.set(figures)
	require.Zero(t, testutil.CollectAndCount(m.deadLetters))
}
