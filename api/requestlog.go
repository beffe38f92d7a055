package api

import (
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/kapsel-io/kapsel/id"
)

// requestKind is the prefix of request IDs. They name nothing that is stored.
const requestKind id.Kind = "req"

// The header that names a request in its answer, and the key of its ID in the request's context.
const (
	headerRequestID = "Kapsel-Request-Id"
	keyRequestID    = "kapsel.request_id"
)

func requestID(c *gin.Context) string { return c.GetString(keyRequestID) }

// nameRequest gives each request an ID of our own; one that the client sends could be anything.
func nameRequest(c *gin.Context) {
	name := requestKind.Format(id.New())
	c.Set(keyRequestID, name)
	c.Writer.Header().Set(headerRequestID, name)
}

// The keys under which handlers leave what the request log tells.
const (
	keyTenant   = "kapsel.tenant_id"
	keyEndpoint = "kapsel.endpoint_id"
	keyEvent    = "kapsel.event_id"
)

// logRequest writes one line per request. It holds no header, body, query or secret; the route is the pattern and not
// the path. Requests that come in numbers (ingest, health) are told at debug level.
func (s *Server) logRequest(c *gin.Context) {
	start := time.Now()
	c.Next()
	status := c.Writer.Status()
	entry := s.config.Log.Check(levelOf(c, status), "request")
	if entry == nil {
		return
	}
	fields := []zap.Field{
		zap.String("request_id", requestID(c)),
		zap.String("method", c.Request.Method),
		zap.String("route", c.FullPath()),
		zap.Int("status", status),
		zap.Duration("took", time.Since(start)),
		zap.Int64("bytes_in", c.Request.ContentLength),
		zap.Int("bytes_out", max(c.Writer.Size(), 0)),
	}
	for name, key := range map[string]string{"tenant_id": keyTenant, "endpoint_id": keyEndpoint, "event_id": keyEvent} {
		if value := c.GetString(key); value != "" {
			fields = append(fields, zap.String(name, value))
		}
	}
	fields = append(fields, s.traceFields(c)...)
	if last := c.Errors.Last(); last != nil {
		fields = append(fields, zap.Error(last.Err))
	}
	entry.Write(fields...)
}

func levelOf(c *gin.Context, status int) zapcore.Level {
	switch route := c.FullPath(); {
	case status == kindUnavailable.status:
		if strings.HasPrefix(c.FullPath(), "/health/") { // asked every few seconds; the outage itself is told once
			return zapcore.DebugLevel
		}
		return zapcore.WarnLevel
	case status >= 500 && status != kindLoop.status:
		return zapcore.ErrorLevel
	case route == routeIngest, route == routeLive, route == routeReady, route == routeStartup:
		return zapcore.DebugLevel
	default:
		return zapcore.InfoLevel
	}
}
