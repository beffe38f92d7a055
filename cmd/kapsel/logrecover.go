package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// recoverFlags are the arguments of `log recover`.
type recoverFlags struct {
	log, mirror, keys     string
	dryRun, close, asJSON bool
}

func logRecoverCommand() *cobra.Command {
	var flags recoverFlags
	cmd := &cobra.Command{
		Use:   "recover --mirror DIRECTORY|URL",
		Short: "Complete a log after an old backup of the database was restored",
		Long: `Complete a log whose database was restored from a backup that is older than what it has published.

Such a log signs nothing, because it would sign a second tree. With --mirror the hashes of the
missing leaves come from a copy of the log's tiles: a directory that "kapsel log export" wrote, or
any directory or URL with a checkpoint and tile/ (c2sp.org/tlog-tiles). The copy needn't be
trusted: with its hashes the restored log must have the root that LOG_HIGH_WATER_DIR says was
published last, and every head must verify, or nothing is written. Leaves that wait in the queue
get their bytes back; of the others the hash is all there is. Everything is one transaction: run
the command again after a crash. --dry-run checks and writes nothing.

If the log's key was changed since the backup, the mirror must be one of "kapsel log export", or
--keys must name a file with what GET /api/v1/attestation/keys answered after the change.

With --close, where there is no such copy: the log ends as it is, and a successor begins, with a
key and a name of its own, which takes all that is recorded from then on and what waits. Stop all
workers before. Nobody can verify anything against the lost part any more; docs/guides/recovery.md
says what auditors have to be told.

` + fmt.Sprintf(exitStatusMeaning, `the restored log isn't what was
published, so that nothing but --close is left`) + `

` + variables("log"),
		Example: `  kapsel log recover --mirror /srv/www/log --dry-run
  kapsel log recover --mirror https://mirror.example.com/log
  kapsel log recover --close`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return toolError(runRecover(cmd, &flags)) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().StringVar(&flags.log, "log", "", "the log, if there are several")
	cmd.Flags().StringVar(&flags.mirror, "mirror", "", "directory or URL with the log's checkpoint and tiles")
	cmd.Flags().StringVar(&flags.keys, "keys", "", "file with an answer of /api/v1/attestation/keys, if the mirror has no log.json")
	cmd.Flags().BoolVar(&flags.dryRun, "dry-run", false, "check everything and write nothing")
	cmd.Flags().BoolVar(&flags.close, "close", false, "end the log and start a successor")
	cmd.Flags().BoolVar(&flags.asJSON, "json", false, "print JSON")
	return cmd
}

// check wants the arguments to go together.
func (f *recoverFlags) check() error {
	switch {
	case f.close && (f.mirror != "" || f.keys != "" || f.dryRun):
		return errors.New("--close takes no mirror, no keys and has no dry run: it is for where there is no mirror")
	case !f.close && f.mirror == "":
		return errors.New("name a copy of the log's tiles with --mirror; where there is none, --close ends the log")
	}
	return nil
}

func runRecover(cmd *cobra.Command, flags *recoverFlags) error {
	if err := flags.check(); err != nil {
		return err
	}
	config, _, err := load()
	if err != nil {
		return err
	}
	if config.LogHighWaterDir == "" {
		return errors.New("LOG_KEY_DIR and LOG_HIGH_WATER_DIR are not set; set them to the directories of the workers: the record there says what was published")
	}
	ctx := cmd.Context()
	owner, err := postgres.Open(config.DatabaseURL, postgres.Owner, 2)
	if err != nil {
		return err
	}
	defer owner.Close()
	if err := migrations.Check(ctx, owner); err != nil {
		return err
	}
	log, err := chooseLog(ctx, owner, flags.log)
	if err != nil {
		return err
	}
	if flags.close {
		return closeLog(ctx, cmd, owner, &config, log, flags.asJSON)
	}
	closed, err := postgres.ClosureOf(ctx, owner, log.ID)
	if err != nil {
		return err
	}
	if closed != nil {
		return fmt.Errorf("the log was closed, and goes on as %s: it gets no leaves any more", id.Log.Format(closed.Successor))
	}
	done, err := audit.Recover(ctx, audit.RecoverConfig{
		Owner: owner, Log: log, Mirror: flags.mirror, Keys: flags.keys, DryRun: flags.dryRun, Progress: progressTo(cmd.ErrOrStderr(), "reading"),
		HighWater: attestation.NewHighWater(filepath.Join(config.LogHighWaterDir, id.Log.Format(log.ID)+".highwater"), log.Origin),
	})
	if err != nil {
		return err
	}
	return printTool(cmd, flags.asJSON, done, recoveredRows(done)...)
}

func recoveredRows(done *audit.Recovered) [][2]any {
	rows := [][2]any{{"log", done.LogID}, {"origin", done.Origin}}
	if done.Complete {
		return append(rows, [2]any{"recovered", fmt.Sprintf("nothing: the log has what was published, size %d", done.TreeSize)})
	}
	what := "recovered"
	if done.DryRun {
		what = "would get"
	}
	return append(rows,
		[2]any{what, fmt.Sprintf("leaves %d to %d: %d with their bytes, %d with their hash only", done.OldSize, done.TreeSize-1,
			done.TreeSize-done.OldSize-done.Lost, done.Lost)},
		[2]any{"and", fmt.Sprintf("%d heads, %d changes of the key", done.Heads, done.Keys)},
		[2]any{"root", fmt.Sprintf("%x, as published for size %d", []byte(done.RootHash), done.TreeSize)})
}

func closeLog(ctx context.Context, cmd *cobra.Command, owner *pgxpool.Pool, config *Config, log postgres.LogRow, asJSON bool) error {
	done, err := admin.CloseLog(ctx, owner, admin.CloseConfig{Log: log, KeyDir: config.LogKeyDir, HighWaterDir: config.LogHighWaterDir})
	if errors.Is(err, admin.ErrSound) {
		return fmt.Errorf("%w; nothing is to be recovered", err)
	}
	if err != nil {
		return err
	}
	name, successor := id.Log.Format(log.ID), id.Log.Format(done.Successor.ID)
	what := "closed"
	if done.ClosedBefore {
		what = "closed before"
	}
	at := time.UnixMilli(done.Published.Timestamp).UTC().Format(time.RFC3339)
	err = printTool(cmd, asJSON, map[string]any{
		"log_id": name, "origin": log.Origin, "tree_size": done.TreeSize, "moved": done.Moved, "closed_before": done.ClosedBefore,
		"published": map[string]any{"tree_size": done.Published.TreeSize, "timestamp": done.Published.Timestamp, "root_hash": verify.Hex(done.Published.RootHash)},
		"successor": map[string]any{"log_id": successor, "origin": done.Successor.Origin, "public_key": verify.Hex(done.Successor.PublicKey), "vkey": done.Successor.VKey},
	}, [][2]any{
		{what, name}, {"ends at", fmt.Sprintf("size %d", done.TreeSize)},
		{"published", fmt.Sprintf("size %d at %s, root %x", done.Published.TreeSize, at, done.Published.RootHash)},
		{"successor", successor}, {"origin", done.Successor.Origin}, {"public key", fmt.Sprintf("%x", done.Successor.PublicKey)},
		{"vkey", done.Successor.VKey}, {"moved", fmt.Sprintf("%d leaves that were waiting", done.Moved)},
	}...)
	if err != nil || asJSON || done.ClosedBefore {
		return err
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), "Back up the new seed in LOG_KEY_DIR, and give auditors the new public key. docs/guides/recovery.md says what else to tell them.\n")
	return toolError(err)
}
