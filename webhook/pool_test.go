package webhook_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// A new connection for almost every delivery is what a peer's users complain of: here many deliveries take a few.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	answer := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }
	plain, plainConnections := receiver(t, answer)
	secure := a.receiver(t, false, &tls.Config{}, answer)
	c := newClient(t, webhook.ClientConfig{RootCAs: a.pool()})
	const deliveries, workers = 400, 8
	for url, connections := range map[string]*atomic.Int64{plain: plainConnections, secure.URL: &secure.connections} {
		for _, transport := range []webhook.Transport{{}, {MinTLS: "1.3"}} {
			before := connections.Load()
			var all sync.WaitGroup
			var delivered atomic.Int64
			for range workers {
				all.Go(func() {
					for range deliveries / workers {
						if sendBy(t, c, transport, url).Status == 200 {
							delivered.Add(1)
						}
					}
				})
			}
			all.Wait()
			require.EqualValues(t, deliveries, delivered.Load())
			// Some more than workers: net/http dials for a request that waits, also if that then takes a connection which became free.
			require.LessOrEqual(t, connections.Load()-before, int64(deliveries/10))
		}
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	for _, http2 := range []bool{false, true} {
		r := a.receiver(t, http2, &tls.Config{}, ok)
		c := newClient(t, webhook.ClientConfig{RootCAs: a.pool(), IdleTimeout: 20 * time.Millisecond})
		require.Equal(t, 200, sendBy(t, c, webhook.Transport{}, r.URL).Status)
		require.Eventually(t, func() bool { return r.open.Load() == 0 }, 10*time.Second, time.Millisecond)
	}
}

// Each transport has connections of its own, and what is kept of them is bounded: the oldest give way.
func TestTransportsAreForgotten(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	r := a.receiver(t, false, &tls.Config{}, ok)
	c := newClient(t, webhook.ClientConfig{RootCAs: a.pool(), IdleTimeout: time.Hour})
	const transports, kept = 300, 128
	for i := range transports {
		transport := webhook.Transport{CAPEM: a.pem + strings.Repeat("\n", i)} // as good as any other, and different
		require.Equal(t, 200, sendBy(t, c, transport, r.URL).Status)
	}
	require.EqualValues(t, transports, r.connections.Load(), "no connection of other settings is taken")
	require.Eventually(t, func() bool { return r.open.Load() <= kept }, 10*time.Second, time.Millisecond)
	c.Close()
	require.Eventually(t, func() bool { return r.open.Load() == 0 }, 10*time.Second, time.Millisecond)
}
