package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
)

func apiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "api",
		Short: "Accept webhooks and answer the management and proof API",
		Long: `Accept webhooks and answer the management and proof API. It needs only Postgres; any number
may run at once. While Postgres is away it answers 503 and recovers by itself.

On SIGTERM /health/ready says 503. After STOP_DELAY it stops accepting, gives requests in
flight DRAIN_TIMEOUT, commits what was taken in, and exits with 0. A second signal ends it at once.

` + variables("api"),
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
			management, err := postgres.Open(config.DatabaseURL, postgres.API, config.DatabaseMaxConns)
			if err != nil {
				return err
			}
			defer management.Close()
			// Away, it is waited for; without a schema it can only be answered with errors.
			if err := checkSchema(cmd.Context(), engine); errors.Is(err, migrations.ErrBehind) {
				return err
			}
			listener, err := net.Listen("tcp", config.ListenAddr)
			if err != nil {
				return fmt.Errorf("LISTEN_ADDR can't be listened on: %w", err)
			}
			registry := prometheus.NewRegistry()
			// Prometheus is answered until the process ends, so that it sees how the last requests went.
			serving, stopServing := context.WithCancel(context.WithoutCancel(cmd.Context()))
			defer stopServing()
			if err := serveMetrics(serving, config.MetricsAddr, registry, nil, log); err != nil {
				return err
			}
			tracer, err := config.tracer(cmd.Context(), "kapsel-api", log)
			if err != nil {
				return err
			}
			defer tracer.Close()
			notifier := postgres.NewNotifier(engine)
			go notifier.Run(cmd.Context())
			server, err := api.New(api.Config{
				Engine: engine, API: management, Log: log, Notify: notifier.Notify,
				Allow: config.AllowNetworks, PublicURL: config.PublicURL, Metrics: registry, Tracing: tracer,
				HeadsOnly: config.LogPublic == "heads", StopDelay: config.StopDelay, DrainTimeout: config.DrainTimeout,
				MaxRequests: config.IngestMaxRequests, TenantRate: config.IngestTenantRate,
				Current: func(ctx context.Context) (bool, error) { return schemaCurrent(ctx, engine) },
			})
			if err != nil { // with two pools, only this can be wrong
				return fmt.Errorf("PUBLIC_URL: %w", err)
			}
			log.Info("api started", zap.Stringer("address", listener.Addr()))
			err = server.Serve(cmd.Context(), listener)
			log.Info("api stopped", zap.Error(err))
			return err
		},
	}
}
