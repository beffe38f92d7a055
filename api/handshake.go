package api

import (
	"errors"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/kapsel-io/kapsel/webhook"
)

// handshake answers what a provider asks by GET before it sends the first webhook. Only endpoints that are configured for
// it answer; for all others there is no GET.
func (s *Server) handshake(c *gin.Context) {
	e, err := s.findEndpoint(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	if !e.source.AnswersGet() {
		c.Header("Allow", http.MethodPost)
		s.fail(c, &problem{kind: kindMethod, detail: "Use one of the methods in the Allow header."})
		return
	}
	s.greet(c, func() (webhook.Reply, bool, error) {
		reply, err := e.source.AnswerGet(c.Request.URL.RawQuery, e.validSecrets(time.Now()))
		return reply, true, err
	})
}

// greet answers a handshake, if there is one, and reports whether the request is over. What the answer repeats was the
// asker's choice, so it is kept from being taken for anything but text, by whomever.
func (s *Server) greet(c *gin.Context, answer func() (webhook.Reply, bool, error)) bool {
	reply, ok, err := answer()
	switch {
	case !ok:
		return false
	case err != nil:
		s.fail(c, err)
	default:
		c.Header("Cache-Control", "no-store")
		c.Header("Content-Security-Policy", "default-src 'none'; sandbox")
		c.Data(http.StatusOK, reply.ContentType, reply.Body)
	}
	return true
}

// refuseSource answers a webhook that couldn't be verified. A source that has to send a password is told so, as HTTP asks
// (RFC 9110, section 15.5.2); for signatures there is no challenge that a header could name.
func (s *Server) refuseSource(c *gin.Context, e *endpoint, err error) {
	if e.source.Scheme == webhook.SchemeBasic && (errors.Is(err, webhook.ErrNoSignature) || errors.Is(err, webhook.ErrBadSignature)) {
		c.Header("WWW-Authenticate", `Basic realm="kapsel", charset="UTF-8"`)
	}
	s.fail(c, err)
}
