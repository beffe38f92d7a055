package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"time"

	"code.dny.dev/ssrf"
	"github.com/maypok86/otter/v2"
)

// The bounds of what is kept of connections. Those of HTTP/2 aren't counted, as one carries what 100 of the others would;
// they end with IdleTimeout too.
const (
	maxIdle      = 4096 // connections, of all destinations without a transport of their own
	ownMaxIdle   = 64   // connections, of each transport
	maxOwnRoutes = 128
	ownRouteTime = 10 * time.Minute // after which an unused transport, and the key in it, is forgotten
	keepAlive    = 15 * time.Second
)

// HTTP/2 puts many requests into one connection, so one that is broken must be found out and given up.
var http2Bounds = http.HTTP2Config{
	SendPingTimeout:           15 * time.Second, // without a frame
	PingTimeout:               10 * time.Second,
	WriteByteTimeout:          30 * time.Second,
	MaxReceiveBufferPerStream: 512 << 10, // what a receiver can make us hold that isn't read
}

// Route is a way to destinations: connections that are made alike, and are shared by all who go by it.
type Route struct{ transport *http.Transport }

// route says how connections are made.
type route struct {
	dialer *net.Dialer
	guard  *ssrf.Guardian // that of the dialer
	tls    *tls.Config
	proxy  *proxy // nil: directly
}

// Route returns the way to a destination that is reached by t. An error means that t can't be used, and says nothing of what
// is in it. Routes aren't kept for ever: ask again for each request.
func (c *Client) Route(ctx context.Context, t Transport) (*Route, error) {
	if t == (Transport{}) {
		return c.usual, nil
	}
	return c.routes.Get(ctx, t.key(), otter.LoaderFunc[[32]byte, *Route](func(context.Context, [32]byte) (*Route, error) {
		return c.newRoute(t, ownMaxIdle, ownMaxIdle)
	}))
}

func newRoutes() *otter.Cache[[32]byte, *Route] {
	return otter.Must(&otter.Options[[32]byte, *Route]{
		MaximumSize:      maxOwnRoutes,
		ExpiryCalculator: otter.ExpiryAccessing[[32]byte, *Route](ownRouteTime),
		// Requests in flight go on; their connections end with them, or with the idle timeout.
		OnDeletion: func(e otter.DeletionEvent[[32]byte, *Route]) { e.Value.transport.CloseIdleConnections() },
	})
}

func (c *Client) newRoute(t Transport, idle, idlePerHost int) (*Route, error) {
	config, err := t.tlsConfig(c.cfg.RootCAs)
	if err != nil {
		return nil, fmt.Errorf("use transport: %w", err)
	}
	r := &route{guard: newGuardian(c.cfg.Allow), tls: config}
	r.dialer = &net.Dialer{Timeout: MaxTimeout, KeepAlive: keepAlive, Control: r.guard.Safe, Resolver: c.cfg.Resolver}
	if t.ProxyURL != "" {
		if r.proxy, err = newProxy(t.ProxyURL, proxyTLS(c.cfg.RootCAs)); err != nil {
			return nil, fmt.Errorf("use transport: %w", err)
		}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &Route{transport: &http.Transport{
		Proxy:                  nil, // see route.dial: net/http would send http requests to the proxy itself
		DialContext:            r.dial,
		DialTLSContext:         r.dialTLS,
		Protocols:              protocols,
		HTTP2:                  &http2Bounds,
		DisableCompression:     true,
		MaxIdleConns:           idle,
		MaxIdleConnsPerHost:    idlePerHost,
		IdleConnTimeout:        orDefault(c.cfg.IdleTimeout, 30*time.Second),
		MaxResponseHeaderBytes: maxResponseHeader,
	}}, nil
}

func proxyTLS(roots *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, NextProtos: []string{"http/1.1"}}
}

// dial makes a connection for plain HTTP.
func (r *route) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if r.proxy != nil {
		return r.dialProxy(ctx, network, addr)
	}
	return r.dialer.DialContext(ctx, network, addr)
}

func (r *route) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	raw, err := r.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return handshake(ctx, raw, r.tls, addr)
}

// handshake bounds itself: the transport dials detached from the request that asked for it, so that a receiver which never
// answers would hold the connection for ever. It closes raw if it fails.
func handshake(ctx context.Context, raw net.Conn, config *tls.Config, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		_ = raw.Close() // the address is what is wrong
		return nil, fmt.Errorf("split address: %w", err)
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
