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

// DeadLetter is a row of attestation_dead_letters: a leaf that must not be in the log as it was queued.
type DeadLetter struct {
	ID         int64
	LogID      uuid.UUID
	TenantID   uuid.UUID
	AttemptID  uuid.UUID
	LeafHash   []byte
	Leaf       []byte
	Reason     string
	FailedAt   time.Time
	ResolvedAt *time.Time
	Resolution *string
	ResolvedBy *string
}

// How a dead letter is resolved.
const (
	ResolvedQueued = "queued" // the attempt's recorded leaf was put into the queue
	ResolvedInLog  = "in_log" // the attempt's recorded leaf had its place in the log
)

// ErrNoDeadLetter means that there is no dead letter of that number.
var ErrNoDeadLetter = errors.New("dead letter does not exist")

const deadLetterColumns = `id, log_id, tenant_id, attempt_id, leaf_hash, leaf, reason, failed_at, resolved_at, resolution, resolved_by`

// DeadLetters lists dead letters by their number, those after the given one. A log of uuid.Nil means all logs.
func DeadLetters(ctx context.Context, db querier, log uuid.UUID, resolved bool, after int64, limit int) ([]DeadLetter, error) {
	rows, err := db.Query(ctx, `select `+deadLetterColumns+` from attestation_dead_letters
		where ($1 or log_id = $2) and ($3 or resolved_at is null) and id > $4 order by id limit $5`, log == uuid.Nil, log, resolved, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return letters, nil
}

// ReadDeadLetter reads one dead letter. The error is ErrNoDeadLetter if there is none.
func ReadDeadLetter(ctx context.Context, db querier, number int64) (*DeadLetter, error) {
	rows, err := db.Query(ctx, `select `+deadLetterColumns+` from attestation_dead_letters where id = $1`, number)
	if err != nil {
		return nil, fmt.Errorf("read dead letter %d: %w", number, err)
	}
	letter, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByPos[DeadLetter])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoDeadLetter
	}
	if err != nil {
		return nil, fmt.Errorf("read dead letter %d: %w", number, err)
	}
	return letter, nil
}

// DeadLettersOf lists the open dead letters of attempts.
func DeadLettersOf(ctx context.Context, db querier, attempts []uuid.UUID) ([]DeadLetter, error) {
	rows, err := db.Query(ctx, `select `+deadLetterColumns+` from attestation_dead_letters
		where resolved_at is null and attempt_id = any($1) order by id`, attempts)
	if err != nil {
		return nil, fmt.Errorf("look for dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
	if err != nil {
		return nil, fmt.Errorf("look for dead letters: %w", err)
	}
	return letters, nil
}

// Requeued says what QueueAgain did with a leaf: ResolvedQueued, ResolvedInLog, or neither.
type Requeued string

// Waiting: a leaf with this hash was in the queue already. Contradicted: the attempt has another leaf in the log.
const (
	Waiting      Requeued = "waiting"
	Contradicted Requeued = "contradicted"
)

// QueueAgain puts leaves of one log back into its queue, and resolves the open dead letters of their attempts, also those with the
// given numbers. It does so under the lock of the log's head, so that none is on its way from the queue to its place meanwhile,
// and leaves out what has its place or waits for it: no leaf comes twice. by is who asked for it.
func QueueAgain(ctx context.Context, pool *pgxpool.Pool, log uuid.UUID, leaves []QueuedLeaf, numbers []int64, by string) (map[uuid.UUID]Requeued, error) {
	var done map[uuid.UUID]Requeued
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		done = make(map[uuid.UUID]Requeued, len(leaves))
		if err := lockHead(ctx, tx, log); err != nil {
			return err
		}
		ids, hashes := make([]uuid.UUID, len(leaves)), make([][]byte, len(leaves))
		for i, l := range leaves {
			ids[i], hashes[i] = l.AttemptID, l.Hash
		}
		sequenced, err := SequencedLeaves(ctx, tx, ids)
		if err != nil {
			return err
		}
		waiting, err := waitingLeaves(ctx, tx, log, hashes)
		if err != nil {
			return err
		}
		var queue []QueuedLeaf
		for _, l := range leaves {
			switch place, known := sequenced[l.AttemptID]; {
			case known && string(place.Hash) == string(l.Hash):
				done[l.AttemptID] = ResolvedInLog
			case known:
				done[l.AttemptID] = Contradicted
			case waiting[string(l.Hash)]:
				done[l.AttemptID] = Waiting
			default:
				done[l.AttemptID] = ResolvedQueued
				queue = append(queue, l)
			}
		}
		if err := takeErased(ctx, tx, queue); err != nil {
			return err
		}
		if err := queueLeaves(ctx, tx, log, queue); err != nil {
			return err
		}
		return resolve(ctx, tx, done, numbers, by)
	})
	if err != nil {
		return nil, fmt.Errorf("queue leaves again: %w", err)
	}
	return done, nil
}

// waitingLeaves finds which hashes are in a log's queue. It reads the queue as a whole, which is small unless the log stands still.
func waitingLeaves(ctx context.Context, tx pgx.Tx, log uuid.UUID, hashes [][]byte) (map[string]bool, error) {
	rows, err := tx.Query(ctx, "select leaf_hash from leaf_queue where log_id = $1 and leaf_hash = any($2)", log, hashes)
	if err != nil {
		return nil, fmt.Errorf("look into the queue: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return nil, fmt.Errorf("look into the queue: %w", err)
	}
	waiting := map[string]bool{}
	for _, hash := range found {
		waiting[string(hash)] = true
	}
	return waiting, nil
}

// erasedSubjectsSQL finds, of attempts and of events whose acceptance is attested, those that were erased.
const erasedSubjectsSQL = `
select a.id, e.leaves from attempts a join erasures e on e.event_id = a.event_id where a.id = any($1)
union all select e.event_id, e.leaves from erasures e where e.event_id = any($1)`

// takeErased takes from leaves what was erased since they were made. Whoever erases locks the log's head too, and comes before or
// after this as a whole.
func takeErased(ctx context.Context, tx pgx.Tx, leaves []QueuedLeaf) error {
	ids := make([]uuid.UUID, len(leaves))
	for i, l := range leaves {
		ids[i] = l.AttemptID
	}
	rows, err := tx.Query(ctx, erasedSubjectsSQL, ids)
	if err != nil {
		return fmt.Errorf("look up erasures: %w", err)
	}
	erased := map[uuid.UUID]bool{} // and whether the leaves were
	var subject uuid.UUID
	var bytesToo bool
	if _, err := pgx.ForEachRow(rows, []any{&subject, &bytesToo}, func() error {
		erased[subject] = bytesToo
		return nil
	}); err != nil {
		return fmt.Errorf("look up erasures: %w", err)
	}
	for i, l := range leaves {
		if bytesToo, is := erased[l.AttemptID]; is {
			leaves[i].Secrets, leaves[i].Erased = []byte{}, bytesToo
		}
	}
	return nil
}

func queueLeaves(ctx context.Context, tx pgx.Tx, log uuid.UUID, leaves []QueuedLeaf) error {
	if len(leaves) == 0 {
		return nil
	}
	rows := make([][]any, len(leaves))
	for i, l := range leaves {
		rows[i] = []any{log, l.TenantID, l.AttemptID, l.Hash, l.Bytes, l.Secrets, l.Erased}
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"leaf_queue"},
		[]string{"log_id", "tenant_id", "attempt_id", "leaf_hash", "leaf", "secrets", "erased"}, pgx.CopyFromRows(rows))
	if err != nil {
		return fmt.Errorf("queue leaves: %w", err)
	}
	return nil
}

// resolve closes the dead letters of attempts whose recorded leaf is in the queue or the log.
func resolve(ctx context.Context, tx pgx.Tx, done map[uuid.UUID]Requeued, numbers []int64, by string) error {
	attempts := map[string][]uuid.UUID{}
	for attempt, what := range done {
		switch what {
		case Waiting, ResolvedQueued:
			attempts[ResolvedQueued] = append(attempts[ResolvedQueued], attempt)
		case ResolvedInLog:
			attempts[ResolvedInLog] = append(attempts[ResolvedInLog], attempt)
		}
	}
	for resolution, of := range attempts {
		_, err := tx.Exec(ctx, `update attestation_dead_letters set resolved_at = now(), resolution = $1, resolved_by = $2
			where resolved_at is null and (attempt_id = any($3) or id = any($4))`, resolution, by, of, numbers)
		if err != nil {
			return fmt.Errorf("resolve dead letters: %w", err)
		}
	}
	return nil
}
