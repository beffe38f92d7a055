package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// exportFlags are the arguments of `log export`.
type exportFlags struct {
	log, tenant, bundles string
	recipients           []string
	plain, asJSON        bool
}

func logExportCommand() *cobra.Command {
	var flags exportFlags
	cmd := &cobra.Command{
		Use:   "export DIRECTORY",
		Short: "Copy a log into files that any web server can serve",
		Long: `Copy a log, up to its newest published head, into files that any static web server can serve:
the checkpoint, the tiles (c2sp.org/tlog-tiles), every published head, the log's keys. There are
no leaves among them. Run it again to add what is new.

The checkpoint comes last, once everything that it speaks of is on disk, and it is never replaced
by one of a smaller tree, an earlier time or another history. Tiles are checked before they are
written: they must lead to the signed root.

With --tenant the tenant's leaves go into a file in the directory --bundles, beside the mirror and
never inside it: index, bytes, salts and proof of each, with which the tenant can verify them
offline. It holds those since the last such file. It is encrypted to the recipients (age), or with
--plain it isn't; its mode is 0600.

` + fmt.Sprintf(exitStatusMeaning, `the database contradicts itself or
what was exported before (then the checkpoint stays as it was)`) + `

` + variables("export"),
		Example: `  kapsel log export /srv/www/log
  kapsel log export mirror --tenant ten_01h455vb4pex5vsknk084sn02q --bundles leaves --recipient age1…`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error { return toolError(runExport(cmd, args[0], &flags)) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().StringVar(&flags.log, "log", "", "the log, if there are several")
	cmd.Flags().StringVar(&flags.tenant, "tenant", "", "also write this tenant's leaves")
	cmd.Flags().StringVar(&flags.bundles, "bundles", "", "directory in which each tenant has one with its leaves")
	cmd.Flags().StringArrayVar(&flags.recipients, "recipient", nil, "age recipient that can read the leaves; may be repeated")
	cmd.Flags().BoolVar(&flags.plain, "plain", false, "write the leaves without encryption")
	cmd.Flags().BoolVar(&flags.asJSON, "json", false, "print JSON, a line for the mirror and one for the leaves")
	return cmd
}

func runExport(cmd *cobra.Command, dir string, flags *exportFlags) error {
	bundle, err := flags.bundle(dir)
	if err != nil {
		return err
	}
	config, _, err := load()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	engine, err := openEngine(ctx, &config)
	if err != nil {
		return err
	}
	defer engine.Close()
	log, err := chooseLog(ctx, engine, flags.log)
	if err != nil {
		return err
	}
	done, err := audit.Export(ctx, audit.ExportConfig{DB: engine, Log: log, Dir: dir, Progress: progressTo(cmd.ErrOrStderr(), "exporting")})
	if err != nil {
		return err
	}
	err = printTool(cmd, flags.asJSON, done, [][2]any{
		{"log", done.LogID}, {"directory", done.Dir},
		{"checkpoint", fmt.Sprintf("size %d, was %d", done.TreeSize, done.OldSize)},
		{"written", fmt.Sprintf("%d tiles, %d heads", done.Tiles, done.Heads)},
	}...)
	if err != nil || bundle == nil {
		return err
	}
	bundle.DB, bundle.Log, bundle.Progress = engine, log, progressTo(cmd.ErrOrStderr(), "bundling")
	return runBundle(ctx, cmd, &config, bundle, flags.asJSON)
}

// bundle checks the arguments about a tenant's leaves; nil if they aren't asked for.
func (f *exportFlags) bundle(dir string) (*audit.BundleConfig, error) {
	switch asked := f.bundles != "" || len(f.recipients) > 0 || f.plain; {
	case f.tenant == "" && asked:
		return nil, errors.New("--bundles, --recipient and --plain are about a tenant's leaves; name the tenant with --tenant")
	case f.tenant == "":
		return nil, nil
	case f.bundles == "":
		return nil, errors.New("name the directory for the tenant's leaves with --bundles")
	case (len(f.recipients) > 0) == f.plain:
		return nil, errors.New("the leaves are encrypted to each --recipient, or written as they are with --plain; say which")
	}
	inside, err := within(dir, f.bundles)
	if err != nil {
		return nil, err
	}
	if inside {
		return nil, errors.New("--bundles lies in the directory that everybody may read; name another")
	}
	bundle := &audit.BundleConfig{Dir: f.bundles}
	if bundle.Tenant, err = id.Tenant.Parse(f.tenant); err != nil {
		return nil, fmt.Errorf("--tenant: %w", err)
	}
	for _, r := range f.recipients {
		recipients, err := age.ParseRecipients(strings.NewReader(r))
		if err != nil {
			return nil, fmt.Errorf("--recipient: %w", err)
		}
		bundle.Recipients = append(bundle.Recipients, recipients...)
	}
	return bundle, nil
}

// within reports whether a path lies in a directory or is it.
func within(dir, path string) (bool, error) {
	outer, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	inner, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	relative, err := filepath.Rel(outer, inner)
	return err == nil && relative != ".." && !strings.HasPrefix(relative, ".."+string(filepath.Separator)), nil
}

func runBundle(ctx context.Context, cmd *cobra.Command, config *Config, bundle *audit.BundleConfig, asJSON bool) error {
	api, err := postgres.Open(config.DatabaseURL, postgres.API, 2)
	if err != nil {
		return err
	}
	defer api.Close()
	bundle.API = api
	if err := tenantExists(ctx, bundle.DB, bundle.Tenant); err != nil {
		return err
	}
	done, err := audit.Bundle(ctx, *bundle)
	if err != nil {
		return err
	}
	file := done.File
	if file == "" {
		file = "none: the tenant has no new leaves"
	}
	return printTool(cmd, asJSON, done, [][2]any{
		{"tenant", done.TenantID}, {"leaves", fmt.Sprintf("%d, with indexes from %d to below %d", done.Leaves, done.From, done.To)}, {"file", file},
	}...)
}

// tenantExists tells a mistyped tenant from one without leaves.
func tenantExists(ctx context.Context, engine *pgxpool.Pool, tenant uuid.UUID) error {
	exists, err := postgres.TenantExists(ctx, engine, tenant)
	if err == nil && !exists {
		err = fmt.Errorf("there is no tenant %s", id.Tenant.Format(tenant))
	}
	return err
}
