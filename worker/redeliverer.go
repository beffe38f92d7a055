package worker

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// stepEvery is how often a worker looks for jobs of which the next step is due.
	stepEvery = 250 * time.Millisecond
	// jobsKept is how long a job can be read after its end: as long as commands are.
	jobsKept = commandsKept
)

// Redeliverer takes the steps of redelivery jobs. Each step is a transaction of its own, taken by whichever worker comes first,
// so a worker that dies leaves its jobs to the others as they were.
type Redeliverer struct {
	db    *pgxpool.Pool
	log   *zap.Logger
	onDue func() // something in the queue became due

	forgot time.Time // when there was nothing more to remove
}

// Run takes steps until ctx ends.
func (r *Redeliverer) Run(ctx context.Context) {
	ticker := time.NewTicker(stepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			r.steps(ctx)
			r.forget(ctx)
		}
	}
}

// forget removes what is over for long: once in forgetEvery all of it, a little at a time, so that steps don't wait for it.
func (r *Redeliverer) forget(ctx context.Context) {
	if time.Since(r.forgot) < forgetEvery {
		return
	}
	more, err := postgres.ForgetRedeliveries(ctx, r.db, jobsKept)
	if err != nil && ctx.Err() == nil {
		r.log.Warn("old redelivery jobs not removed", zap.Error(err))
	}
	if !more {
		r.forgot = time.Now()
	}
}

// steps takes steps as long as one is due.
func (r *Redeliverer) steps(ctx context.Context) {
	for ctx.Err() == nil {
		step, err := postgres.StepRedelivery(ctx, r.db)
		if err != nil {
			r.failed(ctx, step, err)
			return
		}
		if step.Created > 0 {
			r.onDue()
		}
		if step.Job == uuid.Nil {
			return
		}
	}
}

// failed leaves a step to a later time, and notes it with the job unless all that is wrong is that Postgres is away.
func (r *Redeliverer) failed(ctx context.Context, step postgres.RedeliveryStep, err error) {
	if ctx.Err() != nil {
		return
	}
	r.log.Warn("redelivery step not taken", zap.String("job_id", id.Job.Format(step.Job)), zap.Error(err))
	if step.Job == uuid.Nil || postgres.Unavailable(err) {
		return
	}
	if err := postgres.RedeliveryFailed(ctx, r.db, step.Job); err != nil {
		r.log.Warn("failure not noted", zap.String("job_id", id.Job.Format(step.Job)), zap.Error(err))
	}
}
