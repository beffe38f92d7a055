package worker

import (
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// hangsAfter is how long after its claim a delivery whose carrier runs must be waiting for its receiver, also at another
	// worker: what was recorded there has been found out by then.
	hangsAfter = checkClaimsAfter + 2*takeOverEvery
	// mostHanging is how many such deliveries make a destination doubtful.
	mostHanging = 4
	// mostTurns bounds how many deliveries of a batch are claimed for each permit of a destination that answers quickly.
	mostTurns = 50
)

// places decides how many deliveries of each destination are claimed: see delivery.Places, and activities.Permits for what
// destinations themselves allow. It belongs to the dispatcher's loop.
type places struct {
	permits   *activities.Permits
	latencies *activities.Latencies

	limits  map[uuid.UUID]postgres.Limits // of the destinations that were looked at
	bound   map[uuid.UUID]bool            // those of which the limits let no more be claimed
	offered int                           // how many deliveries without limits could have been claimed last
	again   time.Time                     // when a rate that binds allows more; zero: none does
}

// look begins with other destinations.
func (p *places) look(due []postgres.DueDestination) {
	p.limits, p.bound = make(map[uuid.UUID]postgres.Limits, len(due)), map[uuid.UUID]bool{}
	for _, destination := range due {
		if destination.Limits != (postgres.Limits{}) {
			p.limits[destination.ID] = destination.Limits
		}
	}
}

// carrying is what a worker carries in one lane.
type carrying struct {
	lane    postgres.Lane
	holds   map[uuid.UUID]int       // deliveries by destination
	tenants map[uuid.UUID]uuid.UUID // of those destinations
	hanging map[uuid.UUID]int       // deliveries by destination, of every lane, that must be waiting for their receiver
}

// share gives each due destination its part of the free ones of so many places.
func (p *places) share(due []postgres.DueDestination, c carrying, places, free int) []int {
	held := delivery.Held[uuid.UUID]{ByTenant: map[uuid.UUID]int{}}
	for destination, n := range c.holds {
		if p.doubtful(destination, c) {
			held.All += n
			held.ByTenant[c.tenants[destination]] += n
		}
	}
	claimants := make([]delivery.Claimant[uuid.UUID], len(due))
	for i, destination := range due {
		claimants[i] = delivery.Claimant[uuid.UUID]{
			Tenant: destination.TenantID, Holds: c.holds[destination.ID], Limit: free, Doubtful: p.doubtful(destination.ID, c)}
	}
	p.offered = 0
	for _, n := range delivery.Places(claimants, held, places, free) {
		p.offered += n
	}
	if len(p.limits) == 0 {
		return delivery.Places(claimants, held, places, free)
	}
	for i, destination := range due {
		claimants[i].Limit = p.allowed(destination, c.lane, free)
	}
	shares := delivery.Places(claimants, held, places, free)
	for i, n := range shares {
		if claimants[i].Limit < free && n == claimants[i].Limit {
			p.bound[due[i].ID] = true
		}
	}
	return shares
}

// allowed is how many of free deliveries the limits of a destination let this worker claim. Those of a batch go one after
// the other, so as many are claimed for each permit as it can send within a second.
func (p *places) allowed(destination postgres.DueDestination, lane postgres.Lane, free int) int {
	turns := 1
	if p95 := p.latencies.P95(destination.ID); lane == postgres.LaneBatch && p95 > 0 {
		turns = min(max(int(time.Second/p95), 1), mostTurns)
	}
	allowed, again := p.permits.Free(destination.ID, destination.Limits, destination.Timeout, turns, free)
	if !again.IsZero() && (p.again.IsZero() || again.Before(p.again)) {
		p.again = again
	}
	return allowed
}

// doubtful reports whether a destination isn't known to answer quickly: it never has, or takes longer, or stalls just now.
func (p *places) doubtful(destination uuid.UUID, c carrying) bool {
	p95 := p.latencies.P95(destination)
	return p95 == 0 || p95 >= activities.Quick || c.hanging[destination] >= mostHanging || p.permits.Stalls(destination)
}

// size is how many places a lane has.
func (d *Dispatcher) size(lane postgres.Lane) int {
	if lane == postgres.LaneBatch {
		return mostBatched
	}
	return d.limit
}

// batchable reports whether a destination's deliveries would be carried faster in batches, so that their waiting is a backlog.
func (d *Dispatcher) batchable(destination postgres.DueDestination) bool {
	return !d.slow(destination.ID) && !d.places.permits.Stalls(destination.ID)
}

// carrying counts what this worker carries in a lane.
func (d *Dispatcher) carrying(lane postgres.Lane) carrying {
	c := carrying{lane: lane, holds: map[uuid.UUID]int{}, tenants: map[uuid.UUID]uuid.UUID{}, hanging: map[uuid.UUID]int{}}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.inFlight {
		if f.claimed.Lane == lane {
			c.holds[f.claimed.DestinationID]++
			c.tenants[f.claimed.DestinationID] = f.claimed.TenantID
		}
		if f.isStarted && time.Since(f.since) > hangsAfter {
			c.hanging[f.claimed.DestinationID]++
		}
	}
	return c
}

// wakeForRates makes the dispatcher look again when a rate allows more.
func (d *Dispatcher) wakeForRates() {
	if again := d.places.again; !again.IsZero() {
		d.places.again = time.Time{}
		time.AfterFunc(max(time.Until(again), roundPause), d.Wake)
	}
}
