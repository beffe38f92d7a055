package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/workflows"
)

const (
	// commandEvery is how often a worker looks for commands.
	commandEvery = 250 * time.Millisecond
	// commandsAtOnce is how many commands a worker carries out at a time, and signalFor bounds one's signal: while Temporal
	// doesn't answer, what needs only Postgres goes on.
	commandsAtOnce = 8
	signalFor      = 2 * time.Second
	// commandsKept is how long commands that were carried out are kept, and keys that make redeliveries safe to repeat.
	commandsKept = 7 * 24 * time.Hour
	// forgetEvery is how often what is old is removed, and forgetFirst how soon after the start, at the latest: a worker may never live
	// for forgetEvery.
	forgetEvery = time.Hour
	forgetFirst = 10 * time.Second
)

// Commander carries out what somebody commands of a delivery. What can be done in Postgres is done there; a workflow that
// waits is told by a signal. A command is over when its effect is certain, whoever dies in between; twice does no harm.
type Commander struct {
	db       *pgxpool.Pool
	temporal client.Client
	log      *zap.Logger
	tracing  *tracing.Tracer
	onDue    func() // something in the queue became due
	onLeaf   func() // a leaf was queued

	forgetAt time.Time // when what is old is removed next
}

// Run carries out commands until ctx ends.
func (c *Commander) Run(ctx context.Context) {
	ticker := time.NewTicker(commandEvery)
	defer ticker.Stop()
	c.forgetAt = time.Now().Add(jitter(forgetFirst))
	var failing outage
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if !failing.due() {
				continue
			}
			err = errors.Join(c.round(ctx), c.forget(ctx))
		}
		if ctx.Err() == nil {
			failing.note(c.log, "carry out commands", err)
		}
	}
}

// forget removes what is old: once in forgetEvery all of it, a little at a time, so that commands don't wait for it.
func (c *Commander) forget(ctx context.Context) error {
	if time.Now().Before(c.forgetAt) {
		return nil
	}
	more, err := postgres.ForgetCommands(ctx, c.db, commandsKept)
	if err == nil && !more {
		c.forgetAt = time.Now().Add(jitter(forgetEvery))
	}
	return err
}

// round carries out what waits. A command that fails is looked at again, and holds up none of the others.
func (c *Commander) round(ctx context.Context) error {
	for ctx.Err() == nil {
		commands, err := postgres.TakeCommands(ctx, c.db)
		if err != nil || len(commands) == 0 {
			return err
		}
		places := make(chan struct{}, commandsAtOnce)
		var all sync.WaitGroup
		for _, command := range commands {
			places <- struct{}{}
			all.Go(func() {
				c.carryOut(ctx, command)
				<-places
			})
		}
		all.Wait()
	}
	return nil
}

func (c *Commander) carryOut(ctx context.Context, command postgres.Command) {
	if err := c.try(ctx, command); err != nil && ctx.Err() == nil {
		c.log.Warn("command not carried out yet", zap.String("delivery_id", id.Delivery.Format(command.DeliveryID)),
			zap.String("command", string(command.Order)), zap.Error(err))
	}
}

// try carries a command out, and ends it if it is over.
func (c *Commander) try(ctx context.Context, command postgres.Command) error {
	order := c.retryNow
	if command.Order == postgres.OrderCancel {
		order = c.cancel
	}
	over, err := order(ctx, command.DeliveryID)
	if err != nil || !over {
		return err
	}
	return postgres.CommandDone(ctx, c.db, command)
}

// cancel ends a delivery, or leaves that to whoever makes an attempt of it now. It isn't over before the delivery is: a
// carrier that dies, or puts the delivery back into the queue, leaves it to be found there the next time.
func (c *Commander) cancel(ctx context.Context, deliveryID uuid.UUID) (over bool, err error) {
	at, err := activities.Cancel(ctx, c.db, c.tracing, deliveryID)
	if err != nil || !at.Over() {
		return false, err
	}
	if at.State != string(delivery.Canceled) {
		return true, nil
	}
	c.onLeaf()
	// Its workflow may wait for an hour. Whether it does isn't asked: there is none, or it hears that it is over.
	_, err = c.signal(ctx, deliveryID, at.Epoch, workflows.CancelSignal, nil)
	return err == nil, err
}

// retryNow ends a delivery's wait. An attempt under way is none.
func (c *Commander) retryNow(ctx context.Context, deliveryID uuid.UUID) (over bool, err error) {
	at, err := postgres.RetryNow(ctx, c.db, deliveryID)
	if err != nil {
		return false, err
	}
	if at.Over() || !at.Carried {
		c.onDue()
		return true, nil
	}
	heard, err := c.signal(ctx, deliveryID, at.Epoch, workflows.RetryNowSignal, workflows.RetryNow{Attempt: at.Attempt})
	if err == nil && !heard {
		err = postgres.CheckLater(ctx, c.db, deliveryID, at.Epoch, 0) // its carrier is gone: the sweeper hands it over
	}
	return err == nil, err
}

// signal tells the workflow that carries a delivery in an epoch, and reports whether there is one.
func (c *Commander) signal(ctx context.Context, deliveryID uuid.UUID, epoch int, name string, arg any) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, signalFor)
	defer cancel()
	workflowID := workflows.DeliveryWorkflowID(id.Delivery.Format(deliveryID), epoch)
	err := c.temporal.SignalWorkflow(ctx, workflowID, "", name, arg)
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("signal workflow %s: %w", workflowID, err)
	}
	return true, nil
}
