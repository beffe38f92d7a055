package worker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
)

// metrics are what a worker tells of how it carries deliveries.
type metrics struct {
	claimed  *prometheus.CounterVec // deliveries, by lane
	batching prometheus.Gauge
	eager    *prometheus.CounterVec // workflow starts, by whether their first task came back with the answer
	circuits *prometheus.GaugeVec   // by state, those that are not closed
	disabled prometheus.Counter
	rounds   *prometheus.HistogramVec // of the dispatcher, by step
	failures *prometheus.CounterVec   // of these
	lost     *prometheus.CounterVec   // carriers that were gone, by who noticed
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		claimed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_deliveries_claimed_total", Help: "Deliveries claimed, by the lane that carries them.",
		}, []string{"lane"}),
		batching: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kapsel_dispatcher_batching", Help: "1 while endpoints of lane auto are carried in batches, because of a backlog.",
		}),
		eager: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_workflow_starts_total", Help: "Workflows started, by whether Temporal granted an eager start.",
		}, []string{"eager"}),
		circuits: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kapsel_circuits", Help: "Destinations whose circuit is open or half open, by state, in the whole database: every worker says the same.",
		}, []string{"state"}),
		disabled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kapsel_destinations_disabled_total", Help: "Destinations that this worker disabled because their receiver kept failing.",
		}),
		rounds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kapsel_dispatcher_round_duration_seconds", Help: "How long the dispatcher's rounds take, by step.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"step"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_dispatcher_round_failures_total", Help: "Of these, those that ended with an error; the next one tries again.",
		}, []string{"step"}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_carriers_lost_total",
			Help: "Deliveries that went back into the queue because the workflow that carried them was gone, by who noticed: dispatcher or sweeper.",
		}, []string{"by"}),
	}
	for _, by := range []string{"dispatcher", "sweeper"} {
		m.lost.WithLabelValues(by) // so that the first one is seen as an increase
	}
	if registerer != nil {
		registerer.MustRegister(m.claimed, m.batching, m.eager, m.circuits, m.disabled, m.rounds, m.failures, m.lost)
	}
	return m
}

// countStarts sees every request to Temporal, and counts how its workflow starts are answered.
func (m *metrics) countStarts(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	if started, ok := reply.(*workflowservice.StartWorkflowExecutionResponse); ok && err == nil {
		m.eager.WithLabelValues(strconv.FormatBool(started.GetEagerWorkflowTask() != nil)).Inc()
	}
	return err
}

// ServeMetrics answers Prometheus on listener, at /metrics, until ctx ends, and probes by health, if that isn't nil.
func ServeMetrics(ctx context.Context, listener net.Listener, gatherer prometheus.Gatherer, health *Health) error {
	mux := http.NewServeMux()
	if health != nil {
		mux.Handle("GET /health/", health.Handler())
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); ctx.Err() == nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
