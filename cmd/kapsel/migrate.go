package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/migrations"
)

func migrateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the schema to this version",
		Long: `Bring the schema to this version and make the partitions of the coming days.

It may run in several processes at once and any number of times: one works, the others wait
and find nothing left to do. The first time, the user of DATABASE_URL must be allowed to
create roles; otherwise the message says what a superuser has to run.

` + variables("migrate"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, _, err := load()
			if err != nil {
				return err
			}
			result, err := migrations.Up(cmd.Context(), config.DatabaseDirectURL, migrations.DaysAhead)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"version": result.Version, "applied": result.Applied})
			}
			for _, name := range result.Applied {
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), "applied", name)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "schema is at version", result.Version)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
