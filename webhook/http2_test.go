package webhook_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/kapsel-io/kapsel/webhook"
)

func TestSendSpeaksHTTP2WhereTheReceiverDoes(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	for _, c := range []struct {
		http2 bool
		proto string
	}{{true, "HTTP/2.0"}, {false, "HTTP/1.1"}} {
		type seen struct {
			proto, body string
			header      http.Header
		}
		got := make(chan seen, 2)
		r := a.receiver(t, c.http2, &tls.Config{}, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got <- seen{r.Proto, string(body), r.Header}
			_, _ = io.WriteString(w, "thanks")
		})
		client := newClient(t, webhook.ClientConfig{RootCAs: a.pool()})
		for _, body := range []string{"{}", ""} {
			sent := header("Content-Type", "x/y", "Idempotency-Key", "k", "X-Multi", "1", "X-Multi", "2", "User-Agent", "U")
			res := client.Send(t.Context(), webhook.Request{URL: r.URL, Header: sent, Body: []byte(body)})
			require.Equal(t, webhook.NoError, res.Err)
			require.Equal(t, 200, res.Status)
			require.Equal(t, "thanks", string(res.Body))
			require.True(t, res.Wrote)
			s := <-got
			require.Equal(t, c.proto, s.proto)
			require.Equal(t, body, s.body)
			delete(s.header, "Content-Length")
			require.Equal(t, sent, s.header, "nothing is added, above all no Accept-Encoding")
		}
		require.EqualValues(t, 1, r.connections.Load())
	}
}

// Many requests at once share a connection where it can carry them. (A first burst opens more: nobody knows yet what the receiver speaks.)
func TestSendSharesAnHTTP2Connection(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	r := a.receiver(t, true, &tls.Config{}, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	c := newClient(t, webhook.ClientConfig{RootCAs: a.pool()})
	require.Equal(t, 200, sendBy(t, c, webhook.Transport{}, r.URL).Status)
	var all sync.WaitGroup
	var delivered atomic.Int64
	for range 50 {
		all.Go(func() {
			if c.Send(t.Context(), webhook.Request{URL: r.URL, Body: []byte("{}")}).Status == 200 {
				delivered.Add(1)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 50, delivered.Load())
	require.EqualValues(t, 1, r.connections.Load())
}

// frames runs an HTTP/2 receiver that hands over each frame it reads.
func (a *authority) frames(t *testing.T, answer func(*http2.Framer, http2.Frame)) (url string) {
	t.Helper()
	cert, key := a.issue(t, time.Now().Add(time.Hour))
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	require.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveFrames(conn, answer)
		}
	}()
	return "https://" + l.Addr().String()
}

func serveFrames(conn net.Conn, answer func(*http2.Framer, http2.Frame)) {
	defer func() { _ = conn.Close() }()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(conn, conn)
	if f.WriteSettings() != nil {
		return
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		answer(f, frame)
	}
}

// A receiver may say that it did nothing with a request. Go's transport would send it again by itself, up to seven times and
// without a record; here it is an attempt that failed, and the next one is recorded too.
func TestSendIsOneRequestByHTTP2(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	for name, refuse := range map[string]func(*http2.Framer, uint32){
		"refused stream": func(f *http2.Framer, stream uint32) { _ = f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) },
		"protocol error": func(f *http2.Framer, stream uint32) { _ = f.WriteRSTStream(stream, http2.ErrCodeProtocol) },
		"going away":     func(f *http2.Framer, _ uint32) { _ = f.WriteGoAway(0, http2.ErrCodeNo, nil) },
	} {
		for _, body := range []string{"", "{}"} {
			var requests atomic.Int64
			url := a.frames(t, func(f *http2.Framer, frame http2.Frame) {
				if frame.Header().Type == http2.FrameHeaders {
					requests.Add(1)
					refuse(f, frame.Header().StreamID)
				}
			})
			c := newClient(t, webhook.ClientConfig{RootCAs: a.pool()})
			res := c.Send(t.Context(), webhook.Request{URL: url, Body: []byte(body), Timeout: 10 * time.Second})
			require.Equal(t, webhook.ErrorConnectionReset, res.Err, name)
			require.True(t, res.Wrote)
			require.Zero(t, res.Status)
			require.EqualValues(t, 1, requests.Load(), name)
		}
	}
}

// What a receiver can do to HTTP/2 is bounded like everything else.
func TestSendClassifiesWhatGoesWrongByHTTP2(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	for name, c := range map[string]struct {
		class  webhook.ErrorClass
		answer func(*http2.Framer, http2.Frame)
	}{
		"no answer": {webhook.ErrorTimeout, func(*http2.Framer, http2.Frame) {}},
		"a header without end": {webhook.ErrorProtocol, func(f *http2.Framer, frame http2.Frame) {
			if frame.Header().Type != http2.FrameHeaders {
				return
			}
			// ":status: 200", then a literal that isn't indexed: its name "x" and a value of 127 bytes.
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.Header().StreamID, BlockFragment: []byte{0x88}})
			literal := append([]byte{0x00, 0x01, 'x', 0x7e}, make([]byte, 126)...)
			for i := range literal[4:] {
				literal[4+i] = 'x'
			}
			for range 10_000 {
				if f.WriteContinuation(frame.Header().StreamID, false, literal) != nil {
					return
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			timeout := 20 * time.Second
			if c.class == webhook.ErrorTimeout {
				timeout = 500 * time.Millisecond
			}
			client := newClient(t, webhook.ClientConfig{RootCAs: a.pool()})
			res := client.Send(t.Context(), webhook.Request{URL: a.frames(t, c.answer), Body: []byte("{}"), Timeout: timeout})
			require.Zero(t, res.Status)
			if c.class == webhook.ErrorTimeout {
				require.Equal(t, c.class, res.Err)
			} else {
				require.Contains(t, []webhook.ErrorClass{c.class, webhook.ErrorConnectionReset}, res.Err)
			}
		})
	}
}
