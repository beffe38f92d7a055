package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Recovery is a row of log_recoveries: the leaves [OldSize, NewSize) came back from a mirror.
type Recovery struct {
	OldSize, NewSize int64
	Adopted          int64 // of these, with their bytes
	RecoveredAt      time.Time
}

// Recoveries lists a log's recoveries, oldest first.
func Recoveries(ctx context.Context, db querier, log uuid.UUID) ([]Recovery, error) {
	rows, err := db.Query(ctx, "select old_size, new_size, adopted, recovered_at from log_recoveries where log_id = $1 order by old_size", log)
	if err != nil {
		return nil, fmt.Errorf("list recoveries: %w", err)
	}
	recoveries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Recovery])
	if err != nil {
		return nil, fmt.Errorf("list recoveries: %w", err)
	}
	return recoveries, nil
}

// Recovery writes a recovery, whose new size was written as a root before.
func (w *LogWriter) Recovery(ctx context.Context, r Recovery) error {
	_, err := w.tx.Exec(ctx, "insert into log_recoveries (log_id, old_size, new_size, adopted, recovered_at) values ($1, $2, $3, $4, $5)",
		w.log, r.OldSize, r.NewSize, r.Adopted, r.RecoveredAt)
	if err != nil {
		return fmt.Errorf("write recovery: %w", err)
	}
	return nil
}

// LogGrower is a log under its lock that lacks leaves of its end. What a LogWriter writes goes behind what is there.
type LogGrower struct {
	LogWriter
	TreeSize  uint64
	RootHash  []byte
	PublicKey []byte // the present key
	KeyID     []byte
	// Newest is the newest published head; its time is 0 if there is none.
	Newest Head
	Now    time.Time
}

// GrowLog runs f, which appends what a log lacks, in one transaction under the lock of the log's head, as role kapsel_owner:
// sealers and other recoveries wait, and find either nothing of it or all. A crash anywhere leaves the log as it was.
func GrowLog(ctx context.Context, owner *pgxpool.Pool, log uuid.UUID, f func(*LogGrower) error) error {
	return pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error {
		s, err := readHeadState(ctx, tx, log)
		if err != nil {
			return err
		}
		g := &LogGrower{LogWriter: LogWriter{tx: tx, log: log}, TreeSize: uint64(s.size), RootHash: s.root, KeyID: s.key,
			Newest: Head{TreeSize: uint64(max(s.publishedSize, 0)), Timestamp: s.publishedTimestamp}}
		err = tx.QueryRow(ctx, "select public_key, now() from attestation_keys where log_id = $1 and key_id = $2", log, s.key).Scan(&g.PublicKey, &g.Now)
		if err != nil {
			return fmt.Errorf("read key: %w", err)
		}
		return f(g)
	})
}

// ReadTiles reads stored tiles; one that doesn't exist is left out.
func (g *LogGrower) ReadTiles(ctx context.Context, ids []TileID) (map[TileID][]byte, error) {
	return ReadTiles(ctx, g.tx, g.log, ids)
}

// RootOf reads the root that the log had at a size; nil if it never had that size.
func (g *LogGrower) RootOf(ctx context.Context, size uint64) ([]byte, error) {
	return RootOf(ctx, g.tx, g.log, size)
}

// WaitingLeaf is a leaf that was recorded and isn't in the log: it waits in the queue, or was set aside.
type WaitingLeaf struct {
	QueuedLeaf
	SetAside bool // ID is that of its dead letter
}

// waitingSQL reads the queue as a whole: it is called for many hashes at once. An attempt that has a leaf gets no other.
const waitingSQL = `
select q.set_aside, q.id, q.tenant_id, q.attempt_id, q.leaf_hash, q.leaf, q.secrets
from (
    select false as set_aside, id, tenant_id, attempt_id, leaf_hash, leaf, secrets from leaf_queue
    where log_id = $1 and leaf_hash = any($2)
    union all
    select true, id, tenant_id, attempt_id, leaf_hash, leaf, secrets from attestation_dead_letters
    where log_id = $1 and resolved_at is null and leaf_hash = any($2)
) q
where not exists (select from leaf_of_attempt a where a.attempt_id = q.attempt_id)
order by q.set_aside, q.id`

// Waiting finds the leaves with these hashes that wait.
func (g *LogGrower) Waiting(ctx context.Context, hashes [][]byte) ([]WaitingLeaf, error) {
	rows, err := g.tx.Query(ctx, waitingSQL, g.log, hashes)
	if err != nil {
		return nil, fmt.Errorf("look for waiting leaves: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l WaitingLeaf, err error) {
		err = row.Scan(&l.SetAside, &l.ID, &l.TenantID, &l.AttemptID, &l.Hash, &l.Bytes, &l.Secrets)
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for waiting leaves: %w", err)
	}
	return leaves, nil
}

// Adopted takes leaves that have their place now out of the queue, or closes their dead letters.
func (g *LogGrower) Adopted(ctx context.Context, leaves []WaitingLeaf) error {
	var queued, setAside []int64
	for _, l := range leaves {
		if l.SetAside {
			setAside = append(setAside, l.ID)
		} else {
			queued = append(queued, l.ID)
		}
	}
	if _, err := g.tx.Exec(ctx, "delete from leaf_queue where log_id = $1 and id = any($2)", g.log, queued); err != nil {
		return fmt.Errorf("take leaves: %w", err)
	}
	if len(setAside) == 0 {
		return nil
	}
	if _, err := g.tx.Exec(ctx, "update attestation_dead_letters set resolved_at = now() where id = any($1)", setAside); err != nil {
		return fmt.Errorf("close dead letters: %w", err)
	}
	return nil
}

// Partitions makes the partitions for so many leaves, and for the next ones.
func (w *LogWriter) Partitions(ctx context.Context, leaves uint64) error {
	_, err := w.tx.Exec(ctx, `select ensure_partition('merkle_leaves', lpad(part::text, 9, '0'),
			(part * leaves_per_partition())::text, ((part + 1) * leaves_per_partition())::text, '')
		from generate_series(0, $1 / leaves_per_partition() + 1) part`, int64(leaves))
	if err != nil {
		return fmt.Errorf("make partitions: %w", err)
	}
	return nil
}

// Grown writes new tiles, and those that have grown, whole.
func (g *LogGrower) Grown(ctx context.Context, tiles []Tile) error {
	levels, indexes, hashes := make([]int16, len(tiles)), make([]int64, len(tiles)), make([][]byte, len(tiles))
	for i, t := range tiles {
		levels[i], indexes[i], hashes[i] = int16(t.Level), int64(t.Index), t.Hashes
	}
	if _, err := g.tx.Exec(ctx, upsertTilesSQL, g.log, levels, indexes, hashes); err != nil {
		return fmt.Errorf("write tiles: %w", err)
	}
	return nil
}

// Published writes heads that were published, whose roots were written before. One that was prepared when the backup was made
// gets its signatures.
func (g *LogGrower) Published(ctx context.Context, heads []PublishedHead) error {
	batch := &pgx.Batch{}
	for _, h := range heads {
		batch.Queue(`insert into signed_tree_heads as s (log_id, tree_size, "timestamp", root_hash, key_id, signature, checkpoint)
			values ($1, $2, $3, $4, $5, $6, $7)
			on conflict (log_id, tree_size, "timestamp") do update set signature = excluded.signature, checkpoint = excluded.checkpoint
			where s.signature is null`, g.log, int64(h.TreeSize), h.Timestamp, h.RootHash, h.KeyID, h.Signature, h.Checkpoint)
	}
	if err := g.tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write heads: %w", err)
	}
	return nil
}

// ChangeKey writes a change of the log's key that its leaves contain.
func (g *LogGrower) ChangeKey(ctx context.Context, t KeyTransition, newKey []byte) error {
	tag, err := g.tx.Exec(ctx, "update attestation_keys set not_after = $3 where log_id = $1 and key_id = $2 and not_after is null", g.log, t.OldKeyID, t.ChangedAt)
	if err == nil && tag.RowsAffected() != 1 {
		err = errors.New("the old key isn't the present one")
	}
	if err == nil {
		_, err = g.tx.Exec(ctx, `insert into attestation_keys (log_id, key_id, public_key, purpose, not_before) values ($1, $2, $3, 'log', $4)`,
			g.log, t.NewKeyID, newKey, t.ChangedAt)
	}
	if err != nil {
		return fmt.Errorf("change key: %w", err)
	}
	return g.Transition(ctx, t)
}

// To sets the log's newest size and root, which were written as a root before.
func (g *LogGrower) To(ctx context.Context, root SizedRoot) error {
	tag, err := g.tx.Exec(ctx, "update log_heads set tree_size = $3, root_hash = $4 where log_id = $1 and tree_size = $2",
		g.log, int64(g.TreeSize), root.TreeSize, root.RootHash)
	if err == nil && tag.RowsAffected() != 1 {
		err = errors.New("the head has moved under its lock")
	}
	if err != nil {
		return fmt.Errorf("write newest size: %w", err)
	}
	return nil
}
