package activities

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/activity"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/tracing"
)

// Spans hold IDs, numbers and classes: no URL, since its host, path and query may be the receiver's secrets, no header and no
// error's text.

// attemptPlace is where the span of an attempt is. Whoever knows the attempt finds it: the receiver by its traceparent, and
// whoever seals its leaf.
func attemptPlace(event, delivery uuid.UUID, number int) tracing.Place {
	return tracing.Root(event).At(id.AttemptOf(delivery, number))
}

// carrier is the activity that makes attempts, as their spans name it.
type carrier struct {
	parent trace.SpanID
	links  []trace.Link
	lane   string
}

// singleCarrier is SendAttempt as the carrier of one attempt: its span is below the delivery's.
func (a *Activities) singleCarrier(event uuid.UUID) carrier {
	if !a.Tracing.On() {
		return carrier{}
	}
	return carrier{parent: tracing.Root(event).Fresh().Span, lane: "workflow"}
}

// tellSingle tells of a SendAttempt that has sent.
func (a *Activities) tellSingle(ctx context.Context, s sending, began time.Time) {
	event := tracing.Root(s.Payload.EventID)
	if !a.Tracing.Sampled(event) {
		return
	}
	a.Tracing.Tell(tracing.Span{
		Name: "SendAttempt", Place: tracing.Place{Trace: event.Trace, Span: s.Carrier.parent}, Parent: event.At(s.Delivery).Span,
		Start: began, End: time.Now(), Attributes: ofActivity(ctx, attribute.String("kapsel.delivery_id", id.Delivery.Format(s.Delivery))),
	})
}

// ofActivity adds what Temporal calls the activity that ctx is of.
func ofActivity(ctx context.Context, attributes ...attribute.KeyValue) []attribute.KeyValue {
	if !activity.IsActivity(ctx) {
		return attributes
	}
	info := activity.GetInfo(ctx)
	return append(attributes, attribute.String("temporal.workflow_id", info.WorkflowExecution.ID),
		attribute.String("temporal.run_id", info.WorkflowExecution.RunID), attribute.Int("temporal.activity_attempt", int(info.Attempt)))
}

// batchSpan is what is known of the span of a SendBatch, which has a trace of its own: it makes attempts in many others.
type batchSpan struct {
	span tracing.Span
	used atomic.Bool // one of the attempts is sampled
}

// beginBatch is nil if nothing is traced. Each run has a span of its own, in the trace of the claim.
func (a *Activities) beginBatch(ctx context.Context, claim uuid.UUID, began time.Time) *batchSpan {
	if !a.Tracing.On() {
		return nil
	}
	return &batchSpan{span: tracing.Span{
		Name: "SendBatch", Place: tracing.Root(claim).Fresh(), Start: began,
		Attributes: ofActivity(ctx, attribute.String("kapsel.claim_id", id.Claim.Format(claim))),
	}}
}

// batchCarrier is the batch as the carrier of one attempt: the attempt's span is below the delivery's, and names the batch's.
func (b *batch) batchCarrier(event uuid.UUID) carrier {
	if !b.Tracing.Sampled(tracing.Root(event)) {
		return carrier{}
	}
	b.span.used.Store(true)
	return carrier{links: []trace.Link{b.span.span.Place.Link()}, lane: "batch"}
}

// end tells of a batch that an attempt names.
func (b *batchSpan) end(t *tracing.Tracer, result *BatchResult) {
	if b == nil || !b.used.Load() {
		return
	}
	b.span.End = time.Now()
	b.span.Attributes = append(b.span.Attributes, attribute.Int("kapsel.sent", result.Sent), attribute.Int("kapsel.deferred", result.Deferred))
	t.Tell(b.span)
}

// tellAttempt tells of a request that was sent.
func (a *Activities) tellAttempt(place tracing.Place, to *target, s sending, o *Outcome) {
	if !a.Tracing.Sampled(place) {
		return
	}
	parent := s.Carrier.parent
	if !parent.IsValid() {
		parent = place.At(s.Delivery).Span
	}
	span := tracing.Span{
		Name: "attempt", Kind: trace.SpanKindClient, Place: place, Parent: parent, Links: s.Carrier.links,
		Start: o.AttemptedAt, End: o.AttemptedAt.Add(o.Duration),
		Attributes: []attribute.KeyValue{
			attribute.String("http.request.method", "POST"), attribute.Int("kapsel.attempt", s.Attempt),
			attribute.String("kapsel.attempt_id", id.Attempt.Format(id.AttemptOf(s.Delivery, s.Attempt))),
			attribute.String("kapsel.delivery_id", id.Delivery.Format(s.Delivery)),
			attribute.String("kapsel.destination_id", id.Destination.Format(to.ID)),
			attribute.String("kapsel.outcome", o.Outcome), attribute.String("kapsel.lane", s.Carrier.lane),
		},
	}
	if s.Probe != uuid.Nil {
		span.Attributes = append(span.Attributes, attribute.Bool("kapsel.probe", true))
	}
	if o.ResponseStatus != 0 {
		span.Attributes = append(span.Attributes, attribute.Int("http.response.status_code", o.ResponseStatus))
	}
	if o.Outcome != string(delivery.OutcomeDelivered) {
		if span.Failed = o.Error; span.Failed == "" {
			span.Failed = strconv.Itoa(o.ResponseStatus)
		}
	}
	a.Tracing.Tell(span)
}

// tellRecord tells of the record of an attempt, beside the attempt's span: its wait for a commit, which many may share, and that.
func (a *Activities) tellRecord(s sending, began time.Time, err error) {
	place := tracing.Root(s.Payload.EventID)
	if !a.Tracing.Sampled(place) {
		return
	}
	parent := s.Carrier.parent
	if !parent.IsValid() {
		parent = place.At(s.Delivery).Span
	}
	span := tracing.Span{
		Name: "record", Kind: trace.SpanKindClient, Place: place.Fresh(), Parent: parent, Start: began, End: time.Now(),
		Attributes: []attribute.KeyValue{attribute.String("db.system.name", "postgresql"), attribute.Int("kapsel.attempt", s.Attempt)},
	}
	if err != nil {
		span.Failed = "unrecorded" // the workflow does it
	}
	a.Tracing.Tell(span)
}

// tellEnded tells of a delivery that is over, from the acceptance of its event on. It is told after the commit that ends it, so
// once, and by whoever committed.
func tellEnded(t *tracing.Tracer, d *postgres.Delivery) {
	if d == nil || d.State == string(delivery.Pending) {
		return
	}
	event := tracing.Root(d.EventID)
	if !t.Sampled(event) {
		return
	}
	span := tracing.Span{
		Name: "deliver", Place: event.At(d.ID), Parent: event.Span, Start: id.Time(d.ID), End: time.Now(),
		Attributes: []attribute.KeyValue{
			attribute.String("kapsel.event_id", id.Event.Format(d.EventID)), attribute.String("kapsel.delivery_id", id.Delivery.Format(d.ID)),
			attribute.String("kapsel.destination_id", id.Destination.Format(d.DestinationID)),
			attribute.String("kapsel.tenant_id", id.Tenant.Format(d.TenantID)),
			attribute.String("kapsel.state", d.State), attribute.Int("kapsel.attempts", d.NextAttempt-1),
		},
	}
	if d.State == string(delivery.Dead) {
		span.Failed = d.State
	}
	t.Tell(span)
}
