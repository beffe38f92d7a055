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

// LogClosure is a row of log_closures: a log that ends before what it has published, and the one that goes on.
type LogClosure struct {
	Log       uuid.UUID
	Successor uuid.UUID
	TreeSize  int64 // with which it ends
	// The head that may have been published last, as the high-water record had it.
	PublishedSize      int64
	PublishedRoot      []byte
	PublishedTimestamp int64
	ClosedAt           time.Time
}

// LogCloser is a log under its lock that is to be closed, or was.
type LogCloser struct {
	Tx       pgx.Tx
	log      uuid.UUID
	TreeSize uint64
	Closed   *LogClosure // nil: the log is open
	Workers  int         // that are running
}

// CloseLog runs f in one transaction under the lock of the log's head, as role kapsel_owner: what is being sequenced is
// committed before, and nothing comes after. A crash anywhere leaves the log as it was.
func CloseLog(ctx context.Context, owner *pgxpool.Pool, log uuid.UUID, f func(*LogCloser) error) error {
	return pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error {
		if err := lockHead(ctx, tx, log); err != nil {
			return err
		}
		c := &LogCloser{Tx: tx, log: log}
		var size int64
		err := tx.QueryRow(ctx, `select h.tree_size, (select count(*) from workers w where w.alive_until > now())
			from log_heads h where h.log_id = $1`, log).Scan(&size, &c.Workers)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		c.TreeSize = uint64(size)
		if c.Closed, err = ClosureOf(ctx, tx, log); err != nil {
			return err
		}
		return f(c)
	})
}

// ClosureOf reads how a log was closed; nil if it wasn't.
func ClosureOf(ctx context.Context, db querier, log uuid.UUID) (*LogClosure, error) {
	rows, err := db.Query(ctx, `select log_id, successor, tree_size, published_size, published_root, published_timestamp, closed_at
		from log_closures where log_id = $1`, log)
	if err != nil {
		return nil, fmt.Errorf("read closure: %w", err)
	}
	closure, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByPos[LogClosure])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read closure: %w", err)
	}
	return closure, nil
}

// Successor is the open log that goes on for the closed one.
func (c *LogCloser) Successor(ctx context.Context) (successor uuid.UUID, err error) {
	if err = c.Tx.QueryRow(ctx, "select open_log($1)", c.log).Scan(&successor); err != nil {
		return successor, fmt.Errorf("find successor: %w", err)
	}
	return successor, nil
}

// MovedBefore reads the new hashes of leaves that were moved before, by their old ones.
func (c *LogCloser) MovedBefore(ctx context.Context) (map[[32]byte][]byte, error) {
	rows, err := c.Tx.Query(ctx, "select old_leaf_hash, leaf_hash from moved_leaves where log_id = $1", c.log)
	if err != nil {
		return nil, fmt.Errorf("read moved leaves: %w", err)
	}
	moved := map[[32]byte][]byte{}
	var before, after []byte
	_, err = pgx.ForEachRow(rows, []any{&before, &after}, func() error {
		moved[[32]byte(before)], after = after, nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read moved leaves: %w", err)
	}
	return moved, nil
}

// Close ends the log in favour of its successor, which was written before, and gives that to the tenants.
func (c *LogCloser) Close(ctx context.Context, successor uuid.UUID, published Head) error {
	batch := &pgx.Batch{}
	batch.Queue(`insert into log_closures (log_id, successor, tree_size, published_size, published_root, published_timestamp)
		values ($1, $2, $3, $4, $5, $6)`, c.log, successor, int64(c.TreeSize), int64(published.TreeSize), published.RootHash, published.Timestamp)
	batch.Queue("update logs set closed_at = now(), successor = $2 where id = $1", c.log, successor)
	batch.Queue("update tenants set log_id = $2 where log_id = $1", c.log, successor)
	if err := c.Tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// Waiting reads up to limit leaves that wait for the log, in the order in which they were queued.
func (c *LogCloser) Waiting(ctx context.Context, after int64, limit int) ([]QueuedLeaf, error) {
	rows, err := c.Tx.Query(ctx, `select id, tenant_id, attempt_id, leaf_hash, leaf, secrets, erased from leaf_queue
		where log_id = $1 and id > $2 order by id limit $3 for update`, c.log, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, scanQueued)
	if err != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	return leaves, nil
}

// MovedLeaf is a waiting leaf as its log's successor takes it. One that couldn't be made anew has its old hash.
type MovedLeaf struct {
	QueuedLeaf           // as it waited
	Delivery   uuid.UUID // uuid.Nil: it isn't one of a delivery's
	NewHash    []byte
	NewBytes   []byte
}

const (
	requeueLeavesSQL = `
insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, erased)
select $1, u.tenant_id, u.attempt_id, u.leaf_hash, u.leaf, u.secrets, u.erased
from unnest($2::uuid[], $3::uuid[], $4::bytea[], $5::bytea[], $6::bytea[], $7::boolean[]) with ordinality
    as u(tenant_id, attempt_id, leaf_hash, leaf, secrets, erased, place)
order by u.place`

	noteMovedSQL = `
insert into moved_leaves (attempt_id, log_id, new_log_id, tenant_id, old_leaf_hash, leaf_hash)
select u.attempt_id, $1, $2, u.tenant_id, u.old_hash, u.new_hash
from unnest($3::uuid[], $4::uuid[], $5::bytea[], $6::bytea[]) as u(attempt_id, tenant_id, old_hash, new_hash)
where u.old_hash <> u.new_hash
on conflict do nothing`

	// A chain goes on from the leaf that is there now. That of a delivery that is over doesn't, and its row is a record.
	moveChainsSQL = `
update deliveries d set last_leaf_hash = u.new_hash
from unnest($1::uuid[], $2::bytea[], $3::bytea[]) as u(id, old_hash, new_hash)
where d.id = u.id and d.id = any($1) and d.state = 'pending' and d.last_leaf_hash = u.old_hash`
)

// Move takes leaves out of the log's queue and into its successor's.
func (c *LogCloser) Move(ctx context.Context, successor uuid.UUID, leaves []MovedLeaf) error {
	n := len(leaves)
	ids, tenants, attempts, deliveries := make([]int64, n), make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	oldHashes, newHashes, newBytes, secrets := make([][]byte, n), make([][]byte, n), make([][]byte, n), make([][]byte, n)
	erased := make([]bool, n)
	for i, l := range leaves {
		ids[i], tenants[i], attempts[i], deliveries[i] = l.ID, l.TenantID, l.AttemptID, l.Delivery
		oldHashes[i], newHashes[i], newBytes[i], secrets[i] = l.Hash, l.NewHash, l.NewBytes, l.Secrets
		erased[i] = l.Erased
	}
	batch := &pgx.Batch{}
	batch.Queue("delete from leaf_queue where log_id = $1 and id = any($2)", c.log, ids)
	batch.Queue(requeueLeavesSQL, successor, tenants, attempts, newHashes, newBytes, secrets, erased)
	batch.Queue(noteMovedSQL, c.log, successor, attempts, tenants, oldHashes, newHashes)
	batch.Queue(moveChainsSQL, deliveries, oldHashes, newHashes)
	if err := c.Tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("move leaves: %w", err)
	}
	return nil
}
