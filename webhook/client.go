package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
)

// The bounds of what is read of an answer.
const (
	MaxResponseBody   = 64 << 10  // bytes that are kept
	maxDrain          = 256 << 10 // bytes that are read after them, so that the connection can be used again
	maxResponseHeader = 64 << 10
)

// MaxTimeout bounds how long one request may take; DefaultTimeout is used where a request names none.
const (
	MaxTimeout     = 2 * time.Minute
	DefaultTimeout = 30 * time.Second
)

// ClientConfig says how requests are sent.
type ClientConfig struct {
	// Allow are the networks that may be reached although they aren't public. Default: none.
	Allow []netip.Prefix
	// RootCAs are trusted for https. Default: the system's.
	RootCAs *x509.CertPool
	// Resolver looks names up. Default: the system's.
	Resolver *net.Resolver
	// MaxIdlePerHost bounds the idle connections that are kept for each host and port. Default: 256.
	MaxIdlePerHost int
	// IdleTimeout is how long an idle connection is kept. Default: 30 s.
	IdleTimeout time.Duration
}

// Client sends webhooks. It connects to public addresses and those that are allowed, whatever a host name resolves to
// in the moment of dialing; it never follows a redirect, takes no proxy from the environment, keeps no cookies, and adds
// nothing to the headers but Host and Content-Length. Connections are kept and shared among its callers.
//
// It speaks HTTP/2 where the receiver offers it under TLS, else HTTP/1.1. A request that may have been seen is never sent
// again by itself, as Go's transports would in some cases: every request of Kapsel is a recorded attempt.
type Client struct {
	cfg    ClientConfig
	usual  *Route
	routes *otter.Cache[[32]byte, *Route] // by Transport.key
}

// NewClient makes a client. Close it.
func NewClient(cfg ClientConfig) *Client {
	c := &Client{cfg: cfg, routes: newRoutes()}
	var err error
	if c.usual, err = c.newRoute(Transport{}, maxIdle, orDefault(cfg.MaxIdlePerHost, 256)); err != nil {
		panic(err) // of nothing that was given
	}
	return c
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Close closes the idle connections. Requests in flight aren't disturbed.
func (c *Client) Close() {
	c.usual.transport.CloseIdleConnections()
	for _, r := range c.routes.All() {
		r.transport.CloseIdleConnections()
	}
	c.routes.StopAllGoroutines()
}

// Request is one webhook to send, by POST.
type Request struct {
	URL    string
	Header http.Header // sent as it is; not changed
	Body   []byte      // sent byte for byte
	// Timeout bounds everything from the look-up of the host to the last byte of the answer; 0 is DefaultTimeout, and
	// MaxTimeout the most.
	Timeout time.Duration
	// Route is the way to the destination, from Client.Route; nil is the usual one.
	Route *Route
}

// Result is what became of one request.
type Result struct {
	Status    int         // 0: no status line was received
	Header    http.Header // of the answer; nil without one
	Body      []byte      // its first MaxResponseBody bytes, after transfer decoding, never content-decoded
	BodySize  int64       // how many bytes of it were received, also those that weren't kept
	Truncated bool        // whether it is longer than Body
	Err       ErrorClass  // what went wrong; empty if the whole answer (or more of it than is kept) was received
	// Wrote is whether the receiver may have seen the request: its headers had been written. If not, it can't have.
	Wrote    bool
	Started  time.Time
	Duration time.Duration
}

// errTimeout is the cause by which a request's own deadline is told from the end of its caller's context.
var errTimeout = errors.New("timeout of the destination")

// Send sends one request and waits for its answer. It doesn't fail: whatever goes wrong is in the result. If ctx is
// canceled, the result is ErrorInterrupted.
func (c *Client) Send(ctx context.Context, r Request) Result {
	res := Result{Started: time.Now()}
	ctx, cancel := context.WithTimeoutCause(ctx, min(orDefault(r.Timeout, DefaultTimeout), MaxTimeout), errTimeout)
	defer cancel()
	var trace traced
	if err := c.exchange(trace.watch(ctx), r, &trace, &res); err != nil {
		res.Err = classify(ctx, err, &trace)
	}
	res.Wrote = trace.wrote.Load()
	res.Duration = time.Since(res.Started)
	return res
}

// exchange writes the request and reads the answer into res.
func (c *Client) exchange(ctx context.Context, r Request, trace *traced, res *Result) error {
	req, err := newRequest(ctx, r, trace)
	if err != nil {
		return &requestError{err}
	}
	by := r.Route
	if by == nil {
		by = c.usual
	}
	resp, err := by.transport.RoundTrip(req) // not http.Client: it would follow redirects
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // what matters was read
	if resp.StatusCode < 100 {
		return errProtocol // net/http takes "HTTP/1.1 000"
	}
	res.Status, res.Header = resp.StatusCode, resp.Header
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil // its body is the open connection
	}
	return readBody(resp.Body, res)
}

func newRequest(ctx context.Context, r Request, trace *traced) (*http.Request, error) {
	u, err := parseURL(r.URL)
	if err != nil {
		return nil, err
	}
	if err := sendable(r.Header); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header = unreplayable(r.Header)
	// A body in any case, also an empty one: without it HTTP/2's transport would send the request again unasked.
	body := func() io.ReadCloser { return io.NopCloser(bytes.NewReader(r.Body)) }
	req.Body, req.ContentLength = body(), int64(len(r.Body))
	req.GetBody = func() (io.ReadCloser, error) {
		if trace.http2.Load() && trace.wrote.Load() {
			return nil, errSeen
		}
		return body(), nil
	}
	return req, nil
}

// errSeen keeps HTTP/2's transport from sending a request again that the receiver may have seen, although it said that it
// did nothing with it (RFC 9113, section 8.7). HTTP/1's asks only when not a byte was written.
var errSeen = errors.New("the request was written")

// unreplayable copies h so that the transport sends the request at most once. It takes a POST with an Idempotency-Key
// for one that it may send again by itself when a kept connection breaks, and looks for the canonical name only. Names
// of headers don't depend on case (RFC 9110, section 5.1), so the receiver sees no difference.
func unreplayable(h http.Header) http.Header {
	c := make(http.Header, len(h))
	for name, values := range h {
		if canonical := http.CanonicalHeaderKey(name); canonical == "Idempotency-Key" || canonical == "X-Idempotency-Key" {
			name = strings.ToLower(name)
		}
		c[name] = append(c[name], slices.Clone(values)...)
	}
	return c
}

// readBody keeps the first MaxResponseBody bytes and reads some more, so that the connection can be used again. What
// goes wrong after it is known that there is more than is kept is no error.
func readBody(body io.Reader, res *Result) error {
	kept, err := io.ReadAll(io.LimitReader(body, MaxResponseBody))
	res.Body, res.BodySize = kept, int64(len(kept))
	if err != nil {
		return &bodyError{err}
	}
	if len(kept) < MaxResponseBody {
		return nil
	}
	more, err := io.CopyN(io.Discard, body, maxDrain)
	if more == 0 && err != nil && !errors.Is(err, io.EOF) {
		return &bodyError{err} // nobody knows whether that was all
	}
	res.BodySize += more
	res.Truncated = more > 0
	return nil
}

// traced notes how far a request came. The transport calls back from its own goroutines, also after Send returned.
type traced struct{ wrote, answered, http2 atomic.Bool }

func (t *traced) watch(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			conn, ok := info.Conn.(*tls.Conn)
			t.http2.Store(ok && conn.ConnectionState().NegotiatedProtocol == "h2")
		},
		WroteHeaders:         func() { t.wrote.Store(true) },
		GotFirstResponseByte: func() { t.answered.Store(true) },
	})
}
