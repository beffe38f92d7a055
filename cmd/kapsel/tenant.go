package main

import (
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
)

func tenantCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tenant", Short: "Make tenants and their API keys", Args: cobra.NoArgs, RunE: help}
	cmd.AddCommand(tenantCreateCommand())
	return cmd
}

func tenantCreateCommand() *cobra.Command {
	var name, logName string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create --name NAME [--log LOG]",
		Short: "Make a tenant and its first API key",
		Long: `Make a tenant and its first API key. The key is printed once and kept as a hash only.

A tenant's deliveries are recorded in one log, for good; --log is needed if there are several.

` + variables("tenant"),
		Example: `  kapsel tenant create --name "Example Bank"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, _, err := load()
			if err != nil {
				return err
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
			tenant, err := admin.CreateTenant(cmd.Context(), owner, name, log)
			if err != nil {
				return err
			}
			key, err := admin.CreateAPIKey(cmd.Context(), owner, tenant, "first", nil)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"tenant_id": id.Tenant.Format(tenant), "api_key": key.Key})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "tenant  %s\nAPI key %s (shown only now)\n", id.Tenant.Format(tenant), key.Key)
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the tenant's name")
	cmd.Flags().StringVar(&logName, "log", "", "the tenant's log, log_…")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.MarkFlagRequired("name") // fails only for a flag that doesn't exist
	return cmd
}
