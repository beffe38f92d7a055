package worker

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// watchEvery is how often circuits are counted and destinations that kept failing are disabled.
	watchEvery = 15 * time.Second
	// defaultDisableAfter is how long a destination may fail.
	defaultDisableAfter = 5 * 24 * time.Hour
	// rampForgottenAfter is when a ramp is surely over.
	rampForgottenAfter = time.Minute
)

// circuitLimits is what the dispatcher remembers of destinations whose circuit isn't closed, or closed a moment ago. It is
// about what to claim only: whether something is sent, whoever carries it decides by the circuit itself, of which there is
// one for all workers. Each worker ramps up by itself.
type circuitLimits struct {
	probes map[uuid.UUID]uuid.UUID // destinations, and the delivery that was claimed to probe each
	ramps  map[uuid.UUID]*ramp
}

// ramp is what was claimed since a circuit closed.
type ramp struct {
	closedAt time.Time
	seen     time.Time
	claimed  int
}

// limit is how many deliveries of a destination may be claimed, of most: one where a probe is due and none is under way
// here, and while traffic grows again what has grown since the last look.
func (c *circuitLimits) limit(d postgres.DueDestination, most int, inFlight func(delivery uuid.UUID) bool) int {
	if d.Probing {
		if probe, probing := c.probes[d.ID]; probing && inFlight(probe) {
			return 0
		}
		return min(most, 1)
	}
	delete(c.probes, d.ID)
	allowed, ramping := circuitSettings(d.Circuit).Ramp(d.ClosedFor)
	if d.ClosedAt.IsZero() || !ramping {
		delete(c.ramps, d.ID)
		return most
	}
	r := c.ramps[d.ID]
	if r == nil || !r.closedAt.Equal(d.ClosedAt) {
		maps.DeleteFunc(c.ramps, func(_ uuid.UUID, r *ramp) bool { return time.Since(r.seen) > rampForgottenAfter })
		if c.ramps == nil {
			c.ramps = map[uuid.UUID]*ramp{}
		}
		r = &ramp{closedAt: d.ClosedAt}
		c.ramps[d.ID] = r
	}
	r.seen = time.Now()
	return max(min(most, allowed-r.claimed), 0)
}

// claimed is told what was claimed of the destinations that were due.
func (c *circuitLimits) claimed(due []postgres.DueDestination, claimed []postgres.Claimed) {
	probing := map[uuid.UUID]bool{}
	for _, d := range due {
		if d.Probing {
			probing[d.ID] = true
		}
	}
	for _, one := range claimed {
		if r := c.ramps[one.DestinationID]; r != nil {
			r.claimed++
		}
		if probing[one.DestinationID] {
			if c.probes == nil {
				c.probes = map[uuid.UUID]uuid.UUID{}
			}
			c.probes[one.DestinationID] = one.DeliveryID
		}
	}
}

// circuitSettings reads what was validated when it was stored.
func circuitSettings(stored json.RawMessage) delivery.CircuitSettings {
	settings := delivery.DefaultCircuit()
	if len(stored) > 0 {
		_ = json.Unmarshal(stored, &settings)
	}
	return settings
}

// isInFlight reports whether a delivery that was claimed has not left its claim.
func (d *Dispatcher) isInFlight(delivery uuid.UUID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inFlight[delivery] != nil
}

// watchCircuits counts circuits and disables destinations that kept failing, until ctx ends.
func (w *Worker) watchCircuits(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	var failing outage
	for {
		if err := w.lookAtCircuits(ctx); ctx.Err() == nil {
			failing.note(w.config.Log, "look at circuits", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (w *Worker) lookAtCircuits(ctx context.Context) error {
	states, err := postgres.CircuitStates(ctx, w.config.Engine)
	if err != nil {
		return err
	}
	for _, state := range []delivery.CircuitState{delivery.CircuitOpen, delivery.CircuitHalfOpen} {
		w.metrics.circuits.WithLabelValues(string(state)).Set(float64(states[string(state)]))
	}
	if w.config.DisableAfter < 0 {
		return nil
	}
	disabled, err := postgres.DisableFailing(ctx, w.config.Engine, w.config.DisableAfter)
	for _, destination := range disabled {
		w.metrics.disabled.Inc()
		w.config.Log.Warn("destination disabled: its receiver kept failing",
			zap.String("destination_id", id.Destination.Format(destination)), zap.Duration("for", w.config.DisableAfter))
	}
	return err
}
