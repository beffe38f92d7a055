package tracing

import (
	"context"
	"encoding/hex"
	"net/http"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// HeaderTraceparent carries a trace's context from one system to the next (W3C Trace Context).
const HeaderTraceparent = "Traceparent"

// Traceparent is the header's value for whoever is called at a place; empty if nothing is traced. Its flag says whether the
// trace is sampled here.
func (t *Tracer) Traceparent(p Place) string {
	if t == nil {
		return ""
	}
	const version, sampled, dropped = "00-", "-01", "-00"
	flags := dropped
	if t.Sampled(p) {
		flags = sampled
	}
	return version + p.Trace.String() + "-" + p.Span.String() + flags
}

// Incoming is the link to the trace in which a caller says that it is; nil if it says nothing that can be understood. Nothing
// else of what it says is believed: not that it is sampled, for anybody could have everything sampled, and no tracestate,
// which may hold anything.
func Incoming(h http.Header) []trace.Link {
	values := h[HeaderTraceparent]
	if len(values) != 1 {
		return nil
	}
	carrier := propagation.MapCarrier{"traceparent": values[0]}
	said := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
	if !said.IsValid() {
		return nil
	}
	return []trace.Link{{SpanContext: trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: said.TraceID(), SpanID: said.SpanID(), TraceFlags: said.TraceFlags() & trace.FlagsSampled, Remote: true,
	})}}
}

// Fields are what a line of the log says of its place; nil if nothing is traced.
func (t *Tracer) Fields(p Place) []zap.Field {
	if t == nil {
		return nil
	}
	return []zap.Field{zap.String("trace_id", hex.EncodeToString(p.Trace[:])), zap.String("span_id", hex.EncodeToString(p.Span[:]))}
}

// Pairs are Fields as Temporal's loggers take them.
func (t *Tracer) Pairs(p Place) []any {
	if t == nil {
		return nil
	}
	return []any{"trace_id", hex.EncodeToString(p.Trace[:]), "span_id", hex.EncodeToString(p.Span[:])}
}
