package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Account is all that Postgres and the log in it hold of one delivery, for whoever checks it.
type Account struct {
	ID, EventID, TenantID, EndpointID, DestinationID, LogID uuid.UUID

	Origin       string // of the log
	State        string
	Lane         string // that carried it last; "" if none did
	Epoch        int
	NextAttempt  int
	LostStarts   int
	Leaves       int
	LastLeafHash []byte
	Claim        *uuid.UUID // under which a batch carries it at this moment

	PayloadHash []byte // nil: the event is gone (retention)
	PayloadSize int

	Attempts []AccountAttempt // by number, the decision (number 0) last
	Head     AccountHead      // of the log
	Signed   *AccountHead     // the newest signed one; nil: none yet

	// Successors are the logs that went on for the delivery's one after another, if that was closed.
	Successors []AccountLog
}

// AccountLog is a log in which a delivery's leaves are.
type AccountLog struct {
	ID     uuid.UUID
	Origin string
	Head   AccountHead
	Signed *AccountHead
}

// AccountAttempt is a row of attempts with its leaf, without the response itself.
type AccountAttempt struct {
	Attempt
	RecordedAt time.Time
	Leaf       AccountLeaf
}

// AccountLeaf is where the leaf of an attempt is, and what it is.
type AccountLeaf struct {
	Place  string    // see the constants; "": there is none
	Log    int       // 0: the delivery's; n: its n-th successor
	Index  int64     // in the log
	Owner  uuid.UUID // the attempt that the leaf's row names
	Hash   []byte
	Bytes  []byte // nil: erased
	Reason string // why it was set aside
	// Path leads from a leaf in the log to the root of the signed head that covers it, or else to that of Head. The
	// caller of ReadAccount fills it in.
	Path [][]byte
}

// Places of a leaf.
const (
	LeafInLog   = "log"
	LeafInQueue = "queue"
	LeafAside   = "set aside"
)

// AccountHead is a state of the log.
type AccountHead struct {
	TreeSize  int64
	RootHash  []byte
	Timestamp int64
	Signature []byte // nil: not signed
	PublicKey []byte // that it names
}

// ErrNoDelivery means that the delivery doesn't exist.
var ErrNoDelivery = errors.New("delivery does not exist")

// InSnapshot runs f in one transaction that sees the database as it is now, and can't change it.
func InSnapshot(ctx context.Context, pool *pgxpool.Pool, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, f)
}

const accountSQL = `
select d.id, d.event_id, d.tenant_id, d.endpoint_id, d.destination_id, d.log_id,
    coalesce((select l.origin from logs l where l.id = d.log_id), ''), d.state, coalesce(d.lane, ''), d.epoch, d.next_attempt,
    d.lost_starts, d.leaves, d.last_leaf_hash,
    (select q.claim_id from delivery_queue q where q.delivery_id = d.id and d.lane = 'batch')
from deliveries d
where d.id = any($1)`

// accountAttemptsSQL doesn't only look for the IDs that a delivery's attempts should have: all of them carry its
// millisecond, so a row that shouldn't be there is found too.
const accountAttemptsSQL = `
select a.id, a.number, a.epoch, a.kind, a.outcome, a.error, a.attempted_at, a.duration_ms, a.endpoint_url, a.response_status,
    a.response_size, a.response_truncated, a.leaf_hash, a.recorded_at,
    (select m.leaf_hash from moved_leaves m where m.attempt_id = a.id order by m.moved_at desc limit 1)
from attempts a
where a.id between $2 and $3 and a.delivery_id = $1
order by a.number = 0, a.number, a.id`

const accountEventSQL = `select e.payload_hash, e.body_size from events e where e.id = any($1)`

const accountPlacesSQL = `select attempt_id, leaf_index from leaf_of_attempt where log_id = $1 and attempt_id = any($2)`

const accountLeavesSQL = `
select leaf_index, coalesce(attempt_id, '00000000-0000-0000-0000-000000000000'), leaf_hash, leaf, ''
from merkle_leaves where log_id = $1 and leaf_index = any($2)`

const accountQueueSQL = `
select 0::bigint, attempt_id, leaf_hash, leaf, '' from leaf_queue where log_id = $1 and attempt_id = any($2)`

const accountAsideSQL = `
select 0::bigint, attempt_id, leaf_hash, leaf, reason from attestation_dead_letters
where log_id = $1 and resolved_at is null and attempt_id = any($2)`

// ReadAccount reads what there is of a delivery. Give it a snapshot, or what is being recorded meanwhile looks wrong.
func ReadAccount(ctx context.Context, tx pgx.Tx, delivery uuid.UUID) (*Account, error) {
	a, err := readAccountDelivery(ctx, tx, delivery)
	if err != nil {
		return nil, err
	}
	for _, read := range []func(context.Context, pgx.Tx) error{a.readSuccessors, a.readAttempts, a.readEvent, a.readLeaves, a.readHeads} {
		if err := read(ctx, tx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func readAccountDelivery(ctx context.Context, tx pgx.Tx, delivery uuid.UUID) (*Account, error) {
	a := &Account{}
	err := tx.QueryRow(ctx, accountSQL, []uuid.UUID{delivery}).Scan(&a.ID, &a.EventID, &a.TenantID, &a.EndpointID, &a.DestinationID,
		&a.LogID, &a.Origin, &a.State, &a.Lane, &a.Epoch, &a.NextAttempt, &a.LostStarts, &a.Leaves, &a.LastLeafHash, &a.Claim)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoDelivery
	}
	if err != nil {
		return nil, fmt.Errorf("read delivery: %w", err)
	}
	return a, nil
}

// accountSuccessorsSQL follows a closed log to the one that goes on.
const accountSuccessorsSQL = `
with recursive chain (id, place) as (
    select l.successor, 1 from logs l where l.id = $1 and l.successor is not null
    union all
    select l.successor, c.place + 1 from chain c join logs l on l.id = c.id where l.successor is not null
)
select l.id, l.origin from chain c join logs l on l.id = c.id order by c.place`

func (a *Account) readSuccessors(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, accountSuccessorsSQL, a.LogID)
	if err != nil {
		return fmt.Errorf("read successors of the log: %w", err)
	}
	a.Successors, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l AccountLog, err error) {
		err = row.Scan(&l.ID, &l.Origin)
		return l, err
	})
	if err != nil {
		return fmt.Errorf("read successors of the log: %w", err)
	}
	return nil
}

func (a *Account) readAttempts(ctx context.Context, tx pgx.Tx) error {
	low, high := uuid.UUID{}, uuid.Max
	copy(low[:6], a.ID[:6])
	copy(high[:6], a.ID[:6])
	rows, err := tx.Query(ctx, accountAttemptsSQL, a.ID, low, high)
	if err != nil {
		return fmt.Errorf("read attempts: %w", err)
	}
	a.Attempts, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t AccountAttempt, err error) {
		var ms int64
		var moved []byte
		err = row.Scan(&t.ID, &t.Number, &t.Epoch, &t.Kind, &t.Outcome, &t.Error, &t.AttemptedAt, &ms, &t.EndpointURL, &t.ResponseStatus,
			&t.ResponseSize, &t.ResponseTruncated, &t.LeafHash, &t.RecordedAt, &moved)
		if moved != nil { // its log was closed while the leaf waited, so it was made anew
			if bytes.Equal(a.LastLeafHash, t.LeafHash) {
				a.LastLeafHash = moved
			}
			t.LeafHash = moved
		}
		t.Duration = time.Duration(ms) * time.Millisecond
		return t, err
	})
	if err != nil {
		return fmt.Errorf("read attempts: %w", err)
	}
	return nil
}

func (a *Account) readEvent(ctx context.Context, tx pgx.Tx) error {
	err := tx.QueryRow(ctx, accountEventSQL, []uuid.UUID{a.EventID}).Scan(&a.PayloadHash, &a.PayloadSize)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read event: %w", err)
	}
	return nil
}

// readLeaves finds the leaf of each attempt: in the log, else on its way there, else set aside.
func (a *Account) readLeaves(ctx context.Context, tx pgx.Tx) error {
	var missing []uuid.UUID
	for _, t := range a.Attempts {
		missing = append(missing, t.ID)
	}
	if len(missing) == 0 {
		return nil
	}
	for _, place := range []string{LeafInLog, LeafInQueue, LeafAside} {
		for n := range len(a.Successors) + 1 {
			if err := a.readLeavesOf(ctx, tx, n, place, missing); err != nil {
				return err
			}
		}
	}
	return nil
}

// readLeavesOf finds leaves in one place of one of the delivery's logs.
func (a *Account) readLeavesOf(ctx context.Context, tx pgx.Tx, n int, place string, attempts []uuid.UUID) error {
	log := a.Log(n).ID
	sql, keys := map[string]string{LeafInLog: accountLeavesSQL, LeafInQueue: accountQueueSQL, LeafAside: accountAsideSQL}[place], any(attempts)
	var places map[int64]uuid.UUID
	if place == LeafInLog {
		var err error
		if keys, places, err = readLeafPlaces(ctx, tx, log, attempts); err != nil {
			return err
		}
	}
	rows, err := tx.Query(ctx, sql, log, keys)
	if err != nil {
		return fmt.Errorf("read leaves: %w", err)
	}
	var leaf AccountLeaf
	_, err = pgx.ForEachRow(rows, []any{&leaf.Index, &leaf.Owner, &leaf.Hash, &leaf.Bytes, &leaf.Reason}, func() error {
		attempt := leaf.Owner
		if place == LeafInLog {
			attempt = places[leaf.Index] // whether the row there says the same is for the caller to judge
		}
		leaf.Log = n
		a.setLeaf(attempt, place, leaf)
		leaf = AccountLeaf{}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read leaves: %w", err)
	}
	return nil
}

// Log returns the delivery's own log, 0, or its n-th successor.
func (a *Account) Log(n int) AccountLog {
	if n > 0 {
		return a.Successors[n-1]
	}
	return AccountLog{ID: a.LogID, Origin: a.Origin, Head: a.Head, Signed: a.Signed}
}

func (a *Account) setLeaf(attempt uuid.UUID, place string, leaf AccountLeaf) {
	i := slices.IndexFunc(a.Attempts, func(t AccountAttempt) bool { return t.ID == attempt })
	if i >= 0 && a.Attempts[i].Leaf.Place == "" {
		leaf.Place = place
		a.Attempts[i].Leaf = leaf
	}
}

func readLeafPlaces(ctx context.Context, tx pgx.Tx, log uuid.UUID, attempts []uuid.UUID) ([]int64, map[int64]uuid.UUID, error) {
	rows, err := tx.Query(ctx, accountPlacesSQL, log, attempts)
	if err != nil {
		return nil, nil, fmt.Errorf("find leaves: %w", err)
	}
	indexes, places := []int64{}, map[int64]uuid.UUID{}
	var attempt uuid.UUID
	var index int64
	_, err = pgx.ForEachRow(rows, []any{&attempt, &index}, func() error {
		indexes, places[index] = append(indexes, index), attempt
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("find leaves: %w", err)
	}
	return indexes, places, nil
}

func (a *Account) readHeads(ctx context.Context, tx pgx.Tx) error {
	own := a.Log(0)
	if err := own.readHeads(ctx, tx); err != nil {
		return err
	}
	a.Head, a.Signed = own.Head, own.Signed
	for i := range a.Successors {
		if err := a.Successors[i].readHeads(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

func (l *AccountLog) readHeads(ctx context.Context, tx pgx.Tx) error {
	err := tx.QueryRow(ctx, "select tree_size, root_hash from log_heads where log_id = $1", l.ID).Scan(&l.Head.TreeSize, &l.Head.RootHash)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNoLog
	}
	if err != nil {
		return fmt.Errorf("read head: %w", err)
	}
	var signed AccountHead
	err = tx.QueryRow(ctx, `select s.tree_size, s.root_hash, s."timestamp", s.signature,
			(select k.public_key from attestation_keys k where k.log_id = s.log_id and k.key_id = s.key_id)
		from signed_tree_heads s where s.log_id = $1 and s.signature is not null order by s.tree_size desc, s."timestamp" desc limit 1`, l.ID).
		Scan(&signed.TreeSize, &signed.RootHash, &signed.Timestamp, &signed.Signature, &signed.PublicKey)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read signed head: %w", err)
	}
	l.Signed = &signed
	return nil
}

// Covering returns the head of the leaf's log against which its inclusion is to be proved: the signed one if it covers it.
func (a *Account) Covering(leaf *AccountLeaf) *AccountHead {
	log := a.Log(leaf.Log)
	if log.Signed != nil && leaf.Index < log.Signed.TreeSize {
		return log.Signed
	}
	return &log.Head
}
