package worker

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	sweepEvery = 15 * time.Second
	sweepLimit = 500
	// lookAgain is when a carrier that was found alive is looked at again.
	lookAgain = 5 * time.Minute
	// strayAfter is longer than a claim usually is one: after it somebody looks whether there is anything to carry.
	strayAfter = 5 * time.Minute
)

// Sweeper looks after deliveries whose carrier has been silent for longer than any attempt takes. Temporal says whether
// the workflow still runs; if not (terminated, past retention, restored from a backup) the delivery is handed over. It also removes
// what is in the queue although its delivery is over.
type Sweeper struct {
	db       *pgxpool.Pool
	temporal client.Client
	log      *zap.Logger
	every    time.Duration
	metrics  *metrics
}

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	var failing outage
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := errors.Join(s.sweep(ctx), s.removeStrays(ctx, strayAfter)); ctx.Err() == nil {
				failing.note(s.log, "sweep", err)
			}
		}
	}
}

func (s *Sweeper) sweep(ctx context.Context) error {
	overdue, err := postgres.Overdue(ctx, s.db, sweepLimit)
	if err != nil {
		return err
	}
	for _, c := range overdue {
		runs, err := carrierRuns(ctx, s.temporal, c)
		if err != nil {
			return err
		}
		if runs {
			err = postgres.CheckLater(ctx, s.db, c.DeliveryID, c.Epoch, lookAgain)
		} else {
			err = s.handOver(ctx, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removeStrays tells of each row, since nothing should have left it.
func (s *Sweeper) removeStrays(ctx context.Context, age time.Duration) error {
	strays, err := postgres.RemoveStrays(ctx, s.db, age)
	for _, stray := range strays {
		s.log.Warn("removed from the queue what is over or gone", zap.String("delivery_id", id.Delivery.Format(stray)))
	}
	return err
}

func (s *Sweeper) handOver(ctx context.Context, c postgres.Claimed) error {
	requeued, err := postgres.Requeue(ctx, s.db, c.DeliveryID, c.Epoch, c.Attempt, 0, 0)
	if err != nil || !requeued {
		return err
	}
	s.metrics.lost.WithLabelValues("sweeper").Inc()
	s.log.Warn("carrier is gone; delivery requeued",
		zap.String("delivery_id", id.Delivery.Format(c.DeliveryID)), zap.Int("epoch", c.Epoch))
	return nil
}
