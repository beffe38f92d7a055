package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/webhook"
)

// kind is a kind of problem: what its type URI ends in, its status and its title. All three are part of the API.
type kind struct {
	slug   string
	status int
	title  string
}

// The kinds of problem. This file is the only one that answers with a status of 400 or more.
var (
	kindMalformed    = kind{"malformed-request", http.StatusBadRequest, "Malformed request"}
	kindParameter    = kind{"invalid-parameter", http.StatusBadRequest, "Invalid parameter"}
	kindUnauthorized = kind{"unauthorized", http.StatusUnauthorized, "API key needed"}
	kindNoSignature  = kind{"signature-missing", http.StatusUnauthorized, "Signature missing"}
	kindBadSignature = kind{"bad-signature", http.StatusUnauthorized, "Signature not accepted"}
	kindTooOld       = kind{"timestamp-too-old", http.StatusUnauthorized, "Signed too long ago"}
	kindTooNew       = kind{"timestamp-too-new", http.StatusUnauthorized, "Signed in the future"}
	kindHandshake    = kind{"handshake-refused", http.StatusForbidden, "Handshake refused"}
	kindNotFound     = kind{"not-found", http.StatusNotFound, "Not found"}
	kindMethod       = kind{"method-not-allowed", http.StatusMethodNotAllowed, "Method not allowed"}
	kindTooSlow      = kind{"request-timeout", http.StatusRequestTimeout, "Request too slow"}
	kindKeyConflict  = kind{"idempotency-conflict", http.StatusConflict, "Idempotency-Key used before"}
	kindLimitReached = kind{"limit-reached", http.StatusConflict, "Limit reached"}
	kindNotBlocking  = kind{"not-blocking", http.StatusConflict, "Nothing waits for it"}
	kindLastSecret   = kind{"last-secret", http.StatusConflict, "Last secret"}
	kindNeeded       = kind{"still-needed", http.StatusConflict, "Still needed"}
	kindFinished     = kind{"already-finished", http.StatusConflict, "Already finished"}
	kindUnfinished   = kind{"not-finished", http.StatusConflict, "Not finished"}
	kindRemoved      = kind{"destination-removed", http.StatusConflict, "Destination removed"}
	kindGone         = kind{"erased", http.StatusGone, "Erased"}
	kindTooLarge     = kind{"too-large", http.StatusRequestEntityTooLarge, "Request too large"}
	kindTooMany      = kind{"too-many-requests", http.StatusTooManyRequests, "Too many requests"}
	kindField        = kind{"invalid-field", http.StatusUnprocessableEntity, "Invalid field"}
	kindInternal     = kind{"internal-error", http.StatusInternalServerError, "Internal error"}
	kindUnavailable  = kind{"unavailable", http.StatusServiceUnavailable, "Unavailable"}
	kindLoop         = kind{"loop-detected", http.StatusLoopDetected, "Loop detected"}
)

const problemTypes = "https://kapsel.io/problems/"

// problem is an error that its client may read. Whatever else goes wrong becomes one in problemOf, without its text.
type problem struct {
	kind       kind
	detail     string // a sentence that says what to do
	field      string // the member or parameter that is wrong, if one is
	retryAfter time.Duration
	checks     map[string]string // of health
	cause      error             // for the log only
}

// Error is what the request log tells: no detail, which may quote what the client sent, and the cause only of what went
// wrong here.
func (p *problem) Error() string {
	if p.cause != nil && p.kind.status >= http.StatusInternalServerError {
		return p.kind.slug + ": " + p.cause.Error()
	}
	return p.kind.slug
}

func (p *problem) Unwrap() error { return p.cause }

func malformed(format string, args ...any) *problem {
	return &problem{kind: kindMalformed, detail: fmt.Sprintf(format, args...)}
}

// invalidField refuses a member of the request's body; the rest of the sentence follows its name.
func invalidField(field, format string, args ...any) *problem {
	return &problem{kind: kindField, field: field, detail: field + " " + fmt.Sprintf(format, args...) + "."}
}

// invalidParameter refuses a query parameter.
func invalidParameter(name, format string, args ...any) *problem {
	return &problem{kind: kindParameter, field: name, detail: name + " " + fmt.Sprintf(format, args...) + "."}
}

// invalidBecause refuses what a rule of another package refused. Its errors have the form "subject: member reason" or
// "member reason"; the member is appended to base, which is where the value stands in the request.
func invalidBecause(base string, err error) *problem {
	text := err.Error()
	if _, rest, ok := strings.Cut(text, ": "); ok {
		text = rest
	}
	member, reason, _ := strings.Cut(text, " ")
	if base != "" {
		member = base + "." + member
	}
	return invalidField(member, "%s", reason)
}

// notFound is also the answer for what belongs to another tenant: that it exists is none of the asker's business.
func notFound(what string) *problem {
	return &problem{kind: kindNotFound, detail: "There is no such " + what + ". Check the ID."}
}

// unavailable asks to come back; nothing was kept, as far as is known.
func unavailable(detail string, after time.Duration, cause error) *problem {
	return &problem{kind: kindUnavailable, detail: detail, retryAfter: after, cause: cause}
}

// tooMany refuses one tenant or endpoint what others still get.
func tooMany(detail string, cause error) *problem {
	return &problem{kind: kindTooMany, detail: detail, retryAfter: time.Second, cause: cause}
}

// problemOf turns any error into what its client may read.
func problemOf(err error) *problem {
	var p *problem
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &tooLarge):
		return &problem{kind: kindTooLarge, detail: fmt.Sprintf("The body may have at most %d bytes.", tooLarge.Limit)}
	case errors.Is(err, postgres.ErrOverloaded), errors.Is(err, postgres.ErrClosed):
		return unavailable("More is waiting to be stored than fits. Send the request again later.", time.Second, err)
	case errors.Is(err, postgres.ErrShare):
		return tooMany("More of this tenant is waiting to be stored than its share. Send the request again later.", err)
	case sourceProblem(err) != nil:
		return sourceProblem(err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &problem{kind: kindTooSlow, cause: err, detail: "The body did not arrive in time. Send the request again."}
	case postgres.Unavailable(err), errors.Is(err, context.Canceled):
		return unavailable("Storage is unavailable now. Send the request again later.", 2*time.Second, err)
	default:
		return &problem{kind: kindInternal, detail: "Something went wrong here. If it happens again, report the request_id.", cause: err}
	}
}

// sourceProblem says why a webhook isn't taken to be from its source, or returns nil. It says nothing that the sender
// doesn't know: no header's name, no secret's number, and of the timestamp only to who could sign.
func sourceProblem(err error) *problem {
	switch {
	case errors.Is(err, webhook.ErrNoSignature):
		return &problem{kind: kindNoSignature, cause: err, detail: "The request doesn't carry the signature or credentials that " +
			"this endpoint asks for. Check which scheme the endpoint has, and that nothing on the way takes headers out."}
	case errors.Is(err, webhook.ErrBadSignature):
		return &problem{kind: kindBadSignature, cause: err, detail: "The request isn't signed as this endpoint asks for. " +
			"Check the secret, the signature's header, and that nothing on the way changes the body."}
	case errors.Is(err, webhook.ErrTooOld):
		return &problem{kind: kindTooOld, cause: err, detail: "The request was signed longer ago than this endpoint tolerates. " +
			"Check the sender's clock, and sign each attempt anew."}
	case errors.Is(err, webhook.ErrTooNew):
		return &problem{kind: kindTooNew, cause: err, detail: "The request's signed timestamp is further ahead than this " +
			"endpoint tolerates. Check the sender's clock."}
	case errors.Is(err, webhook.ErrHandshake):
		return &problem{kind: kindHandshake, cause: err, detail: "The request isn't the handshake that this endpoint answers. " +
			"Compare it with the endpoint's verification.handshake, and the verify token with the one configured there."}
	}
	return nil
}

// fail answers with a problem and leaves the error to the request log. Nothing may have been written yet; if something
// was (a response that broke off), the error is only logged.
func (s *Server) fail(c *gin.Context, err error) {
	p := problemOf(err)
	_ = c.Error(p)
	c.Abort()
	if c.Writer.Written() {
		return
	}
	header := c.Writer.Header()
	switch {
	case p.kind == kindUnauthorized:
		header.Set("WWW-Authenticate", `Bearer realm="kapsel"`)
	case p.retryAfter > 0:
		header.Set("Retry-After", seconds(p.retryAfter))
	}
	body := openapi.Problem{
		Type: problemTypes + p.kind.slug, Title: p.kind.title, Status: p.kind.status, Detail: p.detail, RequestID: requestID(c),
	}
	if p.field != "" {
		body.Field = &p.field
	}
	if p.checks != nil {
		body.Checks = &p.checks
	}
	text, err := json.Marshal(body)
	if err != nil { // strings and a number can't fail
		panic(err)
	}
	header.Set("Cache-Control", "no-store")
	c.Data(p.kind.status, "application/problem+json", append(text, '\n'))
}

// seconds writes d for Retry-After, rounded up.
func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

// recoverPanic answers a panic like any other error of ours.
func (s *Server) recoverPanic(c *gin.Context) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if err, ok := r.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(r)
		}
		s.config.Log.Error("panic", zap.String("request_id", requestID(c)), zap.Any("panic", r), zap.Stack("stack"))
		s.fail(c, fmt.Errorf("panic: %v", r))
	}()
	c.Next()
}
