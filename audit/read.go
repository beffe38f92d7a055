package audit

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
)

// readTiles is an attestation.TileReader over what is stored.
func readTiles(ctx context.Context, db *pgxpool.Pool, log uuid.UUID, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
	rows := make([]postgres.TileID, len(ids))
	for i, id := range ids {
		rows[i] = postgres.TileID(id)
	}
	stored, err := postgres.ReadTiles(ctx, db, log, rows)
	if err != nil {
		return nil, err
	}
	tiles := make(map[attestation.TileID][]byte, len(stored))
	for id, hashes := range stored {
		tiles[attestation.TileID(id)] = hashes
	}
	return tiles, nil
}
