package worker

import (
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/uber-go/tally/v4"
	tallyprometheus "github.com/uber-go/tally/v4/prometheus"
	"go.temporal.io/sdk/client"
	sdktally "go.temporal.io/sdk/contrib/tally"
	"go.uber.org/zap"
)

// sdkReportEvery is how often the counts of Temporal's SDK are passed on.
const sdkReportEvery = time.Second

// sdkMetrics has Temporal's SDK tell Prometheus of its requests, workflow tasks and activities, under the names that Temporal
// documents (temporal_…). Its labels are names of task queues, workflow and activity types, operations, never an ID.
func sdkMetrics(registerer prometheus.Registerer, log *zap.Logger) (client.MetricsHandler, io.Closer) {
	if registerer == nil {
		return nil, io.NopCloser(nil)
	}
	reporter := tallyprometheus.NewReporter(tallyprometheus.Options{
		Registerer:       registerer,
		DefaultTimerType: tallyprometheus.HistogramTimerType,
		DefaultHistogramBuckets: []float64{
			.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300,
		},
		OnRegisterError: func(err error) { log.Error("a metric of Temporal's SDK was not registered", zap.Error(err)) },
	})
	scope, closer := tally.NewRootScope(tally.ScopeOptions{
		CachedReporter:         reporter,
		Separator:              tallyprometheus.DefaultSeparator,
		SanitizeOptions:        &sdktally.PrometheusSanitizeOptions,
		OmitCardinalityMetrics: true,
	}, sdkReportEvery)
	return sdktally.NewMetricsHandler(sdktally.NewPrometheusNamingScope(scope)), closer
}
