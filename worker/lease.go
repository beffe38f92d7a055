package worker

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	renewEvery = 3 * time.Second
	// leaseMargin is how much earlier than Postgres a worker takes its lease to have lapsed.
	leaseMargin = time.Second
)

// Lease is this worker's right to carry deliveries: a row that says until when it is alive. Whatever a worker claimed
// is free once its lease has lapsed, so a worker that finds its own lapsed sends nothing more and takes a new ID.
type Lease struct {
	db   *pgxpool.Pool
	host string
	log  *zap.Logger

	failing outage

	mu    sync.Mutex
	id    uuid.UUID
	until time.Time // on the monotonic clock: a lease is never longer than it was when its renewal was sent
}

// NewLease returns a lease that isn't held yet.
func NewLease(db *pgxpool.Pool, host string, log *zap.Logger) *Lease {
	return &Lease{db: db, host: host, log: log}
}

// Alive reports whether the lease holds.
func (l *Lease) Alive() bool {
	_, alive := l.Holder()
	return alive
}

// Holder returns the ID under which the lease is held, and whether it is.
func (l *Lease) Holder() (uuid.UUID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, time.Now().Before(l.until)
}

// Run keeps the lease until ctx ends, and then gives it up, which frees what was claimed under it.
func (l *Lease) Run(ctx context.Context) {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		l.keep(ctx)
		select {
		case <-ctx.Done():
			l.release()
			return
		case <-ticker.C:
		}
	}
}

// keep renews the lease, or takes one under a new ID if there is none or it has lapsed.
func (l *Lease) keep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, renewEvery)
	defer cancel()
	start := time.Now()
	holder, alive := l.Holder()
	var err error
	if alive {
		alive, err = postgres.RenewWorker(ctx, l.db, holder)
	}
	if err == nil && !alive {
		holder = id.New()
		err = postgres.AddWorker(ctx, l.db, holder, l.host)
	}
	if ctx.Err() != context.Canceled {
		l.failing.note(l.log, "renew lease", err)
	}
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id, l.until = holder, start.Add(postgres.LeaseFor-leaseMargin)
}

func (l *Lease) release() {
	holder, alive := l.Holder()
	l.mu.Lock()
	l.until = time.Time{}
	l.mu.Unlock()
	if !alive {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), renewEvery)
	defer cancel()
	if err := postgres.RemoveWorker(ctx, l.db, holder); err != nil {
		l.log.Warn("lease not given up; it lapses by itself", zap.Error(err))
	}
}
