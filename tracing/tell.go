package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Tell hands a span to the exporter. It never waits: what finds the exporter's queue full is lost. Whether the span is sampled is
// the caller's to ask, before it collects what it would say.
func (t *Tracer) Tell(s Span) {
	if t == nil {
		return
	}
	ctx := context.WithValue(context.Background(), wantedKey{}, s.Place)
	if s.Parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: s.Place.Trace, SpanID: s.Parent, TraceFlags: trace.FlagsSampled,
		}))
	}
	_, span := t.tracer.Start(ctx, s.Name, trace.WithSpanKind(s.Kind), trace.WithTimestamp(s.Start),
		trace.WithAttributes(s.Attributes...), trace.WithLinks(s.Links...))
	if s.Failed != "" {
		span.SetStatus(codes.Error, s.Failed)
		span.SetAttributes(attribute.String("error.type", s.Failed))
	}
	span.End(trace.WithTimestamp(s.End))
}

// wantedKey is the key, in the context of one call, of the Place that its span is to have.
type wantedKey struct{}

// wantedIDs gives each span the IDs of its Place.
type wantedIDs struct{}

func (wantedIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	place, _ := ctx.Value(wantedKey{}).(Place)
	return place.Trace, place.Span
}

func (wantedIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	place, _ := ctx.Value(wantedKey{}).(Place)
	return place.Span
}
