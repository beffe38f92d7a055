// Package worker is the process that carries deliveries and grows the logs: it wires the dispatcher, the sweeper and the
// Temporal workers together, starts them in order and stops them in the opposite one.
package worker

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/webhook"
	"github.com/kapsel-io/kapsel/workflows"
)

// Config says what a worker works with.
type Config struct {
	// Engine is a pool of role kapsel_engine.
	Engine *pgxpool.Pool
	// DirectURL leads to Postgres itself, for LISTEN. Empty: the dispatcher only polls.
	DirectURL string
	// Temporal are the options to connect with: HostPort and Namespace at least.
	Temporal client.Options
	// MaxInFlight is how many claimed deliveries may wait for the record of their first attempt. Default: 200.
	MaxInFlight int
	// DisableAfter is how long a destination may keep failing before it is disabled. Default: 5 days; negative: for ever.
	DisableAfter time.Duration
	// Allow are private networks to which webhooks may be sent. Default: none.
	Allow []netip.Prefix
	// KeyDir holds the seeds of the logs' keys, <log>.seed, and HighWaterDir their high-water records. If KeyDir is
	// empty, this worker carries deliveries only, and others must seal.
	KeyDir, HighWaterDir string
	// ReconcileEvery is how often attempts and logs are compared, by the workers that seal; the same for all. Default: 5 minutes.
	ReconcileEvery time.Duration
	// Metrics is where the worker registers its metrics. Default: nowhere.
	Metrics prometheus.Registerer
	// Tracing is told of attempts, deliveries and leaves. Default: nobody is.
	Tracing *tracing.Tracer
	// Health is told how the worker is. Default: nobody is.
	Health *Health
	// Log gets one line an event.
	Log *zap.Logger
}

const (
	// drainFor is how long requests in flight may go on when the worker stops; then they are interrupted.
	drainFor = 8 * time.Second
	// stopTimeout is how long the SDK waits for what runs, which is over by then.
	stopTimeout = 10 * time.Second
	// maintainEvery is how often partitions are made ahead and missing AttestLog workflows are started.
	maintainEvery   = time.Minute
	partitionsEvery = time.Hour
	// lineForgottenAfter is how long nobody must have waited in a line before its numbers are forgotten.
	lineForgottenAfter = 7 * 24 * time.Hour
)

// Worker carries deliveries and grows logs.
type Worker struct {
	config      Config
	metrics     *metrics
	lease       *Lease
	temporal    client.Client
	dispatcher  *Dispatcher
	permits     *activities.Permits
	commander   *Commander
	loader      *activities.Loader
	recorder    *activities.Recorder
	client      *webhook.Client
	sealing     *activities.Sealing
	reconciling *activities.Reconciling
	interrupt   chan struct{}
	delivery    *sdkWorker
	attest      *sdkWorker // nil: it seals nothing
}

// Run carries deliveries until ctx ends, then stops in order: no new claims, requests in flight for 8 s more, what is to
// be recorded, a last seal, the lease. What it needs it waits for; it returns an error only if ctx ended before it had started.
func Run(ctx context.Context, config Config) error {
	if config.MaxInFlight == 0 {
		config.MaxInFlight = 200
	}
	if config.DisableAfter == 0 {
		config.DisableAfter = defaultDisableAfter
	}
	if config.ReconcileEvery == 0 {
		config.ReconcileEvery = defaultReconcileEvery
	}
	if config.Health == nil {
		config.Health = NewHealth()
	}
	config.Health.Set(CheckSchema, "")
	w := &Worker{config: config, metrics: newMetrics(config.Metrics), interrupt: make(chan struct{})}
	handler, closer := sdkMetrics(config.Metrics, config.Log)
	defer func() { _ = closer.Close() }()
	if config.Metrics != nil {
		w.config.Temporal.MetricsHandler = handler
	}
	if err := w.connect(ctx); err != nil {
		return err
	}
	defer w.temporal.Close()
	w.build()
	if err := w.delivery.start(ctx); err != nil {
		return err
	}
	if w.attest != nil {
		if err := w.attest.start(ctx); err != nil {
			w.delivery.Stop()
			return err
		}
	}
	w.serve(ctx)
	return nil
}

func (w *Worker) connect(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	w.lease = NewLease(w.config.Engine, host, w.config.Log)
	options := w.config.Temporal
	options.ConnectionOptions.DialOptions = append(slices.Clone(options.ConnectionOptions.DialOptions),
		grpc.WithChainUnaryInterceptor(w.metrics.countStarts))
	// Requests are a few hundred bytes: to compress them takes longer than to send them.
	options.ConnectionOptions.GrpcCompression = &client.GrpcCompressionNone{}
	options.Logger = temporalLogger{w.config.Log.Named("temporal").Sugar()}
	if w.temporal, err = dial(ctx, options, w.config.Log); err != nil {
		return err
	}
	return register(ctx, w.temporal, options.Namespace, w.config.Log)
}

func (w *Worker) build() {
	c := w.config
	latencies, attempts := activities.NewLatencies(), activities.NewMetrics(c.Metrics)
	w.permits = activities.NewPermits(2*c.MaxInFlight, w.lease.Holder)
	w.dispatcher = &Dispatcher{
		db: c.Engine, temporal: w.temporal, lease: w.lease, latencies: latencies, log: c.Log, limit: c.MaxInFlight,
		places:  places{permits: w.permits, latencies: latencies},
		metrics: w.metrics, wake: make(chan struct{}, 1), inFlight: map[uuid.UUID]*flight{},
	}
	w.dispatcher.watch(c.Metrics)
	if c.Metrics != nil {
		c.Metrics.MustRegister(newBacklog(c.Engine, c.Log), postgres.NewPoolCollector("worker", c.Engine))
	}
	w.client = webhook.NewClient(webhook.ClientConfig{Allow: c.Allow})
	w.sealing = activities.NewSealing(activities.SealingConfig{
		DB: c.Engine, KeyDir: c.KeyDir, HighWaterDir: c.HighWaterDir, Metrics: c.Metrics, Tracing: c.Tracing, Log: c.Log,
	})
	w.recorder = activities.NewRecorder(activities.RecorderConfig{
		DB: c.Engine, OnRecord: w.dispatcher.Recorded, OnLeaves: w.sealing.Poke, OnTurn: w.dispatcher.Wake,
		Busy: w.dispatcher.busy, Metrics: attempts, Tracing: c.Tracing, Observe: postgres.NewCommitMetrics(c.Metrics, "record").Observe,
	})
	w.commander = &Commander{
		db: c.Engine, temporal: w.temporal, log: c.Log, tracing: c.Tracing, onDue: w.dispatcher.Wake, onLeaf: w.sealing.Poke,
	}
	w.loader = activities.NewLoader(c.Engine, w.dispatcher.busy)
	acts := &activities.Activities{
		DB: c.Engine, Client: w.client, Loader: w.loader, Recorder: w.recorder, Alive: w.lease.Alive, Interrupt: w.interrupt, Latencies: latencies,
		Permits: w.permits, Metrics: attempts, Tracing: c.Tracing,
	}
	w.delivery = &sdkWorker{name: "delivery", log: c.Log, make: func(onFatal func(error)) worker.Worker {
		return w.newDelivery(acts, onFatal)
	}}
	if c.KeyDir != "" {
		w.reconciling = activities.NewReconciling(activities.ReconcilingConfig{
			DB: c.Engine, OnLeaves: w.sealing.Poke, Metrics: c.Metrics, Log: c.Log,
		})
		w.attest = &sdkWorker{name: "attestation", log: c.Log, make: w.newAttestation}
	}
}

// workflowTasks is how many workflow tasks there may be for each claimed delivery. A delivery's place is free again when its
// first attempt is recorded, while Temporal, if it is slow, still takes its time to complete the task. Had those tasks all
// slots, a workflow could not be started with its first task any more; that would wait in Temporal's task queue, and as long
// as each slot that becomes free is taken by a workflow that is started just then, it waits.
const workflowTasks = 10

func (w *Worker) newDelivery(acts *activities.Activities, onFatal func(error)) worker.Worker {
	c := w.config
	delivery := worker.New(w.temporal, workflows.DeliveryTaskQueue, worker.Options{
		OnFatalError: onFatal,
		// Every claimed delivery may have a local activity and an ordinary one at the same time.
		MaxConcurrentLocalActivityExecutionSize: 2 * c.MaxInFlight,
		MaxConcurrentActivityExecutionSize:      2 * c.MaxInFlight,
		MaxConcurrentWorkflowTaskExecutionSize:  workflowTasks * c.MaxInFlight,
		MaxConcurrentWorkflowTaskPollers:        4,
		MaxConcurrentActivityTaskPollers:        4,
		WorkerStopTimeout:                       stopTimeout,
		PreferredVersionProvider:                workflows.PreferredVersion,
	})
	delivery.RegisterWorkflowWithOptions(workflows.DeliverWebhook, workflow.RegisterOptions{Name: workflows.DeliverWebhookName})
	delivery.RegisterWorkflowWithOptions(workflows.DeliverBatch, workflow.RegisterOptions{Name: workflows.DeliverBatchName})
	delivery.RegisterActivity(acts)
	return delivery
}

func (w *Worker) newAttestation(onFatal func(error)) worker.Worker {
	attest := worker.New(w.temporal, workflows.AttestationTaskQueue, worker.Options{
		OnFatalError: onFatal, WorkerStopTimeout: stopTimeout, PreferredVersionProvider: workflows.PreferredVersion,
	})
	attest.RegisterWorkflowWithOptions(workflows.AttestLog, workflow.RegisterOptions{Name: workflows.AttestLogName})
	attest.RegisterActivityWithOptions(w.sealing.SealLog, activity.RegisterOptions{Name: "SealLog"})
	attest.RegisterWorkflowWithOptions(workflows.Reconcile, workflow.RegisterOptions{Name: workflows.ReconcileName})
	attest.RegisterActivity(w.reconciling)
	return attest
}

// serve runs the loops until ctx ends, and stops everything in order.
func (w *Worker) serve(ctx context.Context) {
	// The lease outlives ctx: requests that are still in flight need it.
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var held, loops sync.WaitGroup
	held.Go(func() { w.lease.Run(background) })
	divider := &divider{db: w.config.Engine, lease: w.lease, permits: w.permits, log: w.config.Log}
	held.Go(func() { divider.run(background) })
	sweeper := &Sweeper{db: w.config.Engine, temporal: w.temporal, log: w.config.Log, every: sweepEvery, metrics: w.metrics}
	loops.Go(func() { w.dispatcher.Run(ctx) })
	loops.Go(func() { sweeper.Run(ctx) })
	redeliverer := &Redeliverer{db: w.config.Engine, log: w.config.Log, onDue: w.dispatcher.Wake}
	loops.Go(func() { w.commander.Run(ctx) })
	loops.Go(func() { redeliverer.Run(ctx) })
	loops.Go(func() { w.listen(ctx) })
	loops.Go(func() { w.maintain(ctx) })
	loops.Go(func() { w.watchCircuits(ctx) })
	loops.Go(func() { w.watchSealing(ctx) })
	loops.Go(func() { w.watchTemporal(ctx) })
	watch := postgres.NewWatch(nil, w.config.Engine) // so that the pool lets go of connections that hang or lead to a standby
	loops.Go(func() { watch.Run(ctx) })
	w.config.Health.started(w.lease.Alive)
	w.config.Log.Info("worker started", zap.String("temporal", w.config.Temporal.HostPort))

	<-ctx.Done()
	w.config.Health.Set(CheckTraffic, "stopping")
	w.config.Log.Info("worker stopping")
	loops.Wait()
	drained := time.AfterFunc(drainFor, func() { close(w.interrupt) })
	w.delivery.Stop()
	drained.Stop()
	w.loader.Close()
	w.recorder.Close()
	if w.attest != nil {
		w.attest.Stop()
		w.lastSeal()
	}
	cancel()
	held.Wait()
	w.client.Close()
	w.config.Log.Info("worker stopped")
}

// listen wakes the dispatcher when a process that accepted webhooks says so. It is only for speed.
func (w *Worker) listen(ctx context.Context) {
	if w.config.DirectURL == "" {
		return
	}
	for ctx.Err() == nil {
		if err := postgres.Listen(ctx, w.config.DirectURL, w.dispatcher.Wake); err != nil && ctx.Err() == nil {
			w.config.Log.Debug("not listening; polling", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// maintain makes partitions ahead and keeps one AttestLog per log running.
func (w *Worker) maintain(ctx context.Context) {
	ticker := time.NewTicker(maintainEvery)
	defer ticker.Stop()
	var partitioned time.Time
	for {
		if time.Since(partitioned) > partitionsEvery {
			if err := postgres.EnsurePartitions(ctx, w.config.Engine); err != nil {
				w.config.Log.Error("partitions not made", zap.Error(err))
			} else {
				partitioned = time.Now()
			}
			if _, err := postgres.ForgetLines(ctx, w.config.Engine, lineForgottenAfter); err != nil && ctx.Err() == nil {
				w.config.Log.Warn("idle lines not removed", zap.Error(err))
			}
		}
		if err := w.ensureAttestLogs(ctx); err != nil && ctx.Err() == nil {
			w.config.Log.Warn("log workflows not checked", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (w *Worker) ensureAttestLogs(ctx context.Context) error {
	if w.attest == nil {
		return nil
	}
	logs, err := db.New(w.config.Engine).OpenLogs(ctx)
	if err != nil {
		return fmt.Errorf("list logs: %w", err)
	}
	for _, log := range logs {
		if err := ensureAttestLog(ctx, w.temporal, log); err != nil {
			return err
		}
	}
	return ensureReconciliation(ctx, w.temporal, w.config.ReconcileEvery)
}

// lastSeal publishes what was recorded until now, so that a stopped system leaves nothing unsigned.
func (w *Worker) lastSeal() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	logs, err := db.New(w.config.Engine).OpenLogs(ctx)
	if err != nil {
		w.config.Log.Warn("no last seal", zap.Error(err))
		return
	}
	for _, log := range logs {
		if err := w.sealing.SealNow(ctx, log.ID); err != nil {
			w.config.Log.Warn("no last seal", zap.String("log_id", id.Log.Format(log.ID)), zap.Error(err))
		}
	}
}

// temporalLogger writes the SDK's lines in zap's form.
type temporalLogger struct{ sugar *zap.SugaredLogger }

func (l temporalLogger) Debug(msg string, keyvals ...any) { l.sugar.Debugw(msg, keyvals...) }
func (l temporalLogger) Info(msg string, keyvals ...any)  { l.sugar.Infow(msg, keyvals...) }
func (l temporalLogger) Warn(msg string, keyvals ...any)  { l.sugar.Warnw(msg, keyvals...) }
func (l temporalLogger) Error(msg string, keyvals ...any) { l.sugar.Errorw(msg, keyvals...) }
