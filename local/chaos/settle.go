package chaos

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// unsettled counts what is still under way, by what it is.
var unsettled = []struct{ name, sql string }{
	{"deliveries pending", "select count(*) from deliveries where state = 'pending'"},
	{"in the queue", "select count(*) from delivery_queue"},
	{"leaves not in the log", "select count(*) from leaf_queue"},
	{"leaves not under a signed head", `select coalesce(sum(h.tree_size - (select coalesce(max(s.tree_size), 0) from signed_tree_heads s
		where s.log_id = h.log_id and s.signature is not null)), 0)::bigint from log_heads h`},
}

// settle waits until nothing is under way any more and says what still is if that takes too long.
func settle(ctx context.Context, db *pgxpool.Pool, patience time.Duration, say func(string, ...any)) (left string, err error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	over := time.Now().Add(patience)
	said := time.Now()
	for {
		if left, err = underWay(ctx, db); err != nil || left == "" {
			return left, err
		}
		if time.Now().After(over) {
			return left, nil
		}
		if time.Since(said) > sayEvery {
			say("  settling: %s", left)
			said = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return left, ctx.Err()
		}
	}
}

func underWay(ctx context.Context, db *pgxpool.Pool) (string, error) {
	var left []string
	for _, u := range unsettled {
		var n int64
		if err := db.QueryRow(ctx, u.sql).Scan(&n); err != nil {
			return "", fmt.Errorf("count %s: %w", u.name, err)
		}
		if n != 0 {
			left = append(left, fmt.Sprintf("%d %s", n, u.name))
		}
	}
	return strings.Join(left, ", "), nil
}
