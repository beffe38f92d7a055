package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
)

func logCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "Make and look after logs", Args: cobra.NoArgs, RunE: help}
	cmd.AddCommand(logInitCommand(), logRotateCommand(), logFsckCommand(), logExportCommand(), logRebuildCommand())
	return cmd
}

func logInitCommand() *cobra.Command {
	var host string
	var ifNone, asJSON bool
	cmd := &cobra.Command{
		Use:   "init --host HOST[:PORT]",
		Short: "Make a log with a key of its own",
		Long: `Make an empty log, its Ed25519 key and its high-water record.

The host becomes a part of the log's name (its origin), which is in every leaf and can never
change: take the one under which auditors will reach the api. The seed of the key is written
to LOG_KEY_DIR with mode 0600. Back it up: without it the log can't go on. Give auditors the
public key that this prints, on another way than through Kapsel itself.

With --if-none it may run at every start: it shows the log that there is, and makes one only
if there is none.

` + variables("log"),
		Example: "  kapsel log init --host webhooks.example.com\n  kapsel log init --if-none --host webhooks.example.com --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, _, err := load()
			if err != nil {
				return err
			}
			if config.LogKeyDir == "" {
				return errors.New("LOG_KEY_DIR and LOG_HIGH_WATER_DIR are not set; set them to directories that all workers share")
			}
			owner, err := postgres.Open(config.DatabaseURL, postgres.Owner, 2)
			if err != nil {
				return err
			}
			defer owner.Close()
			// Before any file is made: without a schema the log can't be, and would leave its key behind.
			if err := migrations.Check(cmd.Context(), owner); err != nil {
				return err
			}
			wanted := admin.LogConfig{Host: host, KeyDir: config.LogKeyDir, HighWaterDir: config.LogHighWaterDir}
			var log admin.Log
			if ifNone {
				log, _, err = admin.EnsureLog(cmd.Context(), owner, wanted)
			} else {
				log, err = admin.CreateLog(cmd.Context(), owner, wanted)
			}
			if err != nil {
				return err
			}
			return printLog(cmd, log, asJSON)
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "public host of the log, and port if it isn't the default")
	cmd.Flags().BoolVar(&ifNone, "if-none", false, "only if there is no log yet")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.MarkFlagRequired("host") // fails only for a flag that doesn't exist
	return cmd
}

func printLog(cmd *cobra.Command, log admin.Log, asJSON bool) error {
	name, key := id.Log.Format(log.ID), hex.EncodeToString(log.PublicKey)
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{
			"log_id": name, "origin": log.Origin, "public_key": key, "vkey": log.VKey,
		})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "log        %s\norigin     %s\npublic key %s\nvkey       %s\n", name, log.Origin, key, log.VKey)
	return err
}
