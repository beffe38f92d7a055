package main

import (
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/worker"
)

func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "worker",
		Short: "Deliver webhooks and grow the log",
		Long: `Deliver webhooks and grow the log. Any number of workers may run at once.

A worker waits for Postgres and Temporal if they are away, also at its start. On SIGTERM it
claims nothing more, gives requests in flight 8 s, signs what was recorded, and exits with 0.

Variables: DATABASE_URL, DATABASE_DIRECT_URL, DATABASE_MAX_CONNS, TEMPORAL_ADDRESS,
TEMPORAL_NAMESPACE, ALLOW_NETWORKS, MAX_IN_FLIGHT, LOG_KEY_DIR, LOG_HIGH_WATER_DIR, LOG_LEVEL.`,
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
			return worker.Run(cmd.Context(), worker.Config{
				Engine:       engine,
				DirectURL:    config.DatabaseDirectURL,
				Temporal:     client.Options{HostPort: config.TemporalAddress, Namespace: config.TemporalNamespace},
				MaxInFlight:  config.MaxInFlight,
				Allow:        config.AllowNetworks,
				KeyDir:       config.LogKeyDir,
				HighWaterDir: config.LogHighWaterDir,
				Log:          log,
			})
		},
	}
}
