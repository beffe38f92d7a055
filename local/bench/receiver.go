package bench

import (
	"fmt"
	"hash/fnv"
	"net"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// HeaderSequence carries a webhook's sequence number to the receiver: Kapsel passes original headers on. vegeta sets it by
// itself.
const HeaderSequence = "X-Vegeta-Seq"

// receiver takes webhooks after a while, or turns some of them away. It is one server; destinations differ by path.
type receiver struct {
	ledger  *ledger
	latency time.Duration
	fail    float64 // part of the webhooks whose first attempt is answered 503
	server  *fasthttp.Server
	url     string
	seen    failures
	stopped chan struct{}
}

// hangingPath is that of destinations which answer nothing until their timeout.
const hangingPath = "/hangs"

// webhookTimeout is the longest timeout of a destination.
const webhookTimeout = 2 * time.Minute

// startReceiver listens on a free port of host.
func startReceiver(host string, l *ledger, latency time.Duration, fail float64) (*receiver, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("start receiver: %w", err)
	}
	r := &receiver{ledger: l, latency: latency, fail: fail, url: "http://" + listener.Addr().String(), stopped: make(chan struct{})}
	r.server = &fasthttp.Server{Handler: r.handle, MaxRequestBodySize: 64 << 20, NoDefaultServerHeader: true, NoDefaultDate: true, Concurrency: 100_000}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *receiver) stop() {
	close(r.stopped)
	_ = r.server.Shutdown()
}

func (r *receiver) handle(ctx *fasthttp.RequestCtx) {
	if string(ctx.Path()) == hangingPath {
		select { // it can't see that its caller has gone
		case <-r.stopped:
		case <-time.After(webhookTimeout):
		}
		return
	}
	r.ledger.requests.Add(1)
	sequence, err := strconv.ParseInt(string(ctx.Request.Header.Peek(HeaderSequence)), 10, 64)
	if err != nil {
		ctx.SetStatusCode(fasthttp.StatusBadRequest)
		return
	}
	if r.latency > 0 {
		<-time.After(r.latency)
	}
	if r.turnsAway(sequence) {
		ctx.SetStatusCode(fasthttp.StatusServiceUnavailable)
		return
	}
	r.ledger.take(sequence)
	ctx.SetBodyString("ok")
}

// turnsAway says whether this is the first request of a webhook that is to fail once.
func (r *receiver) turnsAway(sequence int64) bool {
	if r.fail == 0 {
		return false
	}
	h := fnv.New32a()
	_, _ = h.Write(strconv.AppendInt(nil, sequence, 10))
	return float64(h.Sum32()%1000) < r.fail*1000 && r.seen.first(sequence)
}
