package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/worker"
)

func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "worker",
		Short: "Deliver webhooks and grow the log",
		Long: `Deliver webhooks and grow the log. Any number of workers may run at once.

A worker waits for Postgres and Temporal if they are away, also at its start. On SIGTERM it
claims nothing more, gives requests in flight 8 s, signs what was recorded, and exits with 0,
within a minute. A second signal ends it at once; what it carried others take over.

At METRICS_ADDR it also answers /health/live, /health/ready and /health/startup.

` + variables("worker"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, log, err := load()
			if err != nil {
				return err
			}
			engine, err := postgres.Open(config.DatabaseURL, postgres.Engine, config.DatabaseMaxConns)
			if err != nil {
				return err
			}
			defer engine.Close()
			options, err := config.temporal()
			if err != nil {
				return err
			}
			if err := checkLogDirs(&config, log); err != nil {
				return err
			}
			registry := prometheus.NewRegistry()
			// Probes are answered until the process ends: one that stops is alive.
			serving, stopServing := context.WithCancel(context.WithoutCancel(cmd.Context()))
			defer stopServing()
			health := worker.NewHealth()
			if err := serveMetrics(serving, config.MetricsAddr, registry, health, log); err != nil {
				return err
			}
			tracer, err := config.tracer(cmd.Context(), "kapsel-worker", log)
			if err != nil {
				return err
			}
			defer tracer.Close()
			if err := awaitSchema(cmd.Context(), engine, log); err != nil {
				return unlessStopped(cmd.Context(), err)
			}
			return unlessStopped(cmd.Context(), worker.Run(cmd.Context(), worker.Config{
				Engine:         engine,
				DirectURL:      config.DatabaseDirectURL,
				Temporal:       options,
				MaxInFlight:    config.MaxInFlight,
				DisableAfter:   config.disableAfter(),
				Allow:          config.AllowNetworks,
				KeyDir:         config.LogKeyDir,
				HighWaterDir:   config.LogHighWaterDir,
				ReconcileEvery: config.ReconcileEvery,
				Metrics:        registry,
				Tracing:        tracer,
				Health:         health,
				Log:            log,
			}))
		},
	}
}

// serveMetrics answers Prometheus beside an api or a worker, and probes of a worker, if it is asked to.
func serveMetrics(ctx context.Context, address string, registry *prometheus.Registry, health *worker.Health, log *zap.Logger) error {
	if address == "" {
		return nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("METRICS_ADDR can't be listened on: %w", err)
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	go func() {
		if err := worker.ServeMetrics(ctx, listener, registry, health); err != nil {
			log.Error("metrics not served", zap.Error(err))
		}
	}()
	return nil
}

// unlessStopped makes it no error that the signal ended the wait for Postgres or Temporal.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // to be stopped is what was wanted
	}
	return err
}

// checkLogDirs refuses directories that aren't there: a worker that made them would have a log's key or record nowhere.
func checkLogDirs(config *Config, log *zap.Logger) error {
	if config.LogKeyDir == "" {
		log.Warn("this worker delivers but seals nothing: LOG_KEY_DIR and LOG_HIGH_WATER_DIR are not set; another worker must have them")
		return nil
	}
	for name, dir := range map[string]string{"LOG_KEY_DIR": config.LogKeyDir, "LOG_HIGH_WATER_DIR": config.LogHighWaterDir} {
		switch info, err := os.Stat(dir); {
		case err != nil:
			return fmt.Errorf("%s can't be used; `kapsel log init` makes it: %w", name, err)
		case !info.IsDir():
			return fmt.Errorf("%s is %s, which is not a directory", name, dir)
		}
	}
	return nil
}
