package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// queueChannel is the channel on which dispatchers are woken. The notification says nothing but "look".
const queueChannel = "kapsel_queue"

// notifyEvery is the least time between two notifications of a process. They are sent on a connection of their own, so that
// they wait for each other and not the commits of ingest for them; what bounds them is the work that each makes for
// every worker (docs/adr/0011).
const notifyEvery = 10 * time.Millisecond

// Notifier wakes the dispatchers of all processes, outside the transactions that gave them work.
type Notifier struct {
	pool *pgxpool.Pool
	due  chan struct{}
}

// NewNotifier returns a notifier; Run sends what it is told.
func NewNotifier(pool *pgxpool.Pool) *Notifier {
	return &Notifier{pool: pool, due: make(chan struct{}, 1)}
}

// Notify asks for a notification soon. It never blocks, and many calls may become one notification.
func (n *Notifier) Notify() {
	select {
	case n.due <- struct{}{}:
	default:
	}
}

// Run sends notifications until ctx ends. One that fails is lost: dispatchers look by themselves four times a second.
func (n *Notifier) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.due:
			_, _ = n.pool.Exec(ctx, "select pg_notify($1, '')", queueChannel)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(notifyEvery):
		}
	}
}

// Listen calls wake for every notification until ctx ends or the connection breaks. url must lead to Postgres itself,
// not to a pooler in transaction mode.
func Listen(ctx context.Context, url string, wake func()) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to listen: %w", err)
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(closeCtx)
	}()
	if _, err := conn.Exec(ctx, "listen "+queueChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		wake()
	}
}
