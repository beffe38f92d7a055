package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
)

func logRebuildCommand() *cobra.Command {
	var mirror string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rebuild --mirror DIRECTORY",
		Short: "Make a log's tiles and heads anew from its leaves, in a fresh database",
		Long: `Make a log anew in a fresh database, from its leaves alone.

Leaves come from DATABASE_URL; of that database nothing else is read, so its tiles, roots and heads
may be damaged. Tiles and roots are computed. What can't be computed, the times and signatures of
heads, comes from a directory that "kapsel log export" wrote; each of those heads must have the
root that the leaves give for its size, and verify. Then the log is written to
TARGET_DATABASE_URL, in one transaction: it is there whole or not at all. A target that has a log
with leaves or tiles, or this log, is refused.

If LOG_HIGH_WATER_DIR is set, the high-water record must fit too; without it a worker may later
refuse to go on with the log. Unpublished leaves are copied as well, and said to be.

` + fmt.Sprintf(exitStatusMeaning, `a leaf is missing or changed,
or a head doesn't fit the leaves (the target stays as it was)`) + `

` + variables("rebuild"),
		Example: `  DATABASE_URL="$FRESH" kapsel migrate
  TARGET_DATABASE_URL="$FRESH" kapsel log rebuild --mirror /srv/www/log`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := runRebuild(cmd, mirror)
			if err != nil {
				return toolError(err)
			}
			return printTool(cmd, asJSON, done, [][2]any{
				{"log", done.LogID}, {"origin", done.Origin},
				{"leaves", fmt.Sprintf("%d (%s, %d not published)", done.Leaves, without(done.Erased, done.Lost), done.Unpublished)},
				{"reproduced", fmt.Sprintf("%d heads, %d tiles", done.Heads, done.Tiles)},
				{"root", fmt.Sprintf("%x", []byte(done.RootHash))},
			}...)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unusable(err) })
	cmd.Flags().StringVar(&mirror, "mirror", "", "directory that `kapsel log export` wrote")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runRebuild(cmd *cobra.Command, mirror string) (*audit.Rebuilt, error) {
	if mirror == "" {
		return nil, errors.New("name the directory that `kapsel log export` wrote with --mirror")
	}
	config, _, err := load()
	if err != nil {
		return nil, err
	}
	if config.TargetDatabaseURL == "" {
		return nil, errors.New("TARGET_DATABASE_URL is not set; set it to the URL of a fresh database, after `kapsel migrate`")
	}
	ctx := cmd.Context()
	source, err := openEngine(ctx, &config)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	target, err := postgres.Open(config.TargetDatabaseURL, postgres.Owner, 2)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if err := migrations.Check(ctx, target); err != nil {
		return nil, fmt.Errorf("TARGET_DATABASE_URL: %w", err)
	}
	rebuild := audit.RebuildConfig{Source: source, Target: target, Mirror: mirror, Progress: progressTo(cmd.ErrOrStderr(), "rebuilding")}
	log, err := audit.MirrorOf(mirror)
	if err != nil {
		return nil, err
	}
	row := postgres.LogRow{Origin: log.Origin}
	if row.ID, err = id.Log.Parse(log.LogID); err != nil {
		return nil, err
	}
	if rebuild.HighWater, err = config.recorded(row); err != nil {
		return nil, err
	}
	done, err := audit.Rebuild(ctx, rebuild)
	if errors.Is(err, postgres.ErrLogExists) {
		return nil, fmt.Errorf("TARGET_DATABASE_URL must be a fresh database: %w", err)
	}
	return done, err
}
