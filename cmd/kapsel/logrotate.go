package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

func logRotateCommand() *cobra.Command {
	var logName string
	var compromise, asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate [--log LOG] [--compromise]",
		Short: "Give a log a new key",
		Long: `Give a log a new key, and write the change into the log itself.

Planned: the old key signs the tree as it is and, together with the new one, the change. Whoever
trusts the old key can trust the new one; for 90 days checkpoints are signed by both.

With --compromise, because others may have the old key's seed, or it is lost: only the new key
signs, and nobody comes to trust it because of that. Give auditors the new public key on another
way than through Kapsel itself; with it, everything from before keeps verifying.

The new seed is written to LOG_KEY_DIR with mode 0600. Back it up. A worker that doesn't find it
there signs nothing until it does. Run the command again after a crash: it goes on with the same
key. Workers may run meanwhile. docs/guides/log-keys.md says more.

` + variables("log"),
		Example: "  kapsel log rotate\n  kapsel log rotate --log log_01h455vb4pex5vsknk084sn02q --compromise",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, _, err := load()
			if err != nil {
				return err
			}
			if config.LogKeyDir == "" {
				return errors.New("LOG_KEY_DIR and LOG_HIGH_WATER_DIR are not set; set them to the directories that all workers share")
			}
			log := uuid.Nil
			if logName != "" {
				if log, err = id.Log.Parse(logName); err != nil {
					return fmt.Errorf("--log: %w", err)
				}
			}
			owner, err := postgres.Open(config.DatabaseURL, postgres.Owner, 2)
			if err != nil {
				return err
			}
			defer owner.Close()
			if err := migrations.Check(cmd.Context(), owner); err != nil {
				return err
			}
			done, err := admin.RotateKey(cmd.Context(), owner, admin.RotateConfig{
				Log: log, KeyDir: config.LogKeyDir, HighWaterDir: config.LogHighWaterDir, Compromise: compromise,
			})
			if err != nil {
				return err
			}
			if err := printRotation(cmd, done, asJSON); err != nil {
				return err
			}
			if err := firstHead(cmd.Context(), config, done.Log.ID); err != nil {
				return fmt.Errorf("the key is changed, but no head is signed with it yet; a worker does that as soon as it can: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&logName, "log", "", "the log, log_…; needed if there are several")
	cmd.Flags().BoolVar(&compromise, "compromise", false, "the old key may be known to others, or is lost: it signs nothing any more")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// firstHead signs a head with the new key, so that the change is published even where no worker runs. It does what a worker
// does, and a worker at the same time does no harm.
func firstHead(ctx context.Context, config Config, log uuid.UUID) error {
	engine, err := postgres.Open(config.DatabaseURL, postgres.Engine, 2)
	if err != nil {
		return err
	}
	defer engine.Close()
	sealing := activities.NewSealing(activities.SealingConfig{
		DB: engine, KeyDir: config.LogKeyDir, HighWaterDir: config.LogHighWaterDir, Log: zap.NewNop(),
	})
	for range 5 {
		// A worker that was quicker has published a later head than the one that this was about to sign.
		if err = sealing.SealNow(ctx, log); !errors.Is(err, attestation.ErrHighWaterConflict) {
			break
		}
	}
	return err
}

func printRotation(cmd *cobra.Command, done admin.Rotation, asJSON bool) error {
	name, key := id.Log.Format(done.Log.ID), hex.EncodeToString(done.Log.PublicKey)
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{
			"log_id": name, "origin": done.Log.Origin, "reason": done.Reason, "leaf_index": done.LeafIndex,
			"old_public_key": hex.EncodeToString(done.OldKey), "public_key": key, "vkey": done.Log.VKey, "transition": string(done.Note),
			"changed_at": done.ChangedAt.UTC().Format(time.RFC3339Nano), "finished_before": done.FinishedBefore,
		})
	}
	text := ""
	if done.FinishedBefore {
		text = "An earlier run had changed the key and was cut off; this one changed nothing more.\n" +
			"Run the command again if the key is to be changed once more.\n"
	}
	text += fmt.Sprintf("log            %s\norigin         %s\nreason         %s\ntransition     leaf %d\nold public key %x\npublic key     %s\nvkey           %s\n",
		name, done.Log.Origin, done.Reason, done.LeafIndex, done.OldKey, key, done.Log.VKey)
	text += "Back up the new seed in LOG_KEY_DIR, and see that every worker that seals has it.\n"
	if done.Reason == verify.ReasonCompromise {
		text += "Auditors must be given the new public key, and told to trust the old one no longer.\n"
	}
	_, err := fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}
