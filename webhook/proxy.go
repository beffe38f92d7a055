package webhook

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"code.dny.dev/ssrf"
)

// proxy is a forward proxy that a destination is reached through. It is always asked to CONNECT (RFC 9110, section 9.3.6),
// for http as well: so it sees nothing of an https request, and no answer of its own is ever taken for the receiver's.
type proxy struct {
	addr          string      // host and port
	tls           *tls.Config // nil: http
	authorization string      // for Proxy-Authorization; empty: none
}

// errProxy is what a proxy is refused for that doesn't do what it was asked.
var errProxy = errors.New("proxy doesn't connect")

func parseProxyURL(raw string) (*url.URL, error) {
	if len(raw) > MaxURL {
		return nil, fmt.Errorf("proxy_url must have at most %d bytes, not %d", MaxURL, len(raw))
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, errors.New("proxy_url is malformed")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("proxy_url must start with http:// or https://")
	case u.Hostname() == "":
		return nil, errors.New("proxy_url must have a host")
	case strings.Trim(u.Path, "/") != "" || strings.ContainsAny(raw, "?#"):
		return nil, errors.New("proxy_url must have no path, query or fragment")
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !validPort(u.Port()):
		return nil, errors.New("proxy_url must have a port of 1 to 65535, or none")
	case strings.Contains(u.User.Username(), ":"): // Basic authentication ends the name there (RFC 7617, section 2)
		return nil, errors.New("proxy_url must not have a colon in its user name")
	}
	return u, nil
}

// validateProxyURL checks a proxy's host as ValidateURL does a destination's: its address is looked at again when it is dialed.
func validateProxyURL(raw string, allow []netip.Prefix) error {
	u, err := parseProxyURL(raw)
	if err != nil {
		return err
	}
	if err := validHost(u.Hostname(), allow); err != nil {
		return fmt.Errorf("proxy_%w", err) // which begins with "url"
	}
	return nil
}

// ProxyAddress is what may be shown of a proxy: its host and port, without credentials. Empty for no proxy.
func ProxyAddress(raw string) string {
	if raw == "" {
		return ""
	}
	u, err := parseProxyURL(raw)
	if err != nil {
		return ""
	}
	return hostPort(u)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func newProxy(raw string, roots *tls.Config) (*proxy, error) {
	u, err := parseProxyURL(raw)
	if err != nil {
		return nil, err
	}
	p := &proxy{addr: hostPort(u)}
	if u.Scheme == "https" {
		p.tls = roots
	}
	if u.User != nil {
		password, _ := u.User.Password()
		p.authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
	}
	return p, nil
}

// dialProxy returns a connection to addr through the route's proxy.
func (r *route) dialProxy(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := r.dialer.DialContext(ctx, network, r.proxy.addr)
	if err != nil {
		return nil, &proxyError{err}
	}
	target, err := r.behindProxy(ctx, conn.RemoteAddr(), addr)
	if err != nil {
		_ = conn.Close() // the reason is err
		return nil, err
	}
	if r.proxy.tls != nil {
		if conn, err = handshake(ctx, conn, r.proxy.tls, r.proxy.addr); err != nil {
			return nil, &proxyError{err}
		}
	}
	if err := r.proxy.connect(ctx, conn, target); err != nil {
		_ = conn.Close() // the reason is err
		return nil, &proxyError{err}
	}
	return conn, nil
}

// behindProxy says what the proxy is asked to connect to. An IP address must be one that Kapsel may reach itself. A name is
// resolved by the proxy, where nobody here can see it; so a proxy that isn't on the public internet, which only the operator
// can have allowed and which stands in the operator's network, isn't told names but the address that they have here.
func (r *route) behindProxy(ctx context.Context, proxyAddr net.Addr, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("split address: %w", err)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return addr, r.guard.SafeAddr(ip.Unmap())
	}
	if tcp, ok := proxyAddr.(*net.TCPAddr); ok && publicGuardian.SafeAddr(tcp.AddrPort().Addr().Unmap()) == nil {
		return addr, nil
	}
	ips, err := r.resolver().LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", fmt.Errorf("resolve host: %w", err)
	}
	refused := fmt.Errorf("host has no address: %w", ssrf.ErrProhibitedIP)
	for _, ip := range ips {
		if refused = r.guard.SafeAddr(ip.Unmap()); refused == nil {
			return net.JoinHostPort(ip.Unmap().String(), port), nil
		}
	}
	return "", refused
}

// publicGuardian allows the public internet only.
var publicGuardian = newGuardian(nil)

func (r *route) resolver() *net.Resolver {
	if r.dialer.Resolver != nil {
		return r.dialer.Resolver
	}
	return net.DefaultResolver
}

// connect asks for a tunnel. What the proxy answers is bounded in size and time, and goes nowhere: it isn't the receiver's.
func (p *proxy) connect(ctx context.Context, conn net.Conn, target string) error {
	ctx, cancel := context.WithTimeout(ctx, MaxTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	header := http.Header{"User-Agent": {"Kapsel"}}
	if p.authorization != "" {
		header.Set("Proxy-Authorization", p.authorization)
	}
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: header}
	if err := request.Write(conn); err != nil {
		return err
	}
	reader := bufio.NewReader(io.LimitReader(conn, maxResponseHeader))
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return err
	}
	_ = response.Body.Close() // of a tunnel there is none, and whatever else there is ends with the connection
	if response.StatusCode/100 != 2 || reader.Buffered() > 0 {
		return errProxy // no receiver speaks first
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return nil
}
