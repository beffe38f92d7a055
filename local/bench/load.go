package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
	"github.com/valyala/fasthttp"
)

// load sends webhooks to one URL or several in turn.
type load struct {
	ledger  *ledger
	urls    []string
	hanging int      // the destinations of so many of urls, the first ones, hang
	bodies  [][]byte // sent in turn
	backlog int64    // senders pause while more webhooks than this are under way; 0: never
}

// run sends by the configuration, until it is over or ctx ends.
func (l *load) run(ctx context.Context, c Config) {
	ctx, cancel := context.WithTimeout(ctx, c.Duration)
	defer cancel()
	if c.Rate > 0 {
		l.open(ctx, c)
		return
	}
	l.closed(ctx, c.Concurrency, c.Events)
}

// closed keeps so many callers busy, each of which sends its next webhook when its last one was answered.
func (l *load) closed(ctx context.Context, callers int, events int64) {
	client := &fasthttp.Client{MaxConnsPerHost: callers + 1, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
		NoDefaultUserAgentHeader: true, DisablePathNormalizing: true, MaxIdemponentCallAttempts: 1}
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for ctx.Err() == nil && l.mayGoOn(ctx) {
				if events > 0 && l.ledger.next.Load() >= events {
					return
				}
				l.send(client)
			}
		})
	}
	all.Wait()
	client.CloseIdleConnections()
}

// mayGoOn waits while too much is under way; false: there is no more time.
func (l *load) mayGoOn(ctx context.Context) bool {
	for l.backlog > 0 && l.ledger.waiting() > l.backlog {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Millisecond):
		}
	}
	return true
}

func (l *load) send(client *fasthttp.Client) {
	request, response := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(request)
	defer fasthttp.ReleaseResponse(response)
	request.Header.SetMethod(fasthttp.MethodPost)
	request.Header.SetContentType("application/json")
	sequence := l.ledger.begin()
	request.SetRequestURI(l.urls[int(sequence)%len(l.urls)])
	request.Header.Set(HeaderSequence, strconv.FormatInt(sequence, 10))
	request.SetBodyRaw(l.bodies[int(sequence)%len(l.bodies)])
	err := client.Do(request, response)
	stuck := int(sequence)%len(l.urls) < l.hanging
	l.answered(sequence, err == nil && response.StatusCode() == http.StatusOK, stuck, response.Body())
}

func (l *load) answered(sequence int64, ok, stuck bool, body []byte) {
	var accepted struct {
		EventID string `json:"event_id"`
	}
	ok = ok && json.Unmarshal(body, &accepted) == nil && accepted.EventID != ""
	l.ledger.answer(sequence, ok, stuck)
}

// idleConnection is how long a connection of the open loop stays unused: a stall opens hundreds, and kept for good they would
// look like something of Kapsel's that grows.
const idleConnection = 5 * time.Second

// open sends at a given rate, whatever the answers: as many callers as that takes, so that a slow answer delays no other
// webhook and every latency counts from the moment in which it was to be sent.
func (l *load) open(ctx context.Context, c Config) {
	transport := &http.Transport{MaxIdleConnsPerHost: 10_000, IdleConnTimeout: idleConnection, DisableCompression: true}
	defer transport.CloseIdleConnections()
	attacker := vegeta.NewAttacker(vegeta.Workers(uint64(c.Concurrency)),
		vegeta.Client(&http.Client{Transport: transport, Timeout: 30 * time.Second}))
	results := attacker.Attack(l.target, vegeta.Rate{Freq: c.Rate, Per: time.Second}, c.Duration, "kapsel")
	for {
		select {
		case result, more := <-results:
			if !more {
				return
			}
			l.hit(result)
		case <-ctx.Done():
			attacker.Stop()
			for result := range results {
				l.hit(result)
			}
			return
		}
	}
}

// target is called by a worker that is about to send. vegeta numbers its hits itself, by HeaderSequence; what begin gives
// out here are the same numbers in perhaps another order.
func (l *load) target(t *vegeta.Target) error {
	sequence := l.ledger.begin()
	t.Method, t.URL = http.MethodPost, l.urls[int(sequence)%len(l.urls)]
	t.Body = l.bodies[int(sequence)%len(l.bodies)]
	t.Header = http.Header{"Content-Type": {"application/json"}}
	return nil
}

// hit notes an answer: when it was to be sent and when the answer came, not when it is looked at here.
func (l *load) hit(result *vegeta.Result) {
	sequence := int64(result.Seq)
	l.answered(sequence, result.Code == http.StatusOK, slices.Contains(l.urls[:l.hanging], result.URL), result.Body)
	e := l.ledger.entry(sequence)
	sent := max(int64(result.Timestamp.Sub(l.ledger.start)), 1)
	e.sent.Store(sent)
	e.answered.Store(sent + int64(result.Latency))
}

// payload makes a body of n bytes of JSON.
func payload(n int) []byte {
	const frame = `{"data":""}`
	filling := make([]byte, max(n-len(frame), 0))
	for i := range filling {
		filling[i] = "abcdefghijklmnopqrstuvwxyz012345"[i*7%32]
	}
	return fmt.Appendf(nil, `{"data":"%s"}`, filling)
}
