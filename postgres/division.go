package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Limits are what a destination allows at a time and a second, from all workers together. 0: no limit.
type Limits struct {
	MaxConcurrency int
	RatePerSecond  int
}

// longestRequest is the longest timeout of a destination, and some time more.
const longestRequest = 150 * time.Second

// Peer is a worker that is alive, or whose requests may still be under way because it was lost.
type Peer struct {
	ID     uuid.UUID
	Alive  bool
	Lapsed time.Duration // how long ago its lease lapsed
	// CountsMe: it makes room for the worker who asks.
	CountsMe bool
}

// The select sees workers as they were before the update, which is of the asking worker's own row.
const peersSQL = `
with told as (update workers set counted = $2 where id = $1)
select w.id, w.alive_until > now(), greatest(extract(epoch from now() - w.alive_until) * 1000, 0)::bigint, $1 = any(w.counted)
from workers w
where w.alive_until > now() - $3 * interval '1 ms'
order by w.id`

// Peers tells which workers the asking one counts, and returns those that it has to count, itself included, in the order of
// their IDs.
func Peers(ctx context.Context, pool *pgxpool.Pool, worker uuid.UUID, counted []uuid.UUID) ([]Peer, error) {
	if counted == nil {
		counted = []uuid.UUID{}
	}
	rows, err := pool.Query(ctx, peersSQL, worker, counted, longestRequest.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	peers, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Peer, err error) {
		var lapsedMS int64
		err = row.Scan(&p.ID, &p.Alive, &lapsedMS, &p.CountsMe)
		p.Lapsed = time.Duration(lapsedMS) * time.Millisecond
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	return peers, nil
}
