package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/tracing"
)

// keyTrace is the key, in a webhook's context, of what is known of its trace.
const keyTrace = "kapsel.trace"

// ingestTrace gathers what a webhook's spans will say. Which trace they are in is known after the commit: that of the event, or,
// if the request made none, one of the request's own. nil: nothing is traced.
type ingestTrace struct {
	request    uuid.UUID
	row        *postgres.Acceptance
	commitFrom time.Time
	commitTo   time.Time
	committed  error
	accepted   postgres.Accepted
}

func traceOf(c *gin.Context) *ingestTrace {
	value, _ := c.Get(keyTrace)
	t, _ := value.(*ingestTrace)
	return t
}

// trace tells of a webhook once it is answered. It stands before what recovers from panics, so that those are told of too.
func (s *Server) trace(c *gin.Context) {
	if !s.config.Tracing.On() || c.FullPath() != routeIngest {
		return
	}
	began := time.Now()
	request, err := requestKind.Parse(requestID(c))
	if err != nil {
		return
	}
	t := &ingestTrace{request: request}
	c.Set(keyTrace, t)
	c.Next()
	if place := t.place(); s.config.Tracing.Sampled(place) {
		s.tellIngest(c, t, place, began)
	}
}

// commit is called before a webhook is committed; what it returns is called afterwards.
func (t *ingestTrace) commit(row *postgres.Acceptance) func(postgres.Accepted, error) {
	if t == nil {
		return func(postgres.Accepted, error) {}
	}
	t.row, t.commitFrom = row, time.Now()
	return func(accepted postgres.Accepted, err error) {
		t.accepted, t.committed, t.commitTo = accepted, err, time.Now()
	}
}

// stored reports whether the request made an event.
func (t *ingestTrace) stored() bool {
	return !t.commitTo.IsZero() && t.committed == nil && !t.accepted.Duplicate
}

// place is where the request's span is. A duplicate isn't in the trace of its event, which a sender could make as large as it likes.
func (t *ingestTrace) place() tracing.Place {
	if t.stored() {
		return tracing.Root(t.accepted.EventID)
	}
	return tracing.Root(t.request)
}

// traceFields are the IDs of a webhook's span, for the request log.
func (s *Server) traceFields(c *gin.Context) []zap.Field {
	if t := traceOf(c); t != nil {
		return s.config.Tracing.Fields(t.place())
	}
	return nil
}

// tellIngest tells of the request and of its commit: IDs, sizes and classes, and nothing that the sender chose.
func (s *Server) tellIngest(c *gin.Context, t *ingestTrace, place tracing.Place, began time.Time) {
	status := c.Writer.Status()
	span := tracing.Span{
		Name: c.Request.Method + " " + routeIngest, Kind: trace.SpanKindServer, Place: place, Start: began, End: time.Now(),
		Links: tracing.Incoming(c.Request.Header),
		Attributes: []attribute.KeyValue{
			attribute.String("http.request.method", c.Request.Method), attribute.String("http.route", routeIngest),
			attribute.Int("http.response.status_code", status), attribute.String("kapsel.request_id", requestID(c)),
		},
	}
	for _, key := range []string{keyTenant, keyEndpoint, keyEvent} {
		if value := c.GetString(key); value != "" {
			span.Attributes = append(span.Attributes, attribute.String(key, value))
		}
	}
	if t.accepted.Duplicate {
		span.Links = append(span.Links, tracing.Root(t.accepted.EventID).Link())
		span.Attributes = append(span.Attributes, attribute.Bool("kapsel.duplicate", true))
	}
	if status >= http.StatusInternalServerError { // what the sender did wrong is no error of a server (semantic conventions)
		span.Failed = strconv.Itoa(status)
	}
	if last := c.Errors.Last(); last != nil {
		span.Attributes = append(span.Attributes, attribute.String("kapsel.problem", problemOf(last.Err).kind.slug))
	}
	if !t.commitTo.IsZero() {
		s.config.Tracing.Tell(t.commitSpan(place))
	}
	s.config.Tracing.Tell(span)
}

// commitSpan is the wait for a commit, which many webhooks may share, and the commit.
func (t *ingestTrace) commitSpan(request tracing.Place) tracing.Span {
	span := tracing.Span{
		Name: "commit", Kind: trace.SpanKindClient, Place: request.Fresh(), Parent: request.Span, Start: t.commitFrom, End: t.commitTo,
		Attributes: []attribute.KeyValue{
			attribute.String("db.system.name", "postgresql"), attribute.Int("kapsel.deliveries", len(t.row.Deliveries)),
			attribute.Int("kapsel.body_size", len(t.row.Body)),
		},
	}
	if t.committed != nil {
		span.Failed = problemOf(t.committed).kind.slug
	}
	return span
}

// traceTold tells of an operational webhook, whose trace begins with no request.
func (s *Server) traceTold(row *postgres.Acceptance, began time.Time) {
	place := tracing.Root(row.EventID)
	if !s.config.Tracing.Sampled(place) {
		return
	}
	s.config.Tracing.Tell(tracing.Span{
		Name: "tell", Place: place, Start: began, End: time.Now(),
		Attributes: []attribute.KeyValue{
			attribute.String(keyTenant, id.Tenant.Format(row.TenantID)), attribute.String(keyEndpoint, id.Endpoint.Format(row.EndpointID)),
			attribute.String(keyEvent, id.Event.Format(row.EventID)), attribute.String("kapsel.event_type", row.EventType),
		},
	})
}
