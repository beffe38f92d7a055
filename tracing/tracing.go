// Package tracing tells of webhooks as OpenTelemetry traces, which it exports by OTLP.
//
// A trace is an event: its trace ID is the event's UUID, and the spans that others refer to have IDs that follow from those of
// what they are about. So whoever knows an event, a delivery or an attempt knows its place, and whether it is sampled, without
// anything being stored or handed over: not in Postgres, and not in a workflow (docs/adr/0035). A span is told when it is over.
//
// A nil *Tracer tells nothing; each method may be called on it.
package tracing

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// The protocols of OTLP.
const (
	HTTP = "http/protobuf"
	GRPC = "grpc"
)

// Config says where traces go, and which.
type Config struct {
	// Endpoint is the collector's URL; over HTTP, /v1/traces is added to its path. Needed, unless TracesEndpoint is set, which is
	// taken as it is. What else there is to say of the way there (TLS, headers, time-outs) the exporter reads in the standard
	// variables, OTEL_EXPORTER_OTLP_….
	Endpoint, TracesEndpoint string
	// Protocol is HTTP or GRPC. Default: HTTP.
	Protocol string
	// Ratio is how much of all traces is sampled, 0 to 1. Each trace is or isn't, in all processes alike.
	Ratio float64
	// Service is what this process is called unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise.
	Service string
	// Log is told when the collector goes away and comes back.
	Log *zap.Logger
}

// Tracer tells spans.
type Tracer struct {
	provider  *sdktrace.TracerProvider
	tracer    trace.Tracer
	threshold uint64 // of the 56 random bits of a trace ID; what is below it isn't sampled
}

// randomness is what of a trace ID is random (W3C Trace Context, level 2): its last 56 bits. In a UUIDv7 they are. The bits
// before them are not, so a sampler that looks at 63 bits, as OpenTelemetry's TraceIDRatioBased does, would be wrong about them.
const randomness = 1<<56 - 1

// New returns a tracer; Close it. The collector needn't be there.
func New(ctx context.Context, config Config) (*Tracer, error) {
	if !(config.Ratio >= 0 && config.Ratio <= 1) {
		return nil, errors.New("the ratio must be 0 to 1")
	}
	// OpenTelemetry prints what it can't read of its variables, and these hold credentials.
	otel.SetLogger(logr.Discard())
	exporter, err := newExporter(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("make exporter of traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", config.Service)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, errors.New("OTEL_RESOURCE_ATTRIBUTES can't be read; it must be like name=value,name=value")
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&watched{exporter: exporter, log: config.Log}), // whose queue is bounded and never waited for
		sdktrace.WithSampler(sdktrace.AlwaysSample()),                       // what isn't sampled isn't told
		sdktrace.WithIDGenerator(wantedIDs{}),
		sdktrace.WithResource(about),
	)
	return &Tracer{
		provider: provider, tracer: provider.Tracer("github.com/kapsel-io/kapsel"),
		threshold: uint64(math.Round((1 - config.Ratio) * (randomness + 1))),
	}, nil
}

func newExporter(ctx context.Context, config Config) (*otlptrace.Exporter, error) {
	endpoint := config.TracesEndpoint
	switch config.Protocol {
	case GRPC:
		if endpoint == "" {
			endpoint = config.Endpoint
		}
		return otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint))
	case HTTP, "":
		if endpoint == "" {
			endpoint = strings.TrimSuffix(config.Endpoint, "/") + "/v1/traces"
		}
		return otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint))
	}
	return nil, fmt.Errorf("protocol is %.40q; allowed are %s and %s", config.Protocol, HTTP, GRPC)
}

// closeFor is how long Close waits for the collector.
const closeFor = 3 * time.Second

// Close exports what was told, within 3 s; what the collector doesn't take by then is lost.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeFor)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // the exporter has said what is wrong
}

// On reports whether there is anybody to tell.
func (t *Tracer) On() bool { return t != nil }

// Sampled reports whether the spans at a place are told. It follows from the trace's ID and the ratio alone.
func (t *Tracer) Sampled(p Place) bool {
	return t != nil && binary.BigEndian.Uint64(p.Trace[8:])&randomness >= t.threshold
}

// Place is where a span is: in which trace, and under which ID.
type Place struct {
	Trace trace.TraceID
	Span  trace.SpanID
}

// Root is the place of the first span of a trace: an event's, a request's that made no event, a batch's.
func Root(of uuid.UUID) Place { return Place{Trace: trace.TraceID(of)}.At(of) }

// At is the place, in the same trace, of the span about something with this ID: a delivery, an attempt.
func (p Place) At(subject uuid.UUID) Place {
	p.Span = trace.SpanID(subject[8:]) // 62 random bits, and never zero: the variant is among the others
	return p
}

// Fresh is a place in the same trace to which nobody else refers.
func (p Place) Fresh() Place {
	binary.BigEndian.PutUint64(p.Span[:], rand.Uint64()|1)
	return p
}

// Link refers to another span.
func (p Place) Link() trace.Link {
	return trace.Link{SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: p.Trace, SpanID: p.Span})}
}

// Span is one that is over.
type Span struct {
	Name       string
	Kind       trace.SpanKind
	Place      Place
	Parent     trace.SpanID // zero: it is the first of its trace
	Start, End time.Time
	Links      []trace.Link
	// Failed is the class of what went wrong, and never an error's text, which could hold anything. Empty: nothing did.
	Failed     string
	Attributes []attribute.KeyValue
}
