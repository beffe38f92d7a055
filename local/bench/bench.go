// Package bench measures Kapsel under load, and says in the same run what a bare program reaches on the same machine and
// the same Postgres (see floor). It counts what its own receivers took and what a signed head covers, not what Kapsel
// says of itself, and fails if an accepted webhook was not delivered or not attested exactly once.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/local/payloads"
)

// Config says what to measure.
type Config struct {
	APIURL string
	APIKey string
	// DB is Kapsel's Postgres, as a superuser, for its statistics and for the floor. nil: neither is measured.
	DB *pgxpool.Pool
	// TemporalRequests says how many requests Temporal got so far. nil: they aren't counted.
	TemporalRequests func() int64
	// ReceiverHost is the address at which Kapsel reaches the receivers. Default: 127.0.0.1.
	ReceiverHost string

	Lane         string        // of the endpoints: workflow, batch or auto
	Duration     time.Duration // of the load
	Events       int64         // end the load after so many webhooks; 0: after Duration
	Concurrency  int           // closed loop: callers, each with one webhook at a time
	Rate         int           // open loop: webhooks a second; 0: closed loop
	Backlog      int64         // closed loop: callers pause while more are accepted and not delivered; 0: never
	PayloadBytes int           // size of each webhook; 0: GitHub's real ones, 1 to 27 KB
	Latency      time.Duration // of the receivers
	Fail         float64       // part of the webhooks whose first attempt is answered 503
	Destinations int           // over which webhooks are spread, each with an endpoint of its own
	Hanging      int           // so many of the destinations answer nothing, until their timeout
	HangTimeout  time.Duration // of those
	Stored       int64         // events that are in the database before, as if delivered earlier today; needs DB
	IngestOnly   bool          // nothing delivers: measure only how fast webhooks are accepted, of the floor too
	Floor        bool          // measure the bare program too
	Soak         bool          // a line a minute; fails if CPU, memory, goroutines, queues or tables grow
	CPUProfile   string        // file that gets a profile of this process under load
	HeapProfile  string        // file that gets a profile of what this process holds at the end of the load
	Progress     io.Writer     // a line every few seconds
}

// Result is what was measured. Rates are over the time in which load was applied, latencies in milliseconds.
type Result struct {
	Lane             string  `json:"lane"`
	Seconds          float64 `json:"seconds"`
	FloorPerS        float64 `json:"floor_per_s"`
	FloorAcceptPerS  float64 `json:"floor_accepted_per_s"`
	AcceptedPerS     float64 `json:"accepted_per_s"`
	DeliveredPerS    float64 `json:"delivered_per_s"`
	AttestedPerS     float64 `json:"attested_per_s"`
	Accepted         int64   `json:"accepted"`
	Refused          int64   `json:"refused"`
	Requests         int64   `json:"requests"`
	Lost             int64   `json:"lost"`
	Duplicated       int64   `json:"duplicated"`
	Unattested       int64   `json:"unattested"`
	AttestedTwice    int64   `json:"attested_twice"`
	IngestP99MS      float64 `json:"ingest_p99_ms"`
	E2EP99MS         float64 `json:"e2e_p99_ms"`
	Ingest           Latency `json:"ingest_ms"`
	EndToEnd         Latency `json:"e2e_ms"` // of what doesn't go to a destination that hangs
	Hanging          int     `json:"hanging"`
	Stuck            int64   `json:"stuck"` // accepted for destinations that hang
	CPUMSPerEvent    float64 `json:"cpu_ms_per_event"`
	OwnCPUMSPerEvent float64 `json:"own_cpu_ms_per_event"`
	PeakRSSMB        float64 `json:"peak_rss_mb"`
	CommitsPerEvent  float64 `json:"commits_per_event"`
	WALPerEvent      float64 `json:"wal_bytes_per_event"`
	TemporalPerEvent float64 `json:"temporal_requests_per_event"`
	DrainSeconds     float64 `json:"drain_seconds"`
}

// LaneNone is the lane of a run in which nothing is delivered.
const LaneNone = "none"

// Err says what a run must not have done.
func (r Result) Err() error {
	switch {
	case r.Accepted == 0:
		return errors.New("nothing was accepted")
	case r.Lane == LaneNone:
		return nil
	case r.Lost > 0:
		return fmt.Errorf("%d accepted webhooks were never delivered", r.Lost)
	case r.Unattested > 0:
		return fmt.Errorf("%d attempts have no leaf under a signed head", r.Unattested)
	case r.AttestedTwice > 0:
		return fmt.Errorf("%d leaves are of no request that a receiver saw", r.AttestedTwice)
	case r.Duplicated > 0:
		return fmt.Errorf("%d webhooks were taken twice though nothing crashed", r.Duplicated)
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.ReceiverHost == "" {
		c.ReceiverHost = "127.0.0.1"
	}
	c.Destinations = max(c.Destinations, 1)
	if c.Progress == nil {
		c.Progress = io.Discard
	}
}

// Run measures the floor, if asked for, and then Kapsel.
func Run(ctx context.Context, c Config) (Result, error) {
	c.setDefaults()
	var floorRate, floorAccept float64
	if c.Floor && c.DB != nil {
		_, _ = fmt.Fprintln(c.Progress, "floor: the bare program")
		var err error
		if floorAccept, floorRate, err = runFloor(ctx, c); err != nil {
			return Result{}, fmt.Errorf("measure the floor: %w", err)
		}
	}
	_, _ = fmt.Fprintf(c.Progress, "Kapsel: lane %s\n", c.Lane)
	r := &run{Config: c, ledger: newLedger()}
	result, err := r.measure(ctx)
	result.FloorPerS, result.FloorAcceptPerS = floorRate, floorAccept
	return result, err
}

// backlog is how many webhooks may be under way.
func (c *Config) backlog() int64 {
	if c.IngestOnly {
		return 0
	}
	return c.Backlog
}

// bodies are what is sent in turn.
func (c *Config) bodies() ([][]byte, error) {
	if c.PayloadBytes > 0 {
		return [][]byte{payload(c.PayloadBytes)}, nil
	}
	all, err := payloads.All()
	if err != nil {
		return nil, err
	}
	var bodies [][]byte
	for _, p := range all {
		bodies = append(bodies, p.Body)
	}
	return bodies, nil
}

// runFloor returns what the bare program accepted and what it sequenced, both a second.
func runFloor(ctx context.Context, c Config) (accepted, attested float64, err error) {
	l := newLedger()
	receiver, err := startReceiver(c.ReceiverHost, l, c.Latency, 0)
	if err != nil {
		return 0, 0, err
	}
	defer receiver.stop()
	f, server, url, err := startFloor(ctx, c.DB, receiver.url, c.IngestOnly)
	if err != nil {
		return 0, 0, err
	}
	bodies, err := c.bodies()
	if err != nil {
		return 0, 0, err
	}
	started := time.Now()
	stop := report(c.Progress, l, f.attested.Load)
	(&load{ledger: l, urls: []string{url}, bodies: bodies, backlog: c.backlog()}).run(ctx, c)
	seconds := time.Since(started).Seconds()
	accepted, attested = float64(l.accepted.Load())/seconds, float64(f.attested.Load())/seconds
	stop()
	return accepted, attested, f.stop(server)
}

// run is one run against Kapsel.
type run struct {
	Config
	ledger   *ledger
	api      *client.ClientWithResponses
	receiver *receiver
	urls     []string
	baseSize int64 // of the log before the run
}

func (r *run) measure(ctx context.Context) (Result, error) {
	bodies, err := r.bodies()
	if err != nil {
		return Result{}, err
	}
	if err := r.prepare(ctx); err != nil {
		return Result{}, err
	}
	if err := r.store(ctx); err != nil {
		return Result{}, err
	}
	defer r.receiver.stop()
	meter, err := newMeter(ctx, r.DB)
	if err != nil {
		return Result{}, err
	}
	before, err := meter.read(ctx)
	if err != nil {
		return Result{}, err
	}
	temporalBefore := r.temporalRequests()
	resetPeak()
	r.ledger.start = time.Now()
	var soak *soak
	if r.Soak {
		soak = startSoak(ctx, r, meter, before)
	}
	size := r.watchSize(ctx)
	stop := report(r.Progress, r.ledger, size.grown)
	profiled, err := profile(r.CPUProfile)
	if err != nil {
		return Result{}, err
	}
	(&load{ledger: r.ledger, urls: r.urls, hanging: r.Hanging, bodies: bodies, backlog: r.backlog()}).run(ctx, r.Config)
	profiled()
	if err := heapProfile(r.HeapProfile); err != nil {
		return Result{}, err
	}
	seconds := time.Since(r.ledger.start).Seconds()
	result := Result{
		Lane: r.Lane, Seconds: seconds, Accepted: r.ledger.accepted.Load(), Refused: r.ledger.refused.Load(),
		AcceptedPerS:  float64(r.ledger.accepted.Load()) / seconds,
		DeliveredPerS: float64(r.ledger.delivered.Load()) / seconds,
		AttestedPerS:  float64(size.grown()) / seconds,
	}
	drained := time.Now()
	if r.IngestOnly {
		result.Lane = LaneNone
	} else {
		r.drain(ctx, size)
	}
	stop()
	size.stop()
	result.DrainSeconds = time.Since(drained).Seconds()
	after, err := meter.read(ctx)
	if err != nil {
		return result, err
	}
	r.fill(&result, after.since(before), r.temporalRequests()-temporalBefore, size.grown())
	if soak != nil {
		err = soak.end()
	}
	return result, err
}

// fill adds what is known when everything is over.
func (r *run) fill(result *Result, used usage, temporalRequests, grown int64) {
	accepted := float64(max(result.Accepted, 1))
	result.Ingest, result.EndToEnd = r.ledger.latencies()
	result.Hanging, result.Stuck = r.Hanging, r.ledger.stuck.Load()
	result.IngestP99MS, result.E2EP99MS = result.Ingest.P99, result.EndToEnd.P99
	result.Requests = r.ledger.requests.Load()
	r.ledger.each(func(e *entry) {
		if e.accepted.Load() && e.taken.Load() == 0 && !r.IngestOnly && !e.stuck.Load() {
			result.Lost++
		}
	})
	result.Duplicated = r.ledger.again.Load()
	if r.Hanging == 0 { // else some requests are still under way, and each that has timed out has two leaves
		result.Unattested, result.AttestedTwice = max(result.Requests-grown, 0), max(grown-result.Requests, 0)
	}
	result.CPUMSPerEvent = used.cpu.Seconds() * 1000 / accepted
	result.OwnCPUMSPerEvent = used.own.Seconds() * 1000 / accepted
	result.PeakRSSMB = float64(peakMemory()) / (1 << 20)
	result.CommitsPerEvent = float64(used.commits) / accepted
	result.WALPerEvent = float64(used.wal) / accepted
	result.TemporalPerEvent = float64(temporalRequests) / accepted
}

func (r *run) temporalRequests() int64 {
	if r.TemporalRequests == nil {
		return 0
	}
	return r.TemporalRequests()
}

// prepare starts the receivers and makes the endpoints.
func (r *run) prepare(ctx context.Context) (err error) {
	r.api, err = client.NewClientWithResponses(r.APIURL, client.WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
		req.Header.Set("Authorization", "Bearer "+r.APIKey)
		return nil
	}))
	if err != nil {
		return err
	}
	if r.receiver, err = startReceiver(r.ReceiverHost, r.ledger, r.Latency, r.Fail); err != nil {
		return err
	}
	var circuit *client.CircuitSettings // the default, unless receivers fail on purpose: that is about retries and places
	if r.Fail > 0 || r.Hanging > 0 {
		off := true
		circuit = &client.CircuitSettings{Off: &off}
	}
	lane, timeout, never := client.Lane(r.Lane), int(r.HangTimeout.Milliseconds()), client.ScheduleTypeNone
	for i := range r.Destinations {
		destination := client.NewDestination{URL: fmt.Sprintf("%s/%d", r.receiver.url, i), Circuit: circuit}
		if i < r.Hanging {
			destination = client.NewDestination{URL: r.receiver.url + hangingPath, TimeoutMs: &timeout, Schedule: &client.Schedule{Type: &never}, Circuit: circuit}
		}
		answer, err := r.api.CreateEndpointWithResponse(ctx, client.NewEndpoint{
			Name: fmt.Sprintf("bench %d", i), Verification: client.Verification{Scheme: client.VerificationSchemeNone}, Lane: &lane,
			Destinations: []client.NewDestination{destination},
		})
		if err != nil {
			return err
		}
		if answer.JSON201 == nil {
			return fmt.Errorf("create endpoint: %s", answer.Body)
		}
		r.urls = append(r.urls, r.APIURL+"/ingest/"+answer.JSON201.ID)
	}
	if r.baseSize, err = r.treeSize(ctx); err != nil || r.DB == nil {
		return err
	}
	var waiting int64
	if err := r.DB.QueryRow(ctx, "select count(*) from delivery_queue").Scan(&waiting); err != nil {
		return fmt.Errorf("look for deliveries of earlier runs: %w", err)
	}
	if waiting > 0 {
		return fmt.Errorf("%d deliveries of earlier runs are still in the queue and would be measured too; use a fresh --dir", waiting)
	}
	return nil
}

// drainWithin is how long what was accepted may take to be delivered and attested after the load.
const drainWithin = 10 * time.Minute

// drain waits until every accepted webhook was taken and a signed head covers every request.
func (r *run) drain(ctx context.Context, size *sizeWatch) {
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	for r.ledger.delivered.Load() < r.ledger.accepted.Load()-r.ledger.stuck.Load() || size.grown() < r.ledger.requests.Load() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
