package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/local/chaos"
)

// chaosFlags is what the flags of chaos set.
type chaosFlags struct {
	chaos.Config
	keep, asJSON bool
}

func chaosCommand() *cobra.Command {
	var f chaosFlags
	cmd := &cobra.Command{
		Use:   "chaos",
		Short: "Break everything on purpose under load, and check that nothing was lost",
		Long: `Run the production shape (two apis, two workers, Postgres, Temporal, each a process), send
webhooks all the time, and break one part after the other as the seed says, sometimes two at
once (--together). Then let it settle,
read everything back, and hold it against what was sent, what the receivers saw, and what the
log showed. The same seed and flags make the same faults.

It ends with status 0 only if every promise held; each one that didn't is printed with the IDs.
"next delivery" is how long a fault kept a new webhook from arriving, "caught up" how long it
took until all that had been accepted before had arrived: after a kill or a failover from the
kill on, else from the end of the fault; of two at once from the end of the last.

Faults:
` + chaos.Kinds() + `
It needs the binaries of a Postgres server (15 or newer) and the Go toolchain, and builds kapsel. A
fault that this machine can't make is left out: disk-full needs root, failover pg_basebackup, clock
libfaketime.`,
		Example: `  go run ./local chaos --duration 3m --seed 7
  go run ./local chaos --faults kill --together 0 --pause 20s --duration 10m
  go run ./local chaos --duration 1h --seed "$RANDOM" --json > report.json
  go run ./local chaos --faults failover,deploy,clock --together 0.5 --keep`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runChaos(cmd.Context(), f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&f.Duration, "duration", 3*time.Minute, "how long to send webhooks and break things")
	flags.Uint64Var(&f.Seed, "seed", 1, "decides which faults are made and when")
	flags.DurationVar(&f.Pause, "pause", 5*time.Second, "about how long nothing is broken between two faults")
	flags.Float64Var(&f.Together, "together", 0.2, "the share of the faults during which a second one is made, that breaks something else")
	flags.IntVar(&f.Rate, "rate", 20, "webhooks a second")
	flags.DurationVar(&f.Settle, "settle", 8*time.Minute, "how long what is under way may take to end after that")
	flags.StringSliceVar(&f.Kinds, "faults", nil, "the kinds of fault to make, separated by commas; default all")
	flags.BoolVar(&f.keep, "keep", false, "keep the directory with data, keys and the logs of all processes, also if all went well")
	flags.BoolVar(&f.asJSON, "json", false, "print one JSON object; progress goes to standard error in any case")
	return cmd
}

func (f *chaosFlags) validate() error {
	switch {
	case f.Duration < 10*time.Second || f.Pause < time.Second || f.Settle < time.Second:
		return errors.New("--duration must be 10s or more, --pause and --settle 1s or more")
	case f.Together < 0 || f.Together > 1:
		return fmt.Errorf("--together is %g; allowed are 0 to 1", f.Together)
	case f.Rate < 1 || f.Rate > 1000:
		return fmt.Errorf("--rate is %d; allowed are 1 to 1000", f.Rate)
	}
	return nil
}

func runChaos(ctx context.Context, f chaosFlags, out, errOut io.Writer) error {
	err := f.validate()
	if err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	f.Progress, f.Temporal = errOut, []string{executable, temporalCommandName}
	if f.Dir, err = chaos.NewDir(); err != nil {
		return err
	}
	report, err := chaos.Run(ctx, f.Config)
	// What didn't go well is kept in any case: the same seed makes the same faults, but not the same moment again.
	switch {
	case report == nil: // nothing was begun
		return errors.Join(err, os.RemoveAll(f.Dir))
	case f.keep || err != nil || report.Err() != nil:
		_, _ = fmt.Fprintln(errOut, "data, keys and logs are in", f.Dir)
	default:
		report.Dir, err = "", os.RemoveAll(f.Dir)
	}
	if err != nil {
		return err
	}
	if !f.asJSON {
		report.Print(out)
	} else if err := json.NewEncoder(out).Encode(report); err != nil {
		return err
	}
	return report.Err()
}

const temporalCommandName = "serve-temporal"

// temporalCommand is Temporal in a process of its own, which chaos starts and kills.
func temporalCommand() *cobra.Command {
	return &cobra.Command{
		Use:    temporalCommandName + " PORT",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("the port is %q, which is no number", args[0])
			}
			return chaos.ServeTemporal(cmd.Context(), port, cmd.OutOrStdout())
		},
	}
}
