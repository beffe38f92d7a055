package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What a Watch says of a Postgres that can't be worked with. Unavailable is true of each.
var (
	ErrUnknown  = unavailable("Postgres has not been asked yet")
	ErrAway     = unavailable("Postgres does not answer")
	ErrReadOnly = unavailable("Postgres is read-only: a standby, or one that a failover made one")
)

// unavailable is an error that means that Postgres can't answer now.
type unavailable string

func (e unavailable) Error() string { return string(e) }

// Together they are less than the 2 s within which a caller hears that Postgres is away.
const (
	probeEvery = 500 * time.Millisecond
	probeFor   = 1200 * time.Millisecond
)

// Watch asks Postgres twice a second, on a connection of its own, whether it is there, so that nobody has to find out by
// waiting: those who wait for it are let go, and those who come later needn't ask. It doesn't take a connection of a pool, since
// a pool that is used up says nothing of Postgres.
type Watch struct {
	config   *pgx.ConnConfig
	pools    []*pgxpool.Pool
	onChange func(error)

	conn *pgx.Conn // of run only

	mu    sync.Mutex
	state error // nil: it is there
	since time.Time
	seen  time.Time       // when somebody else last had an answer
	here  context.Context // ends when Postgres goes away
	leave context.CancelCauseFunc
	first chan struct{} // closed once it has been asked
}

// NewWatch returns a watch over the Postgres of pools. onChange is told when it goes (why) and when it comes (nil); nil: nobody is.
func NewWatch(onChange func(error), pools ...*pgxpool.Pool) *Watch {
	if onChange == nil {
		onChange = func(error) {}
	}
	w := &Watch{
		config: pools[0].Config().ConnConfig, pools: pools, onChange: onChange,
		state: ErrUnknown, since: time.Now(), first: make(chan struct{}),
	}
	w.here, w.leave = context.WithCancelCause(context.Background())
	return w
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	defer w.close()
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		asked := time.Now()
		if err := w.probe(ctx); ctx.Err() == nil {
			w.found(err, asked)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// probe asks on a connection that is kept as long as it answers.
func (w *Watch) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	if w.conn == nil {
		conn, err := pgx.ConnectConfig(ctx, w.config)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrAway, err)
		}
		w.conn = conn
	}
	var readOnly bool
	err := w.conn.QueryRow(ctx, "select current_setting('transaction_read_only')::bool").Scan(&readOnly)
	if err == nil && !readOnly {
		return nil
	}
	w.close() // the next one may lead to where Postgres is now
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	return ErrReadOnly
}

func (w *Watch) close() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = w.conn.Close(ctx)
	w.conn = nil
}

// found changes the state. One probe without an answer is enough, unless somebody has had one meanwhile. The pools let go of their
// connections, which may hang, or lead to a server that isn't the primary any more.
func (w *Watch) found(err error, asked time.Time) {
	w.mu.Lock()
	if errors.Is(err, ErrAway) && w.state == nil && w.seen.After(asked) {
		err = nil
	}
	gone, came := err != nil && (w.state == nil || errors.Is(w.state, ErrUnknown)), err == nil && w.state != nil
	w.state = err
	switch {
	case gone:
		w.since = time.Now()
		w.leave(err)
	case came:
		w.since = time.Now()
		w.here, w.leave = context.WithCancelCause(context.Background())
	}
	select {
	case <-w.first:
	default:
		close(w.first)
	}
	w.mu.Unlock()
	if gone {
		for _, pool := range w.pools {
			pool.Reset()
		}
	}
	if gone || came {
		w.onChange(err)
	}
}

// Seen notes that Postgres has just answered.
func (w *Watch) Seen() {
	w.mu.Lock()
	w.seen = time.Now()
	w.mu.Unlock()
}

// Err says why Postgres can't be worked with, or returns nil. The error may quote what the driver says.
func (w *Watch) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// Asked is closed once Postgres has been asked for the first time.
func (w *Watch) Asked() <-chan struct{} { return w.first }

// While returns a context that also ends, with the reason as its cause, when Postgres goes away; at once, if it is away. Before
// it has been asked it is taken to be there.
func (w *Watch) While(ctx context.Context) (context.Context, context.CancelFunc) {
	w.mu.Lock()
	here := w.here
	w.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(here, func() { cancel(context.Cause(here)) })
	return ctx, func() {
		stop()
		cancel(context.Canceled)
	}
}
