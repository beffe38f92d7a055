package webhook_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func newClient(t *testing.T, cfg webhook.ClientConfig) *webhook.Client {
	t.Helper()
	if cfg.Allow == nil {
		cfg.Allow = loopback
	}
	c := webhook.NewClient(cfg)
	t.Cleanup(c.Close)
	return c
}

// receiver runs a real HTTP server and counts the connections it takes.
func receiver(t *testing.T, h http.HandlerFunc) (url string, connections *atomic.Int64) {
	t.Helper()
	connections = new(atomic.Int64)
	s := httptest.NewUnstartedServer(h)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.URL, connections
}

// raw runs a TCP server that hands over every connection after it has read a request's headers.
func raw(t *testing.T, answer func(net.Conn)) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					answer(conn)
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

func says(s string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, s) }
}

// hold keeps the connection open until the other side closes it.
func hold(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// short is a timeout for requests that are meant to run into it.
const short = 50 * time.Millisecond

func TestSendArrivesAsItIs(t *testing.T) {
	t.Parallel()
	type seen struct {
		header http.Header
		body   string
		host   string
	}
	got := make(chan seen, 1)
	url, _ := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Header, string(body), r.Method + " " + r.Host + r.URL.String()}
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "thanks")
	})
	sent := header("Content-Type", "x/y", "Idempotency-Key", "k", "X-Multi", "1", "X-Multi", "2", "User-Agent", "U")
	body := "not\r\nJSON \x00\xff"
	res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: url + "/hook?a=b", Header: sent, Body: []byte(body)})
	require.Equal(t, webhook.NoError, res.Err)
	require.Equal(t, 202, res.Status)
	require.Equal(t, "thanks", string(res.Body))
	require.Equal(t, int64(6), res.BodySize)
	require.Equal(t, "7", res.Header.Get("Retry-After"))
	require.True(t, res.Wrote)
	require.False(t, res.Truncated)
	require.Positive(t, res.Duration)

	s := <-got
	require.Equal(t, body, s.body)
	require.Equal(t, "POST "+strings.TrimPrefix(url, "http://")+"/hook?a=b", s.host)
	want := sent.Clone()
	want.Set("Content-Length", fmt.Sprint(len(body)))
	require.Equal(t, want, s.header, "nothing is added, above all no Accept-Encoding")
}

func TestSendClassifiesWhatGoesWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer func(net.Conn)
		status int
		class  webhook.ErrorClass
	}{
		"no answer":                  {hold, 0, "timeout"},
		"half a status line":         {func(c net.Conn) { says("HTTP/1.1 20")(c); hold(c) }, 0, "timeout"},
		"closed without a byte":      {func(net.Conn) {}, 0, "connection_reset"},
		"reset":                      {func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }, 0, "connection_reset"},
		"closed in the status line":  {says("HTTP/1.1 20"), 0, "protocol"},
		"closed in the header":       {says("HTTP/1.1 200 OK\r\nX: 1"), 0, "connection_reset"},
		"garbage":                    {says("SSH-2.0-OpenSSH_9.9\r\n\r\n"), 0, "protocol"},
		"status 000":                 {says("HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n"), 0, "protocol"},
		"endless header":             {says("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 128<<10)), 0, "protocol"},
		"a body that trickles":       {func(c net.Conn) { says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")(c); hold(c) }, 200, "timeout"},
		"a body that breaks off":     {says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), 200, "body_read"},
		"chunks that aren't":         {says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), 200, "body_read"},
		"an error that breaks off":   {says("HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\n"), 503, "body_read"},
		"switching protocols":        {func(c net.Conn) { says("HTTP/1.1 101 Sw\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")(c); hold(c) }, 101, ""},
		"a body without length":      {says("HTTP/1.0 200 OK\r\n\r\nx"), 200, ""},
		"a body that isn't unpacked": {says("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"), 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			timeout := 20 * time.Second
			if tc.class == "timeout" {
				timeout = short
			}
			res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: raw(t, tc.answer), Body: []byte("{}"), Timeout: timeout})
			require.Equal(t, tc.class, res.Err)
			require.Equal(t, tc.status, res.Status)
			require.True(t, res.Wrote)
			require.Equal(t, tc.status == 0, res.Header == nil)
		})
	}
}

// A receiver that sends a byte now and then holds a request no longer than the timeout.
func TestSendTrickleEndsAtTheTimeout(t *testing.T) {
	t.Parallel()
	url := raw(t, func(c net.Conn) {
		says("HTTP/1.1 200 OK\r\n\r\n")(c)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
		}
	})
	res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: url, Timeout: short})
	require.Equal(t, webhook.ErrorTimeout, res.Err)
	require.Equal(t, 200, res.Status)
}

func TestSendBodyOfAnswerIsBounded(t *testing.T) {
	t.Parallel()
	var size atomic.Int64
	url, connections := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.CopyN(w, strings.NewReader(strings.Repeat("x", int(size.Load()))), size.Load())
	})
	c := newClient(t, webhook.ClientConfig{})
	for _, tc := range []struct {
		size      int64
		truncated bool
		received  int64
	}{
		{0, false, 0}, {64 << 10, false, 64 << 10}, {64<<10 + 1, true, 64<<10 + 1}, {300 << 10, true, 300 << 10}, {4 << 20, true, 320 << 10},
	} {
		size.Store(tc.size)
		res := c.Send(t.Context(), webhook.Request{URL: url})
		require.Equal(t, webhook.NoError, res.Err)
		require.Len(t, res.Body, int(min(tc.size, webhook.MaxResponseBody)))
		require.Equal(t, tc.truncated, res.Truncated)
		require.Equal(t, tc.received, res.BodySize)
	}
	require.Equal(t, int64(1), connections.Load(), "what is a little too long doesn't cost the connection")
}

func TestSendReusesConnections(t *testing.T) {
	t.Parallel()
	url, connections := receiver(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	c := newClient(t, webhook.ClientConfig{})
	for range 20 {
		require.Equal(t, 200, c.Send(t.Context(), webhook.Request{URL: url, Body: []byte("x")}).Status)
	}
	require.Equal(t, int64(1), connections.Load())
}

// net/http would send a request with an Idempotency-Key again by itself when a kept connection turns out to be dead.
func TestSendIsOneRequest(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "{}"} {
		var requests atomic.Int64
		url, _ := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
			if requests.Add(1) == 1 {
				return
			}
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		})
		c := newClient(t, webhook.ClientConfig{})
		r := webhook.Request{URL: url, Body: []byte(body), Header: header("Idempotency-Key", "k", "X-Idempotency-Key", "k")}
		require.Equal(t, 200, c.Send(t.Context(), r).Status)
		res := c.Send(t.Context(), r)
		require.Equal(t, webhook.ErrorConnectionReset, res.Err)
		require.True(t, res.Wrote)
		require.Equal(t, int64(2), requests.Load())
	}
}

func TestSendDoesNotFollowRedirects(t *testing.T) {
	t.Parallel()
	var followed atomic.Bool
	url, _ := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			followed.Store(true)
		}
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: url})
	require.Equal(t, 307, res.Status)
	require.Equal(t, webhook.NoError, res.Err)
	require.False(t, followed.Load())
}

func TestSendInterrupted(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	url := raw(t, func(c net.Conn) { close(arrived); hold(c) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	res := newClient(t, webhook.ClientConfig{}).Send(ctx, webhook.Request{URL: url})
	require.Equal(t, webhook.ErrorInterrupted, res.Err)
	require.True(t, res.Wrote)

	res = newClient(t, webhook.ClientConfig{}).Send(ctx, webhook.Request{URL: url})
	require.Equal(t, webhook.ErrorInterrupted, res.Err)
	require.False(t, res.Wrote)
}

func TestSendNeverReachesPrivateAddresses(t *testing.T) {
	t.Parallel()
	url, connections := receiver(t, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(url, "http://"))
	c := newClient(t, webhook.ClientConfig{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	for _, target := range []string{
		url, "http://localhost:" + port, "http://[::1]:" + port, "http://[::ffff:127.0.0.1]:" + port, "http://0.0.0.0:" + port,
		"https://127.0.0.1:" + port, "http://10.0.0.1", "http://192.168.1.1", "http://172.16.0.1", "http://169.254.169.254/latest/meta-data",
		"http://100.100.100.200", "http://168.63.129.16", "http://[fd00:ec2::254]", "http://[fe80::1]", "http://[64:ff9b::7f00:1]",
	} {
		res := c.Send(t.Context(), webhook.Request{URL: target})
		require.Equal(t, webhook.ErrorBlockedAddress, res.Err, target)
		require.False(t, res.Wrote)
		require.Zero(t, res.Status)
	}
	require.Zero(t, connections.Load())
}

func TestSendWithoutConnection(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	c := newClient(t, webhook.ClientConfig{})
	for target, want := range map[string]webhook.ErrorClass{
		"http://" + l.Addr().String():  "connection_refused",
		"https://" + l.Addr().String(): "connection_refused",
		"http://kapsel-test.invalid":   "dns", // RFC 6761: never has an address
		"ftp://example.com":            "request",
		"http://user@example.com":      "request",
	} {
		res := c.Send(t.Context(), webhook.Request{URL: target})
		require.Equal(t, want, res.Err, target)
		require.False(t, res.Wrote)
	}
	for _, h := range []http.Header{{"a b": {"1"}}, {"X": {"1\r\n2"}}} {
		require.Equal(t, webhook.ErrorRequest, c.Send(t.Context(), webhook.Request{URL: "http://127.0.0.1", Header: h}).Err)
	}
}

func TestSendTLS(t *testing.T) {
	t.Parallel()
	start := func(versions *tls.Config) (*httptest.Server, *x509.CertPool) {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.TLS = versions
		s.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are the point
		s.StartTLS()
		t.Cleanup(s.Close)
		pool := x509.NewCertPool()
		pool.AddCert(s.Certificate())
		return s, pool
	}
	good, pool := start(&tls.Config{MinVersion: tls.VersionTLS12})
	require.Equal(t, 200, newClient(t, webhook.ClientConfig{RootCAs: pool}).Send(t.Context(), webhook.Request{URL: good.URL}).Status)

	untrusted := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: good.URL})
	require.Equal(t, webhook.ErrorTLS, untrusted.Err)
	require.False(t, untrusted.Wrote)

	old, pool := start(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}) // what must be refused
	require.Equal(t, webhook.ErrorTLS, newClient(t, webhook.ClientConfig{RootCAs: pool}).Send(t.Context(), webhook.Request{URL: old.URL}).Err)

	plain, _ := receiver(t, func(http.ResponseWriter, *http.Request) {})
	https := strings.Replace(plain, "http:", "https:", 1)
	require.Equal(t, webhook.ErrorTLS, newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: https}).Err)
}

// A handshake that never ends is bounded by the request's timeout like everything else.
func TestSendTLSHandshakeTimeout(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts: the kernel completes the connection, and that's all
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: "https://" + l.Addr().String(), Timeout: short})
	require.Equal(t, webhook.ErrorTimeout, res.Err)
	require.False(t, res.Wrote)
}

func TestSendIgnoresProxyEnvironment(t *testing.T) {
	proxy, proxied := receiver(t, func(http.ResponseWriter, *http.Request) {})
	t.Setenv("HTTP_PROXY", proxy)
	t.Setenv("HTTPS_PROXY", proxy)
	res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: "http://kapsel-test.invalid"})
	require.Equal(t, webhook.ErrorDNS, res.Err)
	require.Zero(t, proxied.Load())
}

func TestValidateURL(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"https://example.com", "http://example.com:8080/a?b=c", "HTTPS://EXAMPLE.COM/", "https://8.8.8.8/", "https://[2606:4700::1111]:443/x",
		"https://3com.example/", "https://1.example.com/", "https://localhost.example.com/", "https://bücher.example/", "https://example.com/" + strings.Repeat("x", webhook.MaxURL-20),
	} {
		require.NoError(t, webhook.ValidateURL(good), good)
	}
	for bad, want := range map[string]string{
		"":                                                 "must start with http",
		"example.com/secret":                               "must start with http",
		"ftp://example.com/secret":                         "must start with http",
		"http:secret":                                      "must have a host",
		"https:///secret":                                  "must have a host",
		"https://:443/secret":                              "must have a host",
		"https://u:secret@example.com":                     "user name or password",
		"https://example.com/#secret":                      "fragment",
		"https://example.com/secret#":                      "fragment",
		"https://example.com:0/secret":                     "port",
		"https://example.com:65536/secret":                 "port",
		"https://example.com:/secret":                      "port",
		"https://example.com:x/secret":                     "malformed",
		"https://exa mple.com/secret":                      "malformed",
		"https://example.com/\nsecret":                     "malformed",
		"https://example.com/" + strings.Repeat("x", 2029): "at most 2048 bytes, not 2049",
		"http://127.0.0.1":                                 "private",
		"http://10.0.0.1:80/secret":                        "private",
		"http://169.254.169.254/":                          "private",
		"http://168.63.129.16/":                            "private",
		"http://[::1]/":                                    "private",
		"http://[::ffff:10.0.0.1]/":                        "private",
		"http://[fe80::1%25eth0]/":                         "private",
		"http://[fd00:ec2::254]/":                          "private",
		"http://localhost:3000/secret":                     "private",
		"http://LOCALHOST.":                                "private",
		"http://secret.localhost":                          "private",
		"http://ｌocalhost/":                                "private",
		"http://2130706433/secret":                         "an IPv4 address of four decimal numbers",
		"http://127.1/secret":                              "an IPv4 address of four decimal numbers",
		"http://0x7f.0.0.0x1":                              "an IPv4 address of four decimal numbers",
		"http://0177.0.0.1":                                "an IPv4 address of four decimal numbers",
		"http://8.8.8.8.":                                  "an IPv4 address of four decimal numbers",
		"http://１２７.0.0.1":                                 "an IPv4 address of four decimal numbers",
		"http://example.99999999999999999999":              "an IPv4 address of four decimal numbers",
	} {
		err := webhook.ValidateURL(bad)
		require.ErrorContains(t, err, want, bad)
		require.NotContains(t, err.Error(), "secret")
	}
	require.NoError(t, webhook.ValidateURL("http://127.0.0.1:1", loopback...))
	require.NoError(t, webhook.ValidateURL("http://localhost:1", loopback...))
	require.NoError(t, webhook.ValidateURL("http://api.localhost", netip.MustParsePrefix("::1/128")))
	require.ErrorContains(t, webhook.ValidateURL("http://localhost", netip.MustParsePrefix("10.0.0.0/8")), "private")
	require.NoError(t, webhook.ValidateURL("http://[fd00::1]", netip.MustParsePrefix("fd00::/8")))
	require.ErrorContains(t, webhook.ValidateURL("http://10.0.0.1", loopback...), "private")
}
