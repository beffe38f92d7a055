package webhook

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
)

// ErrorClass says why a request has no (whole) answer. The log knows the same words.
type ErrorClass string

// The error classes.
const (
	NoError                ErrorClass = ""
	ErrorTimeout           ErrorClass = "timeout"
	ErrorDNS               ErrorClass = "dns"
	ErrorConnectionRefused ErrorClass = "connection_refused"
	ErrorConnectionReset   ErrorClass = "connection_reset"
	ErrorTLS               ErrorClass = "tls"
	ErrorBlockedAddress    ErrorClass = "blocked_address"
	ErrorInterrupted       ErrorClass = "interrupted"
	ErrorProtocol          ErrorClass = "protocol"
	ErrorBodyRead          ErrorClass = "body_read"
	ErrorNetwork           ErrorClass = "network"
	ErrorRequest           ErrorClass = "request"
	ErrorProxy             ErrorClass = "proxy"
)

// Which step failed, where the error itself doesn't say.
type (
	requestError   struct{ error } // no request can be made of what was given
	handshakeError struct{ error } // TLS
	bodyError      struct{ error } // the answer's body
	proxyError     struct{ error } // the way to the proxy, or what it answered
)

func (e *requestError) Unwrap() error   { return e.error }
func (e *handshakeError) Unwrap() error { return e.error }
func (e *bodyError) Unwrap() error      { return e.error }
func (e *proxyError) Unwrap() error     { return e.error }

var errProtocol = errors.New("answer isn't HTTP")

// classify finds the class of err. Once the context is over, whatever else went wrong is a consequence of that.
func classify(ctx context.Context, err error, trace *traced) ErrorClass {
	var (
		request   *requestError
		handshake *handshakeError
		body      *bodyError
		proxied   *proxyError
		network   *net.OpError
	)
	switch {
	case errors.As(err, &request):
		return ErrorRequest
	case ctx.Err() != nil:
		return classifyEnd(ctx)
	case blocked(err):
		return ErrorBlockedAddress
	case errors.As(err, &proxied):
		return ErrorProxy
	case isDNS(err):
		return ErrorDNS
	case isTimeout(err):
		return ErrorTimeout
	case errors.As(err, &handshake), isAlert(err):
		return ErrorTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return ErrorConnectionRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return ErrorConnectionReset
	case errors.As(err, &body):
		return ErrorBodyRead
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrorConnectionReset
	case errors.As(err, &network):
		return ErrorNetwork
	case errors.Is(err, errProtocol), trace.answered.Load():
		return ErrorProtocol
	case trace.wrote.Load(), trace.http2.Load(): // closed without a byte of an answer, for which net/http has errors of several kinds
		return ErrorConnectionReset
	default:
		return ErrorNetwork
	}
}

// classifyEnd tells a deadline, the destination's or the caller's, from a caller who stopped waiting.
func classifyEnd(ctx context.Context) ErrorClass {
	if errors.Is(context.Cause(ctx), errTimeout) || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ErrorTimeout
	}
	return ErrorInterrupted
}

// isAlert reports whether the receiver ended TLS itself. In TLS 1.3 it judges the client's certificate when the client takes
// the handshake to be over; crypto/tls has no type for what it says then.
func isAlert(err error) bool {
	var e *net.OpError
	return errors.As(err, &e) && e.Op == "remote error"
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &e) && e.Timeout()
}
