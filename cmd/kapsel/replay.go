package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/replay"
)

// Exit statuses of replay, beside 0 for agreement.
const (
	statusDisagreement = 1
	statusUnavailable  = 2 // also: unusable arguments
)

// exitError ends the process with a status of its own.
type exitError struct {
	status int
	error
}

func (e exitError) Unwrap() error { return e.error }

// status is the process's exit status for an error.
func status(err error) int {
	var exit exitError
	if errors.As(err, &exit) {
		return exit.status
	}
	return 1
}

func replayCommand() *cobra.Command {
	var histories []string
	var complete, asJSON bool
	cmd := &cobra.Command{
		Use:   "replay DELIVERY",
		Short: "Check a delivery by what its workflows decided",
		Long: `Check a delivery by what its workflows decided.

The histories of the workflows that carried the delivery, one for each epoch, are replayed
against the code of this version, and what they decided is compared with the attempts in
Postgres and the leaves in the log: each attempt's number, outcome, time and wait, each
member of its leaf, and the path from the leaf to the signed root. Where they part, it says
in which event of which history, and at which attempt.

Histories come from Temporal, or from files that "kapsel history export" wrote: Temporal
removes them when the namespace's retention ends. Delivery by batches leaves none that names
the delivery; then only Postgres and the log are compared, and it says so.

The exit status is 0 if nothing disagrees, 1 if something does or if this version's code
decides otherwise, and 2 if the arguments can't be used or something can't be reached.

` + variables("replay"),
		Example: `  kapsel replay dlv_01m860p9swfqft56b0hkrwhm0m
  kapsel replay dlv_01m860p9swfqft56b0hkrwhm0m --history archive/dlv_01m860p9swfqft56b0hkrwhm0m`,
		Args: func(cmd *cobra.Command, args []string) error { return unusable(cobra.ExactArgs(1)(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			delivery, err := id.Delivery.Parse(args[0])
			if err != nil {
				return unusable(err)
			}
			report, err := runReplay(cmd.Context(), delivery, histories)
			if err != nil {
				return exitError{statusUnavailable, err}
			}
			if err := printReport(cmd, report, asJSON); err != nil {
				return exitError{statusUnavailable, err}
			}
			switch {
			case report.Verdict == replay.Disagreement:
				return exitError{statusDisagreement, errors.New("histories, attempts and leaves disagree")}
			case report.Verdict == replay.Partial && complete:
				return exitError{statusUnavailable, errors.New("not every attempt is in a history (--complete)")}
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().StringArrayVar(&histories, "history", nil, "directory or file of exported histories, instead of Temporal; may be repeated")
	cmd.Flags().BoolVar(&complete, "complete", false, "end with status 2 if an attempt is in no history")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func unusable(err error) error {
	if err == nil {
		return nil
	}
	return exitError{statusUnavailable, err}
}

func runReplay(ctx context.Context, delivery uuid.UUID, files []string) (*replay.Report, error) {
	loaded, err := replay.Load(files)
	if err != nil {
		return nil, err
	}
	config, _, err := load()
	if err != nil {
		return nil, err
	}
	engine, err := openEngine(ctx, &config)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	if len(files) > 0 {
		account, err := replay.Read(ctx, engine, delivery)
		if err != nil {
			return nil, err
		}
		return replay.Compare(account, loaded), nil
	}
	temporal, err := config.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer temporal.Close()
	return replay.Online(ctx, engine, temporal, delivery)
}

// openEngine opens the database for a command that looks at deliveries.
func openEngine(ctx context.Context, config *Config) (*pgxpool.Pool, error) {
	engine, err := postgres.Open(config.DatabaseURL, postgres.Engine, 2)
	if err != nil {
		return nil, err
	}
	if err := migrations.Check(ctx, engine); err != nil {
		engine.Close()
		return nil, err
	}
	return engine, nil
}

// reachFor is how long a command waits for Temporal.
const reachFor = 10 * time.Second

// dial connects a command to Temporal.
func (c *Config) dial(ctx context.Context) (client.Client, error) {
	options, err := c.temporal()
	if err != nil {
		return nil, err
	}
	options.Logger = log.NewStructuredLogger(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(ctx, reachFor)
	defer cancel()
	temporal, err := client.DialContext(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("reach Temporal at %s: %w", c.TemporalAddress, err)
	}
	return temporal, nil
}

func printReport(cmd *cobra.Command, report *replay.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(report)
	}
	_, err := fmt.Fprint(cmd.OutOrStdout(), report.Text())
	return err
}
