package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Cadence says when a head is signed.
type Cadence struct {
	Leaves   int           // as soon as so many leaves wait for a head
	Wait     time.Duration // or the oldest of them has waited so long
	Idle     time.Duration // or the last head is so old, though nothing is new
	AtLeast  time.Duration // the least time between two heads
	GiveUp   time.Duration // a head that couldn't be signed for so long is replaced, and never signed
	MaxAhead time.Duration // how far Postgres's clock may be ahead of this machine's
}

// DefaultCadence is the cadence that docs/architecture.md describes.
var DefaultCadence = Cadence{
	Leaves: 100, Wait: 10 * time.Second, Idle: 10 * time.Minute,
	AtLeast: time.Second, GiveUp: 5 * time.Second, MaxAhead: time.Minute,
}

// Head is a tree head that was committed and may be signed.
type Head struct {
	TreeSize  uint64
	Timestamp int64 // Unix ms
	RootHash  []byte
}

// ErrClock means that Postgres's clock can't be trusted to date a head.
var ErrClock = errors.New("clock is wrong")

// ErrKeyChanged means that the key which was to sign isn't the log's any more: nothing may be signed with it alone.
var ErrKeyChanged = errors.New("the log's key was changed")

// headStateSQL is read in a statement of its own once the head is locked: the snapshot of a statement that waits for the
// lock is from before the wait, and wouldn't show a head that was committed meanwhile.
const headStateSQL = `
select h.tree_size, h.root_hash, (extract(epoch from clock_timestamp()) * 1000)::bigint,
    coalesce(n.tree_size, -1), coalesce(n."timestamp", 0), coalesce(n.root_hash, ''), n.signature is not null,
    coalesce(p.tree_size, -1), coalesce(p."timestamp", 0),
    coalesce((extract(epoch from clock_timestamp() - (
        select r.sequenced_at from tree_roots r
        where r.log_id = h.log_id and r.tree_size > coalesce(p.tree_size, -1) order by r.tree_size limit 1))) * 1000, 0)::bigint,
    coalesce((select k.key_id from attestation_keys k where k.log_id = h.log_id and k.purpose = 'log' and k.not_after is null), ''),
    coalesce(n.key_id, ''), (select l.closed_at is not null from logs l where l.id = h.log_id)
from log_heads h
left join lateral (select * from signed_tree_heads s where s.log_id = h.log_id order by s."timestamp" desc limit 1) n on true
left join lateral (select * from signed_tree_heads s where s.log_id = h.log_id and s.signature is not null
    order by s."timestamp" desc limit 1) p on true
where h.log_id = $1`

// headState is what decides whether a head is due. Sizes are -1 where there is no such head.
type headState struct {
	size, now          int64
	root               []byte
	newest             Head
	newestSize         int64
	newestSigned       bool
	publishedSize      int64
	publishedTimestamp int64
	waitedMS           int64
	key, newestKey     []byte // IDs of the log's present key, and of the one that is to sign the newest head
	closed             bool
}

// NextHead returns the head that is to be signed now, or nil if none is due; force makes one due if any leaf waits.
// The head is committed, unsigned, before it is returned: what was signed is in the database, whatever happens then.
// A head that is still unsigned is returned again, so that signing is repeated with the same bytes, until it is given
// up and replaced by one with a later time. The error wraps ErrKeyChanged if key isn't the log's.
func NextHead(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, key [32]byte, cadence Cadence, force bool) (*Head, error) {
	var head *Head
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		s, err := readHeadState(ctx, tx, log)
		if err != nil {
			return err
		}
		if s.closed {
			return ErrLogClosed
		}
		if !bytes.Equal(s.key, key[:]) {
			return ErrKeyChanged
		}
		// A head that was left unsigned under an earlier key is never signed: it is below the change of the key.
		// Neither is one below what is published, prepared while the log lacked leaves that were recovered since.
		if s.newestSize >= max(s.publishedSize, 0) && !s.newestSigned && bytes.Equal(s.newestKey, key[:]) &&
			s.now-s.newest.Timestamp < cadence.GiveUp.Milliseconds() {
			head = &s.newest
			return nil
		}
		if !s.due(cadence, force) {
			return nil
		}
		if ahead := time.Until(time.UnixMilli(s.now)); ahead > cadence.MaxAhead {
			return fmt.Errorf("%w: Postgres is %s ahead of this machine", ErrClock, ahead.Round(time.Second))
		}
		if s.now <= s.newest.Timestamp {
			return nil // a clock that was set back: wait until time has caught up
		}
		head = &Head{TreeSize: uint64(s.size), Timestamp: s.now, RootHash: s.root}
		_, err = tx.Exec(ctx, `insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id) values ($1, $2, $3, $4, $5)`,
			log, s.size, s.now, s.root, key[:])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prepare head: %w", err)
	}
	return head, nil
}

func readHeadState(ctx context.Context, tx pgx.Tx, log uuid.UUID) (headState, error) {
	var s headState
	if err := lockHead(ctx, tx, log); err != nil {
		return s, err
	}
	err := tx.QueryRow(ctx, headStateSQL, log).Scan(&s.size, &s.root, &s.now, &s.newestSize, &s.newest.Timestamp, &s.newest.RootHash,
		&s.newestSigned, &s.publishedSize, &s.publishedTimestamp, &s.waitedMS, &s.key, &s.newestKey, &s.closed)
	s.newest.TreeSize = uint64(max(s.newestSize, 0))
	return s, err
}

// lockHead waits for the log's lock, which ends with the transaction.
func lockHead(ctx context.Context, tx pgx.Tx, log uuid.UUID) error {
	tag, err := tx.Exec(ctx, "select from log_heads where log_id = $1 for update", log)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrNoLog
	}
	return err
}

func (s *headState) due(c Cadence, force bool) bool {
	since := s.now - s.publishedTimestamp
	switch waiting := s.size - s.publishedSize; {
	case s.publishedSize < 0: // also the empty tree has a head
		return true
	case waiting > 0 && force:
		return true
	case since < c.AtLeast.Milliseconds():
		return false
	case waiting >= int64(c.Leaves), waiting > 0 && s.waitedMS >= c.Wait.Milliseconds():
		return true
	default:
		return since >= c.Idle.Milliseconds()
	}
}

// StoreSignatures makes a head visible: both signatures come in one update. It reports false, and stores nothing, if the
// head was signed before, which with Ed25519 was with the same bytes, if it was given up and a later one took its place, or
// if the key that it was prepared for isn't the log's any more.
func StoreSignatures(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, head Head, signature, checkpoint []byte) (stored bool, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := lockHead(ctx, tx, log); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `update signed_tree_heads set signature = $4, checkpoint = $5
			where log_id = $1 and tree_size = $2 and "timestamp" = $3 and signature is null
			  and not exists (select from signed_tree_heads later where later.log_id = $1 and later."timestamp" > $3)
			  and exists (select from attestation_keys k
			    where k.log_id = $1 and k.key_id = signed_tree_heads.key_id and k.purpose = 'log' and k.not_after is null)`,
			log, int64(head.TreeSize), head.Timestamp, signature, checkpoint)
		stored = err == nil && tag.RowsAffected() == 1
		return err
	})
	if err != nil {
		return false, fmt.Errorf("store signatures: %w", err)
	}
	return stored, nil
}

// Overtaken reports whether there is a later head than this one: then whoever prepared it has nothing more to do.
func Overtaken(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, head Head) (overtaken bool, err error) {
	err = pool.QueryRow(ctx, `select exists (select from signed_tree_heads where log_id = $1 and "timestamp" > $2)`,
		log, head.Timestamp).Scan(&overtaken)
	if err != nil {
		return false, fmt.Errorf("look for a later head: %w", err)
	}
	return overtaken, nil
}

// RootOf returns the root that the log had at a size; nil if it never had that size.
func RootOf(ctx context.Context, db querier, log uuid.UUID, size uint64) ([]byte, error) {
	rows, err := db.Query(ctx, "select root_hash from tree_roots where log_id = $1 and tree_size = $2", log, int64(size))
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	root, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[[]byte])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	return root, nil
}
