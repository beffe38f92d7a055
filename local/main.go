// Command local runs all of Kapsel on one machine: Postgres, Temporal with its Web UI, the api and a worker, all on
// loopback, with their data in a directory that survives restarts. It is for trying, developing and testing; the code of
// api and worker is the very same that production runs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// collectAt is how much the heap may grow, in percent, before it is collected, unless GOGC says otherwise: what Kapsel keeps
// is small, and what it allocates for each webhook is garbage at once.
const collectAt = 300

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "local: "+err.Error())
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	var config stackConfig
	root := &cobra.Command{
		Use:   "local",
		Short: "Run all of Kapsel on this machine",
		Long: `Run all of Kapsel on this machine: Postgres, Temporal and its Web UI, api and worker.

Everything listens on loopback only. The first start makes a log, a tenant and an API key.
Data is kept in .kapsel/ and survives a restart; remove the directory to start afresh.
Ctrl-C stops everything in order. It needs the binaries of a Postgres server (15 or newer).`,
		Example: `  go run ./local
  go run ./local demo
  go run ./local --api-port 9090 --dir /tmp/kapsel`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), config, cmd.OutOrStdout())
		},
	}
	addStackFlags(root.Flags(), &config)
	root.AddCommand(demoCommand(), benchCommand(), receiveCommand(), chaosCommand(), temporalCommand())
	return root
}

// addStackFlags adds what says where the stack keeps its data and listens.
func addStackFlags(flags *pflag.FlagSet, config *stackConfig) {
	flags.StringVar(&config.Dir, "dir", ".kapsel", "where data, keys and logs are kept")
	flags.IntVar(&config.APIPort, "api-port", 8080, "port of the api; 0 picks a free one")
	flags.IntVar(&config.PostgresPort, "postgres-port", 0, "port of Postgres; 0 picks a free one")
	flags.IntVar(&config.TemporalPort, "temporal-port", 7233, "port of Temporal; 0 picks a free one")
	flags.IntVar(&config.UIPort, "ui-port", 8233, "port of Temporal's Web UI; 0 picks a free one")
	flags.IntVar(&config.MetricsPort, "metrics-port", 0, "port of the worker's metrics; 0 picks a free one")
	flags.StringVar(&config.TraceTo, "trace-to", os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"), "URL of an OpenTelemetry collector that gets traces, such as http://127.0.0.1:4318")
	flags.StringVar(&config.LogLevel, "log-level", "warn", "what kapsel.log gets: debug, info, warn or error")
}

// run keeps the stack up until ctx ends.
func run(ctx context.Context, config stackConfig, out progress) error {
	stack, err := startStack(ctx, config, out)
	if err != nil {
		return err
	}
	stack.printURLs(out)
	_, _ = fmt.Fprintln(out, "\nCtrl-C stops everything.")
	failed := stack.wait(ctx)
	_, _ = fmt.Fprintln(out, "\nstopping …")
	return stack.stop(failed)
}
