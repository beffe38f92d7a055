package api_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/id"
)

func measured(registry *prometheus.Registry) func(*api.Config) {
	return func(c *api.Config) { c.Metrics = registry }
}

// series counts all series, and returns the sum of a family's counters or the counts of its histograms.
func series(t testing.TB, registry *prometheus.Registry, family string, labels ...string) (all int, sum float64) {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		all += len(f.GetMetric())
		for _, m := range f.GetMetric() {
			if f.GetName() == family && carries(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return all, sum
}

func carries(m *dto.Metric, labels []string) bool {
	has := map[string]string{}
	for _, l := range m.GetLabel() {
		has[l.GetName()] = l.GetValue()
	}
	for i := 0; i < len(labels); i += 2 {
		if has[labels[i]] != labels[i+1] {
			return false
		}
	}
	return true
}

func requireSum(t testing.TB, registry *prometheus.Registry, want float64, family string, labels ...string) {
	t.Helper()
	_, sum := series(t, registry, family, labels...)
	require.InDelta(t, want, sum, 0.01, "%s %v", family, labels)
}

func TestMetricsTellOfRequests(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	b := setup(t, measured(registry))
	endpoint := b.endpoint(t)
	for range 3 {
		acceptedID(t, b.ingest(t, endpoint, `{"n":1}`, "Idempotency-Key", "one"))
	}
	problem(t, b.ingest(t, endpoint, `{"n":2}`, "Idempotency-Key", "one"), http.StatusConflict, "idempotency-conflict")
	problem(t, b.ingest(t, id.Endpoint.Format(id.New()), "{}"), http.StatusNotFound, "not-found")

	const route = "/ingest/:endpoint_id"
	requireSum(t, registry, 3, "kapsel_http_requests_total", "route", route, "method", "POST", "status", "200")
	requireSum(t, registry, 1, "kapsel_http_requests_total", "route", route, "method", "POST", "status", "404")
	requireSum(t, registry, 5, "kapsel_http_request_duration_seconds", "route", route, "method", "POST")
	requireSum(t, registry, 1, "kapsel_http_requests_total", "route", "/api/v1/endpoints", "method", "POST", "status", "201")
	requireSum(t, registry, 0, "kapsel_http_requests_in_flight")
	requireSum(t, registry, 1, "kapsel_events_total", "result", "accepted")
	requireSum(t, registry, 2, "kapsel_events_total", "result", "duplicate")
	requireSum(t, registry, 1, "kapsel_event_body_bytes")
	requireSum(t, registry, 4, "kapsel_commit_rows", "group", "accept")
	requireSum(t, registry, 0, "kapsel_ingest_body_bytes")
	requireSum(t, registry, 256<<20, "kapsel_ingest_body_bytes_max")
	_, acquired := series(t, registry, "kapsel_postgres_acquires_total", "pool", "ingest")
	require.Positive(t, acquired)

	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	require.Empty(t, problems)
}

// What clients send makes no series: neither paths nor methods, endpoints, tenants or header values.
func TestAFloodGrowsNoSeries(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	b := setup(t, measured(registry))
	random := func() string { return fmt.Sprintf("%x", rand.Uint64()) }
	visit := func() {
		b.do(t, "GET", "/"+random(), nil)
		b.do(t, "GET", "/api/v1/events/"+id.Event.Format(id.New())+"?x="+random(), nil)
		b.do(t, "GET", "/api/v1/events/"+random(), nil, "Authorization", "Bearer "+b.key)
		b.do(t, "GET", "/log/"+random()+"/tile/"+random(), nil)
		b.do(t, strings.ToUpper("m"+random()), "/api/v1/endpoints", nil)
		b.do(t, strings.ToUpper("m"+random()), "/"+random(), nil)
		b.ingest(t, id.Endpoint.Format(id.New()), random(), "X-"+random(), random())
		b.ingest(t, random(), random())
		_, key := b.addTenant(t, random())
		b.do(t, "GET", "/api/v1/endpoints", nil, "Authorization", "Bearer "+key)
	}
	visit()
	before, _ := series(t, registry, "")
	for range 20 {
		visit()
	}
	after, unknown := series(t, registry, "kapsel_http_requests_total", "route", "none", "method", "none")
	require.Equal(t, before, after)
	require.InDelta(t, 3*21, unknown, 0.01)
}
