package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrLogExists means that a database isn't fresh: a log in it has leaves or tiles, or it already has the log.
var ErrLogExists = errors.New("the database has a log already")

// LogWriter writes a log that was made before into a fresh database, in one transaction.
type LogWriter struct {
	tx  pgx.Tx
	log uuid.UUID
}

// WriteLog runs f, which writes a whole log, in one transaction as role kapsel_owner: the log is there whole or not at all.
// leaves is how many leaves there will be. The error wraps ErrLogExists if the database isn't fresh.
func WriteLog(ctx context.Context, owner *pgxpool.Pool, log LogRow, keys []LogKey, leaves uint64, f func(*LogWriter) error) error {
	return pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error {
		var exists bool
		err := tx.QueryRow(ctx, `select exists (select from merkle_tiles) or exists (select from merkle_leaves)
			or exists (select from logs where id = $1 or origin = $2)`, log.ID, log.Origin).Scan(&exists)
		if err != nil {
			return fmt.Errorf("look for logs: %w", err)
		}
		if exists {
			return ErrLogExists
		}
		if _, err := tx.Exec(ctx, "insert into logs (id, origin) values ($1, $2)", log.ID, log.Origin); err != nil {
			return fmt.Errorf("write log: %w", err)
		}
		for _, k := range keys {
			_, err := tx.Exec(ctx, `insert into attestation_keys (log_id, key_id, public_key, purpose, not_before, not_after)
				values ($1, $2, $3, 'log', $4, $5)`, log.ID, k.KeyID, k.PublicKey, k.NotBefore, k.NotAfter)
			if err != nil {
				return fmt.Errorf("write key: %w", err)
			}
		}
		w := &LogWriter{tx: tx, log: log.ID}
		if err := w.Partitions(ctx, leaves); err != nil {
			return err
		}
		return f(w)
	})
}

// Leaves writes leaves, and the ways from their attempts to them.
func (w *LogWriter) Leaves(ctx context.Context, leaves []StoredLeaf) error {
	var rows, ways [][]any
	for _, l := range leaves {
		rows = append(rows, []any{w.log, l.Index, l.TenantID, l.AttemptID, l.Hash, l.Bytes, l.Secrets})
		if l.AttemptID != nil {
			ways = append(ways, []any{*l.AttemptID, *l.TenantID, w.log, l.Index})
		}
	}
	_, err := w.tx.CopyFrom(ctx, pgx.Identifier{"merkle_leaves"},
		[]string{"log_id", "leaf_index", "tenant_id", "attempt_id", "leaf_hash", "leaf", "secrets"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("write leaves: %w", err)
	}
	_, err = w.tx.CopyFrom(ctx, pgx.Identifier{"leaf_of_attempt"}, []string{"attempt_id", "tenant_id", "log_id", "leaf_index"}, pgx.CopyFromRows(ways))
	if err != nil {
		return fmt.Errorf("write leaves of attempts: %w", err)
	}
	return nil
}

// Tiles writes tiles, each of them once.
func (w *LogWriter) Tiles(ctx context.Context, tiles []Tile) error {
	rows := make([][]any, len(tiles))
	for i, t := range tiles {
		rows[i] = []any{w.log, int16(t.Level), int64(t.Index), t.Hashes}
	}
	_, err := w.tx.CopyFrom(ctx, pgx.Identifier{"merkle_tiles"}, []string{"log_id", "level", "tile_index", "hashes"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("write tiles: %w", err)
	}
	return nil
}

// Roots writes the roots of sizes, each of them once.
func (w *LogWriter) Roots(ctx context.Context, roots []SizedRoot) error {
	rows := make([][]any, len(roots))
	for i, r := range roots {
		rows[i] = []any{w.log, r.TreeSize, r.RootHash}
	}
	_, err := w.tx.CopyFrom(ctx, pgx.Identifier{"tree_roots"}, []string{"log_id", "tree_size", "root_hash"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("write roots: %w", err)
	}
	return nil
}

// Heads writes published heads, whose roots were written before.
func (w *LogWriter) Heads(ctx context.Context, heads []PublishedHead) error {
	rows := make([][]any, len(heads))
	for i, h := range heads {
		rows[i] = []any{w.log, int64(h.TreeSize), h.Timestamp, h.RootHash, h.KeyID, h.Signature, h.Checkpoint}
	}
	_, err := w.tx.CopyFrom(ctx, pgx.Identifier{"signed_tree_heads"},
		[]string{"log_id", "tree_size", "timestamp", "root_hash", "key_id", "signature", "checkpoint"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("write heads: %w", err)
	}
	return nil
}

// End writes the newest size and root, which were written as a root before. The log can be grown from then on.
func (w *LogWriter) End(ctx context.Context, root SizedRoot) error {
	_, err := w.tx.Exec(ctx, "insert into log_heads (log_id, tree_size, root_hash) values ($1, $2, $3)", w.log, root.TreeSize, root.RootHash)
	if err != nil {
		return fmt.Errorf("write newest size: %w", err)
	}
	// The attempts aren't there, so reconciliation has nothing to compare these leaves with.
	_, err = w.tx.Exec(ctx, "insert into reconciled_logs (log_id, leaf_index) values ($1, $2)", w.log, root.TreeSize)
	if err != nil {
		return fmt.Errorf("write where reconciliation begins: %w", err)
	}
	return nil
}
