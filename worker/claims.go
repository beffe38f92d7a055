package worker

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// checkClaimsAfter is how long a claim may be unrecorded before the dispatcher looks what became of it, first in
	// Postgres; and askTemporalEvery how often it asks Temporal whether the workflow still runs.
	checkClaimsAfter = 5 * time.Second
	askTemporalEvery = 20 * time.Second
	// doubtFor is how long a claim whose answer was lost may still be committed: longer than any statement may take.
	doubtFor = time.Minute
)

// Beside claiming, the dispatcher looks after what is claimed: claims of the dead, its own of which it never learned, and those whose
// workflow was ended by hand.

// adopt looks after claims of one workflow that exists. A running one goes on; one that ended without a record has lost
// the deliveries, which go back into the queue under the next epoch. (If it did record, the fence lets nothing happen.)
func (d *Dispatcher) adopt(ctx context.Context, claimed ...postgres.Claimed) error {
	runs, err := carrierRuns(ctx, d.temporal, claimed[0])
	if err != nil || runs {
		return err
	}
	for _, c := range claimed {
		requeued, err := postgres.Requeue(ctx, d.db, c.DeliveryID, c.Epoch, c.Attempt, 0, 0)
		if err != nil {
			return err
		}
		d.Recorded(c.DeliveryID)
		if requeued {
			d.metrics.lost.WithLabelValues("dispatcher").Inc()
			d.log.Warn("carrier ended without a record; delivery requeued",
				zap.String("delivery_id", id.Delivery.Format(c.DeliveryID)), zap.Int("epoch", c.Epoch))
		}
	}
	return nil
}

// takeOver adopts the claims of workers that are no longer alive, starting what they had not started.
func (d *Dispatcher) takeOver(ctx context.Context, worker uuid.UUID) error {
	if err := d.recall(ctx, worker); err != nil {
		return err
	}
	claimed, err := postgres.TakeOver(ctx, d.db, worker, d.limit+mostBatched)
	if err != nil {
		d.doubt = time.Now()
		return err
	}
	d.carry(ctx, claimed)
	if len(claimed) > 0 {
		d.log.Info("took over claims of dead workers", zap.Int("deliveries", len(claimed)))
	}
	return nil
}

// recall carries what this worker has claimed without learning of it, because the answer to the commit was lost with its connection.
// As long as the worker lives nobody else would.
func (d *Dispatcher) recall(ctx context.Context, worker uuid.UUID) error {
	if d.doubt.IsZero() {
		return nil
	}
	asked := time.Now()
	owned, err := postgres.Owned(ctx, d.db, worker, d.known(), d.limit+mostBatched)
	if err != nil {
		return err
	}
	if asked.Sub(d.doubt) > doubtFor {
		d.doubt = time.Time{}
	}
	d.carry(ctx, owned)
	if len(owned) > 0 {
		d.log.Info("carrying on claims whose answer was lost", zap.Int("deliveries", len(owned)))
	}
	return nil
}

// known are the deliveries in flight.
func (d *Dispatcher) known() []uuid.UUID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.AppendSeq(make([]uuid.UUID, 0, len(d.inFlight)), maps.Keys(d.inFlight))
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
