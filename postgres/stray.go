package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A stray is a row of the queue whose delivery is over, or gone. Nothing that Kapsel does leaves one: whoever ends a delivery, or
// puts it into the queue, does so under the delivery's lock and in one transaction, and a claim and its counted start are one
// transaction too. A hand in the database can, and so does a day's partition of deliveries that is dropped while some of them wait
// for a destination that is paused. A claim takes a stray and gives it to nobody, so it would stay claimed for as long as its worker
// lives.

// claimedLongSQL reads what was claimed before $1, by the time in the claim's own ID: usually hardly anything, since a row goes
// with the record of its first attempt.
const claimedLongSQL = `select q.delivery_id from delivery_queue q where q.claim_id < $1`

// removeStraysSQL removes which of $1 are strays. It locks nothing else, and a delivery that is over stays so: there is nothing to race with.
const removeStraysSQL = `
delete from delivery_queue q
where q.delivery_id = any($1) and q.claim_id is not null
  and not exists (select from deliveries d where d.id = any($1) and d.id = q.delivery_id and d.state = 'pending')
returning q.delivery_id`

// RemoveStrays removes the strays that were claimed so long ago, and returns their deliveries.
func RemoveStrays(ctx context.Context, pool *pgxpool.Pool, age time.Duration) ([]uuid.UUID, error) {
	claimed, err := deliveryIDs(ctx, pool, claimedLongSQL, floor(time.Now().Add(-age)))
	if err == nil && len(claimed) > 0 {
		claimed, err = deliveryIDs(ctx, pool, removeStraysSQL, claimed)
	}
	if err != nil {
		return nil, fmt.Errorf("remove strays from the queue: %w", err)
	}
	return claimed, nil
}

func deliveryIDs(ctx context.Context, pool *pgxpool.Pool, sql string, arg any) ([]uuid.UUID, error) {
	rows, err := pool.Query(ctx, sql, arg)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}
