package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// KeyTransition is a row of key_transitions: a change of a log's key. Its note is the leaf with the index TreeSize.
type KeyTransition struct {
	TreeSize           int64
	OldKeyID, NewKeyID []byte
	Reason             string
	Note               []byte
	ChangedAt          time.Time
}

// LogKeyTransitions lists the changes of a log's key, oldest first.
func LogKeyTransitions(ctx context.Context, db querier, log uuid.UUID) ([]KeyTransition, error) {
	rows, err := db.Query(ctx, `select tree_size, old_key_id, new_key_id, reason, note, changed_at from key_transitions
		where log_id = $1 order by tree_size`, log)
	if err != nil {
		return nil, fmt.Errorf("list key transitions: %w", err)
	}
	transitions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[KeyTransition])
	if err != nil {
		return nil, fmt.Errorf("list key transitions: %w", err)
	}
	return transitions, nil
}

// Transition writes a change of the log's key, both keys of which were written before.
func (w *LogWriter) Transition(ctx context.Context, t KeyTransition) error {
	_, err := w.tx.Exec(ctx, `insert into key_transitions (log_id, tree_size, old_key_id, new_key_id, reason, note, changed_at)
		values ($1, $2, $3, $4, $5, $6, $7)`, w.log, t.TreeSize, t.OldKeyID, t.NewKeyID, t.Reason, t.Note, t.ChangedAt)
	if err != nil {
		return fmt.Errorf("write key transition: %w", err)
	}
	return nil
}
