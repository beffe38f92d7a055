package chaos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
)

const (
	// tries is how often a source sends a webhook until it is answered 200.
	tries = 60
	// tryEvery is how long it waits in between, but for the first time.
	tryEvery = time.Second
	// answerWithin is how long it waits for an answer.
	answerWithin = 5 * time.Second
	// sourcesAtOnce is how many webhooks may be under way to the apis; then the load waits.
	sourcesAtOnce = 2000
	// largeEvery webhooks one is large, so that it is committed on a connection of its own.
	largeEvery = 40
	largeBytes = 300 << 10
	orderKeys  = 8
	orderKey   = "X-Order"
)

// load sends webhooks at a steady rate and remembers every 200.
type load struct {
	machine   *machine
	ledger    *ledger
	endpoints []client.Endpoint
	ordered   string // the endpoint that keeps an order
	sources   sync.WaitGroup
	places    chan struct{}
	client    http.Client
}

func newLoad(m *machine, l *ledger) *load {
	return &load{
		machine: m, ledger: l, places: make(chan struct{}, sourcesAtOnce),
		client: http.Client{Timeout: answerWithin, Transport: &http.Transport{MaxIdleConnsPerHost: 32}},
	}
}

// prepare makes the endpoints: one for each lane, and one that keeps an order.
func (l *load) prepare(ctx context.Context) error {
	r := l.machine.receivers
	batch, auto, never := client.Batch, client.Auto, client.CircuitSettings{Off: ptr(true)}
	for _, e := range []client.NewEndpoint{
		{Name: "auto", Lane: &auto, Destinations: []client.NewDestination{
			{URL: r.url(pathHealthy), Schedule: waits(500, 1000, 2000, 4000, 8000, 8000, 8000, 8000), Circuit: &never},
			{URL: r.unsteadyURL, Schedule: waits(500, 1000, 2000, 4000, 4000), TimeoutMs: ptr(2000), Circuit: &client.CircuitSettings{OpenMs: ptr(int64(3000)), RampPerSecond: ptr(20)}},
			// Its second attempt is always waited for by a workflow.
			{URL: r.url(pathFlaky), Schedule: waits(4000, 500, 1000, 2000, 4000, 8000, 8000, 8000), Circuit: &never},
		}},
		{Name: "batch", Lane: &batch, Destinations: []client.NewDestination{
			{URL: r.url(pathHealthy), Schedule: waits(500, 1000, 2000, 4000, 8000, 8000, 8000, 8000), Circuit: &never},
			{URL: r.url(pathFlaky), Schedule: waits(300, 300, 300, 1000, 2000), Circuit: &never},
			{URL: r.url(pathRefusing), Circuit: &never},
		}},
		{Name: "ordered", Lane: &auto, Destinations: []client.NewDestination{
			{URL: r.url(pathHealthy), Schedule: waits(500, 1000, 2000, 4000, 8000, 8000, 8000, 8000), Circuit: &never},
		}, Ordering: &client.Ordering{Source: client.OrderingSourceHeader, Header: ptr(orderKey), OnDead: client.Skip}},
	} {
		e.Verification = client.Verification{Scheme: client.VerificationSchemeNone}
		if err := l.create(ctx, e); err != nil {
			return err
		}
	}
	l.ordered = l.endpoints[len(l.endpoints)-1].ID
	return nil
}

func (l *load) create(ctx context.Context, e client.NewEndpoint) error {
	api, err := client.NewClientWithResponses(l.machine.urls[0], client.WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
		req.Header.Set("Authorization", "Bearer "+l.machine.made.APIKey)
		return nil
	}))
	if err != nil {
		return err
	}
	answer, err := api.CreateEndpointWithResponse(ctx, e)
	if err != nil {
		return err
	}
	if answer.JSON201 == nil {
		return fmt.Errorf("endpoint %s was refused: %s", e.Name, answer.Body)
	}
	l.endpoints = append(l.endpoints, *answer.JSON201)
	return nil
}

func ptr[T any](v T) *T { return &v }

// waits are a schedule, in milliseconds.
func waits(ms ...int64) *client.Schedule {
	return &client.Schedule{Type: ptr(client.ScheduleTypeList), DelaysMs: &ms}
}

// run sends until loading ends, then waits for the sources that still try, which they do until whole ends.
func (l *load) run(loading, whole context.Context, rate int) {
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-loading.Done():
			l.sources.Wait()
			return
		case <-tick.C:
		}
		select {
		case l.places <- struct{}{}:
			l.sources.Go(func() {
				defer func() { <-l.places }()
				l.send(whole, n)
			})
		default:
			l.ledger.mu.Lock()
			l.ledger.skipped++
			l.ledger.mu.Unlock()
		}
	}
}

// send is one source with one webhook: it tries at one api after the other until it is answered 200. It goes on when the
// load is over, as sources do.
func (l *load) send(ctx context.Context, n int) {
	endpoint := l.endpoints[n%len(l.endpoints)]
	body := payload(n)
	a := &accepted{endpoint: endpoint.ID, body: sha256.Sum256(body), sent: time.Now()}
	if endpoint.ID == l.ordered {
		a.order = fmt.Sprint("key ", n/len(l.endpoints)%orderKeys)
	}
	l.ledger.mu.Lock()
	l.ledger.sources++
	l.ledger.mu.Unlock()
	for try := range tries {
		url := l.machine.urls[(n+try)%len(l.machine.urls)] + "/ingest/" + endpoint.ID
		if l.try(url, uuid.NewSHA1(uuid.Nil, fmt.Append(nil, n)).String(), body, a) {
			return
		}
		if try == 0 { // the other one may take it
			continue
		}
		if try == 1 {
			l.ledger.failTwice()
		}
		select {
		case <-time.After(tryEvery):
		case <-ctx.Done():
			return
		}
	}
	l.ledger.mu.Lock()
	l.ledger.refused++
	l.ledger.mu.Unlock()
}

// payload is a body that no other webhook has.
func payload(n int) []byte {
	filler := 200 + n*37%800
	if n%largeEvery == 0 {
		filler = largeBytes
	}
	return fmt.Appendf(nil, `{"number":%d,"filler":%q}`, n, strings.Repeat("x", filler))
}

// try sends a webhook once and says whether it was accepted.
func (l *load) try(url, key string, body []byte, a *accepted) bool {
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		l.machine.broken(promiseHarness, "%v", err)
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	if a.order != "" {
		req.Header.Set(orderKey, a.order)
	}
	res, err := l.client.Do(req)
	if err != nil {
		l.ledger.answered(0)
		return false
	}
	defer func() { _ = res.Body.Close() }()
	l.ledger.answered(res.StatusCode)
	if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") == "" {
		l.machine.broken(promiseRefusal, "a 503 without Retry-After from %s", url)
	}
	if res.StatusCode != http.StatusOK {
		if res.StatusCode != http.StatusServiceUnavailable && res.StatusCode != http.StatusTooManyRequests {
			l.machine.broken(promiseRefusal, "a webhook that is in order was answered %d", res.StatusCode)
		}
		return false
	}
	var answer struct {
		EventID string `json:"event_id"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return false // cut off; nobody can know what was answered
	}
	event, err := id.Event.Parse(answer.EventID)
	if err != nil {
		l.machine.broken(promiseRefusal, "a 200 names no event: %v", err)
		return false
	}
	a.answer = time.Now()
	if !l.ledger.accept(event, a, res.Header.Get("Kapsel-Duplicate") == "true") {
		l.machine.broken(promiseAccepted, "two webhooks were told the event %s", answer.EventID)
	}
	return true
}
