package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// ErrOverloaded means that more is waiting to be committed than the group may hold; the caller should come back later.
var ErrOverloaded = errors.New("too much is waiting to be committed")

// ErrShare means that as much of one key is waiting to be committed as it may have of the group; others' rows are taken.
var ErrShare = errors.New("too much of one tenant is waiting to be committed")

// ErrClosed means that the group takes no more rows.
var ErrClosed = errors.New("group commit is closed")

// GroupConfig says how a Group commits.
type GroupConfig[Row, Result any] struct {
	// Commit writes rows in one transaction and returns one result per row, in order. It must be all or nothing.
	Commit func(ctx context.Context, rows []Row) ([]Result, error)
	// Size is the weight of a row in bytes.
	Size func(Row) int
	// Key, if set, says whose a row is. Keys take turns, and none may have more than MaxShareBytes of what waits and is being
	// committed; beyond it Do returns ErrShare. Default: all rows have one key, without a share.
	Key           func(Row) uuid.UUID
	MaxShareBytes int
	// MaxRows and MaxBytes bound one commit. Defaults: 500 rows, 4 MiB.
	MaxRows, MaxBytes int
	// LargeBytes is the size from which a row is committed on its own, so that small ones don't wait for it.
	// Default: 256 KiB.
	LargeBytes int
	// Committers is how many commits may be under way at once; as many again may be for large rows. Default: 2.
	Committers int
	// MaxWaitingBytes bounds what waits and is being committed; beyond it Do returns ErrOverloaded. Default: 128 MiB.
	MaxWaitingBytes int
	// Gather, if set, says how long rows shall gather before a commit: under load, where a commit of its own for each row
	// costs more than the wait.
	Gather func() time.Duration
	// Timeout bounds one commit. Default: 10 s.
	Timeout time.Duration
	// Observe, if set, is told of each commit: rows, seconds and outcome.
	Observe func(rows int, took time.Duration, err error)
}

func (c *GroupConfig[Row, Result]) setDefaults() {
	setDefault(&c.MaxRows, 500)
	setDefault(&c.MaxBytes, 4<<20)
	setDefault(&c.LargeBytes, 256<<10)
	setDefault(&c.Committers, 2)
	setDefault(&c.MaxWaitingBytes, 128<<20)
	setDefault(&c.Timeout, 10*time.Second)
	if c.Key == nil {
		c.Key = func(Row) uuid.UUID { return uuid.Nil }
		setDefault(&c.MaxShareBytes, c.MaxWaitingBytes)
	}
	setDefault(&c.MaxShareBytes, c.MaxWaitingBytes/4)
	if c.Observe == nil {
		c.Observe = func(int, time.Duration, error) {}
	}
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Group lets many callers share one commit. Whoever calls Do gets its row's result only after the commit that holds the
// row. While one commit is under way the next rows gather, so that groups grow with the load and, unless Gather says so, a
// lone caller waits for nobody.
type Group[Row, Result any] struct {
	config GroupConfig[Row, Result]

	mu      sync.Mutex
	waiting fairQueue[*member[Row, Result]]
	large   fairQueue[*member[Row, Result]]
	bytes   int               // waiting or being committed
	held    map[uuid.UUID]int // of these bytes, by key; only those that have some
	closed  bool
	wake    *sync.Cond
	done    sync.WaitGroup
}

// member is one caller's row on its way into a commit.
type member[Row, Result any] struct {
	ctx    context.Context // only to leave out a caller that has gone before the commit began
	row    Row
	key    uuid.UUID
	size   int
	result Result
	err    error
	ready  chan struct{}
}

// NewGroup starts a group; Close ends it.
func NewGroup[Row, Result any](config GroupConfig[Row, Result]) *Group[Row, Result] {
	config.setDefaults()
	g := &Group[Row, Result]{config: config, held: map[uuid.UUID]int{}}
	g.wake = sync.NewCond(&g.mu)
	for range config.Committers {
		g.done.Add(2)
		go g.run(g.takeSmall, config.Gather)
		go g.run(g.takeLarge, nil)
	}
	return g
}

// Do hands over one row and returns after the commit that holds it, or with the reason why it isn't known to be
// committed. A row that Postgres refuses for what it holds fails alone. If ctx ends first its error is returned, and
// the row may still be committed.
func (g *Group[Row, Result]) Do(ctx context.Context, row Row) (Result, error) {
	m := &member[Row, Result]{ctx: ctx, row: row, key: g.config.Key(row), size: g.config.Size(row), ready: make(chan struct{})}
	if err := g.enqueue(m); err != nil {
		return m.result, err
	}
	select {
	case <-m.ready:
		return m.result, m.err
	case <-ctx.Done():
		var none Result
		return none, context.Cause(ctx)
	}
}

func (g *Group[Row, Result]) enqueue(m *member[Row, Result]) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	if g.bytes > 0 && g.bytes+m.size > g.config.MaxWaitingBytes {
		return ErrOverloaded
	}
	if held := g.held[m.key]; held > 0 && held+m.size > g.config.MaxShareBytes {
		return ErrShare
	}
	g.bytes += m.size
	g.held[m.key] += m.size
	if m.size >= g.config.LargeBytes {
		g.large.push(m.key, m)
	} else {
		g.waiting.push(m.key, m)
	}
	g.wake.Broadcast()
	return nil
}

// Close commits what waits and returns when all is done.
func (g *Group[Row, Result]) Close() {
	g.mu.Lock()
	g.closed = true
	g.wake.Broadcast()
	g.mu.Unlock()
	g.done.Wait()
}

func (g *Group[Row, Result]) run(take func() []*member[Row, Result], gather func() time.Duration) {
	defer g.done.Done()
	for {
		if gather != nil {
			g.gather(gather)
		}
		members := g.next(take)
		if members == nil {
			return
		}
		g.commit(members)
		g.release(members)
	}
}

// gather waits for a row, and then for as long as more shall join it.
func (g *Group[Row, Result]) gather(howLong func() time.Duration) {
	g.mu.Lock()
	for g.waiting.n == 0 && !g.closed {
		g.wake.Wait()
	}
	enough := g.closed || g.waiting.n >= g.config.MaxRows
	g.mu.Unlock()
	if enough {
		return
	}
	if wait := howLong(); wait > 0 {
		<-time.After(wait)
	}
}

// next waits for rows to commit; nil means that the group is closed and empty.
func (g *Group[Row, Result]) next(take func() []*member[Row, Result]) []*member[Row, Result] {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if members := take(); len(members) > 0 {
			return members
		}
		if g.closed {
			return nil
		}
		g.wake.Wait()
	}
}

func (g *Group[Row, Result]) takeSmall() (members []*member[Row, Result]) {
	size := 0
	for g.waiting.n > 0 && len(members) < g.config.MaxRows {
		next := g.waiting.peek()
		if len(members) > 0 && size+next.size > g.config.MaxBytes {
			break
		}
		size += next.size
		members = append(members, g.waiting.pop())
	}
	return members
}

func (g *Group[Row, Result]) takeLarge() []*member[Row, Result] {
	if g.large.n == 0 {
		return nil
	}
	return []*member[Row, Result]{g.large.pop()}
}

func (g *Group[Row, Result]) release(members []*member[Row, Result]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range members {
		g.bytes -= m.size
		if g.held[m.key] -= m.size; g.held[m.key] <= 0 {
			delete(g.held, m.key)
		}
	}
}

// commit leaves out callers that have gone, commits the rest, and tells each what became of its row.
func (g *Group[Row, Result]) commit(members []*member[Row, Result]) {
	live := make([]*member[Row, Result], 0, len(members))
	for _, m := range members {
		if m.err = m.ctx.Err(); m.err != nil {
			close(m.ready)
			continue
		}
		live = append(live, m)
	}
	if len(live) > 0 {
		g.commitOrBisect(live)
	}
	for _, m := range live {
		close(m.ready)
	}
}

// commitOrBisect commits members together; if Postgres refuses a row it halves until the bad ones stand alone.
func (g *Group[Row, Result]) commitOrBisect(members []*member[Row, Result]) {
	rows := make([]Row, len(members))
	for i, m := range members {
		rows[i] = m.row
	}
	results, err := g.commitOnce(rows)
	if badRow(err) && len(members) > 1 {
		half := len(members) / 2
		g.commitOrBisect(members[:half])
		g.commitOrBisect(members[half:])
		return
	}
	for i, m := range members {
		if m.err = err; err == nil {
			m.result = results[i]
		}
	}
}

func (g *Group[Row, Result]) commitOnce(rows []Row) (results []Result, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), g.config.Timeout)
	defer cancel()
	start := time.Now()
	defer func() { g.config.Observe(len(rows), time.Since(start), err) }()
	results, err = g.config.Commit(ctx, rows)
	if err == nil && len(results) != len(rows) {
		err = fmt.Errorf("commit of %d rows returned %d results", len(rows), len(results))
	}
	return results, err
}
