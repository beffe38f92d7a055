package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// TileID names a tile of a log, as C2SP tlog-tiles has it.
type TileID struct {
	Level uint8
	Index uint64
}

// Tile is a row of merkle_tiles: up to 256 hashes of 32 bytes.
type Tile struct {
	TileID
	Hashes []byte
}

// QueuedLeaf is a leaf on its way into the log.
type QueuedLeaf struct {
	ID        int64
	TenantID  uuid.UUID
	AttemptID uuid.UUID
	Hash      []byte
	Bytes     []byte
	Secrets   []byte
	Erased    bool // only its hash is to be kept
	// Recorded is the hash that the attempt's row says its leaf in this log has; nil if there is no such row.
	Recorded []byte
}

// RejectedLeaf is a queued leaf that must not get an index, and why.
type RejectedLeaf struct {
	QueuedLeaf
	Reason string
}

// Batch is what one sequencing works on: the log as it is, and the leaves in the order they were queued.
type Batch struct {
	TreeSize uint64
	RootHash []byte
	Leaves   []QueuedLeaf
	// Tiles reads stored tiles under the log's lock; one that doesn't exist is left out.
	Tiles func(ctx context.Context, ids []TileID) (map[TileID][]byte, error)
	// RootOf reads the root that the log had at a size; nil if it never had that size.
	RootOf func(ctx context.Context, size uint64) ([]byte, error)
}

// Growth is what a batch does to the log. Accepted get the indexes from the old tree size on, in order.
type Growth struct {
	Accepted []QueuedLeaf
	Rejected []RejectedLeaf
	TreeSize uint64
	RootHash []byte
	Tiles    []Tile // new and changed, whole
}

// Sequenced says what a call of Sequence did.
type Sequenced struct {
	Taken    int   // leaves taken from the queue, whether accepted or rejected
	Rejected int   // of these
	LastID   int64 // of the last leaf taken: a hint from where to take next
	TreeSize uint64
}

// ErrNoLog means that the log doesn't exist.
var ErrNoLog = errors.New("log does not exist")

// ErrLogClosed means that the log takes no more leaves and no more heads.
var ErrLogClosed = errors.New("log is closed")

// OpenLog returns the origin of a log that goes on. The error is ErrNoLog or ErrLogClosed if it doesn't.
func OpenLog(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID) (origin string, err error) {
	var closed bool
	err = pool.QueryRow(ctx, "select origin, closed_at is not null from logs where id = $1", log).Scan(&origin, &closed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", ErrNoLog
	case err != nil:
		return "", fmt.Errorf("read log: %w", err)
	case closed:
		return "", ErrLogClosed
	}
	return origin, nil
}

// takeLeavesSQL takes leaves in the order of their IDs. The hint lets the index scan skip rows that were just deleted;
// a leaf whose transaction committed late may lie before it, and is found when the caller starts from 0 again.
const takeLeavesSQL = `
delete from leaf_queue
where log_id = $1 and id in (select id from leaf_queue where log_id = $1 and id > $2 order by id limit $3)
returning id, tenant_id, attempt_id, leaf_hash, leaf, secrets, erased`

// lockToGrowSQL: a log that is closed while this waits for the lock may still get a batch; who closes a log holds the lock.
const lockToGrowSQL = `
select h.tree_size, h.root_hash, (select l.closed_at is not null from logs l where l.id = h.log_id)
from log_heads h where h.log_id = $1 for update of h`

// Sequence gives up to limit queued leaves their place in the log, in one transaction under the lock of the log's head:
// invariant 7. grow computes what becomes of the tree; nothing of it counts before the commit. A crash anywhere leaves
// the queue as it was.
func Sequence(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, after int64, limit int,
	grow func(ctx context.Context, batch Batch) (Growth, error)) (Sequenced, error) {
	var done Sequenced
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var batch Batch
		row := tx.QueryRow(ctx, lockToGrowSQL, log)
		var closed bool
		if err := row.Scan(&batch.TreeSize, &batch.RootHash, &closed); err != nil {
			if errors.Is(err, pgx.ErrNoRows) {
				return ErrNoLog
			}
			return fmt.Errorf("lock head: %w", err)
		}
		if closed {
			return ErrLogClosed
		}
		done = Sequenced{TreeSize: batch.TreeSize, LastID: after}
		leaves, err := takeLeaves(ctx, tx, log, after, limit)
		if err != nil || len(leaves) == 0 {
			return err
		}
		done.Taken, done.LastID = len(leaves), leaves[len(leaves)-1].ID
		var contradicting []RejectedLeaf
		batch.Leaves, contradicting, err = unsequenced(ctx, tx, leaves)
		if err != nil {
			return err
		}
		if err := addRecorded(ctx, tx, log, batch.Leaves); err != nil {
			return err
		}
		batch.RootOf = func(ctx context.Context, size uint64) ([]byte, error) { return RootOf(ctx, tx, log, size) }
		batch.Tiles = func(ctx context.Context, ids []TileID) (map[TileID][]byte, error) {
			return ReadTiles(ctx, tx, log, ids)
		}
		growth, err := grow(ctx, batch)
		if err != nil {
			return err
		}
		growth.Rejected = append(growth.Rejected, contradicting...)
		done.Rejected = len(growth.Rejected)
		if err := setAside(ctx, tx, log, growth.Rejected); err != nil {
			return err
		}
		if len(growth.Accepted) == 0 {
			return nil
		}
		done.TreeSize = growth.TreeSize
		return writeGrowth(ctx, tx, log, batch.TreeSize, growth)
	})
	if err != nil {
		return Sequenced{}, fmt.Errorf("sequence leaves: %w", err)
	}
	return done, nil
}

func scanQueued(row pgx.CollectableRow) (l QueuedLeaf, err error) {
	err = row.Scan(&l.ID, &l.TenantID, &l.AttemptID, &l.Hash, &l.Bytes, &l.Secrets, &l.Erased)
	return l, err
}

func takeLeaves(ctx context.Context, tx pgx.Tx, log uuid.UUID, after int64, limit int) ([]QueuedLeaf, error) {
	rows, err := tx.Query(ctx, takeLeavesSQL, log, after, limit)
	if err != nil {
		return nil, fmt.Errorf("take leaves: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, scanQueued)
	if err != nil {
		return nil, fmt.Errorf("take leaves: %w", err)
	}
	slices.SortFunc(leaves, func(a, b QueuedLeaf) int { return int(a.ID - b.ID) })
	return leaves, nil
}

// unsequenced splits off the leaves of attempts that have their place in a log. The same leaf queued a second time is dropped,
// rather than indexed twice; another leaf contradicts the first.
func unsequenced(ctx context.Context, tx pgx.Tx, leaves []QueuedLeaf) (rest []QueuedLeaf, contradicting []RejectedLeaf, err error) {
	ids := make([]uuid.UUID, len(leaves))
	for i, l := range leaves {
		ids[i] = l.AttemptID
	}
	sequenced, err := SequencedLeaves(ctx, tx, ids)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range leaves {
		switch has, known := sequenced[l.AttemptID]; {
		case !known:
			rest = append(rest, l)
		case !bytes.Equal(has.Hash, l.Hash):
			contradicting = append(contradicting, RejectedLeaf{l, fmt.Sprintf("the attempt has another leaf, with index %d", has.Index)})
		}
	}
	return rest, contradicting, nil
}

// SequencedLeaf is the place of an attempt's leaf.
type SequencedLeaf struct {
	LogID uuid.UUID
	Index int64
	Hash  []byte
}

// leafPlace is where a leaf is.
type leafPlace struct {
	log   uuid.UUID
	index int64
}

// SequencedLeaves finds which attempts have their place in a log. Mostly there are none, and then only one index is read.
func SequencedLeaves(ctx context.Context, db querier, attempts []uuid.UUID) (map[uuid.UUID]SequencedLeaf, error) {
	rows, err := db.Query(ctx, "select attempt_id, log_id, leaf_index from leaf_of_attempt where attempt_id = any($1)", attempts)
	if err != nil {
		return nil, fmt.Errorf("look up leaves: %w", err)
	}
	sequenced := map[uuid.UUID]SequencedLeaf{}
	attemptAt := map[leafPlace]uuid.UUID{}
	indexes := map[uuid.UUID][]int64{} // by log
	var attempt, log uuid.UUID
	var index int64
	_, err = pgx.ForEachRow(rows, []any{&attempt, &log, &index}, func() error {
		attemptAt[leafPlace{log, index}] = attempt
		indexes[log] = append(indexes[log], index)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up leaves: %w", err)
	}
	for log, of := range indexes {
		rows, err := db.Query(ctx, "select leaf_index, leaf_hash from merkle_leaves where log_id = $1 and leaf_index = any($2)", log, of)
		if err != nil {
			return nil, fmt.Errorf("look up leaf hashes: %w", err)
		}
		var hash []byte
		_, err = pgx.ForEachRow(rows, []any{&index, &hash}, func() error {
			sequenced[attemptAt[leafPlace{log, index}]] = SequencedLeaf{log, index, hash}
			hash = nil // it is the leaf's now
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look up leaf hashes: %w", err)
		}
	}
	return sequenced, nil
}

// recordedSQL reads the attempts' own word on their leaves, and that of events on those of their acceptance, which nobody can change. What
// was recorded for another log, which was closed meanwhile, says nothing about its leaf in this one.
const recordedSQL = `
select a.id, a.leaf_hash from attempts a where a.id = any($1) and a.log_id = $2
union all select e.id, e.leaf_hash from events e where e.id = any($1) and e.leaf_hash is not null and e.leaf_log_id = $2`

// addRecorded fills in Recorded.
func addRecorded(ctx context.Context, tx pgx.Tx, log uuid.UUID, leaves []QueuedLeaf) error {
	ids := make([]uuid.UUID, len(leaves))
	for i, l := range leaves {
		ids[i] = l.AttemptID
	}
	rows, err := tx.Query(ctx, recordedSQL, ids, log)
	if err != nil {
		return fmt.Errorf("look up attempts: %w", err)
	}
	recorded := make(map[uuid.UUID][]byte, len(leaves))
	var attempt uuid.UUID
	var hash []byte
	_, err = pgx.ForEachRow(rows, []any{&attempt, &hash}, func() error {
		recorded[attempt] = hash
		hash = nil // it is the leaf's now
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up attempts: %w", err)
	}
	for i := range leaves {
		leaves[i].Recorded = recorded[leaves[i].AttemptID]
	}
	return nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ReadTiles reads tiles of a log; one that doesn't exist is left out.
func ReadTiles(ctx context.Context, db querier, log uuid.UUID, ids []TileID) (map[TileID][]byte, error) {
	levels, indexes := make([]int16, len(ids)), make([]int64, len(ids))
	for i, t := range ids {
		levels[i], indexes[i] = int16(t.Level), int64(t.Index)
	}
	rows, err := db.Query(ctx, `select t.level, t.tile_index, t.hashes
		from unnest($2::smallint[], $3::bigint[]) as k(level, tile_index)
		join merkle_tiles t on t.log_id = $1 and t.level = k.level and t.tile_index = k.tile_index`, log, levels, indexes)
	if err != nil {
		return nil, fmt.Errorf("read tiles: %w", err)
	}
	tiles := make(map[TileID][]byte, len(ids))
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (none struct{}, err error) {
		var level, index int64
		var hashes []byte
		err = row.Scan(&level, &index, &hashes)
		tiles[TileID{uint8(level), uint64(index)}] = hashes
		return none, err
	})
	if err != nil {
		return nil, fmt.Errorf("read tiles: %w", err)
	}
	return tiles, nil
}

// setAside keeps what must not be indexed, with its reason, so that the rest goes on.
func setAside(ctx context.Context, tx pgx.Tx, log uuid.UUID, rejected []RejectedLeaf) error {
	if len(rejected) == 0 {
		return nil
	}
	rows := make([][]any, len(rejected))
	for i, r := range rejected {
		rows[i] = []any{log, r.TenantID, r.AttemptID, r.Hash, r.Bytes, r.Secrets, r.Reason, r.Erased}
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"attestation_dead_letters"},
		[]string{"log_id", "tenant_id", "attempt_id", "leaf_hash", "leaf", "secrets", "reason", "erased"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("set leaves aside: %w", err)
	}
	return nil
}

// insertLeavesSQL: who recorded a leaf after its payload was erased queued it without secrets.
const insertLeavesSQL = `
insert into merkle_leaves (log_id, leaf_index, tenant_id, attempt_id, leaf_hash, leaf, secrets)
select $1, u.leaf_index, u.tenant_id, u.attempt_id, u.leaf_hash, u.leaf, nullif(u.secrets, ''::bytea)
from unnest($2::bigint[], $3::uuid[], $4::uuid[], $5::bytea[], $6::bytea[], $7::bytea[])
    as u(leaf_index, tenant_id, attempt_id, leaf_hash, leaf, secrets)`

const insertLeavesOfAttemptsSQL = `
insert into leaf_of_attempt (log_id, attempt_id, tenant_id, leaf_index)
select $1, * from unnest($2::uuid[], $3::uuid[], $4::bigint[])`

const upsertTilesSQL = `
insert into merkle_tiles (log_id, level, tile_index, hashes)
select $1, * from unnest($2::smallint[], $3::bigint[], $4::bytea[])
on conflict (log_id, level, tile_index) do update set hashes = excluded.hashes`

// writeGrowth writes leaves, tiles, the new root, and last the head, which is compared and set.
func writeGrowth(ctx context.Context, tx pgx.Tx, log uuid.UUID, oldSize uint64, g Growth) error {
	if g.TreeSize != oldSize+uint64(len(g.Accepted)) {
		return fmt.Errorf("tree of %d and %d leaves would have size %d", oldSize, len(g.Accepted), g.TreeSize)
	}
	n := len(g.Accepted)
	tenants, attempts, indexes := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]int64, n)
	leafHashes, leaves, secrets := make([][]byte, n), make([][]byte, n), make([][]byte, n)
	for i, l := range g.Accepted {
		tenants[i], attempts[i], indexes[i] = l.TenantID, l.AttemptID, int64(oldSize)+int64(i)
		leafHashes[i] = l.Hash
		if !l.Erased {
			leaves[i], secrets[i] = l.Bytes, l.Secrets
		}
	}
	var levels []int16
	var tileIndexes []int64
	var tiles [][]byte
	for _, t := range g.Tiles {
		levels, tileIndexes, tiles = append(levels, int16(t.Level)), append(tileIndexes, int64(t.Index)), append(tiles, t.Hashes)
	}
	batch := &pgx.Batch{}
	batch.Queue(insertLeavesSQL, log, indexes, tenants, attempts, leafHashes, leaves, secrets)
	batch.Queue(insertLeavesOfAttemptsSQL, log, attempts, tenants, indexes)
	batch.Queue(upsertTilesSQL, log, levels, tileIndexes, tiles)
	batch.Queue("insert into tree_roots (log_id, tree_size, root_hash) values ($1, $2, $3)", log, int64(g.TreeSize), g.RootHash)
	batch.Queue("update log_heads set tree_size = $3, root_hash = $4 where log_id = $1 and tree_size = $2",
		log, int64(oldSize), int64(g.TreeSize), g.RootHash).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() != 1 {
			return errors.New("the head has moved under its lock")
		}
		return nil
	})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write leaves and head: %w", err)
	}
	return nil
}
