package api

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// A change of a log's key is told once a published head covers its leaf, as with every leaf: its note holds a root.

// keyHistory reads all changes of a log's key, oldest first, each with the proof between the tree before it and that of the
// head of the given size, the smaller with the larger. Those after the head belong to it too: they bound it.
func keyHistory(ctx context.Context, from db.DBTX, read attestation.TileReader, log uuid.UUID, headSize uint64) ([]verify.PackageTransition, error) {
	rows, err := db.New(from).PublishedTransitions(ctx, log)
	if err != nil {
		return nil, fmt.Errorf("read key history: %w", err)
	}
	var history []verify.PackageTransition
	for _, row := range rows {
		t := verify.PackageTransition{Transition: string(row.Note)}
		if size := uint64(row.TreeSize); size > 0 { // the empty tree is a prefix of any, without proof
			t.ConsistencyProof, err = attestation.ProveConsistency(ctx, read, min(size, headSize), max(size, headSize))
			if err != nil {
				return nil, fmt.Errorf("prove key history: %w", err)
			}
		}
		history = append(history, t)
	}
	return history, nil
}

// transitionNotes reads by which note each key came, by its ID; a log's first key has none.
func transitionNotes(ctx context.Context, from db.DBTX, log uuid.UUID) (map[string]*string, error) {
	rows, err := db.New(from).PublishedTransitions(ctx, log)
	if err != nil {
		return nil, fmt.Errorf("read key history: %w", err)
	}
	notes := make(map[string]*string, len(rows))
	for _, row := range rows {
		note := string(row.Note)
		notes[string(row.NewKeyID)] = &note
	}
	return notes, nil
}
