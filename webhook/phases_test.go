package webhook_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// bare runs a TCP server that hands over every connection as it comes.
func bare(t *testing.T, answer func(net.Conn)) (addr string) {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				answer(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// silent keeps a connection open and reads nothing of it, until the test is over.
func silent(t *testing.T) func(net.Conn) {
	t.Helper()
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	return func(net.Conn) { <-over }
}

// Whatever a receiver is slow in, the destination's timeout ends it. (For the phase of connecting see phases_linux_test.go.)
func TestEveryPhaseEndsAtTheTimeout(t *testing.T) {
	t.Parallel()
	dripping := func(before, drop string) func(net.Conn) {
		return func(c net.Conn) {
			says(before)(c)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for range tick.C {
				if _, err := io.WriteString(c, drop); err != nil {
					return
				}
			}
		}
	}
	mute := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", muteUDP(t))
	}}
	for name, c := range map[string]struct {
		url    string
		body   []byte
		config webhook.ClientConfig
		wrote  bool
		status int
	}{
		"looking up the name":    {url: "http://slow.test", config: webhook.ClientConfig{Resolver: mute}},
		"TLS handshake":          {url: "https://" + bare(t, silent(t))},
		"writing the request":    {url: "http://" + bare(t, silent(t)), body: bytes.Repeat([]byte("x"), 32<<20), wrote: true},
		"waiting for the answer": {url: "http://" + bare(t, hold), wrote: true},
		"a dripping status line": {url: raw(t, dripping("HTTP/1.1 200 ", "O")), wrote: true},
		"dripping headers":       {url: raw(t, dripping("HTTP/1.1 200 OK\r\n", "X: 1\r\n")), wrote: true},
		"dripping 1xx answers":   {url: raw(t, dripping("", "HTTP/1.1 103 Early\r\n\r\n")), wrote: true},
		"a dripping body":        {url: raw(t, dripping("HTTP/1.1 200 OK\r\n\r\n", "x")), wrote: true, status: 200},
		"dripping chunks":        {url: raw(t, dripping("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")), wrote: true, status: 200},
		"a body that stops":      {url: raw(t, func(c net.Conn) { says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx")(c); hold(c) }), wrote: true, status: 200},
		"trailers that stop": {url: raw(t, func(c net.Conn) {
			says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\nx\r\n0\r\nX: ")(c)
			hold(c)
		}), wrote: true, status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := newClient(t, c.config).Send(t.Context(), webhook.Request{URL: c.url, Body: c.body, Timeout: 200 * time.Millisecond})
			require.Equal(t, webhook.ErrorTimeout, res.Err)
			require.Equal(t, c.wrote, res.Wrote)
			require.Equal(t, c.status, res.Status)
		})
	}
}

func muteUDP(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn.LocalAddr().String()
}

// What a receiver sends without end is cut off, long before the timeout.
func TestAnswersWithoutEndAreCutOff(t *testing.T) {
	t.Parallel()
	forever := func(before, again string) func(net.Conn) {
		return func(c net.Conn) {
			says(before)(c)
			many := strings.Repeat(again, 64)
			for {
				if _, err := io.WriteString(c, many); err != nil {
					return
				}
			}
		}
	}
	for name, c := range map[string]struct {
		answer func(net.Conn)
		class  webhook.ErrorClass
		status int
	}{
		"status line":     {forever("HTTP/1.1 200 ", "O"), webhook.ErrorProtocol, 0},
		"headers":         {forever("HTTP/1.1 200 OK\r\n", "X: 1\r\n"), webhook.ErrorProtocol, 0},
		"one header":      {forever("HTTP/1.1 200 OK\r\nX: ", "x"), webhook.ErrorProtocol, 0},
		"1xx answers":     {forever("", "HTTP/1.1 103 Early\r\n\r\n"), webhook.ErrorProtocol, 0},
		"100s":            {forever("", "HTTP/1.1 100 Continue\r\n\r\n"), webhook.ErrorProtocol, 0},
		"body":            {forever("HTTP/1.1 200 OK\r\n\r\n", "x"), webhook.NoError, 200},
		"chunks":          {forever("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"), webhook.NoError, 200},
		"chunk extension": {forever("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", "x"), webhook.ErrorBodyRead, 200},
		"trailers":        {forever("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: 1\r\n"), webhook.ErrorBodyRead, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: raw(t, c.answer), Timeout: webhook.MaxTimeout})
			require.Equal(t, c.class, res.Err)
			require.Equal(t, c.status, res.Status)
			require.LessOrEqual(t, len(res.Body), webhook.MaxResponseBody)
			require.LessOrEqual(t, res.BodySize, int64(320<<10))
		})
	}
}

func TestAnswersAreReadAsTheyAre(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer string
		status int
		body   string
		class  webhook.ErrorClass
	}{
		"after some 1xx":       {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 201 OK\r\nContent-Length: 1\r\n\r\nx", 201, "x", ""},
		"with trailers":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\nx\r\n0\r\nX: 1\r\n\r\n", 200, "x", ""},
		"gzip that isn't":      {"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!", 200, "not gzip!", ""},
		"204 with a body":      {"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nxyz", 204, "", ""},
		"two lengths":          {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 0, "", "protocol"},
		"a negative length":    {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nxy", 0, "", "protocol"},
		"an unknown coding":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxy", 0, "", "protocol"},
		"a header without end": {"HTTP/1.1 200 OK\r\nX\r\n\r\n", 0, "", "protocol"},
		"a huge chunk":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 200, "", "body_read"},
		"a status of a word":   {"HTTP/1.1 abc OK\r\n\r\n", 0, "", "protocol"},
		"HTTP/2 unasked":       {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, "", "protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{URL: raw(t, says(c.answer)), Timeout: 20 * time.Second})
			require.Equal(t, c.class, res.Err)
			require.Equal(t, c.status, res.Status)
			require.Equal(t, c.body, string(res.Body))
		})
	}
}
