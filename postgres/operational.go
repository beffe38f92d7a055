package postgres

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What a tenant is told of its deliveries is written into operational_outbox by the transaction that makes it true, so that
// nothing is told that didn't happen, and nothing that happened is forgotten. The api makes ordinary events of the rows, each in
// the transaction that deletes its row: whoever dies in between, it becomes one event and not two (ADR 23).

// tellDeadSQL writes what a delivery died of; the other two kinds are written by triggers (migrations/00016_operational.sql).
const tellDeadSQL = `
insert into operational_outbox (tenant_id, type, endpoint_id, destination_id, delivery_id, event_id, attempts, reason, last_status, last_error)
select u.tenant_id, 'delivery_dead', u.endpoint_id, u.destination_id, u.delivery_id, u.event_id, u.attempts, u.reason, u.last_status, u.last_error
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::int[], $7::text[], $8::int[], $9::text[])
    as u(tenant_id, endpoint_id, destination_id, delivery_id, event_id, attempts, reason, last_status, last_error)
where is_told(u.tenant_id, u.endpoint_id)`

// queueDead tells of deliveries that are dead now. Where none is, nothing is sent.
func queueDead(batch *pgx.Batch, changes []Change) {
	var tenants, endpoints, destinations, deliveries, events []uuid.UUID
	var attempts, statuses []int
	var reasons, errors []string
	for _, c := range changes {
		d := c.Delivery
		if d.State != "dead" {
			continue
		}
		var last, end Attempt
		for _, a := range c.Attempts {
			if a.Kind == "attempt" {
				last = a
			} else {
				end = a
			}
		}
		tenants, endpoints, destinations = append(tenants, d.TenantID), append(endpoints, d.EndpointID), append(destinations, d.DestinationID)
		deliveries, events, attempts = append(deliveries, d.ID), append(events, d.EventID), append(attempts, d.NextAttempt-1)
		reasons, statuses, errors = append(reasons, end.Outcome), append(statuses, last.ResponseStatus), append(errors, last.Error)
	}
	if len(deliveries) > 0 {
		batch.Queue(tellDeadSQL, tenants, endpoints, destinations, deliveries, events, attempts, reasons, statuses, errors)
	}
}

// Occurrence is something that a tenant is to be told, and the operational endpoint that tells it.
type Occurrence struct {
	id            int64
	Type          string
	At            time.Time
	EndpointID    uuid.UUID // where it happened
	DestinationID uuid.UUID
	DeliveryID    uuid.UUID // Nil unless a delivery is dead
	EventID       uuid.UUID
	Attempts      int
	Reason        string
	FailingSince  *time.Time // nil: not known, or it has succeeded since
	LastStatus    int
	LastError     string
	// Headers are those of the event of a dead delivery; nil: there is none, or it was erased.
	Headers []byte

	TenantID uuid.UUID
	Teller   uuid.UUID // the tenant's operational endpoint; Nil: it has removed it
}

// occurrencesAtOnce is how many rows become events in one transaction, so that none is long, however many deliveries died
// and however many destinations are told.
const occurrencesAtOnce = 100

const (
	// takeOccurrencesSQL takes the oldest rows of each tenant, tenant after tenant, until there are $2. Whoever tells goes on
	// after the tenant where it stopped, so that nobody's flood holds up what another one is to be told.
	takeOccurrencesSQL = `
with recursive waiting as (
    (select o.tenant_id from operational_outbox o where o.tenant_id > $1 order by o.tenant_id limit 1)
    union all
    select (select o.tenant_id from operational_outbox o where o.tenant_id > w.tenant_id order by o.tenant_id limit 1)
    from waiting w where w.tenant_id is not null
)
select o.id, o.tenant_id, o.type, o.occurred_at, o.endpoint_id, o.destination_id,
    coalesce(o.delivery_id, '00000000-0000-0000-0000-000000000000'), coalesce(o.event_id, '00000000-0000-0000-0000-000000000000'),
    coalesce(o.attempts, 0), coalesce(o.reason, ''), o.failing_since, o.last_status, o.last_error
from waiting w
cross join lateral (
    select * from operational_outbox o where o.tenant_id = w.tenant_id order by o.id limit $2 for update skip locked) as o
limit $2`

	toldSQL = `delete from operational_outbox where id = any($1)`

	tellersSQL = `
select e.tenant_id, e.id
from endpoints e
join tenants t on t.id = e.tenant_id
where e.tenant_id = any($1) and e.operational and e.deleted_at is null and t.deleted_at is null`

	headersSQL = `select p.event_id, p.headers from event_payloads p where p.event_id = any($1)`
)

// Told is what one step of telling did.
type Told struct {
	Taken   int       // rows
	Events  int       // fewer than rows if tenants have no operational endpoint any more
	Dropped []string  // the types of what nobody is told any more
	Failed  error     // why one became no event, the first of them: their rows stay, and are taken again in the next round
	Next    uuid.UUID // the tenant after which the next step goes on; Nil: it begins again
}

// TellOccurrences makes events of some of what is to be told, of tenants after the given one, by the code that accepts
// webhooks: all in one transaction. Rows that another process is telling of are left to it; those of which compose can make
// no event stay, and hold up none of the others. What composing costs is up to tenants: after so long it goes no further than
// it is, and the rest stays for the next step.
func TellOccurrences(ctx context.Context, pool *pgxpool.Pool, after uuid.UUID, composeFor time.Duration,
	compose func(*Occurrence) (*Acceptance, error)) (told Told, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		found, err := takeOccurrences(ctx, tx, after)
		if err != nil || len(found) == 0 {
			return err
		}
		if err := addTellers(ctx, tx, found); err != nil {
			return err
		}
		if err := addHeaders(ctx, tx, found); err != nil {
			return err
		}
		c := composeWithin(composeFor, found, compose)
		told = Told{Taken: len(c.taken), Events: len(c.rows), Dropped: c.dropped, Failed: c.failed}
		if c.looked < len(found) || c.looked == occurrencesAtOnce {
			told.Next = found[c.looked-1].TenantID
		}
		if _, err := tx.Exec(ctx, toldSQL, c.taken); err != nil || len(c.rows) == 0 {
			return err
		}
		_, err = acceptInTx(ctx, tx, c.rows)
		return err
	})
	if err != nil {
		return Told{}, fmt.Errorf("tell occurrences: %w", err)
	}
	return told, nil
}

// composed is what became of some occurrences.
type composed struct {
	looked  int // at how many
	taken   []int64
	rows    []*Acceptance
	dropped []string
	failed  error
}

// composeWithin makes events of the first of found, or tries to with at least one. What nobody tells, because its tenant has removed
// its operational endpoint, is taken too.
func composeWithin(within time.Duration, found []*Occurrence, compose func(*Occurrence) (*Acceptance, error)) (c composed) {
	began := time.Now()
	for _, o := range found {
		if (len(c.rows) > 0 || c.failed != nil) && time.Since(began) >= within {
			break
		}
		c.looked++
		if o.Teller == uuid.Nil {
			c.taken, c.dropped = append(c.taken, o.id), append(c.dropped, o.Type)
			continue
		}
		row, err := compose(o)
		if err != nil {
			if c.failed == nil {
				c.failed = err
			}
			continue
		}
		c.taken, c.rows = append(c.taken, o.id), append(c.rows, row)
	}
	return c
}

// takeOccurrences returns them in the order of tenants, each tenant's oldest first.
func takeOccurrences(ctx context.Context, tx pgx.Tx, after uuid.UUID) ([]*Occurrence, error) {
	rows, err := tx.Query(ctx, takeOccurrencesSQL, after, occurrencesAtOnce)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Occurrence, error) {
		o := &Occurrence{}
		err := row.Scan(&o.id, &o.TenantID, &o.Type, &o.At, &o.EndpointID, &o.DestinationID, &o.DeliveryID, &o.EventID,
			&o.Attempts, &o.Reason, &o.FailingSince, &o.LastStatus, &o.LastError)
		return o, err
	})
	slices.SortFunc(found, func(a, b *Occurrence) int {
		return cmp.Or(bytes.Compare(a.TenantID[:], b.TenantID[:]), cmp.Compare(a.id, b.id))
	})
	return found, err
}

// addTellers adds who tells.
func addTellers(ctx context.Context, tx pgx.Tx, found []*Occurrence) error {
	byTenant := map[uuid.UUID][]*Occurrence{}
	for _, o := range found {
		byTenant[o.TenantID] = append(byTenant[o.TenantID], o)
	}
	rows, err := tx.Query(ctx, tellersSQL, slices.Collect(maps.Keys(byTenant)))
	if err != nil {
		return err
	}
	var tenant, teller uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&tenant, &teller}, func() error {
		for _, o := range byTenant[tenant] {
			o.Teller = teller
		}
		return nil
	})
	return err
}

// addHeaders adds the headers of the events of dead deliveries.
func addHeaders(ctx context.Context, tx pgx.Tx, found []*Occurrence) error {
	byEvent := map[uuid.UUID][]*Occurrence{}
	for _, o := range found {
		if o.EventID != uuid.Nil {
			byEvent[o.EventID] = append(byEvent[o.EventID], o)
		}
	}
	if len(byEvent) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, headersSQL, slices.Collect(maps.Keys(byEvent)))
	if err != nil {
		return err
	}
	var event uuid.UUID
	var headers []byte
	_, err = pgx.ForEachRow(rows, []any{&event, &headers}, func() error {
		for _, o := range byEvent[event] {
			o.Headers = headers
		}
		headers = nil
		return nil
	})
	return err
}
