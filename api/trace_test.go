package api_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/tracing/tracingtest"
)

func traceTo(t testing.TB, endpoint string, ratio float64) *tracing.Tracer {
	t.Helper()
	tracer, err := tracing.New(t.Context(), tracing.Config{Endpoint: endpoint, Ratio: ratio, Service: "api", Log: zap.NewNop()})
	require.NoError(t, err)
	return tracer
}

const (
	sendersTrace = "0af7651916cd43dd8448eb211c80319c"
	sendersSpan  = "b7ad6b7169203331"
)

// A webhook that is accepted is in the trace of its event; one that isn't is in a trace of its request's. The sender's trace is
// a link of it, and the log has the same IDs.
func TestIngestIsTraced(t *testing.T) {
	t.Parallel()
	collector := tracingtest.New(t)
	tracer := traceTo(t, collector.URL, 1)
	core, logs := observer.New(zapcore.DebugLevel)
	site := setup(t, func(c *api.Config) { c.Tracing, c.Log = tracer, zap.New(core) })
	endpoint := site.endpoint(t)
	headers := []string{"Idempotency-Key", "one", "Traceparent", "00-" + sendersTrace + "-" + sendersSpan + "-01", "Tracestate", "a=planted"}
	first := site.do(t, "POST", "/ingest/"+endpoint+"?planted", strings.NewReader("planted"), headers...)
	require.Equal(t, 200, first.status)
	again := site.do(t, "POST", "/ingest/"+endpoint, strings.NewReader("planted"), "Idempotency-Key", "one", "Traceparent", "planted")
	require.Equal(t, "true", again.header.Get("Kapsel-Duplicate"))
	require.Equal(t, 404, site.do(t, "POST", "/ingest/planted", strings.NewReader("planted")).status)
	require.Equal(t, 401, site.do(t, "GET", "/api/v1/events", nil).status)
	tracer.Close()

	require.NotContains(t, string(collector.Raw()), "planted")
	event := acceptedID(t, first)
	trace := hexOf(t, event)
	spans := collector.Spans()
	require.Len(t, spans, 5, "two requests with a commit, and one without; the management API isn't traced")

	request, commit := collector.Named(trace, "POST /ingest/:endpoint_id")[0], collector.Named(trace, "commit")[0]
	require.Equal(t, trace[16:], request.ID())
	require.Empty(t, request.Parent())
	require.Equal(t, tracepb.Span_SPAN_KIND_SERVER, request.GetKind())
	require.Equal(t, 200, request.Number("http.response.status_code"))
	require.Equal(t, event, request.Text("kapsel.event_id"))
	require.Equal(t, endpoint, request.Text("kapsel.endpoint_id"))
	require.Equal(t, request.ID(), commit.Parent())
	require.Len(t, request.GetLinks(), 1)
	require.Equal(t, sendersTrace+sendersSpan, fmt.Sprintf("%x%x", request.GetLinks()[0].GetTraceId(), request.GetLinks()[0].GetSpanId()))
	require.Empty(t, request.GetLinks()[0].GetTraceState())

	for _, span := range spans {
		if span.Trace() == trace || span.GetName() == "commit" {
			continue
		}
		switch span.Number("http.response.status_code") {
		case 200:
			require.Equal(t, event, span.Text("kapsel.event_id"))
			require.Len(t, span.GetLinks(), 1, "what is malformed is no link")
			require.Equal(t, trace, fmt.Sprintf("%x", span.GetLinks()[0].GetTraceId()))
		case 404:
			require.Equal(t, "not-found", span.Text("kapsel.problem"))
		default:
			t.Errorf("span %v", span)
		}
	}
	line := logs.FilterField(zap.String("trace_id", trace)).All()
	require.Len(t, line, 1)
	require.Equal(t, trace[16:], line[0].ContextMap()["span_id"])
	require.Equal(t, event, line[0].ContextMap()["event_id"])
}

func hexOf(t testing.TB, event string) string {
	t.Helper()
	u, err := id.Event.Parse(event)
	require.NoError(t, err)
	return strings.ReplaceAll(u.String(), "-", "")
}

// Nobody has his webhooks sampled by asking for it.
func TestASendersFlagSamplesNothing(t *testing.T) {
	t.Parallel()
	collector := tracingtest.New(t)
	tracer := traceTo(t, collector.URL, 0)
	site := setup(t, func(c *api.Config) { c.Tracing = tracer })
	a := site.do(t, "POST", "/ingest/"+site.endpoint(t), strings.NewReader("x"), "Traceparent", "00-"+sendersTrace+"-"+sendersSpan+"-01")
	require.Equal(t, 200, a.status)
	tracer.Close()
	require.Empty(t, collector.Spans())
}

// BenchmarkIngestTraced is BenchmarkIngest with 64 callers: untraced, with every hundredth webhook traced, and with all. The collector
// is in the same process, and throws away what it gets.
func BenchmarkIngestTraced(b *testing.B) {
	for _, ratio := range []float64{-1, 0.01, 1} {
		b.Run(fmt.Sprintf("ratio=%v", ratio), func(b *testing.B) {
			var tracer *tracing.Tracer
			if ratio >= 0 {
				collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
				defer collector.Close()
				tracer = traceTo(b, collector.URL, ratio)
				defer tracer.Close()
			}
			ingestAtOnce(b, 64, func(c *api.Config) { c.Tracing = tracer })
		})
	}
}
