package webhook_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// forwardProxy is a real proxy on loopback that knows CONNECT and nothing else.
type forwardProxy struct {
	addr string
	mu   sync.Mutex
	seen []*http.Request
}

// newProxy starts one. It connects every request to to, whatever host it names, if it has authorization.
func newProxy(t *testing.T, l net.Listener, authorization string, to func(target string) string) *forwardProxy {
	t.Helper()
	p := &forwardProxy{addr: l.Addr().String()}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn, authorization, to)
		}
	}()
	return p
}

func (p *forwardProxy) serve(conn net.Conn, authorization string, to func(string) string) {
	defer func() { _ = conn.Close() }()
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	p.mu.Lock()
	p.seen = append(p.seen, r)
	p.mu.Unlock()
	if r.Method != http.MethodConnect || r.Header.Get("Proxy-Authorization") != authorization {
		_, _ = io.WriteString(conn, "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
		return
	}
	target, err := net.Dial("tcp", to(r.RequestURI))
	if err != nil {
		_, _ = io.WriteString(conn, "HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer func() { _ = target.Close() }()
	_, _ = io.WriteString(conn, "HTTP/1.1 200 Connected\r\n\r\n")
	go func() { _, _ = io.Copy(target, conn); _ = target.(*net.TCPConn).CloseWrite() }()
	_, _ = io.Copy(conn, target)
}

func (p *forwardProxy) requests() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*http.Request{}, p.seen...)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

func itself(target string) string { return target }

func TestSendThroughAProxy(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	var mu sync.Mutex
	var headers []http.Header
	note := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		headers = append(headers, r.Header.Clone())
		mu.Unlock()
	}
	secure := a.receiver(t, true, &tls.Config{}, note)
	plain, _ := receiver(t, note)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:pass word"))

	cert, key := a.issue(t, time.Now().Add(time.Hour))
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	require.NoError(t, err)
	overHTTP := newProxy(t, listen(t), basic, itself)
	overTLS := newProxy(t, tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{pair}}), basic, itself)
	c := newClient(t, webhook.ClientConfig{RootCAs: a.pool()})
	for _, via := range []struct {
		scheme string
		*forwardProxy
	}{{"http://", overHTTP}, {"https://", overTLS}} {
		for _, url := range []string{plain, secure.URL} {
			for range 3 {
				res := sendBy(t, c, webhook.Transport{ProxyURL: via.scheme + "user:pass%20word@" + via.addr}, url)
				require.Equal(t, webhook.NoError, res.Err)
				require.Equal(t, 200, res.Status)
			}
			requests := via.requests()
			last := requests[len(requests)-1]
			require.Equal(t, http.MethodConnect, last.Method, "also for http: so no answer of the proxy is taken for the receiver's")
			require.Equal(t, url[strings.Index(url, "//")+2:], last.RequestURI)
			require.Equal(t, http.Header{"User-Agent": {"Kapsel"}, "Proxy-Authorization": {basic}}, last.Header, "nothing of the webhook")
		}
		require.Len(t, via.requests(), 2, "connections through it are kept too")
	}
	for _, h := range headers {
		require.Empty(t, h.Get("Proxy-Authorization"), "the proxy's credentials never reach the receiver")
	}

	for name, bad := range map[string]string{
		"without credentials": "http://" + overHTTP.addr, "with wrong ones": "http://user:other@" + overHTTP.addr,
		"in the wrong protocol": "https://user:pass%20word@" + overHTTP.addr, "that isn't there": "http://" + closedAddr(t),
	} {
		res := sendBy(t, c, webhook.Transport{ProxyURL: bad}, plain)
		require.Equal(t, webhook.ErrorProxy, res.Err, name)
		require.Zero(t, res.Status, "a proxy's answer isn't the receiver's: %s", name)
		require.False(t, res.Wrote, name)
	}
	require.Equal(t, webhook.ErrorProxy, sendBy(t, c, webhook.Transport{ProxyURL: "http://user:pass%20word@" + overHTTP.addr}, "http://"+closedAddr(t)).Err)
}

func closedAddr(t *testing.T) string {
	t.Helper()
	l := listen(t)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

func TestAProxyCanDoNoHarm(t *testing.T) {
	t.Parallel()
	target, connections := receiver(t, ok)
	for name, c := range map[string]struct {
		answer func(net.Conn)
		class  webhook.ErrorClass
	}{
		"silent":             {hold, webhook.ErrorTimeout},
		"half an answer":     {func(c net.Conn) { says("HTTP/1.1 20")(c); hold(c) }, webhook.ErrorTimeout},
		"trickles":           {func(c net.Conn) { says("HTTP/1.1 200 OK\r\nX: ")(c); hold(c) }, webhook.ErrorTimeout},
		"closes":             {func(net.Conn) {}, webhook.ErrorProxy},
		"garbage":            {says("SSH-2.0-OpenSSH_9.9\r\n\r\n"), webhook.ErrorProxy},
		"headers for ever":   {says("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: 1\r\n", 64<<10)), webhook.ErrorProxy},
		"forbids":            {says("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"), webhook.ErrorProxy},
		"informs":            {says("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), webhook.ErrorProxy},
		"redirects":          {says("HTTP/1.1 302 No\r\nLocation: " + target + "\r\nContent-Length: 0\r\n\r\n"), webhook.ErrorProxy},
		"answers in advance": {says("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 Forged\r\nContent-Length: 0\r\n\r\n"), webhook.ErrorProxy},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newClient(t, webhook.ClientConfig{})
			route, err := client.Route(t.Context(), webhook.Transport{ProxyURL: raw(t, c.answer)})
			require.NoError(t, err)
			timeout := 20 * time.Second
			if c.class == webhook.ErrorTimeout {
				timeout = short
			}
			res := client.Send(t.Context(), webhook.Request{URL: target, Route: route, Timeout: timeout})
			require.Equal(t, c.class, res.Err)
			require.Zero(t, res.Status)
			require.False(t, res.Wrote)
		})
	}
	t.Cleanup(func() { require.Zero(t, connections.Load(), "nothing goes around the proxy") })
}

// The guard holds for a proxy's own address, and for what can be known of the target's.
func TestNoProxyLeadsIntoPrivateNetworks(t *testing.T) {
	t.Parallel()
	target, connections := receiver(t, ok)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(target, "http://"))
	p := newProxy(t, listen(t), "", func(string) string { return "127.0.0.1:" + port })

	strict := newClient(t, webhook.ClientConfig{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	for _, proxied := range []string{"http://" + p.addr, "http://localhost:1", "http://169.254.169.254", "https://[::1]:1"} {
		res := sendBy(t, strict, webhook.Transport{ProxyURL: proxied}, "http://example.com")
		require.Equal(t, webhook.ErrorBlockedAddress, res.Err, proxied)
	}
	require.Empty(t, p.requests())

	// The operator has allowed the proxy: what stands behind it isn't allowed with it.
	resolver := nameserver(t, func(name string) []netip.Addr {
		return map[string][]netip.Addr{
			"internal.test.": {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			"mapped.test.":   {netip.MustParseAddr("::ffff:10.0.0.1")},
			"mixed.test.":    {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("93.184.215.14")},
		}[name]
	})
	c := newClient(t, webhook.ClientConfig{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Resolver: resolver})
	via := webhook.Transport{ProxyURL: "http://" + p.addr}
	for _, url := range []string{"http://10.0.0.1", "https://169.254.169.254/latest", "http://[::ffff:10.0.0.1]", "http://[64:ff9b::a00:1]", "http://127.0.0.2",
		"http://internal.test", "http://mapped.test"} {
		require.Equal(t, webhook.ErrorBlockedAddress, sendBy(t, c, via, url).Err, url)
	}
	require.Equal(t, webhook.ErrorDNS, sendBy(t, c, via, "http://nothing.test").Err)
	require.Empty(t, p.requests())
	require.Zero(t, connections.Load())
	require.Equal(t, 200, sendBy(t, c, via, "http://mixed.test:8080").Status)
	require.Equal(t, "93.184.215.14:8080", p.requests()[0].RequestURI, "an address and no name, so it can't be resolved to another there")
	require.Equal(t, "93.184.215.14:8080", p.requests()[0].Host)
}
