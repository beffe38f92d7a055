package bench

import (
	"context"
	"errors"
	"fmt"
)

// storeAtOnce is how many stored events are written by one statement.
const storeAtOnce = 50_000

// storeSQL writes events that were delivered between midnight (UTC) and now, each with a payload of 1 KiB, a delivery and
// an attempt. They are in no log: what grows with the log is its tiles, a logarithm.
const storeSQL = `
with moment as (
    select lpad(to_hex((extract(epoch from date_trunc('day', now(), 'UTC') + (now() - date_trunc('day', now(), 'UTC')) * random()) * 1000)::bigint), 12, '0')
        as prefix, n from generate_series(1, $1) n
), named as (
    select (prefix || '7' || substr(md5('e' || n || random()), 1, 3) || '8' || substr(md5('f' || n || random()), 1, 15))::uuid as event,
        (prefix || '7' || substr(md5('d' || n || random()), 1, 3) || '8' || substr(md5('g' || n || random()), 1, 15))::uuid as delivery,
        (prefix || '7' || substr(md5('a' || n || random()), 1, 3) || '8' || substr(md5('h' || n || random()), 1, 15))::uuid as attempt,
        sha256(prefix::bytea) as hash
    from moment
), stored_events as (
    insert into events (id, tenant_id, endpoint_id, content_type, body_size, payload_hash)
    select event, $2, $3, 'application/json', 1024, hash from named
), stored_payloads as (
    insert into event_payloads (event_id, tenant_id, headers, body, salt, secret)
    select event, $2, ''::bytea, decode(repeat('ab', 1024), 'hex'), hash, hash from named
), stored_deliveries as (
    insert into deliveries (id, event_id, tenant_id, endpoint_id, destination_id, log_id, state, lane, next_attempt, leaves, last_leaf_hash, finished_at)
    select delivery, event, $2, $3, $3, $3, 'delivered', 'batch', 2, 1, hash, now() from named
)
insert into attempts (id, delivery_id, event_id, tenant_id, endpoint_id, destination_id, log_id, number, epoch, kind, outcome, error,
    attempted_at, duration_ms, endpoint_url, response_status, response_size, response_truncated, leaf_hash)
select attempt, delivery, event, $2, $3, $3, $3, 1, 0, 'attempt', 'delivered', '', now(), 5, 'http://127.0.0.1/', 200, 2, false, hash from named`

// store fills the database up to Stored events.
func (r *run) store(ctx context.Context) error {
	if r.Stored == 0 {
		return nil
	}
	if r.DB == nil {
		return errors.New("stored events need a database to store them in")
	}
	var tenant, endpoint string
	err := r.DB.QueryRow(ctx, "select tenant_id, id from endpoints order by created_at desc limit 1").Scan(&tenant, &endpoint)
	if err != nil {
		return fmt.Errorf("find the endpoint: %w", err)
	}
	var stored int64
	if err := r.DB.QueryRow(ctx, "select count(*) from events").Scan(&stored); err != nil {
		return fmt.Errorf("count events: %w", err)
	}
	for stored < r.Stored {
		n := min(storeAtOnce, r.Stored-stored)
		if _, err := r.DB.Exec(ctx, storeSQL, n, tenant, endpoint); err != nil {
			return fmt.Errorf("store events: %w", err)
		}
		stored += n
		if stored%(10*storeAtOnce) == 0 || stored == r.Stored {
			_, _ = fmt.Fprintf(r.Progress, "  %d of %d events stored\n", stored, r.Stored)
		}
	}
	_, err = r.DB.Exec(ctx, "vacuum analyze events, event_payloads, deliveries, attempts")
	return err
}
