package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
)

func eraseCommand() *cobra.Command {
	var e eraser
	var yes bool
	cmd := &cobra.Command{
		Use:   "erase EVENT… --yes [--leaves]",
		Short: "Erase the payloads of events",
		Long: `Erase the payloads of events: bodies and headers, the responses of their attempts, and the salts and
secrets that open what their leaves commit to. The leaves say no more about a body than its size
then, and nobody can compare anything with them. With --leaves the bytes of the leaves go too.

Hashes stay: the log, and every proof that anybody has kept, stay valid. What isn't delivered yet
ends as "dead" with the error "payload_erased".

It can't be undone, so it wants --yes. It doesn't reach what has left the database: bundles of
"kapsel log export", backups, and what receivers and auditors have. docs/guides/acceptance.md says
what is left. Run again after an error, it erases what was left.

` + variables("tenant"),
		Example: `  kapsel erase evt_01h455vb4pex5vsknk084sn02q --yes
  kapsel erase evt_01h455vb4pex5vsknk084sn02q evt_01h455vb4pex5vsknk084sn02r --leaves --yes --json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			events, err := parseEvents(args)
			if err != nil {
				return err
			}
			if !yes {
				return fmt.Errorf("erasing %d events can't be undone; add --yes if that is meant", len(events))
			}
			config, _, err := load()
			if err != nil {
				return err
			}
			if e.engine, err = postgres.Open(config.DatabaseURL, postgres.Engine, 1); err != nil {
				return err
			}
			defer e.engine.Close()
			if e.api, err = postgres.Open(config.DatabaseURL, postgres.API, 1); err != nil {
				return err
			}
			defer e.api.Close()
			if err := migrations.Check(cmd.Context(), e.engine); err != nil {
				return err
			}
			return e.run(cmd.Context(), cmd.OutOrStdout(), events)
		},
	}
	cmd.Flags().BoolVar(&e.leaves, "leaves", false, "erase the bytes of the events' leaves too; their hashes stay in the log")
	cmd.Flags().BoolVar(&yes, "yes", false, "it is meant")
	cmd.Flags().BoolVar(&e.json, "json", false, "print a JSON object for each event")
	return cmd
}

func parseEvents(args []string) ([]uuid.UUID, error) {
	var events []uuid.UUID
	for _, arg := range args {
		event, err := id.Event.Parse(arg)
		if err != nil {
			return nil, err
		}
		events = append(events, event)
	}
	return events, nil
}

// eraser erases events, each in a transaction of its own that sees its tenant's rows only.
type eraser struct {
	engine, api  *pgxpool.Pool
	leaves, json bool
}

func (e *eraser) run(ctx context.Context, out io.Writer, events []uuid.UUID) error {
	for i, event := range events {
		erased, err := e.erase(ctx, event)
		if errors.Is(err, postgres.ErrNoEvent) {
			return fmt.Errorf("there is no event %s; %d of %d events are erased, leave it out and run again", id.Event.Format(event), i, len(events))
		}
		if err != nil {
			return fmt.Errorf("%d of %d events are erased, run again for the rest: %w", i, len(events), err)
		}
		if err := e.print(out, erased); err != nil {
			return err
		}
	}
	return nil
}

func (e *eraser) erase(ctx context.Context, event uuid.UUID) (*postgres.Erased, error) {
	tenant, err := postgres.TenantOfEvent(ctx, e.engine, event)
	if err != nil {
		return nil, err
	}
	var erased *postgres.Erased
	err = postgres.InTenant(ctx, e.api, tenant, func(tx pgx.Tx) (err error) {
		erased, err = postgres.Erase(ctx, tx, event, e.leaves)
		return err
	})
	return erased, err
}

func (e *eraser) print(out io.Writer, erased *postgres.Erased) error {
	name := id.Event.Format(erased.EventID)
	if e.json {
		return json.NewEncoder(out).Encode(map[string]any{
			"event_id": name, "erased_at": erased.ErasedAt.UTC().Format(time.RFC3339Nano), "leaves": erased.Leaves,
			"responses_erased": erased.Responses, "leaves_erased": erased.LeavesErased,
		})
	}
	_, err := fmt.Fprintf(out, "%s  erased; now: responses %d, leaves %d\n", name, erased.Responses, erased.LeavesErased)
	return err
}
