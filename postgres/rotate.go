package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// KeyState is a log under its lock, whose key is to be changed.
type KeyState struct {
	TreeSize  uint64
	RootHash  []byte
	PublicKey []byte // the present key
	// Now is Postgres's clock, Unix ms, and LastTime the time of the newest head, signed or not; 0 if there is none.
	Now, LastTime int64
	// Published says that the newest head of all is signed, and of this size.
	Published bool
	// Tiles reads stored tiles under the log's lock; one that doesn't exist is left out.
	Tiles func(ctx context.Context, ids []TileID) (map[TileID][]byte, error)
	// RootOf reads the root that the log had at a size; nil if it never had that size.
	RootOf func(ctx context.Context, size uint64) ([]byte, error)
}

// SignedHead is a head with both signatures.
type SignedHead struct {
	Head
	Signature, Checkpoint []byte
}

// KeyChange is a change of the key with everything that follows from it. The note is appended as the leaf with the index
// that the tree's size was.
type KeyChange struct {
	LastHead           *SignedHead // of the old key, if the tree's size has none yet
	OldKeyID, NewKeyID []byte
	NewKey             []byte
	Reason             string
	Note, LeafHash     []byte
	TreeSize           uint64 // with the note
	RootHash           []byte
	Tiles              []Tile // new and changed, whole
}

// ChangeKey changes the key of a log in one transaction under the lock of the log's head: the last head of the old key,
// the note as a leaf, the root that follows, and both keys' times. Nothing of it counts before the commit, and none of
// it is missing after: whoever reads a key under that lock reads the one for the size that the log has. The pool must be
// one of role Owner. A crash anywhere leaves the log as it was.
func ChangeKey(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID,
	change func(ctx context.Context, state KeyState) (KeyChange, error)) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		s, err := readHeadState(ctx, tx, log)
		if err != nil {
			return err
		}
		state := KeyState{
			TreeSize: uint64(s.size), RootHash: s.root, Now: s.now, LastTime: s.newest.Timestamp,
			Published: s.newestSigned && s.newestSize == s.size,
			Tiles: func(ctx context.Context, ids []TileID) (map[TileID][]byte, error) {
				return ReadTiles(ctx, tx, log, ids)
			},
			RootOf: func(ctx context.Context, size uint64) ([]byte, error) { return RootOf(ctx, tx, log, size) },
		}
		err = tx.QueryRow(ctx, "select public_key from attestation_keys where log_id = $1 and key_id = $2", log, s.key).Scan(&state.PublicKey)
		if err != nil {
			return fmt.Errorf("read key: %w", err)
		}
		c, err := change(ctx, state)
		if err != nil {
			return err
		}
		return writeKeyChange(ctx, tx, log, state, c)
	})
	if err != nil {
		return fmt.Errorf("change key: %w", err)
	}
	return nil
}

// writeKeyChange writes what the change comes to, and last the log's head, which is compared and set.
func writeKeyChange(ctx context.Context, tx pgx.Tx, log uuid.UUID, state KeyState, c KeyChange) error {
	if c.TreeSize != state.TreeSize+1 {
		return fmt.Errorf("tree of %d and a transition would have size %d", state.TreeSize, c.TreeSize)
	}
	index, size := int64(state.TreeSize), int64(c.TreeSize)
	levels, indexes, tiles := make([]int16, len(c.Tiles)), make([]int64, len(c.Tiles)), make([][]byte, len(c.Tiles))
	for i, t := range c.Tiles {
		levels[i], indexes[i], tiles[i] = int16(t.Level), int64(t.Index), t.Hashes
	}
	one := func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() != 1 {
			return errors.New("the log has changed under its lock")
		}
		return nil
	}
	batch := &pgx.Batch{}
	if h := c.LastHead; h != nil {
		batch.Queue(`insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id, signature, checkpoint)
			values ($1, $2, $3, $4, $5, $6, $7)`, log, int64(h.TreeSize), h.Timestamp, h.RootHash, c.OldKeyID, h.Signature, h.Checkpoint)
	}
	batch.Queue(`insert into merkle_leaves (log_id, leaf_index, leaf_hash, leaf) values ($1, $2, $3, $4)`, log, index, c.LeafHash, c.Note)
	batch.Queue(upsertTilesSQL, log, levels, indexes, tiles)
	batch.Queue("insert into tree_roots (log_id, tree_size, root_hash) values ($1, $2, $3)", log, size, c.RootHash)
	// One time for the end of the old key and the beginning of the new one: not before any head of the old one.
	const at = "to_timestamp($3::bigint / 1000.0)"
	batch.Queue("update attestation_keys set not_after = "+at+" where log_id = $1 and key_id = $2 and not_after is null",
		log, c.OldKeyID, state.Now).Exec(one)
	batch.Queue("insert into attestation_keys (log_id, key_id, public_key, purpose, not_before) values ($1, $2, $4, 'log', "+at+")",
		log, c.NewKeyID, state.Now, c.NewKey)
	batch.Queue(`insert into key_transitions (log_id, tree_size, changed_at, old_key_id, new_key_id, reason, note)
		values ($1, $2, `+at+`, $4, $5, $6, $7)`, log, index, state.Now, c.OldKeyID, c.NewKeyID, c.Reason, c.Note)
	batch.Queue("update log_heads set tree_size = $3, root_hash = $4 where log_id = $1 and tree_size = $2",
		log, index, size, c.RootHash).Exec(one)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write transition: %w", err)
	}
	return nil
}
