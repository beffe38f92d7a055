package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// LeaseFor is how long a worker counts as alive after it renewed its lease. A worker renews every 3 s.
const LeaseFor = 10 * time.Second

// AddWorker enters a worker with a fresh lease.
func AddWorker(ctx context.Context, pool *pgxpool.Pool, worker uuid.UUID, host string) error {
	_, err := pool.Exec(ctx, `insert into workers (id, alive_until, host) values ($1, now() + $2 * interval '1 ms', $3)`,
		worker, LeaseFor.Milliseconds(), host)
	if err != nil {
		return fmt.Errorf("add worker: %w", err)
	}
	return nil
}

// RenewWorker extends a lease that hasn't lapsed, and reports false if it has: then others may have taken what the
// worker had claimed, and it must go on under a new ID.
func RenewWorker(ctx context.Context, pool *pgxpool.Pool, worker uuid.UUID) (bool, error) {
	tag, err := pool.Exec(ctx, `update workers set alive_until = now() + $2 * interval '1 ms' where id = $1 and alive_until > now()`,
		worker, LeaseFor.Milliseconds())
	if err != nil {
		return false, fmt.Errorf("renew worker: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// RemoveWorker ends a worker's lease at once.
func RemoveWorker(ctx context.Context, pool *pgxpool.Pool, worker uuid.UUID) error {
	if _, err := pool.Exec(ctx, `delete from workers where id = $1`, worker); err != nil {
		return fmt.Errorf("remove worker: %w", err)
	}
	return nil
}

// CountWorkers returns how many workers are alive, and forgets those that have been dead for a day.
func CountWorkers(ctx context.Context, pool *pgxpool.Pool) (int, error) {
	var alive int
	err := pool.QueryRow(ctx, `
		with forgotten as (delete from workers where alive_until < now() - interval '1 day')
		select count(*) from workers where alive_until > now()`).Scan(&alive)
	if err != nil {
		return 0, fmt.Errorf("count workers: %w", err)
	}
	return alive, nil
}

// EnsurePartitions makes the partitions of the coming days. Every worker calls it once an hour.
func EnsurePartitions(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, "select ensure_partitions(14)"); err != nil {
		return fmt.Errorf("make partitions: %w", err)
	}
	return nil
}
