package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// What reads a whole log, in ranges of its primary keys, for those who check, copy or rebuild it. None of it takes a lock.

// LogRow is a row of logs.
type LogRow struct {
	ID     uuid.UUID
	Origin string
}

// Logs lists all logs, also closed ones, oldest first.
func Logs(ctx context.Context, db querier) ([]LogRow, error) {
	rows, err := db.Query(ctx, "select id, origin from logs order by id")
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	logs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LogRow])
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	return logs, nil
}

// TenantExists reports whether there is a tenant, also if it was deleted.
func TenantExists(ctx context.Context, db querier, tenant uuid.UUID) (bool, error) {
	rows, err := db.Query(ctx, "select exists (select from tenants where id = $1)", tenant)
	if err != nil {
		return false, fmt.Errorf("look up tenant: %w", err)
	}
	exists, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
	if err != nil {
		return false, fmt.Errorf("look up tenant: %w", err)
	}
	return exists, nil
}

// LogKey is a row of attestation_keys with purpose "log".
type LogKey struct {
	KeyID     []byte
	PublicKey []byte
	NotBefore time.Time
	NotAfter  *time.Time
}

// LogKeys lists the keys that sign or have signed a log's heads, oldest first.
func LogKeys(ctx context.Context, db querier, log uuid.UUID) ([]LogKey, error) {
	rows, err := db.Query(ctx, `select key_id, public_key, not_before, not_after from attestation_keys
		where log_id = $1 and purpose = 'log' order by not_before, key_id`, log)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LogKey])
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return keys, nil
}

// PublishedHead is a head with both signatures.
type PublishedHead struct {
	Head
	KeyID      []byte
	Signature  []byte
	Checkpoint []byte
}

const publishedColumns = `tree_size, "timestamp", root_hash, key_id, signature, checkpoint`

func scanPublished(row pgx.CollectableRow) (h PublishedHead, err error) {
	var size int64
	err = row.Scan(&size, &h.Timestamp, &h.RootHash, &h.KeyID, &h.Signature, &h.Checkpoint)
	h.TreeSize = uint64(size)
	return h, err
}

// NewestPublished returns the newest published head of at most so many leaves, nil if there is none.
func NewestPublished(ctx context.Context, db querier, log uuid.UUID, atMost uint64) (*PublishedHead, error) {
	rows, err := db.Query(ctx, "select "+publishedColumns+` from signed_tree_heads
		where log_id = $1 and tree_size <= $2 and signature is not null
		order by tree_size desc, "timestamp" desc limit 1`, log, int64(min(atMost, math.MaxInt64)))
	if err != nil {
		return nil, fmt.Errorf("read newest head: %w", err)
	}
	head, err := pgx.CollectExactlyOneRow(rows, scanPublished)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read newest head: %w", err)
	}
	return &head, nil
}

// PublishedHeads returns up to limit published heads that come after (size, timestamp), in that order, and have at most
// upTo leaves. Size -1 is before all.
func PublishedHeads(ctx context.Context, db querier, log uuid.UUID, size, timestamp int64, upTo uint64, limit int) ([]PublishedHead, error) {
	rows, err := db.Query(ctx, "select "+publishedColumns+` from signed_tree_heads
		where log_id = $1 and (tree_size, "timestamp") > ($2, $3) and tree_size <= $4 and signature is not null
		order by tree_size, "timestamp" limit $5`, log, size, timestamp, int64(upTo), limit)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	heads, err := pgx.CollectRows(rows, scanPublished)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	return heads, nil
}

// SizedRoot is a row of tree_roots.
type SizedRoot struct {
	TreeSize int64
	RootHash []byte
}

// Roots returns up to limit roots of sizes above after and up to upTo, smallest first.
func Roots(ctx context.Context, db querier, log uuid.UUID, after int64, upTo uint64, limit int) ([]SizedRoot, error) {
	rows, err := db.Query(ctx, `select tree_size, root_hash from tree_roots
		where log_id = $1 and tree_size > $2 and tree_size <= $3 order by tree_size limit $4`, log, after, int64(upTo), limit)
	if err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	roots, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SizedRoot])
	if err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	return roots, nil
}

// StoredLeaf is a row of merkle_leaves. Bytes and Secrets are nil once erased; a key transition has no attempt.
type StoredLeaf struct {
	Index     int64
	TenantID  *uuid.UUID
	AttemptID *uuid.UUID
	Hash      []byte
	Bytes     []byte
	Secrets   []byte
	// AttemptIndex is where leaf_of_attempt leads for the attempt; nil if it has no row.
	AttemptIndex *int64
}

// Leaves returns the leaves with indexes in [from, to), in order, as far as they are there. With row-level security they
// are those of one tenant.
func Leaves(ctx context.Context, db querier, log uuid.UUID, from, to uint64) ([]StoredLeaf, error) {
	rows, err := db.Query(ctx, `select m.leaf_index, m.tenant_id, m.attempt_id, m.leaf_hash, m.leaf, m.secrets, a.leaf_index
		from merkle_leaves m left join leaf_of_attempt a on a.attempt_id = m.attempt_id and a.log_id = m.log_id
		where m.log_id = $1 and m.leaf_index >= $2 and m.leaf_index < $3 order by m.leaf_index`, log, int64(from), int64(to))
	if err != nil {
		return nil, fmt.Errorf("read leaves: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, pgx.RowToStructByPos[StoredLeaf])
	if err != nil {
		return nil, fmt.Errorf("read leaves: %w", err)
	}
	return leaves, nil
}

// LeavesEnd is one more than the highest index of a leaf.
func LeavesEnd(ctx context.Context, db querier, log uuid.UUID) (uint64, error) {
	rows, err := db.Query(ctx, "select leaf_index from merkle_leaves where log_id = $1 order by leaf_index desc limit 1", log)
	if err != nil {
		return 0, fmt.Errorf("find last leaf: %w", err)
	}
	last, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find last leaf: %w", err)
	}
	return uint64(last) + 1, nil
}

// LogEdge is the newest state of a log and what lies beyond it, all of one moment.
type LogEdge struct {
	TreeSize uint64
	RootHash []byte
	// Root is that of TreeSize in tree_roots; nil if there is none.
	Root []byte
	// Widths are the hashes in each tile that isn't left of the one that TreeSize ends in.
	Widths map[TileID]int
	// The first leaf, root and published head beyond TreeSize; -1 if there is none.
	LeafBeyond, RootBeyond, HeadBeyond int64
}

const logEdgeSQL = `
select h.tree_size, h.root_hash,
    (select r.root_hash from tree_roots r where r.log_id = h.log_id and r.tree_size = h.tree_size),
    coalesce((select m.leaf_index from merkle_leaves m where m.log_id = h.log_id and m.leaf_index >= h.tree_size order by m.leaf_index limit 1), -1),
    coalesce((select r.tree_size from tree_roots r where r.log_id = h.log_id and r.tree_size > h.tree_size order by r.tree_size limit 1), -1),
    coalesce((select s.tree_size from signed_tree_heads s where s.log_id = h.log_id and s.tree_size > h.tree_size
        and s.signature is not null order by s.tree_size limit 1), -1),
    (select coalesce(array_agg(t.level order by t.level, t.tile_index), '{}') from edge t),
    (select coalesce(array_agg(t.tile_index order by t.level, t.tile_index), '{}') from edge t),
    (select coalesce(array_agg(t.width order by t.level, t.tile_index), '{}') from edge t)
from log_heads h where h.log_id = $1`

// The edge of each level is looked for by the primary key: the level's tiles from the one that the tree's size ends in.
const edgeTilesSQL = `
with edge as materialized (
    select t.level, t.tile_index, octet_length(t.hashes) / 32 as width
    from log_heads h
    cross join generate_series(0, 7) as l(level)
    cross join lateral (
        select t.level, t.tile_index, t.hashes from merkle_tiles t
        where t.log_id = h.log_id and t.level = l.level and t.tile_index >= h.tree_size >> least(8 * (l.level + 1), 63)
        order by t.tile_index limit 2
    ) t
    where h.log_id = $1
)`

// Edge reads the newest state of a log.
func Edge(ctx context.Context, db querier, log uuid.UUID) (*LogEdge, error) {
	rows, err := db.Query(ctx, edgeTilesSQL+logEdgeSQL, log)
	if err != nil {
		return nil, fmt.Errorf("read the log's edge: %w", err)
	}
	edge, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (e LogEdge, err error) {
		var size int64
		var levels []int16
		var indexes []int64
		var widths []int32
		err = row.Scan(&size, &e.RootHash, &e.Root, &e.LeafBeyond, &e.RootBeyond, &e.HeadBeyond, &levels, &indexes, &widths)
		e.TreeSize, e.Widths = uint64(size), map[TileID]int{}
		for i, level := range levels {
			e.Widths[TileID{Level: uint8(level), Index: uint64(indexes[i])}] = int(widths[i])
		}
		return e, err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoLog
	}
	if err != nil {
		return nil, fmt.Errorf("read the log's edge: %w", err)
	}
	return &edge, nil
}
