package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/id"
)

// ErrNoEvent means that the tenant has no such event.
var ErrNoEvent = errors.New("event does not exist")

// Erased says what was erased of an event, now or before.
type Erased struct {
	EventID  uuid.UUID
	Leaves   bool      // the bytes of its leaves too
	ErasedAt time.Time // for the first time
	// What this call found left: responses of attempts, and leaves with secrets or (if asked for) bytes.
	Responses, LeavesErased int64
}

const (
	erasePayloadSQL = `select erase_payload($1, $2, $3, $4)`

	// eventDeliveriesSQL reads all deliveries of an event, those that repeat others too: their IDs have its millisecond.
	eventDeliveriesSQL = `
select d.id, d.next_attempt from deliveries d where d.event_id = $1 and d.id between $2 and $3`

	eraseLeavesSQL = `
select l.attempts, l.leaves, x.leaves, x.erased_at from erase_leaves($2, $3) l, erasures x where x.event_id = $1`
)

// Erase takes away what an event holds of its webhook: the payload with its salt and secret, the responses of its attempts, and
// the secrets that open their leaves, in the queue, in the log, and set aside. With leaves the leaves' bytes go too, those in
// the queue as soon as they have their place. Hashes stay: see migration 00025. tx is a transaction of InTenant. Done twice it
// erases what was left; the error is ErrNoEvent if the tenant has no such event.
func Erase(ctx context.Context, tx pgx.Tx, event uuid.UUID, leaves bool) (*Erased, error) {
	low, high := sameMillisecond(event)
	var found bool
	if err := tx.QueryRow(ctx, erasePayloadSQL, event, leaves, low, high).Scan(&found); err != nil {
		return nil, fmt.Errorf("erase payload: %w", err)
	}
	if !found {
		return nil, ErrNoEvent
	}
	// Read after the deliveries that aren't over were locked: none has an attempt beyond these.
	rows, err := tx.Query(ctx, eventDeliveriesSQL, event, low, high)
	if err != nil {
		return nil, fmt.Errorf("read deliveries to erase: %w", err)
	}
	subjects := []uuid.UUID{event}
	var delivery uuid.UUID
	var next int
	_, err = pgx.ForEachRow(rows, []any{&delivery, &next}, func() error {
		for n := id.Decision; n <= next; n++ {
			subjects = append(subjects, id.AttemptOf(delivery, n))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read deliveries to erase: %w", err)
	}
	erased := &Erased{EventID: event}
	err = tx.QueryRow(ctx, eraseLeavesSQL, event, subjects, leaves).
		Scan(&erased.Responses, &erased.LeavesErased, &erased.Leaves, &erased.ErasedAt)
	if err != nil {
		return nil, fmt.Errorf("erase leaves: %w", err)
	}
	return erased, nil
}

// sameMillisecond returns the bounds of the IDs that carry the timestamp of u.
func sameMillisecond(u uuid.UUID) (low, high uuid.UUID) {
	high = uuid.Max
	copy(low[:6], u[:6])
	copy(high[:6], u[:6])
	return low, high
}

const tenantOfEventSQL = `select e.tenant_id from events e where e.id = any($1)`

// TenantOfEvent finds whose an event is, as role kapsel_engine. The error is ErrNoEvent if there is no such event.
func TenantOfEvent(ctx context.Context, db querier, event uuid.UUID) (uuid.UUID, error) {
	rows, err := db.Query(ctx, tenantOfEventSQL, []uuid.UUID{event})
	if err != nil {
		return uuid.Nil, fmt.Errorf("look up event: %w", err)
	}
	tenant, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[uuid.UUID])
	if errors.Is(err, pgx.ErrNoRows) {
		return uuid.Nil, ErrNoEvent
	}
	if err != nil {
		return uuid.Nil, fmt.Errorf("look up event: %w", err)
	}
	return tenant, nil
}
