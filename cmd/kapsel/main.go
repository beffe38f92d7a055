// Command kapsel is the production binary: the api that accepts webhooks, the worker that delivers them and grows the
// log, and what an operator does by hand. Run `kapsel --help`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/worker"
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
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kapsel: "+err.Error())
		os.Exit(status(err))
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kapsel",
		Short: "Delivers webhooks and proves it",
		Long: `Kapsel accepts webhooks, delivers each one durably, and proves what it did.

It is configured by environment variables; every command needs DATABASE_URL.
See "kapsel api --help" and "kapsel worker --help" for the others.`,
		Example: `  export DATABASE_URL=postgres://kapsel:secret@localhost:5432/kapsel
  kapsel migrate
  kapsel log init --host webhooks.example.com
  kapsel tenant create --name "Example Bank"
  kapsel api &
  kapsel worker`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(apiCommand(), workerCommand(), migrateCommand(), logCommand(), tenantCommand(),
		replayCommand(), historyCommand(), healthCommand(), eraseCommand())
	return root
}

// help is what a command does that only holds others. With it cobra refuses, as unknown, what is none of them.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// load reads the configuration and makes a logger, which also gets a line for what libraries print past it.
func load() (Config, *zap.Logger, error) {
	config, err := readConfig(os.Environ())
	if err != nil {
		return Config{}, nil, err
	}
	zapConfig := zap.NewProductionConfig()
	zapConfig.Level = zap.NewAtomicLevelAt(config.LogLevel)
	zapConfig.Sampling = nil
	log, err := zapConfig.Build()
	if err != nil {
		return Config{}, nil, fmt.Errorf("make logger: %w", err)
	}
	worker.DropStandardLog(log)
	return config, log, nil
}
