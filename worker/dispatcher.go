package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	pollEvery     = 250 * time.Millisecond
	takeOverEvery = 2 * time.Second
	// roundPause is the least time between two looks at the queue for which somebody asked: what falls due meanwhile, and
	// the places that become free, are taken together.
	roundPause = 10 * time.Millisecond
	// destinationsAtOnce is how many due destinations one round looks at; the next round goes on after them.
	destinationsAtOnce = 256
	// placesAtOnce is the part of its places that a crowded dispatcher lets become free before it claims again.
	placesAtOnce = 8
	// fastEnough: destinations that answer within it make their first attempt in the workflow's first task.
	fastEnough = 2 * time.Second
)

// Dispatcher claims what is due, fairly among tenants and destinations, and starts what carries it: a workflow for each
// delivery, or under backlog one for hundreds of them (see lanes).
type Dispatcher struct {
	db        *pgxpool.Pool
	temporal  client.Client
	lease     *Lease
	latencies *activities.Latencies
	log       *zap.Logger
	limit     int // of deliveries with a workflow of their own that wait for the record of their first attempt
	lanes     lanes
	marks     marks
	places    places
	metrics   *metrics
	wake      chan struct{}
	failing   map[string]*outage // steps, of Run only
	starting  outage             // workflows
	doubt     time.Time          // when a claim last failed, which may have been committed nevertheless; of Run only

	mu       sync.Mutex
	inFlight map[uuid.UUID]*flight
	batched  int // of inFlight, carried in batches
	starts   sync.WaitGroup
	circuits circuitLimits
	cursor   uuid.UUID // the last destination that was looked at
	full     bool      // when it was last looked, there was at least as much due as places were free
}

// flight is a claimed delivery on its way to the record of its next attempt.
type flight struct {
	claimed   postgres.Claimed
	since     time.Time
	isStarted bool // its workflow is known to exist
	bound     bool // more may be claimed for its destination once it is recorded
	asked     time.Time
}

// Wake makes the dispatcher look at the queue now.
func (d *Dispatcher) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Recorded is told that a delivery has left its claim: its place is free.
func (d *Dispatcher) Recorded(deliveryID uuid.UUID) {
	d.mu.Lock()
	f, was := d.inFlight[deliveryID]
	delete(d.inFlight, deliveryID)
	if was {
		d.places.permits.Forget(f.claimed.DestinationID, deliveryID)
	}
	free := was && (f.bound || len(d.inFlight)-d.batched == d.limit-max(d.limit/placesAtOnce, 1))
	if was && f.claimed.Lane == postgres.LaneBatch {
		d.batched--
		free = f.bound || d.batched == mostBatched-batchSize
	}
	d.mu.Unlock()
	if free {
		d.Wake()
	}
}

// Run dispatches until ctx ends and the starts under way are over. What was claimed and not started is free for other
// workers as soon as the lease is given up: a claim is restarted under the same workflow ID, whoever does it.
func (d *Dispatcher) Run(ctx context.Context) {
	poll, takeOver := time.NewTicker(pollEvery), time.NewTicker(takeOverEvery)
	defer poll.Stop()
	defer takeOver.Stop()
	defer d.starts.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-takeOver.C:
			d.round(ctx, "take over", d.takeOver)
			d.round(ctx, "check claims", d.checkClaims)
		case <-poll.C:
			d.round(ctx, "claim", d.claim)
		case <-d.wake:
			if !d.lanes.idle() && !d.crowded() {
				d.round(ctx, "claim", d.claim)
				pause(ctx, roundPause)
			}
		}
	}
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// round runs one step, if the lease holds; one that fails is tried again, ever later.
func (d *Dispatcher) round(ctx context.Context, name string, step func(context.Context, uuid.UUID) error) {
	failing := d.failing[name]
	if failing == nil {
		if d.failing == nil {
			d.failing = map[string]*outage{}
		}
		failing = &outage{}
		d.failing[name] = failing
	}
	worker, alive := d.lease.Holder()
	if !alive || !failing.due() {
		return
	}
	start := time.Now()
	err := step(ctx, worker)
	d.metrics.rounds.WithLabelValues(name).Observe(time.Since(start).Seconds())
	if ctx.Err() == nil {
		if err != nil {
			d.metrics.failures.WithLabelValues(name).Inc()
		}
		failing.note(d.log, name, err)
	}
}

// claim takes what is due until nothing is or no place is free.
func (d *Dispatcher) claim(ctx context.Context, worker uuid.UUID) error {
	defer d.wakeForRates()
	for ctx.Err() == nil {
		due, wrapped, err := d.due(ctx)
		if err != nil {
			return err
		}
		d.places.look(due)
		single, batched := d.lanes.split(due, d.slow)
		singles, err := d.claimSingles(ctx, worker, single)
		if err != nil {
			return err
		}
		inBatch, err := d.claimBatch(ctx, worker, batched, wrapped)
		if err != nil {
			return err
		}
		d.metrics.batching.Set(d.lanes.batching())
		if singles+inBatch == 0 && (wrapped || !d.hasRoom()) {
			return nil
		}
	}
	return nil
}

// hasRoom reports whether any destination's deliveries could be claimed.
func (d *Dispatcher) hasRoom() bool {
	return d.free() > 0 || d.freeForBatches() >= batchSize
}

// slow reports whether a destination takes so long that its deliveries are better carried one by one.
func (d *Dispatcher) slow(destination uuid.UUID) bool {
	return d.latencies.P95(destination) >= fastEnough
}

// due returns the next due destinations after the cursor, and whether the end of the list was reached.
func (d *Dispatcher) due(ctx context.Context) (due []postgres.DueDestination, wrapped bool, err error) {
	due, err = postgres.DueDestinations(ctx, d.db, d.cursor, destinationsAtOnce)
	if err != nil {
		return nil, false, err
	}
	d.cursor, wrapped = uuid.Nil, true
	if len(due) == destinationsAtOnce {
		d.cursor, wrapped = due[len(due)-1].ID, false
	}
	return due, wrapped, nil
}

// claimSingles claims deliveries that get a workflow each, and starts them. Only what could be carried in batches says
// whether there is a backlog, and only that is bound by the budget while there is one.
func (d *Dispatcher) claimSingles(ctx context.Context, worker uuid.UUID, due []postgres.DueDestination) (int, error) {
	var elastic, fixed []postgres.DueDestination
	for _, destination := range due {
		if destination.Lane == postgres.LaneAuto {
			elastic = append(elastic, destination)
		} else {
			fixed = append(fixed, destination)
		}
	}
	if d.lanes.batches {
		d.full = false
		free := d.lanes.affordable(d.free())
		first, err := d.claimWorkflows(ctx, worker, elastic, free)
		if err != nil {
			return 0, err
		}
		d.lanes.claimedSingles(first, free)
		second, err := d.claimWorkflows(ctx, worker, fixed, d.free())
		return first + second, err
	}
	free := d.free()
	n, err := d.claimWorkflows(ctx, worker, due, free)
	if err != nil {
		return 0, err
	}
	if free > 0 {
		d.full = n == free
	}
	if !slices.ContainsFunc(elastic, d.batchable) {
		d.lanes.claimedSingles(0, 1) // nothing waits that could be carried otherwise
	} else {
		d.lanes.claimedSingles(n, min(free, d.places.offered))
	}
	return n, nil
}

// claimWorkflows claims up to free deliveries and starts the workflow of each.
func (d *Dispatcher) claimWorkflows(ctx context.Context, worker uuid.UUID, due []postgres.DueDestination, free int) (int, error) {
	claimed, err := d.claimShares(ctx, due, free, postgres.ClaimRequest{Worker: worker, Claim: id.New(), Lane: postgres.LaneWorkflow})
	if err != nil {
		return 0, err
	}
	for _, c := range claimed {
		d.startSingle(ctx, c)
	}
	d.metrics.claimed.WithLabelValues(string(postgres.LaneWorkflow)).Add(float64(len(claimed)))
	return len(claimed), nil
}

// claimBatch claims deliveries that are carried together, and starts their batch. all: due holds the last of the destinations
// with something due, so that a small batch means that little is.
func (d *Dispatcher) claimBatch(ctx context.Context, worker uuid.UUID, due []postgres.DueDestination, all bool) (int, error) {
	if len(due) == 0 {
		d.lanes.claimedBatch(0, all)
		return 0, nil
	}
	if d.freeForBatches() < batchSize || !d.lanes.mayBatch() {
		return 0, nil
	}
	claimed, err := d.claimShares(ctx, due, batchSize, postgres.ClaimRequest{
		Worker: worker, Claim: id.New(), Lane: postgres.LaneBatch, Workflows: d.lanes.affordable(d.free()),
	})
	if err != nil {
		return 0, err
	}
	d.lanes.claimedBatch(len(claimed), all)
	for _, c := range claimed {
		if c.Lane == postgres.LaneWorkflow {
			d.lanes.claimedSingles(1, 1)
		}
		d.metrics.claimed.WithLabelValues(string(c.Lane)).Inc()
	}
	d.carry(ctx, claimed)
	return len(claimed), nil
}

// claimShares claims a fair share for each tenant and destination.
func (d *Dispatcher) claimShares(ctx context.Context, due []postgres.DueDestination, free int, r postgres.ClaimRequest) ([]postgres.Claimed, error) {
	for i, share := range d.places.share(due, d.carrying(r.Lane), d.size(r.Lane), free) {
		share = d.circuits.limit(due[i], share, d.isInFlight)
		if share > 0 {
			r.Destinations, r.Quotas = append(r.Destinations, due[i].ID), append(r.Quotas, share)
			r.DueAfter = append(r.DueAfter, d.marks.after(due[i].ID))
		}
	}
	if len(r.Destinations) == 0 {
		return nil, nil
	}
	claimed, err := postgres.Claim(ctx, d.db, r)
	if err != nil {
		d.doubt = time.Now()
	}
	d.marks.add(claimed)
	d.circuits.claimed(due, claimed)
	return claimed, err
}

// free is how many more deliveries may get a workflow of their own.
func (d *Dispatcher) free() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(d.limit-(len(d.inFlight)-d.batched), 0)
}

// crowded reports whether a look at the queue can wait until more places are free, because there is more to do than there
// are places: whoever looks at each place that becomes free asks Postgres for each delivery. The next poll looks anyway.
func (d *Dispatcher) crowded() bool {
	free := d.free()
	return d.full && free < d.limit/placesAtOnce
}

// busy reports whether many deliveries with a workflow of their own are under way.
func (d *Dispatcher) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.inFlight)-d.batched >= d.limit/4
}

// freeForBatches is how many more deliveries may be carried in batches.
func (d *Dispatcher) freeForBatches() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return mostBatched - d.batched
}

// carry starts what carries claimed deliveries: those of a batch together, the others one by one.
func (d *Dispatcher) carry(ctx context.Context, claimed []postgres.Claimed) {
	batches := map[uuid.UUID][]postgres.Claimed{}
	for _, c := range claimed {
		if c.Lane == postgres.LaneBatch {
			batches[c.ClaimID] = append(batches[c.ClaimID], c)
		} else {
			d.startSingle(ctx, c)
		}
	}
	for _, batch := range batches {
		d.startAll(ctx, batch, func() error { return startBatch(ctx, d.temporal, batch) })
	}
}

// startSingle starts a delivery's own workflow. Where there are limits its first attempt is made by this worker, which has
// the permits for what it claimed.
func (d *Dispatcher) startSingle(ctx context.Context, c postgres.Claimed) {
	_, limited := d.places.limits[c.DestinationID]
	// In a workflow task a request that hangs costs Temporal another task every 4 s, to keep the first one.
	local := limited || !d.slow(c.DestinationID) && !d.places.permits.Stalls(c.DestinationID)
	d.startAll(ctx, []postgres.Claimed{c}, func() error { return startDelivery(ctx, d.temporal, c, local) })
}

// startAll enters claimed deliveries as in flight and starts the workflow that carries them beside the loop. Whether a
// start that failed has happened can't be known, so the same ID is tried again until Temporal says yes, or that it knows
// it already.
func (d *Dispatcher) startAll(ctx context.Context, claimed []postgres.Claimed, start func() error) {
	d.enter(claimed)
	d.starts.Go(func() {
		wait := 50 * time.Millisecond
		for {
			err := start()
			if errors.Is(err, errStarted) {
				err = d.adopt(ctx, claimed...)
			}
			if ctx.Err() == nil {
				d.starting.note(d.log, "start workflows", err)
			}
			if err == nil {
				d.started(claimed)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
				wait = jitter(min(2*wait, 5*time.Second))
			}
		}
	})
}

func (d *Dispatcher) enter(claimed []postgres.Claimed) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range claimed {
		if old := d.inFlight[c.DeliveryID]; old != nil && old.claimed.Lane == postgres.LaneBatch {
			d.batched--
		}
		d.inFlight[c.DeliveryID] = &flight{claimed: c, since: time.Now(), bound: d.places.bound[c.DestinationID]}
		d.places.permits.Expect(c.DestinationID, c.DeliveryID)
		if c.Lane == postgres.LaneBatch {
			d.batched++
		}
	}
}

func (d *Dispatcher) started(claimed []postgres.Claimed) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range claimed {
		if f := d.inFlight[c.DeliveryID]; f != nil {
			f.isStarted, f.asked = true, time.Now()
		}
	}
}
