package tracing_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/tracing/tracingtest"
)

func newTracer(t *testing.T, config tracing.Config) *tracing.Tracer {
	t.Helper()
	if config.Log == nil {
		config.Log = zap.NewNop()
	}
	config.Service = "test"
	tracer, err := tracing.New(t.Context(), config)
	require.NoError(t, err)
	return tracer
}

// grpcCollector takes traces over gRPC.
type grpcCollector struct {
	collectorpb.UnimplementedTraceServiceServer
	tracingtest.Collector
}

func (c *grpcCollector) Export(_ context.Context, export *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	raw, err := proto.Marshal(export)
	c.Add(raw, export)
	return &collectorpb.ExportTraceServiceResponse{}, err
}

// Spans arrive over both protocols, with the IDs that follow from what they are about.
func TestSpansArriveAtTheirPlaces(t *testing.T) {
	t.Parallel()
	overHTTP, overGRPC := tracingtest.New(t), &grpcCollector{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, overGRPC)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	for config, collector := range map[tracing.Config]*tracingtest.Collector{
		{Ratio: 1, Endpoint: overHTTP.URL}:                                                 overHTTP,
		{Ratio: 1, Endpoint: "http://" + listener.Addr().String(), Protocol: tracing.GRPC}: &overGRPC.Collector,
	} {
		tracer := newTracer(t, config)
		event, delivery := id.New(), id.New()
		root, now := tracing.Root(event), time.Now()
		tracer.Tell(tracing.Span{Name: "root", Kind: trace.SpanKindServer, Place: root, Start: now.Add(-time.Second), End: now})
		tracer.Tell(tracing.Span{Name: "below", Place: root.At(delivery), Parent: root.Span, Start: now, End: now, Failed: "timeout",
			Links: []trace.Link{root.Link()}, Attributes: []attribute.KeyValue{attribute.Int("n", 5)}})
		tracer.Close()
		hex := strings.ReplaceAll(event.String(), "-", "")
		require.Len(t, collector.Spans(), 2)
		above, below := collector.Named(hex, "root")[0], collector.Named(hex, "below")[0]
		require.Equal(t, hex[16:], above.ID())
		require.Empty(t, above.Parent())
		require.Equal(t, "test", above.Service)
		require.EqualValues(t, time.Second, above.GetEndTimeUnixNano()-above.GetStartTimeUnixNano())
		require.Equal(t, above.ID(), below.Parent())
		require.Equal(t, strings.ReplaceAll(delivery.String(), "-", "")[16:], below.ID())
		require.Equal(t, 5, below.Number("n"))
		require.Equal(t, "timeout", below.Text("error.type"))
		require.Equal(t, tracepb.Status_STATUS_CODE_ERROR, below.GetStatus().GetCode())
		require.Len(t, below.GetLinks(), 1)
	}
}

// Whether a trace is sampled follows from its ID and the ratio alone, so processes agree without a word; UUIDv7 are sampled in
// the ratio that was asked for, although the bits that most samplers look at aren't random in them.
func TestSamplingAgreesAcrossProcesses(t *testing.T) {
	t.Parallel()
	const n = 20_000
	sampled := map[float64]int{}
	events := make([]uuid.UUID, n)
	for i := range events {
		events[i] = id.New()
	}
	var before *tracing.Tracer // of the smaller ratio
	for _, ratio := range []float64{0, 0.01, 0.25, 0.5, 1} {
		one := newTracer(t, tracing.Config{Endpoint: "http://127.0.0.1:1", Ratio: ratio})
		other := newTracer(t, tracing.Config{Endpoint: "http://127.0.0.1:2", Ratio: ratio, Protocol: tracing.GRPC})
		for _, event := range events {
			place := tracing.Root(event).At(id.At(event))
			require.Equal(t, one.Sampled(place), other.Sampled(tracing.Root(event)))
			if one.Sampled(place) {
				sampled[ratio]++
			} else {
				require.False(t, before.Sampled(place), "what a smaller ratio samples a larger one does too")
			}
			flag := map[bool]string{true: "-01", false: "-00"}[one.Sampled(place)]
			require.Equal(t, "00-"+strings.ReplaceAll(event.String(), "-", "")+"-"+place.Span.String()+flag, other.Traceparent(place))
		}
		require.InDelta(t, ratio, float64(sampled[ratio])/n, 0.025)
		before = one
	}
	require.Zero(t, sampled[0])
	require.Equal(t, n, sampled[1])
	_, err := tracing.New(t.Context(), tracing.Config{Endpoint: "http://127.0.0.1:1", Ratio: 1.1})
	require.Error(t, err)
}

// Of what a caller says of its trace the IDs are a link; nothing of what is malformed, and nothing else, is taken over.
func TestIncoming(t *testing.T) {
	t.Parallel()
	const trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, value := range []string{"00-" + trace + "-" + span + "-01", "00-" + trace + "-" + span + "-00", "cc-" + trace + "-" + span + "-01-more"} {
		links := tracing.Incoming(http.Header{"Traceparent": {value}, "Tracestate": {"a=b"}})
		require.Len(t, links, 1, value)
		require.Equal(t, trace, links[0].SpanContext.TraceID().String())
		require.Equal(t, span, links[0].SpanContext.SpanID().String())
		require.Zero(t, links[0].SpanContext.TraceState().Len())
	}
	good := "00-" + trace + "-" + span + "-01"
	for name, values := range map[string][]string{
		"none": nil, "empty": {""}, "two": {good, good}, "short": {good[1:]}, "long": {good + "-00"}, "upper case": {strings.ToUpper(good)},
		"no trace": {"00-00000000000000000000000000000000-" + span + "-01"}, "no span": {"00-" + trace + "-0000000000000000-01"},
		"version": {"ff-" + trace + "-" + span + "-01"}, "letters": {strings.Replace(good, "0af", "xyz", 1)}, "huge": {strings.Repeat(good, 2000)},
	} {
		require.Empty(t, tracing.Incoming(http.Header{"Traceparent": values}), name)
	}
}

// A nil tracer tells nothing and breaks nothing.
func TestOff(t *testing.T) {
	var off *tracing.Tracer
	place := tracing.Root(id.New())
	require.False(t, off.On())
	require.False(t, off.Sampled(place))
	require.Empty(t, off.Traceparent(place))
	require.Nil(t, off.Fields(place))
	require.Nil(t, off.Pairs(place))
	off.Tell(tracing.Span{Place: place})
	off.Close()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if off.Sampled(place) || off.Traceparent(place) != "" || off.Fields(place) != nil {
			t.Error("it is off")
		}
	}))
}

// Whoever tells never waits for the collector, whatever that does, and stopping waits 3 s at most. The log says once that it is away.
func TestACollectorThatIsAwayHoldsUpNobody(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer hanging.Close()
	defer close(release)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer refusing.Close()
	for endpoint, says := range map[string]string{hanging.URL: "", refusing.URL: "it refuses them", "http://127.0.0.1:1": "connection refused"} {
		core, logs := observer.New(zapcore.InfoLevel)
		tracer := newTracer(t, tracing.Config{Endpoint: endpoint, Ratio: 1, Log: zap.New(core)})
		done := make(chan struct{})
		go func() {
			defer close(done)
			now := time.Now()
			for range 50_000 { // many times what the queue holds
				tracer.Tell(tracing.Span{Name: "x", Place: tracing.Root(id.New()), Start: now, End: now})
			}
			tracer.Close()
		}()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: telling or stopping waits", endpoint)
		}
		require.LessOrEqual(t, logs.Len(), 1)
		for _, line := range logs.All() {
			require.Equal(t, "traces are not exported", line.Message)
			if says != "" {
				require.Equal(t, says, line.ContextMap()["cause"], endpoint)
			}
		}
	}
}

// The log says when a collector that was away takes traces again.
func TestACollectorComesBack(t *testing.T) {
	t.Parallel()
	collector := tracingtest.New(t)
	back := make(chan struct{})
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-back:
			http.Redirect(w, r, collector.URL+"/v1/traces", http.StatusTemporaryRedirect)
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer between.Close()
	core, logs := observer.New(zapcore.InfoLevel)
	tracer := newTracer(t, tracing.Config{Endpoint: between.URL, Ratio: 1, Log: zap.New(core)})
	tell := func() {
		tracer.Tell(tracing.Span{Name: "x", Place: tracing.Root(id.New()), Start: time.Now(), End: time.Now()})
	}
	tell()
	require.Eventually(t, func() bool { return logs.FilterMessage("traces are not exported").Len() == 1 }, time.Minute, 20*time.Millisecond)
	close(back)
	tell()
	tracer.Close()
	require.Len(t, collector.Spans(), 1)
	again := logs.FilterMessage("traces are exported again").All()
	require.Len(t, again, 1)
	require.EqualValues(t, 1, again[0].ContextMap()["lost_spans"])
}

// A collector's credentials are in no log, whatever it answers.
func TestCredentialsOfTheCollectorAreNotLogged(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20planted-5fK2qLx9")
	seen := make(chan string, 1)
	echoing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case seen <- r.Header.Get("Authorization"):
		default:
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(r.Header.Get("Authorization")))
	}))
	defer echoing.Close()
	core, logs := observer.New(zapcore.DebugLevel)
	tracer := newTracer(t, tracing.Config{Endpoint: echoing.URL, Ratio: 1, Log: zap.New(core)})
	tracer.Tell(tracing.Span{Name: "x", Place: tracing.Root(id.New()), Start: time.Now(), End: time.Now()})
	tracer.Close()
	require.Equal(t, "Bearer planted-5fK2qLx9", <-seen)
	require.Equal(t, 1, logs.Len())
	require.NotContains(t, fmt.Sprint(logs.All()[0].ContextMap()), "planted")
}

// BenchmarkTell tells spans such as an attempt's to a queue that is full, and of a trace that isn't sampled.
func BenchmarkTell(b *testing.B) {
	for _, ratio := range []float64{0, 1} {
		b.Run(fmt.Sprintf("ratio=%v", ratio), func(b *testing.B) {
			tracer, err := tracing.New(b.Context(), tracing.Config{Endpoint: "http://127.0.0.1:1", Ratio: ratio, Log: zap.NewNop()})
			require.NoError(b, err)
			defer tracer.Close()
			root, now := tracing.Root(id.New()), time.Now()
			b.ReportAllocs()
			for b.Loop() {
				if !tracer.Sampled(root) {
					continue
				}
				tracer.Tell(tracing.Span{Name: "attempt", Kind: trace.SpanKindClient, Place: root.Fresh(), Parent: root.Span, Start: now, End: now,
					Attributes: []attribute.KeyValue{attribute.Int("kapsel.attempt", 1), attribute.String("kapsel.outcome", "delivered")}})
			}
		})
	}
}
