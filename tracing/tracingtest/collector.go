// Package tracingtest is a collector for tests: it takes traces by OTLP over HTTP, and shows them.
package tracingtest

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector keeps what it is sent.
type Collector struct {
	URL string

	mu    sync.Mutex
	raw   []byte
	spans []Span
}

// Span is a span as it arrived.
type Span struct {
	*tracepb.Span
	Service string
}

// New runs a collector until the test ends.
func New(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var export collectorpb.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &export) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.Add(body, &export)
	}))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// Add keeps an export, whatever way it came.
func (c *Collector) Add(raw []byte, export *collectorpb.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, raw...)
	for _, of := range export.GetResourceSpans() {
		service := attribute(of.GetResource().GetAttributes(), "service.name").GetStringValue()
		for _, scope := range of.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.spans = append(c.spans, Span{span, service})
			}
		}
	}
}

// Raw is all that arrived, byte for byte.
func (c *Collector) Raw() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.raw)
}

// Spans are all that arrived.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Named are the spans of a trace, in hexadecimal, with a name.
func (c *Collector) Named(trace, name string) (found []Span) {
	for _, span := range c.Spans() {
		if span.Trace() == trace && span.GetName() == name {
			found = append(found, span)
		}
	}
	return found
}

// Trace is the trace's ID in hexadecimal.
func (s Span) Trace() string { return hex.EncodeToString(s.GetTraceId()) }

// ID is the span's ID in hexadecimal.
func (s Span) ID() string { return hex.EncodeToString(s.GetSpanId()) }

// Parent is the ID of the span above it, in hexadecimal; "" if there is none.
func (s Span) Parent() string { return hex.EncodeToString(s.GetParentSpanId()) }

// Text is an attribute's text; "" if it isn't there.
func (s Span) Text(key string) string { return attribute(s.GetAttributes(), key).GetStringValue() }

// Number is an attribute's number; 0 if it isn't there.
func (s Span) Number(key string) int { return int(attribute(s.GetAttributes(), key).GetIntValue()) }

func attribute(attributes []*commonpb.KeyValue, key string) *commonpb.AnyValue {
	for _, a := range attributes {
		if a.GetKey() == key {
			return a.GetValue()
		}
	}
	return nil
}
