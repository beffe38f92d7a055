package tracing

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"syscall"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// reminderEvery is how often it is told again that the collector is away.
const reminderEvery = time.Minute

// watched exports, and says when that begins to fail and when it works again. It returns no errors: OpenTelemetry would print them.
type watched struct {
	exporter sdktrace.SpanExporter
	log      *zap.Logger

	mu      sync.Mutex
	failing bool
	told    time.Time
	lost    int
}

// ExportSpans is called by one goroutine, apart from all work.
func (w *watched) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	w.note(len(spans), w.exporter.ExportSpans(ctx, spans))
	return nil
}

func (w *watched) note(spans int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		if w.failing {
			w.log.Info("traces are exported again", zap.Int("lost_spans", w.lost))
		}
		w.failing, w.lost, w.told = false, 0, time.Time{}
		return
	}
	w.failing = true
	w.lost += spans
	if time.Since(w.told) >= reminderEvery {
		w.told = time.Now()
		w.log.Warn("traces are not exported", zap.String("cause", cause(err)), zap.Int("lost_spans", w.lost))
	}
}

// Shutdown ends the exporter.
func (w *watched) Shutdown(ctx context.Context) error { return w.exporter.Shutdown(ctx) }

// cause is the class of an error. Its text is the collector's word, or quotes a URL or a header.
func cause(err error) string {
	var timeout net.Error
	var dns *net.DNSError
	var asked *url.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.As(err, &timeout) && timeout.Timeout():
		return "it doesn't answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &dns):
		return "its name can't be resolved"
	case errors.As(err, &asked):
		return "no connection"
	case status.Code(err) != codes.Unknown:
		return "gRPC status " + status.Code(err).String()
	}
	return "it refuses them"
}
