package activities

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Recorded is what one recording of a group came to.
type Recorded struct {
	Progress Progress
	Err      error
}

// CommitRecordings records a group of recordings in one transaction, as the recorder does with what has gathered.
func CommitRecordings(ctx context.Context, db *pgxpool.Pool, rows []Recording) ([]Recorded, error) {
	results, _, err := commitRecordings(ctx, db, newCircuits(), rows)
	exported := make([]Recorded, len(results))
	for i, r := range results {
		exported[i] = Recorded{Progress: r.progress, Err: r.err}
	}
	return exported, err
}
