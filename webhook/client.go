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
	// MaxIdlePerHost bounds the idle connections that are kept for each host and port. Default: 256.
	MaxIdlePerHost int
	// IdleTimeout is how long an idle connection is kept. Default: 30 s.
	IdleTimeout time.Duration
}

// Client sends webhooks. It connects to public addresses and those that are allowed, whatever a host name resolves to
// in the moment of dialing; it never follows a redirect, uses no proxy, keeps no cookies, and adds nothing to the
// headers but Host and Content-Length. Connections are kept and shared among its callers.
//
// It speaks HTTP/1.1 only. Go's HTTP/2 transport sends a request again by itself in some cases, and every request of
// Kapsel is to be a recorded attempt.
type Client struct {
	transport *http.Transport
}

// NewClient makes a client. Close it.
func NewClient(cfg ClientConfig) *Client {
	dialer := &net.Dialer{Timeout: MaxTimeout, KeepAlive: 15 * time.Second, Control: newGuardian(cfg.Allow).Safe}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs, NextProtos: []string{"http/1.1"}}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &Client{transport: &http.Transport{
		Proxy:       nil, // a proxy would resolve and dial where the guardian can't see it
		DialContext: dialer.DialContext,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialTLS(ctx, dialer, tlsConfig, network, addr)
		},
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConns:           4096,
		MaxIdleConnsPerHost:    orDefault(cfg.MaxIdlePerHost, 256),
		IdleConnTimeout:        orDefault(cfg.IdleTimeout, 30*time.Second),
		MaxResponseHeaderBytes: maxResponseHeader,
	}}
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// dialTLS bounds the handshake itself: the transport dials detached from the request that asked for it, so that a
// receiver which never answers would hold the connection for ever.
func dialTLS(ctx context.Context, dialer *net.Dialer, config *tls.Config, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("split address: %w", err)
	}
	raw, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName = host
	conn := tls.Client(raw, config)
	ctx, cancel := context.WithTimeout(ctx, MaxTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error is the one that counts
		return nil, &handshakeError{err}
	}
	return conn, nil
}

// Close closes the idle connections. Requests in flight aren't disturbed.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Request is one webhook to send, by POST.
type Request struct {
	URL    string
	Header http.Header // sent as it is; not changed
	Body   []byte      // sent byte for byte
	// Timeout bounds everything from the look-up of the host to the last byte of the answer; 0 is DefaultTimeout, and
	// MaxTimeout the most.
	Timeout time.Duration
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
	if err := c.exchange(trace.watch(ctx), r, &res); err != nil {
		res.Err = classify(ctx, err, &trace)
	}
	res.Wrote = trace.wrote.Load()
	res.Duration = time.Since(res.Started)
	return res
}

// exchange writes the request and reads the answer into res.
func (c *Client) exchange(ctx context.Context, r Request, res *Result) error {
	req, err := newRequest(ctx, r)
	if err != nil {
		return &requestError{err}
	}
	resp, err := c.transport.RoundTrip(req) // not http.Client: it would follow redirects
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

func newRequest(ctx context.Context, r Request) (*http.Request, error) {
	u, err := parseURL(r.URL)
	if err != nil {
		return nil, err
	}
	if err := sendable(r.Header); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(r.Body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header = unreplayable(r.Header)
	return req, nil
}

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
type traced struct{ wrote, answered atomic.Bool }

func (t *traced) watch(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders:         func() { t.wrote.Store(true) },
		GotFirstResponseByte: func() { t.answered.Store(true) },
	})
}
