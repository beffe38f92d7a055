package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Order is what somebody may command of a delivery.
type Order string

// The commands.
const (
	OrderCancel   Order = "cancel"
	OrderRetryNow Order = "retry_now"
)

// Command is an order that waits to be carried out.
type Command struct {
	ID         int64
	DeliveryID uuid.UUID
	Order      Order
	Asked      int // how often it was given
}

const (
	// commandsAtOnce is how many commands of one tenant are taken together: nobody's many hold up another's one.
	commandsAtOnce = 20
	// commandAgain is how soon a command is looked at again that isn't over, or whose worker died.
	commandAgain = 5 * time.Second
)

// takeCommandsSQL takes $1 waiting commands of each tenant at most, by stepping from one tenant to the next in the index.
const takeCommandsSQL = `
with recursive waiting as (
    (select tenant_id from delivery_commands where relayed_at is null order by tenant_id limit 1)
    union all
    select (select c.tenant_id from delivery_commands c
            where c.relayed_at is null and c.tenant_id > w.tenant_id order by c.tenant_id limit 1)
    from waiting w where w.tenant_id is not null
), picked as (
    select taken.id from waiting w
    cross join lateral (
        select c.id from delivery_commands c
        where c.tenant_id = w.tenant_id and c.relayed_at is null and c.try_at <= now()
        order by c.try_at, c.id limit $1
        for update skip locked) as taken
)
update delivery_commands c set try_at = now() + $2 * interval '1 ms'
from picked p where c.id = p.id
returning c.id, c.delivery_id, c.command, c.asked`

// TakeCommands returns commands that wait, some of each tenant. They are looked at again, by whichever worker, until
// CommandDone is called: so none is lost with a worker, and each may be carried out twice.
func TakeCommands(ctx context.Context, pool *pgxpool.Pool) ([]Command, error) {
	rows, err := pool.Query(ctx, takeCommandsSQL, commandsAtOnce, commandAgain.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("take commands: %w", err)
	}
	commands, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Command, err error) {
		err = row.Scan(&c.ID, &c.DeliveryID, &c.Order, &c.Asked)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("take commands: %w", err)
	}
	return commands, nil
}

// CommandDone ends a command, unless it was given again since it was taken.
func CommandDone(ctx context.Context, pool *pgxpool.Pool, c Command) error {
	_, err := pool.Exec(ctx, "update delivery_commands set relayed_at = now() where id = $1 and asked = $2 and relayed_at is null", c.ID, c.Asked)
	if err != nil {
		return fmt.Errorf("end command: %w", err)
	}
	return nil
}

// What is older than $1 ms is removed, at most $2 rows at a time, the oldest first. A row that somebody holds is left to the next time.
const (
	forgetCommandsSQL = `
delete from delivery_commands where id = any(array(
    select c.id from delivery_commands c where c.relayed_at < now() - $1 * interval '1 ms'
    order by c.relayed_at limit $2 for update skip locked))`

	forgetKeysSQL = `
delete from redelivery_keys where ctid = any(array(
    select k.ctid from redelivery_keys k where k.created_at < now() - $1 * interval '1 ms' order by k.created_at limit $2))`

	forgetJobKeysSQL = `
update redelivery_jobs set key_hash = null, request_hash = null where id = any(array(
    select j.id from redelivery_jobs j where j.key_hash is not null and j.created_at < now() - $1 * interval '1 ms'
    order by j.created_at limit $2 for update skip locked))`
)

// ForgetCommands removes some of what is kept of commands and keys that are so old, a transaction for each kind. more: there may be
// more to remove.
func ForgetCommands(ctx context.Context, pool *pgxpool.Pool, age time.Duration) (more bool, err error) {
	for _, sql := range []string{forgetCommandsSQL, forgetKeysSQL, forgetJobKeysSQL} {
		gone, err := pool.Exec(ctx, sql, age.Milliseconds(), forgetAtOnce)
		if err != nil {
			return false, fmt.Errorf("remove old commands: %w", err)
		}
		more = more || gone.RowsAffected() == forgetAtOnce
	}
	return more, nil
}

// Standing is where a delivery is.
type Standing struct {
	State   string
	Epoch   int
	Attempt int // the next one
	// Carried: a workflow of its own carries it, and either waits or makes an attempt.
	Carried bool
}

// Over reports whether nothing will be sent for the delivery again.
func (s Standing) Over() bool { return s.State != "pending" }

const (
	requestCancelSQL = `
update deliveries d set cancel_requested = true where d.id = any($1) and d.state = 'pending' and not d.cancel_requested`

	// leaveUnclaimedSQL takes a delivery out of the queue, unless a claim has it, or is taking it at this moment: a claim locks
	// the queue first and then the delivery, so whoever holds the delivery must not wait for the queue.
	leaveUnclaimedSQL = `
delete from delivery_queue where delivery_id in (
    select q.delivery_id from delivery_queue q where q.delivery_id = $1 and q.claim_id is null for update skip locked)`

	inQueueSQL = `select exists (select from delivery_queue where delivery_id = $1)`

	urlSQL = `select url, secret_path from destinations where id = $1`
)

// Cancel ends a pending delivery, if no request of it can be under way: nobody carries it, or its carrier waits. end makes its
// last leaf and says what changes. Otherwise whoever has the delivery ends it: cancel_requested, which is set in any case,
// lets no attempt begin and ends the delivery with the record of the one under way, unless that delivered it.
func Cancel(ctx context.Context, pool *pgxpool.Pool, delivery uuid.UUID, end func(d *Delivery, url string, secretPath bool) (Change, error)) (Standing, error) {
	var at Standing
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		locked, err := beginAndLock(ctx, conn, []uuid.UUID{delivery})
		d := locked[delivery]
		if err != nil || d == nil || d.State != "pending" {
			at = standing(d)
			return errors.Join(err, rollback(conn))
		}
		changes, err := endUncarried(ctx, conn, d, end)
		if err != nil {
			return errors.Join(err, rollback(conn))
		}
		at = standing(d)
		return writeAndCommit(ctx, conn, changes, Circuits{})
	})
	if err != nil {
		return Standing{}, fmt.Errorf("cancel delivery: %w", err)
	}
	return at, nil
}

func standing(d *Delivery) Standing {
	if d == nil {
		return Standing{}
	}
	return Standing{State: d.State, Epoch: d.Epoch, Attempt: d.NextAttempt}
}

// endUncarried says what changes for a delivery that is locked: nothing if a request of it may be under way.
func endUncarried(ctx context.Context, conn *pgxpool.Conn, d *Delivery, end func(*Delivery, string, bool) (Change, error)) ([]Change, error) {
	if _, err := conn.Exec(ctx, requestCancelSQL, []uuid.UUID{d.ID}); err != nil {
		return nil, err
	}
	if idle, err := leaveCarrier(ctx, conn, d); err != nil || !idle {
		return nil, err
	}
	if err := addCommitments(ctx, conn, map[uuid.UUID]*Delivery{d.ID: d}, nil); err != nil {
		return nil, err
	}
	if d.Gone() {
		return nil, ErrEventGone
	}
	var url string
	var secretPath bool
	if err := conn.QueryRow(ctx, urlSQL, d.DestinationID).Scan(&url, &secretPath); err != nil {
		return nil, fmt.Errorf("read destination: %w", err)
	}
	change, err := end(d, url, secretPath)
	return []Change{change}, err
}

// leaveCarrier takes a delivery out of the queue if nobody has claimed it, and reports whether nothing is being sent for it.
func leaveCarrier(ctx context.Context, conn *pgxpool.Conn, d *Delivery) (bool, error) {
	left, err := conn.Exec(ctx, leaveUnclaimedSQL, d.ID)
	if err != nil || left.RowsAffected() > 0 {
		return true, err
	}
	var claimed bool
	if err := conn.QueryRow(ctx, inQueueSQL, d.ID).Scan(&claimed); err != nil || claimed {
		return false, err
	}
	// A start is counted, and committed, before each request, and taken back with its record. This row is locked, so none is
	// counted now; once the delivery is over none will be.
	return d.LostStarts == 0, nil
}

const (
	lockStandingSQL = `
select d.state, d.epoch, d.next_attempt, d.check_after is not null from deliveries d where d.id = any($1) for update`

	dueNowSQL = `
update delivery_queue set due_at = now() where delivery_id in (
    select q.delivery_id from delivery_queue q where q.delivery_id = $1 and q.claim_id is null and q.due_at > now() for update skip locked)`

	deliveryDueNowSQL = `update deliveries d set due_at = now() where d.id = any($1) and d.state = 'pending'`
)

// RetryNow ends the wait of a delivery in the queue. One that a workflow of its own carries is only looked at: Carried.
func RetryNow(ctx context.Context, pool *pgxpool.Pool, delivery uuid.UUID) (Standing, error) {
	var at Standing
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, lockStandingSQL, []uuid.UUID{delivery}).Scan(&at.State, &at.Epoch, &at.Attempt, &at.Carried)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && at.Over() {
			return nil
		}
		if err != nil {
			return err
		}
		moved, err := tx.Exec(ctx, dueNowSQL, delivery)
		if err != nil || moved.RowsAffected() == 0 {
			return err
		}
		at.Carried = false
		_, err = tx.Exec(ctx, deliveryDueNowSQL, []uuid.UUID{delivery})
		return err
	})
	if err != nil {
		return Standing{}, fmt.Errorf("end wait of delivery: %w", err)
	}
	return at, nil
}
