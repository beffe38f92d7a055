package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// Exit statuses of `log fsck`, `log export` and `log rebuild`, beside 0.
const (
	statusUnsound     = 1 // what was read isn't sound, or contradicts what was published
	statusCantBeDone  = 2 // unusable arguments, or something can't be reached, read or written
	progressEvery     = 5 * time.Second
	exitStatusMeaning = `The exit status is 0 if all went well, 1 if %s, and 2 if the
arguments can't be used or something can't be reached, read or written.`
)

// toolError gives an error of a log tool its exit status.
func toolError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, audit.ErrContradiction):
		return exitError{statusUnsound, err}
	}
	return exitError{statusCantBeDone, err}
}

// chooseLog finds the log that --log names; without it, the only one there is.
func chooseLog(ctx context.Context, engine *pgxpool.Pool, name string) (postgres.LogRow, error) {
	logs, err := postgres.Logs(ctx, engine)
	if err != nil {
		return postgres.LogRow{}, err
	}
	if name == "" {
		switch len(logs) {
		case 0:
			return postgres.LogRow{}, errors.New("there is no log yet; make one with `kapsel log init`")
		case 1:
			return logs[0], nil
		}
		return postgres.LogRow{}, fmt.Errorf("there are %d logs; name one with --log", len(logs))
	}
	wanted, err := id.Log.Parse(name)
	if err != nil {
		return postgres.LogRow{}, fmt.Errorf("--log: %w", err)
	}
	for _, log := range logs {
		if log.ID == wanted {
			return log, nil
		}
	}
	return postgres.LogRow{}, fmt.Errorf("there is no log %s", name)
}

// recorded reads a log's high-water record, if the directory is known.
func (c *Config) recorded(log postgres.LogRow) (*attestation.Head, error) {
	if c.LogHighWaterDir == "" {
		return nil, nil
	}
	head, err := attestation.NewHighWater(filepath.Join(c.LogHighWaterDir, id.Log.Format(log.ID)+".highwater"), log.Origin).Read()
	if err != nil {
		return nil, err
	}
	return &head, nil
}

// progressTo writes to w, every few seconds, how far something has come.
func progressTo(w io.Writer, what string) func(audit.Progress) {
	started := time.Now()
	last, first := started, uint64(0)
	begun := false
	return func(p audit.Progress) {
		if !begun { // what goes on from a state file didn't begin at 0
			begun, first, started = true, p.Leaves, time.Now()
		}
		if time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		rate := float64(p.Leaves-first) / time.Since(started).Seconds()
		line := fmt.Sprintf("%s: %d of %d leaves (%d %%), %.0f a second", what, p.Leaves, p.Of, 100*p.Leaves/max(p.Of, 1), rate)
		if p.Faults > 0 {
			line += fmt.Sprintf(", %d faults", p.Faults)
		}
		_, _ = fmt.Fprintln(w, line) // progress is for people; what can't be shown is not missed
	}
}

// exactly wants n arguments, else the status is 2.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return unusable(cobra.ExactArgs(n)(cmd, args)) }
}

// printTool prints what a log tool did: JSON, or a table of names and values.
func printTool(cmd *cobra.Command, asJSON bool, done any, rows ...[2]any) error {
	if asJSON {
		return toolError(json.NewEncoder(cmd.OutOrStdout()).Encode(done))
	}
	var text strings.Builder
	for _, row := range rows {
		fmt.Fprintf(&text, "%-11s %v\n", row[0], row[1])
	}
	_, err := io.WriteString(cmd.OutOrStdout(), text.String())
	return toolError(err)
}
