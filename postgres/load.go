package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Outgoing is everything that one attempt needs to be sent.
type Outgoing struct {
	Payload
	Destination
}

// Payload is what an attempt needs of its event.
type Payload struct {
	EventID    uuid.UUID
	AcceptedAt time.Time
	Headers    []byte // as webhook.EncodeHeaders wrote them
	Body       []byte
	Commitment
}

// Destination is what all attempts to a destination share.
type Destination struct {
	ID           uuid.UUID
	URL          string
	SecretPath   bool
	Timeout      time.Duration
	Schedule     json.RawMessage
	ExtraHeaders json.RawMessage
	SigningKeys  [][]byte // newest first; empty: not signed
	Held         bool     // paused, disabled or removed: nothing may be sent
}

// ErrMoved means that the delivery isn't (any longer) where the caller thinks: another carrier has it, or it is over.
var ErrMoved = errors.New("delivery has moved on")

// ErrHeld means that nothing may be sent to the destination now: it is paused, disabled or removed.
var ErrHeld = errors.New("destination is held")

// startSQL loads what is needed for attempt $3 of delivery $1, fenced by its epoch $2, and counts the start by $4 (0
// if the claim has counted it): committed before the request is sent, so that a lost one shows.
const startSQL = `
with started as (
    update deliveries d set lost_starts = d.lost_starts + $4
    from destinations t
    where d.id = $1 and d.epoch = $2 and d.next_attempt = $3 and d.state = 'pending' and $4 > 0
      and t.id = d.destination_id and t.paused_at is null and t.disabled_at is null and t.deleted_at is null
    returning d.id
)
select e.id, e.accepted_at, e.body_size, e.payload_hash, p.headers, p.body, p.salt, p.secret, t.id, t.url, t.secret_path, t.timeout_ms, t.schedule, t.headers,
    array(select s.secret from destination_secrets s
          where s.destination_id = t.id and (s.expires_at is null or s.expires_at > now()) order by s.id desc),
    t.paused_at is not null or t.disabled_at is not null or t.deleted_at is not null,
    $4 = 0 or exists (select from started)
from deliveries d
join events e on e.id = d.event_id and e.id between $5 and $6
join event_payloads p on p.event_id = d.event_id and p.event_id between $5 and $6
join destinations t on t.id = d.destination_id
where d.id = $1 and d.epoch = $2 and d.next_attempt = $3 and d.state = 'pending'`

// StartAttempt loads what attempt number attempt of a delivery needs, for the carrier that holds epoch. Unless the
// start was counted already it counts and commits it. ErrMoved and ErrHeld say that nothing may be sent.
func StartAttempt(ctx context.Context, pool *pgxpool.Pool, delivery uuid.UUID, epoch, attempt int, counted bool) (*Outgoing, error) {
	raise := 1
	if counted {
		raise = 0
	}
	var o Outgoing
	var timeoutMS int
	var started bool
	low, high := eventBounds(delivery)
	err := pool.QueryRow(ctx, startSQL, delivery, epoch, attempt, raise, low, high).Scan(&o.EventID, &o.AcceptedAt, &o.PayloadSize, &o.PayloadHash, &o.Headers,
		&o.Body, &o.Salt, &o.Secret, &o.ID, &o.URL, &o.SecretPath, &timeoutMS, &o.Schedule, &o.ExtraHeaders, &o.SigningKeys, &o.Held, &started)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, ErrMoved
	case err != nil:
		return nil, fmt.Errorf("start attempt: %w", err)
	case o.Held:
		return nil, ErrHeld
	case !started:
		return nil, ErrMoved
	}
	o.Timeout = time.Duration(timeoutMS) * time.Millisecond
	return &o, nil
}
