package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	pollEvery     = 250 * time.Millisecond
	takeOverEvery = 2 * time.Second
	// destinationsAtOnce is how many due destinations one round looks at; the next round goes on after them.
	destinationsAtOnce = 256
	// checkClaimsAfter is how long a claim may be unrecorded before the dispatcher looks what became of it, first in
	// Postgres; and askTemporalEvery how often it asks Temporal whether the workflow still runs.
	checkClaimsAfter = 5 * time.Second
	askTemporalEvery = 20 * time.Second
	// fastEnough: destinations that answer within it make their first attempt in the workflow's first task.
	fastEnough = 2 * time.Second
)

// Dispatcher claims what is due, fairly among tenants and destinations, and starts a workflow for each delivery.
// At most limit claimed deliveries wait for the record of their first attempt at any time.
type Dispatcher struct {
	db        *pgxpool.Pool
	temporal  client.Client
	lease     *Lease
	latencies *activities.Latencies
	log       *zap.Logger
	limit     int
	wake      chan struct{}

	mu       sync.Mutex
	inFlight map[uuid.UUID]*flight
	starts   sync.WaitGroup
	cursor   uuid.UUID // the last destination that was looked at
}

// flight is a claimed delivery on its way to the record of its first attempt.
type flight struct {
	claimed   postgres.Claimed
	since     time.Time
	isStarted bool // its workflow is known to exist
	asked     time.Time
}

// Wake makes the dispatcher look at the queue now.
func (d *Dispatcher) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Recorded is told that a delivery's attempt was recorded in this process: its place is free.
func (d *Dispatcher) Recorded(deliveryID uuid.UUID) {
	d.mu.Lock()
	_, was := d.inFlight[deliveryID]
	delete(d.inFlight, deliveryID)
	full := len(d.inFlight) == d.limit-1
	d.mu.Unlock()
	if was && full {
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
			d.round(ctx, "claim", d.claim)
		}
	}
}

// round runs one step, if the lease holds; an error is logged, and the next round tries again.
func (d *Dispatcher) round(ctx context.Context, name string, step func(context.Context, uuid.UUID) error) {
	worker, alive := d.lease.Holder()
	if !alive {
		return
	}
	if err := step(ctx, worker); err != nil && ctx.Err() == nil {
		d.log.Warn("dispatch round ended early", zap.String("step", name), zap.Error(err))
	}
}

// claim takes what is due until nothing is or no place is free.
func (d *Dispatcher) claim(ctx context.Context, worker uuid.UUID) error {
	for ctx.Err() == nil {
		free := d.free()
		if free <= 0 {
			return nil
		}
		due, wrapped, err := d.due(ctx)
		if err != nil {
			return err
		}
		claimed, err := d.claimShares(ctx, worker, due, free)
		if err != nil {
			return err
		}
		for _, c := range claimed {
			d.start(ctx, c)
		}
		if len(claimed) == 0 && wrapped {
			return nil
		}
	}
	return nil
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

func (d *Dispatcher) claimShares(ctx context.Context, worker uuid.UUID, due []postgres.DueDestination, free int) ([]postgres.Claimed, error) {
	waiting := make([]delivery.Waiting[uuid.UUID], len(due))
	for i, destination := range due {
		waiting[i] = delivery.Waiting[uuid.UUID]{Tenant: destination.TenantID, Limit: d.permits(destination)}
	}
	var destinations []uuid.UUID
	var quotas []int
	for i, share := range delivery.Share(waiting, free) {
		if share > 0 {
			destinations, quotas = append(destinations, due[i].ID), append(quotas, share)
		}
	}
	if len(destinations) == 0 {
		return nil, nil
	}
	return postgres.Claim(ctx, d.db, worker, id.New(), destinations, quotas)
}

// free is how many more deliveries may be claimed.
func (d *Dispatcher) free() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.limit - len(d.inFlight)
}

// permits is how many more deliveries to a destination this worker may have in flight.
func (d *Dispatcher) permits(destination postgres.DueDestination) int {
	if destination.MaxConcurrency == 0 {
		return d.limit
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	permits := destination.MaxConcurrency
	for _, f := range d.inFlight {
		if f.claimed.DestinationID == destination.ID {
			permits--
		}
	}
	return permits
}

// start enters a claimed delivery as in flight and starts its workflow beside the loop. Whether a start that failed
// has happened can't be known, so the same ID is tried again until Temporal says yes, or that it knows it already.
func (d *Dispatcher) start(ctx context.Context, c postgres.Claimed) {
	d.mu.Lock()
	d.inFlight[c.DeliveryID] = &flight{claimed: c, since: time.Now()}
	d.mu.Unlock()
	local := d.latencies.P95(c.DestinationID) < fastEnough
	d.starts.Go(func() {
		wait := 50 * time.Millisecond
		for {
			err := startDelivery(ctx, d.temporal, c, local)
			if errors.Is(err, errStarted) {
				err = d.adopt(ctx, c)
			}
			if err == nil {
				d.started(c.DeliveryID)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
				wait = min(2*wait, 5*time.Second)
			}
			d.log.Warn("delivery not started", zap.String("delivery_id", id.Delivery.Format(c.DeliveryID)), zap.Error(err))
		}
	})
}

func (d *Dispatcher) started(deliveryID uuid.UUID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.inFlight[deliveryID]; f != nil {
		f.isStarted, f.asked = true, time.Now()
	}
}

// adopt looks after a claim whose workflow exists. A running one goes on; one that ended without a record has lost
// the delivery, which goes back into the queue under the next epoch. (If it did record, the fence lets nothing happen.)
func (d *Dispatcher) adopt(ctx context.Context, c postgres.Claimed) error {
	runs, err := carrierRuns(ctx, d.temporal, c)
	if err != nil || runs {
		return err
	}
	requeued, err := postgres.Requeue(ctx, d.db, c.DeliveryID, c.Epoch, c.Attempt, 0, 0)
	if err != nil {
		return err
	}
	d.Recorded(c.DeliveryID)
	if requeued {
		d.log.Warn("carrier ended without a record; delivery requeued",
			zap.String("delivery_id", id.Delivery.Format(c.DeliveryID)), zap.Int("epoch", c.Epoch))
	}
	return nil
}

// takeOver adopts the claims of workers that are no longer alive, starting what they had not started.
func (d *Dispatcher) takeOver(ctx context.Context, worker uuid.UUID) error {
	free := d.free()
	if free <= 0 {
		return nil
	}
	claimed, err := postgres.TakeOver(ctx, d.db, worker, free)
	if err != nil {
		return err
	}
	for _, c := range claimed {
		d.start(ctx, c)
	}
	if len(claimed) > 0 {
		d.log.Info("took over claims of dead workers", zap.Int("deliveries", len(claimed)))
	}
	return nil
}

// checkClaims frees the places of deliveries that were recorded elsewhere, and looks after those whose workflow may
// have been ended by hand before it recorded anything.
func (d *Dispatcher) checkClaims(ctx context.Context, _ uuid.UUID) error {
	old := d.startedBefore(time.Now().Add(-checkClaimsAfter))
	if len(old) == 0 {
		return nil
	}
	ids := make([]uuid.UUID, len(old))
	for i, c := range old {
		ids[i] = c.DeliveryID
	}
	claimed, err := postgres.StillClaimed(ctx, d.db, ids)
	if err != nil {
		return err
	}
	for _, c := range old {
		if !claimed[c.DeliveryID] {
			d.Recorded(c.DeliveryID)
			continue
		}
		if !d.askNow(c.DeliveryID) {
			continue
		}
		if err := d.adopt(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// askNow reports whether it is time to ask Temporal about a delivery again.
func (d *Dispatcher) askNow(deliveryID uuid.UUID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.inFlight[deliveryID]
	if f == nil || time.Since(f.asked) < askTemporalEvery {
		return false
	}
	f.asked = time.Now()
	return true
}

func (d *Dispatcher) startedBefore(moment time.Time) []postgres.Claimed {
	d.mu.Lock()
	defer d.mu.Unlock()
	var old []postgres.Claimed
	for _, f := range d.inFlight {
		if f.isStarted && f.since.Before(moment) {
			old = append(old, f.claimed)
		}
	}
	return old
}
