package chaos

import (
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/webhook"
)

// The receivers are one server, and differ by path.
const (
	pathHealthy  = "/healthy"
	pathFlaky    = "/flaky"    // answers 503 to the first attempt of each delivery
	pathRefusing = "/refusing" // answers 400: what it gets is dead at once
	pathUnsteady = "/unsteady" // what faults are done to
)

// receiverModes are the ways in which a receiver can misbehave.
var receiverModes = []string{"hang", "reset", "trickle", "garbage", "late", "short", "error"}

type receivers struct {
	ledger      *ledger
	server      *http.Server
	base        string
	unsteadyURL string // leads through a proxy
	mode        atomic.Pointer[string]
	stopped     chan struct{}
}

func startReceivers(l *ledger, n *network) (*receivers, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &receivers{ledger: l, base: "http://" + listener.Addr().String(), stopped: make(chan struct{})}
	through, err := n.link(unsteadyLink, listener.Addr().String())
	if err != nil {
		return nil, err
	}
	r.unsteadyURL = "http://" + through + pathUnsteady
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *receivers) url(path string) string { return r.base + path }

func (r *receivers) stop() {
	close(r.stopped)
	_ = r.server.Close()
}

// misbehave has the unsteady receiver do so, until it is mended.
func (r *receivers) misbehave(mode string) (mend func() error) {
	r.mode.Store(&mode)
	return func() error {
		r.mode.Store(nil)
		return nil
	}
}

// ServeHTTP notes a request once it was read to its end, and answers it then.
func (r *receivers) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	event, errEvent := id.Event.Parse(req.Header.Get(webhook.HeaderEventID))
	delivery, errDelivery := id.Delivery.Parse(req.Header.Get(webhook.HeaderDeliveryID))
	attempt, errAttempt := strconv.Atoi(req.Header.Get(webhook.HeaderAttempt))
	if errEvent != nil || errDelivery != nil || errAttempt != nil {
		http.Error(w, "no webhook of Kapsel", http.StatusBadRequest)
		return
	}
	r.ledger.arrive(delivery, request{event, attempt, sha256.Sum256(body), time.Now()}, req.URL.Path == pathHealthy)
	switch req.URL.Path {
	case pathFlaky:
		if attempt == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	case pathRefusing:
		w.WriteHeader(http.StatusBadRequest)
	case pathUnsteady:
		if mode := r.mode.Load(); mode != nil {
			r.disturb(*mode, w, req)
		}
	}
}

// disturb answers as nobody should. The destination's timeout is 2 s.
func (r *receivers) disturb(mode string, w http.ResponseWriter, req *http.Request) {
	control := http.NewResponseController(w)
	switch mode {
	case "hang":
		r.wait(req.Context(), time.Minute)
	case "late":
		r.wait(context.WithoutCancel(req.Context()), 3*time.Second)
	case "error":
		w.WriteHeader(http.StatusInternalServerError)
	case "trickle":
		w.Header().Set("Content-Length", "100")
		for range 100 {
			if _, err := w.Write([]byte("x")); err != nil || control.Flush() != nil || !r.wait(req.Context(), 200*time.Millisecond) {
				return
			}
		}
	case "short":
		r.hijack(control, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ntoo short")
	case "garbage":
		r.hijack(control, "\x00\xff\x16\x03\x01 this is no HTTP\r\n\r\n")
	case "reset":
		r.hijack(control, "")
	}
}

// hijack writes text past HTTP and closes the connection, with a reset if there is no text.
func (r *receivers) hijack(control *http.ResponseController, text string) {
	conn, _, err := control.Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok && text == "" {
		_ = tcp.SetLinger(0)
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.Close()
}

// wait returns false if ctx or the run ended first.
func (r *receivers) wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-r.stopped:
		return false
	case <-time.After(d):
		return true
	}
}
