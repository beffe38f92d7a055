package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/replay"
)

func historyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "history", Short: "Keep workflow histories for later", Args: cobra.NoArgs, RunE: help}
	cmd.AddCommand(historyExportCommand())
	return cmd
}

// exported is what an export answers.
type exported struct {
	DeliveryID     string   `json:"delivery_id"`
	Directory      string   `json:"directory"`
	Histories      int      `json:"histories"`
	Missing        []string `json:"missing"`
	ManifestSHA256 string   `json:"manifest_sha256"`
}

func historyExportCommand() *cobra.Command {
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "export DELIVERY... --out DIRECTORY",
		Short: "Write the histories of finished deliveries to files",
		Long: `Write the histories of the workflows that carried finished deliveries to files, before
Temporal removes them: the namespace's retention counts from the end of each workflow.

Each delivery gets a directory of its own in DIRECTORY, which is there whole or not at all; one
that is there already is left as it is. It holds a file for each epoch, as "temporal workflow
show --output json" writes it, and manifest.json with the SHA-256 of each. Keep the printed
SHA-256 of the manifest elsewhere: with it nobody can change the files unnoticed.

` + variables("history"),
		Example: "  kapsel history export dlv_01m860p9swfqft56b0hkrwhm0m --out archive",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			deliveries := make([]uuid.UUID, len(args))
			for i, arg := range args {
				var err error
				if deliveries[i], err = id.Delivery.Parse(arg); err != nil {
					return err
				}
			}
			config, _, err := load()
			if err != nil {
				return err
			}
			engine, err := openEngine(cmd.Context(), &config)
			if err != nil {
				return err
			}
			defer engine.Close()
			temporal, err := config.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer temporal.Close()
			for _, one := range deliveries {
				done, err := export(cmd.Context(), engine, temporal, one, out)
				if err != nil {
					return err
				}
				if err := printExported(cmd, done, asJSON); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the directory in which each delivery gets its own")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line for each delivery")
	_ = cmd.MarkFlagRequired("out") // fails only for a flag that doesn't exist
	return cmd
}

func export(ctx context.Context, engine *pgxpool.Pool, temporal client.Client, of uuid.UUID, out string) (exported, error) {
	name := id.Delivery.Format(of)
	account, err := replay.Read(ctx, engine, of)
	if err != nil {
		return exported{}, err
	}
	if !delivery.State(account.State).Terminal() {
		return exported{}, fmt.Errorf("delivery %s is %s; export it when it is over", name, account.State)
	}
	histories, missing, err := replay.FetchAll(ctx, temporal, account)
	if err != nil {
		return exported{}, err
	}
	if len(histories) == 0 {
		return exported{}, fmt.Errorf("no workflow of delivery %s is in Temporal: a batch carried it, or the retention has ended", name)
	}
	for _, h := range histories {
		if !h.Closed() {
			return exported{}, fmt.Errorf("workflow %s is still running; export the delivery when it has ended", h.WorkflowID)
		}
	}
	directory := filepath.Join(out, name)
	digest, err := replay.Export(directory, replay.Manifest{
		DeliveryID: name, State: account.State, Epochs: account.Epoch + 1, ExportedAt: time.Now().UTC(), Missing: missing,
	}, histories)
	if err != nil {
		return exported{}, fmt.Errorf("export delivery %s: %w", name, err)
	}
	return exported{DeliveryID: name, Directory: directory, Histories: len(histories), Missing: missing, ManifestSHA256: digest}, nil
}

func printExported(cmd *cobra.Command, e exported, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(e)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "delivery  %s\ndirectory %s\nhistories %d, and %d that Temporal doesn't have\nmanifest  SHA-256 %s\n",
		e.DeliveryID, e.Directory, e.Histories, len(e.Missing), e.ManifestSHA256)
	return err
}
