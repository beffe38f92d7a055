package api

import (
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
)

// unrouted is the route and the method of requests that no route takes. What they ask for is up to the client, and must not
// become a label.
const unrouted = "none"

// httpMetrics tell of requests: how many, how many of them failed, how long they took. A route is its pattern, never a path,
// so that there are as many series as openapi.yaml has operations.
type httpMetrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

func newHTTPMetrics(registerer prometheus.Registerer) *httpMetrics {
	m := &httpMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kapsel_http_requests_total", Help: "Requests that were answered, by route, method and status.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kapsel_http_request_duration_seconds", Help: "How long requests took until they were answered, by route and method.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kapsel_http_requests_in_flight", Help: "Requests that are being read or answered.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.requests, m.duration, m.inFlight)
	}
	return m
}

// observe stands around every handler, also the one that recovers from panics.
func (m *httpMetrics) observe(c *gin.Context) {
	start := time.Now()
	m.inFlight.Inc()
	defer m.inFlight.Dec()
	c.Next()
	route, method := c.FullPath(), c.Request.Method
	if route == "" {
		route, method = unrouted, unrouted
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(c.Writer.Status())).Inc()
	m.duration.WithLabelValues(route, method).Observe(time.Since(start).Seconds())
}
