package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/workflows"
)

// Read reads what Postgres and the log hold of a delivery, as they are at one moment, with the path from each leaf to the
// root. The pool is one of role kapsel_engine.
func Read(ctx context.Context, pool *pgxpool.Pool, delivery uuid.UUID) (*postgres.Account, error) {
	var account *postgres.Account
	err := postgres.InSnapshot(ctx, pool, func(tx pgx.Tx) (err error) {
		if account, err = postgres.ReadAccount(ctx, tx, delivery); err != nil {
			return err
		}
		for i := range account.Attempts {
			leaf := &account.Attempts[i].Leaf
			head := account.Covering(leaf)
			if leaf.Place != postgres.LeafInLog || leaf.Index >= head.TreeSize {
				continue
			}
			leaf.Path, err = attestation.ProveInclusion(ctx, tiles(tx, account.Log(leaf.Log).ID), uint64(leaf.Index), uint64(head.TreeSize))
			if err != nil && ctx.Err() != nil {
				return err
			} // without a path the comparison says that the leaf isn't in the tree
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read delivery %s: %w", id.Delivery.Format(delivery), err)
	}
	return account, nil
}

func tiles(tx pgx.Tx, log uuid.UUID) attestation.TileReader {
	return func(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
		wanted := make([]postgres.TileID, len(ids))
		for i, tile := range ids {
			wanted[i] = postgres.TileID(tile)
		}
		stored, err := postgres.ReadTiles(ctx, tx, log, wanted)
		read := make(map[attestation.TileID][]byte, len(stored))
		for tile, hashes := range stored {
			read[attestation.TileID(tile)] = hashes
		}
		return read, err
	}
}

// FromTemporal is the source of histories that Temporal holds.
const FromTemporal = "temporal"

// Fetch reads the history of a workflow from Temporal. It is nil if Temporal doesn't have it (any longer).
func Fetch(ctx context.Context, temporal client.Client, workflowID string) (*History, error) {
	described, err := temporal.DescribeWorkflowExecution(ctx, workflowID, "")
	var unknown *serviceerror.NotFound
	if errors.As(err, &unknown) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("describe workflow %s: %w", workflowID, err)
	}
	h := &History{WorkflowID: workflowID, RunID: described.GetWorkflowExecutionInfo().GetExecution().GetRunId(), Source: FromTemporal}
	events := temporal.GetWorkflowHistory(ctx, workflowID, h.RunID, false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		if errors.As(err, &unknown) { // its retention ended just now
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read history of %s: %w", workflowID, err)
		}
		h.Events = append(h.Events, event)
	}
	return h, nil
}

// FetchAll reads the histories of all epochs of a delivery, and of the batch that carries it at this moment. It says
// which workflows Temporal doesn't have.
func FetchAll(ctx context.Context, temporal client.Client, account *postgres.Account) (found []*History, missing []string, err error) {
	var ids []string
	for epoch := range account.Epoch + 1 {
		ids = append(ids, workflows.DeliveryWorkflowID(id.Delivery.Format(account.ID), epoch))
	}
	if account.Claim != nil {
		ids = append(ids, workflows.BatchWorkflowID(id.Claim.Format(*account.Claim)))
	}
	for _, workflowID := range ids {
		h, err := Fetch(ctx, temporal, workflowID)
		if err != nil {
			return nil, nil, err
		}
		if h == nil {
			missing = append(missing, workflowID)
			continue
		}
		found = append(found, h)
	}
	return found, missing, nil
}

// Online compares a delivery by the histories that Temporal holds. Histories are read before the account that they are
// set against; if the delivery is handed over meanwhile, they are read again.
func Online(ctx context.Context, pool *pgxpool.Pool, temporal client.Client, delivery uuid.UUID) (*Report, error) {
	account, err := Read(ctx, pool, delivery)
	if err != nil {
		return nil, err
	}
	for {
		histories, _, err := FetchAll(ctx, temporal, account)
		if err != nil {
			return nil, err
		}
		epoch := account.Epoch
		if account, err = Read(ctx, pool, delivery); err != nil {
			return nil, err
		}
		if account.Epoch == epoch {
			return Compare(account, histories), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
