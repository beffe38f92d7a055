package worker

import (
	"context"
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
)

// Sweeper looks after deliveries whose carrier has been silent for longer than any attempt takes. Temporal says whether
// the workflow still runs; if not (terminated, past retention, restored from a backup) the delivery is handed over.
type Sweeper struct {
	db       *pgxpool.Pool
	temporal client.Client
	log      *zap.Logger
	every    time.Duration
}

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("sweep ended early", zap.Error(err))
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

func (s *Sweeper) handOver(ctx context.Context, c postgres.Claimed) error {
	requeued, err := postgres.Requeue(ctx, s.db, c.DeliveryID, c.Epoch, c.Attempt, 0, 0)
	if err != nil || !requeued {
		return err
	}
	s.log.Warn("carrier is gone; delivery requeued",
		zap.String("delivery_id", id.Delivery.Format(c.DeliveryID)), zap.Int("epoch", c.Epoch))
	return nil
}
