package api

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// Until a server has started it looks often; then the schema is looked at now and again, since somebody might restore an
	// older database.
	lookEveryFirst = 100 * time.Millisecond
	lookEvery      = 2 * time.Second
	lookFor        = 2 * time.Second
	// reminderEvery is how often a lasting outage is told again.
	reminderEvery = time.Minute
)

// The checks that health tells of, and what it says of one that holds.
const (
	checkPostgres = "postgres"
	checkSchema   = "schema"
	checkTraffic  = "traffic"
	checkStarted  = "started"
	checkOK       = "ok"

	schemaUnseen = "not seen yet"
)

// health knows how the server is without asking anybody when it is asked itself, so that probes, which need no key, are no way to
// load Postgres.
type health struct {
	watch    *postgres.Watch
	pools    []*pgxpool.Pool
	current  func(context.Context) (bool, error)
	started  atomic.Bool // the schema was seen and each pool had a connection, once
	draining atomic.Bool
	stop     context.CancelFunc
	done     sync.WaitGroup

	mu     sync.Mutex
	schema string // checkOK, or what is wrong
	err    error  // why the schema couldn't be read, for the log
}

func newHealth(config *Config) *health {
	pools := []*pgxpool.Pool{config.Engine, config.API}
	h := &health{pools: pools, current: config.Current, schema: schemaUnseen}
	h.watch = postgres.NewWatch(tellOutage(config.Log), pools...)
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	h.done.Go(func() { h.watch.Run(ctx) })
	h.done.Go(func() { h.run(ctx, config.Log) })
	return h
}

// tellOutage writes a line when Postgres goes and one when it is back. The first probe of a server is no news.
func tellOutage(log *zap.Logger) func(error) {
	var since time.Time
	return func(err error) {
		switch {
		case err != nil:
			since = time.Now()
			log.Warn("Postgres is away; requests are answered 503", zap.Error(err))
		case !since.IsZero():
			log.Info("Postgres is back", zap.Duration("after", time.Since(since)))
		}
	}
}

func (h *health) close() {
	h.stop()
	h.done.Wait()
}

// run looks at the schema and the pools, and reminds of a lasting outage, until ctx ends.
func (h *health) run(ctx context.Context, log *zap.Logger) {
	reminder := time.NewTicker(reminderEvery)
	defer reminder.Stop()
	for {
		h.look(ctx)
		wait := lookEvery
		if !h.started.Load() {
			wait = lookEveryFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-reminder.C:
			if err := h.watch.Err(); err != nil && !errors.Is(err, postgres.ErrUnknown) {
				log.Warn("Postgres is still away", zap.Error(err))
			}
		case <-time.After(wait):
		}
	}
}

// look asks for the schema, and warms the pools before the first traffic.
func (h *health) look(ctx context.Context) {
	if h.watch.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	current, err := h.current(ctx)
	h.mu.Lock()
	h.err = err
	switch {
	case err != nil && h.schema == checkOK: // that it can't be read now says nothing of it
	case err != nil:
		h.schema = "can't be read"
	case current:
		h.schema = checkOK
	default:
		h.schema = "missing or older than this version needs; run kapsel migrate"
	}
	h.mu.Unlock()
	if err != nil || !current || h.started.Load() {
		return
	}
	for _, pool := range h.pools {
		if pool.Ping(ctx) != nil {
			return
		}
	}
	h.started.Store(true)
}

// postgresCheck says how Postgres is, in words that name neither host nor user.
func (h *health) postgresCheck() string {
	for _, known := range []error{postgres.ErrUnknown, postgres.ErrReadOnly, postgres.ErrAway} {
		if errors.Is(h.watch.Err(), known) {
			return known.Error()
		}
	}
	return checkOK
}

// checks are what /health/ready stands on.
func (h *health) checks() map[string]string {
	checks := map[string]string{checkPostgres: h.postgresCheck(), checkTraffic: checkOK, checkStarted: checkOK}
	h.mu.Lock()
	checks[checkSchema] = h.schema
	h.mu.Unlock()
	if h.draining.Load() {
		checks[checkTraffic] = "stopping; send requests to others"
	}
	if !h.started.Load() {
		checks[checkStarted] = "not yet"
	}
	return checks
}

// failed is the first check that doesn't hold, in the order in which one depends on the other; "" if all do.
func failed(checks map[string]string) string {
	for _, name := range []string{checkTraffic, checkPostgres, checkSchema, checkStarted} {
		if state, known := checks[name]; known && state != checkOK {
			return name
		}
	}
	return ""
}

// GetLive answers as long as the process does. It looks at nothing else: restarting the api would bring nothing back.
func (s *Server) GetLive(context.Context, openapi.GetLiveRequestObject) (openapi.GetLiveResponseObject, error) {
	return openapi.GetLive200JSONResponse{Status: openapi.Ok}, nil
}

// GetReady says whether webhooks should be sent here.
func (s *Server) GetReady(ctx context.Context, _ openapi.GetReadyRequestObject) (openapi.GetReadyResponseObject, error) {
	s.awaitFirst(ctx)
	checks := s.health.checks()
	if name := failed(checks); name != "" {
		return nil, s.health.problem(name, checks)
	}
	return openapi.GetReady200JSONResponse{Status: openapi.Ok, Checks: &checks}, nil
}

// GetStartup says whether the server has ever been ready. Once it has, it stays so: what comes later is GetReady's.
func (s *Server) GetStartup(ctx context.Context, _ openapi.GetStartupRequestObject) (openapi.GetStartupResponseObject, error) {
	s.awaitFirst(ctx)
	if s.health.started.Load() {
		return openapi.GetStartup200JSONResponse{Status: openapi.Ok}, nil
	}
	checks := s.health.checks()
	delete(checks, checkTraffic)
	return nil, s.health.problem(failed(checks), checks)
}

// awaitFirst lets a probe that comes with the process wait until Postgres has been asked and, if it is there, looked at.
func (s *Server) awaitFirst(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	ticker := time.NewTicker(lookEveryFirst / 4)
	defer ticker.Stop()
	for {
		h := s.health
		h.mu.Lock()
		behind := h.schema != checkOK && h.schema != schemaUnseen
		h.mu.Unlock()
		away := h.watch.Err()
		if h.started.Load() || behind || away != nil && !errors.Is(away, postgres.ErrUnknown) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// problem says which check fails, and the log why.
func (h *health) problem(name string, checks map[string]string) *problem {
	after := 2 * time.Second
	if name == checkSchema {
		after = 10 * time.Second
	}
	h.mu.Lock()
	cause := h.err
	h.mu.Unlock()
	if name == checkPostgres {
		cause = h.watch.Err()
	}
	p := unavailable("Not now. "+name+": "+checks[name]+".", after, cause)
	p.checks = checks
	return p
}

// moveOn makes the keep-alive connections of a server that stops go elsewhere: each is closed after its next answer, so that no
// request meets one that is being closed.
func (s *Server) moveOn(c *gin.Context) {
	if s.health.draining.Load() {
		c.Writer.Header().Set("Connection", "close")
	}
}
