package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/verify"
)

// fsckFlags are the arguments of `log fsck`.
type fsckFlags struct {
	log, state, vkey, checkpoint string
	asJSON                       bool
}

func logFsckCommand() *cobra.Command {
	var flags fsckFlags
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check a whole log: bytes, hashes, tiles, roots, signatures",
		Long: `Check a whole log, from its first leaf to its newest published head.

The bytes of each leaf are compared with its hash, the hash with the tile, each tile with the
one above it, every stored root and every published head with the leaves, and all signatures
with the key that was the log's at that size. Hashes are computed by other code, in another
way, than the workers'. Nothing is written and nothing locked; workers may go on meanwhile.

Each fault is a line on standard output that says where it is and what: the leaf's index, the
tile and the place in it, or the size and time of the head. Where two disagree, the one that
leads to the signed root is right. Progress goes to standard error. With --json each line is a
JSON object: {"fault":{…}}, and last {"report":{…}}.

With --state FILE the check writes every 2 seconds how far it has come; run it again with the
same file to go on after it was stopped or killed. The file is removed at the end.

If LOG_HIGH_WATER_DIR is set, the log must contain what its high-water record says was signed.
--vkey and --checkpoint take what you got earlier, on another way than from this database,
which could be false as a whole.

The exit status is 0 if the log is sound, 1 if it isn't, and 2 if the arguments can't be used or
the check couldn't be finished: Postgres is away, or the log has no published head yet.

` + variables("fsck"),
		Example: `  kapsel log fsck
  kapsel log fsck --state fsck.json --vkey "$VKEY" --checkpoint kept/checkpoint
  kapsel log fsck --json | jq -c 'select(.fault).fault'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := runFsck(cmd, &flags)
			if err != nil {
				return toolError(err)
			}
			if err := printFsck(cmd, report, flags.asJSON); err != nil {
				return toolError(err)
			}
			if !report.Sound {
				return exitError{statusUnsound, fmt.Errorf("the log isn't sound: %d faults", report.Faults)}
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().StringVar(&flags.log, "log", "", "the log, if there are several")
	cmd.Flags().StringVar(&flags.state, "state", "", "file that keeps how far the check has come, to go on from there")
	cmd.Flags().StringVar(&flags.vkey, "vkey", "", "the log's key as you know it; heads must be under it, now or once")
	cmd.Flags().StringVar(&flags.checkpoint, "checkpoint", "", "file with a checkpoint that you kept; the log must contain its tree")
	cmd.Flags().BoolVar(&flags.asJSON, "json", false, "print JSON, a line for each fault and one for the report")
	return cmd
}

func runFsck(cmd *cobra.Command, flags *fsckFlags) (*audit.Report, error) {
	config, _, err := load()
	if err != nil {
		return nil, err
	}
	ctx := cmd.Context()
	engine, err := openEngine(ctx, &config)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	check := audit.FsckConfig{DB: engine, StateFile: flags.state, Progress: progressTo(cmd.ErrOrStderr(), "checking")}
	if check.Log, err = chooseLog(ctx, engine, flags.log); err != nil {
		return nil, err
	}
	if check.HighWater, err = config.recorded(check.Log); err != nil {
		return nil, err
	}
	if err := flags.trust(&check); err != nil {
		return nil, err
	}
	check.Found = func(f audit.Fault) { printFault(cmd.OutOrStdout(), f, flags.asJSON) }
	report, err := audit.Fsck(ctx, check)
	if flags.state != "" && errors.Is(err, context.Canceled) {
		return nil, fmt.Errorf("stopped; run the same command again to go on: %w", err)
	}
	return report, err
}

// trust reads what the caller knows of the log.
func (f *fsckFlags) trust(check *audit.FsckConfig) error {
	if f.vkey != "" {
		origin, key, err := verify.ParseVKey(f.vkey)
		if err != nil {
			return fmt.Errorf("--vkey: %w", err)
		}
		if origin != check.Log.Origin {
			return fmt.Errorf("--vkey is of the log %s, this one is %s", origin, check.Log.Origin)
		}
		check.Key = key
	}
	if f.checkpoint != "" {
		note, err := os.ReadFile(f.checkpoint)
		if err != nil {
			return fmt.Errorf("--checkpoint: %w", err)
		}
		check.Checkpoint = note
	}
	return nil
}

// printFault prints a fault at once: a log may have more of them than memory.
func printFault(w io.Writer, f audit.Fault, asJSON bool) {
	if asJSON {
		_ = json.NewEncoder(w).Encode(map[string]audit.Fault{"fault": f}) // the status tells too
		return
	}
	_, _ = fmt.Fprintln(w, f)
}

func printFsck(cmd *cobra.Command, r *audit.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]*audit.Report{"report": r})
	}
	verdict := "sound"
	if !r.Sound {
		verdict = fmt.Sprintf("NOT SOUND: %d faults", r.Faults)
	}
	return printTool(cmd, false, nil, [][2]any{
		{"log", r.LogID}, {"origin", r.Origin},
		{"checked", fmt.Sprintf("%d leaves (%s), %d roots, %d heads under %d keys", r.Leaves, without(r.Erased, r.Lost), r.Roots, r.Heads, r.Keys)},
		{"up to", fmt.Sprintf("size %d, root %x; %d leaves are not published yet", r.TreeSize, []byte(r.RootHash), r.Unpublished)},
		{"verdict", verdict},
	}...)
}

// without tells of how many leaves only the hash is there, and why.
func without(erased, lost uint64) string {
	if lost == 0 {
		return fmt.Sprintf("%d erased", erased)
	}
	return fmt.Sprintf("%d erased, %d lost in a restore", erased, lost)
}
