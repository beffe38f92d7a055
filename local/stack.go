package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/pgserver"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/worker"
	"github.com/kapsel-io/kapsel/workflows"
)

// progress is where people read how it goes.
type progress = io.Writer

// stackConfig is what the flags set.
type stackConfig struct {
	Dir          string
	APIPort      int
	PostgresPort int
	TemporalPort int
	UIPort       int
	MetricsPort  int
	LogLevel     string
	// TraceTo is the URL of a collector. Empty: nothing is traced.
	TraceTo string
	// noWorker: nothing is delivered and nothing sealed.
	noWorker bool
	// toTemporal, if set, makes every request of the worker to Temporal.
	toTemporal grpc.UnaryClientInterceptor
}

// stack is everything that runs. What was started is stopped in the opposite order.
type stack struct {
	state    state
	apiURL   string
	metrics  string // URL
	uiURL    string
	temporal string // host:port
	dbURL    string
	dir      string
	stops    []stopper
	failed   chan error // what ended without being asked to
	log      *zap.Logger
	tracing  *tracing.Tracer      // of api and worker
	registry *prometheus.Registry // of api and worker
}

type stopper struct {
	name string
	stop func(context.Context) error
}

// stopTimeout is how long stopping may take in all.
const stopTimeout = 60 * time.Second

// loopback is the only network that the local stack may send webhooks to besides public ones.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// startStack starts everything in order, or stops what it started and says what to do.
func startStack(ctx context.Context, config stackConfig, out progress) (*stack, error) {
	s := &stack{failed: make(chan error, 4), registry: prometheus.NewRegistry()}
	if err := s.start(ctx, config, out); err != nil {
		return nil, s.stop(err)
	}
	return s, nil
}

func (s *stack) start(ctx context.Context, config stackConfig, out progress) error {
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return err
	}
	s.dir = dir
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	s.onStop("lock", func(context.Context) error { return lock.Close() })
	if err := s.openLog(config.LogLevel); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func(context.Context, stackConfig) error
	}{
		{"Postgres", s.startPostgres},
		{"schema", s.migrate},
		{"Temporal", s.startTemporal},
		{"api", s.startAPI},
		{"worker", s.startWorker},
	} {
		started := time.Now()
		_, _ = fmt.Fprintf(out, "starting %-9s", step.name)
		if err := step.run(ctx, config); err != nil {
			_, _ = fmt.Fprintln(out, "failed")
			return fmt.Errorf("start %s: %w", step.name, err)
		}
		_, _ = fmt.Fprintf(out, "%5.1f s\n", time.Since(started).Seconds())
	}
	return s.writeRunning()
}

func (s *stack) openLog(level string) error {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return fmt.Errorf("--log-level is %q; allowed are debug, info, warn and error", level)
	}
	config := zap.NewProductionConfig()
	config.Level = zap.NewAtomicLevelAt(parsed)
	config.OutputPaths = []string{filepath.Join(s.dir, "kapsel.log")}
	config.ErrorOutputPaths = config.OutputPaths
	if s.log, err = config.Build(); err != nil {
		return err
	}
	worker.DropStandardLog(s.log)
	return nil
}

func (s *stack) startPostgres(ctx context.Context, config stackConfig) error {
	server, err := pgserver.Start(ctx, pgserver.Config{
		Dir: filepath.Join(s.dir, "postgres"), Port: config.PostgresPort, Log: s.log,
		Settings: map[string]string{
			"max_connections": "300",
			// The queues are written often and stay small: their dead rows are to go within seconds.
			"autovacuum_naptime": "15s",
			// A new database has no old WAL segments to write again. Without this, whichever commit needs the next one first writes
			// 16 MiB of zeros and waits for the disk, and all others wait for it: once a second at full load.
			"wal_init_zero": "off",
		},
	})
	if err != nil {
		return err
	}
	s.onStop("Postgres", server.Stop)
	s.dbURL = server.URL("kapsel")
	go func() {
		<-server.Done()
		s.fail(fmt.Errorf("the Postgres server ended: %w", server.Err()))
	}()
	return ensureDatabase(ctx, server.URL("postgres"), "kapsel")
}

func (s *stack) migrate(ctx context.Context, _ stackConfig) error {
	if _, err := migrations.Up(ctx, s.dbURL, migrations.DaysAhead); err != nil {
		return err
	}
	owner, err := postgres.Open(s.dbURL, postgres.Owner, 2)
	if err != nil {
		return err
	}
	defer owner.Close()
	s.state, err = prepareState(ctx, owner, s.dir)
	return err
}

func (s *stack) startTemporal(ctx context.Context, config stackConfig) error {
	var attributes []string
	for _, key := range workflows.SearchAttributes() {
		attributes = append(attributes, key.GetName())
	}
	server, err := temporal.Start(ctx, temporal.Config{
		DatabaseURL: s.dbURL, FrontendPort: config.TemporalPort, UIPort: config.UIPort, SearchAttributes: attributes,
		Log: s.log.Named("temporal"),
	})
	if errors.Is(err, temporal.ErrPortTaken) {
		return fmt.Errorf("%w with --temporal-port or --ui-port", err)
	}
	if err != nil {
		return err
	}
	s.onStop("Temporal", server.Stop)
	s.temporal, s.uiURL = server.Address(), server.UIURL()
	return nil
}

func (s *stack) startTracing(ctx context.Context, config stackConfig) (err error) {
	if config.TraceTo == "" {
		return nil
	}
	s.tracing, err = tracing.New(ctx, tracing.Config{Endpoint: config.TraceTo, Ratio: 1, Service: "kapsel-local", Log: s.log.Named("tracing")})
	if err != nil {
		return err
	}
	s.onStop("traces", func(context.Context) error {
		s.tracing.Close()
		return nil
	})
	return nil
}

func (s *stack) startAPI(ctx context.Context, config stackConfig) error {
	if err := s.startTracing(ctx, config); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(config.APIPort)))
	if err != nil {
		return fmt.Errorf("%w; choose another port with --api-port", err)
	}
	engine, management, err := s.pools()
	if err != nil {
		return err
	}
	notifier := postgres.NewNotifier(engine)
	s.apiURL = "http://" + listener.Addr().String()
	server, err := api.New(api.Config{
		Engine: engine, API: management, Log: s.log.Named("api"), Notify: notifier.Notify, Allow: loopback, PublicURL: s.apiURL,
		Metrics: s.registry, Tracing: s.tracing,
	})
	if err != nil {
		return err
	}
	s.background("api", func(ctx context.Context) error {
		defer engine.Close()
		defer management.Close()
		go notifier.Run(ctx)
		return server.Serve(ctx, listener)
	})
	return nil
}

func (s *stack) pools() (engine, management *pgxpool.Pool, err error) {
	if engine, err = postgres.Open(s.dbURL, postgres.Engine, 16); err != nil {
		return nil, nil, err
	}
	management, err = postgres.Open(s.dbURL, postgres.API, 8)
	return engine, management, err
}

func (s *stack) startWorker(_ context.Context, config stackConfig) error {
	if config.noWorker {
		return nil
	}
	engine, err := postgres.Open(s.dbURL, postgres.Engine, 32)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(config.MetricsPort)))
	if err != nil {
		return fmt.Errorf("%w; choose another port with --metrics-port", err)
	}
	health := worker.NewHealth()
	s.metrics = "http://" + listener.Addr().String() + "/metrics"
	s.background("metrics", func(ctx context.Context) error { return worker.ServeMetrics(ctx, listener, s.registry, health) })
	options := client.Options{HostPort: s.temporal, Namespace: temporal.Namespace}
	if config.toTemporal != nil {
		options.ConnectionOptions.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(config.toTemporal)}
	}
	s.background("worker", func(ctx context.Context) error {
		defer engine.Close()
		return worker.Run(ctx, worker.Config{
			Engine: engine, DirectURL: s.dbURL, Allow: loopback, Log: s.log.Named("worker"),
			Metrics: s.registry, Tracing: s.tracing, Health: health, Temporal: options, KeyDir: keyDir(s.dir), HighWaterDir: highWaterDir(s.dir),
		})
	})
	return nil
}

// background runs a part until the stack stops.
func (s *stack) background(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := run(ctx)
		if ctx.Err() == nil {
			s.fail(fmt.Errorf("%s ended: %w", name, err))
		}
		done <- err
	}()
	s.onStop(name, func(stopCtx context.Context) error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-stopCtx.Done():
			return stopCtx.Err()
		}
	})
}

func (s *stack) onStop(name string, stop func(context.Context) error) {
	s.stops = append(s.stops, stopper{name, stop})
}

func (s *stack) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// wait returns when ctx ends (nil) or a part has failed.
func (s *stack) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// stop stops what was started, last first: the worker, which signs what was recorded, the api, Temporal, Postgres. It
// returns cause joined with what went wrong on the way.
func (s *stack) stop(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for len(s.stops) > 0 {
		last := s.stops[len(s.stops)-1]
		s.stops = s.stops[:len(s.stops)-1]
		if err := last.stop(ctx); err != nil {
			cause = errors.Join(cause, fmt.Errorf("stop %s: %w", last.name, err))
		}
	}
	return cause
}

func (s *stack) printURLs(out progress) {
	_, _ = fmt.Fprintf(out, `
Kapsel is running.
  api               %s
  Temporal Web UI   %s
  worker's metrics  %s
  API key           %s
  log               %s
  public key        %s
  data and logs     %s
`, s.apiURL, s.uiURL, s.metrics, s.state.APIKey, s.state.LogID, s.state.PublicKey, s.dir)
}
