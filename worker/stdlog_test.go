package worker

import (
	"bufio"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kapsel-io/kapsel/webhook"
)

// captureStandardLog hands what the standard log writes to a logger, whose lines are returned, until the test ends. There is one
// standard log, so a test that calls it can't be parallel.
func captureStandardLog(t *testing.T) *observer.ObservedLogs {
	t.Helper()
	flags := log.Flags()
	t.Cleanup(func() {
		log.SetFlags(flags)
		log.SetOutput(os.Stderr)
	})
	core, lines := observer.New(zapcore.DebugLevel)
	DropStandardLog(zap.New(core, zap.AddCaller()))
	return lines
}

// talkative answers a webhook and then goes on talking, although nobody asked anything.
func talkative(t *testing.T, more string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"+more)
					_, _ = io.Copy(io.Discard, conn) // until the sender has had enough
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

// What a receiver sends unasked is read by net/http, which prints it. It is content, and no log may hold it.
func TestWhatAReceiverSendsUnaskedIsInNoLog(t *testing.T) {
	const secret = "card=4111-1111: HTTP/1.1 200 OK"
	lines := captureStandardLog(t)
	client := webhook.NewClient(webhook.ClientConfig{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	t.Cleanup(client.Close)
	result := client.Send(context.Background(), webhook.Request{URL: talkative(t, secret), Body: []byte("{}")})
	require.Equal(t, http.StatusOK, result.Status)
	require.Equal(t, "ok", string(result.Body))

	require.Eventually(t, func() bool { return lines.Len() > 0 }, 10*time.Second, time.Millisecond, "net/http says so")
	for _, line := range lines.All() {
		fields := line.ContextMap()
		require.Equal(t, zapcore.WarnLevel, line.Level)
		require.Regexp(t, `^transport\.go:\d+$`, fields["source"], "it is known what happened")
		require.Greater(t, fields["bytes"], int64(len(secret)))
		require.Len(t, fields, 2)
		require.NotContains(t, line.Message+line.Caller.String(), "4111")
	}
}

// Whatever is printed, and however: only where it was printed is told.
func TestStandardLogIsDropped(t *testing.T) {
	lines := captureStandardLog(t)
	log.Print("secret: of a tenant")
	log.Printf("\nsecret.go:1: %q", strings.Repeat("secret", 1000))
	log.New(log.Writer(), "", 0).Print("secret: of a tenant") // without a source: nothing is known of it
	all := lines.All()
	require.Len(t, all, 3)
	for i, line := range all {
		require.NotContains(t, line.Message, "of a tenant")
		if i == 2 {
			require.Empty(t, line.ContextMap()["source"])
			continue
		}
		require.Regexp(t, `^stdlog_test\.go:\d+$`, line.ContextMap()["source"])
	}
	require.EqualValues(t, len("secret: of a tenant"), all[0].ContextMap()["bytes"])
}
