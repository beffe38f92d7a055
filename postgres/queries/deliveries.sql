-- Looking for events and deliveries, as role kapsel_api (see management.sql). A search goes back in time through the
-- index (tenant, id), or (tenant, type, id) for events of one type, chunk by chunk: first the ID that ends the next chunk,
-- then what matches down to it. So each statement reads a bounded number of rows of a bounded number of days, whatever its
-- filters are (ADR 20).

-- name: EndOfEventChunk :one
-- No row: there are fewer events than a chunk down to the floor.
select e.id from events e where e.id < sqlc.arg(before) and e.id >= sqlc.arg(floor)
order by e.id desc offset sqlc.arg(chunk)::int - 1 limit 1;

-- name: EndOfTypeChunk :one
-- Of the events of one type, which have an index of their own: a search for a rare one goes through these and no others.
select e.id from events e where e.event_type = sqlc.arg(event_type)::text and e.id < sqlc.arg(before) and e.id >= sqlc.arg(floor)
order by e.id desc offset sqlc.arg(chunk)::int - 1 limit 1;

-- name: SearchEvents :many
select e.id, e.endpoint_id, e.accepted_at, e.content_type, e.event_type, e.body_size, e.payload_hash
from events e
where e.id < sqlc.arg(before) and e.id >= sqlc.arg(floor)
  and (sqlc.narg(event_type)::text is null or e.event_type = sqlc.narg(event_type))
  and (sqlc.narg(endpoint_id)::uuid is null or e.endpoint_id = sqlc.narg(endpoint_id))
  and (sqlc.narg(duplicate_key)::bytea is null or e.duplicate_key = sqlc.narg(duplicate_key))
  and (sqlc.narg(media_type)::text is null or lower(btrim(split_part(e.content_type, ';', 1), E' \t')) = lower(sqlc.narg(media_type)))
order by e.id desc
limit sqlc.arg(max_rows);

-- name: EventsWithDelivery :many
-- The bounds are those of the events' milliseconds, which their first deliveries carry too.
select distinct d.event_id from deliveries d
where d.event_id = any(sqlc.arg(events)::uuid[]) and d.id between sqlc.arg(low) and sqlc.arg(high) and d.state = sqlc.arg(state);

-- name: HeadersOfEvents :many
select p.event_id, p.headers from event_payloads p where p.event_id = any(sqlc.arg(events)::uuid[]);

-- name: EndOfDeliveryChunk :one
-- No row: there are fewer deliveries than a chunk down to the floor.
select d.id from deliveries d where d.id < sqlc.arg(before) and d.id >= sqlc.arg(floor)
order by d.id desc offset sqlc.arg(chunk)::int - 1 limit 1;

-- name: SearchDeliveries :many
select d.id, d.event_id, d.endpoint_id, d.destination_id, d.state, d.lane, d.filter_error, d.next_attempt, d.due_at, d.finished_at, d.order_seq,
    d.redelivery_of
from deliveries d
where d.id < sqlc.arg(before) and d.id >= sqlc.arg(floor)
  and (sqlc.narg(state)::text is null or d.state = sqlc.narg(state))
  and (sqlc.narg(destination_id)::uuid is null or d.destination_id = sqlc.narg(destination_id))
  and (sqlc.narg(endpoint_id)::uuid is null or d.endpoint_id = sqlc.narg(endpoint_id))
  and (sqlc.narg(event_id)::uuid is null or d.event_id = sqlc.narg(event_id))
  and (sqlc.narg(lane)::text is null or d.lane = sqlc.narg(lane))
order by d.id desc
limit sqlc.arg(max_rows);

-- name: GetDelivery :one
select d.id, d.event_id, d.endpoint_id, d.destination_id, d.state, d.lane, d.filter_error, d.next_attempt, d.due_at, d.finished_at, d.order_seq,
    d.redelivery_of
from deliveries d
where d.id = $1;

-- name: GetAttempt :one
select a.id, a.delivery_id, a.event_id, a.endpoint_id, a.destination_id, a.number, a.kind, a.outcome, a.error, a.attempted_at,
    a.duration_ms, a.endpoint_url, a.response_status, a.response_size, a.response_truncated, a.response_headers, a.response_body,
    coalesce((select m.leaf_hash from moved_leaves m where m.attempt_id = a.id order by m.moved_at desc limit 1), a.leaf_hash)::bytea as leaf_hash,
    a.recorded_at
from attempts a
where a.id = $1;

-- name: EventAsSent :one
-- Without headers if the payload was erased.
select e.body_size, e.accepted_at, p.headers
from events e left join event_payloads p on p.event_id = e.id and p.event_id = $1
where e.id = $1;

-- name: PublishedPlace :one
-- The place of an attempt's leaf, once a published head covers it.
select a.log_id, a.leaf_index from leaf_of_attempt a
where a.attempt_id = $1
  and exists (select from signed_tree_heads h where h.log_id = a.log_id and h.tree_size > a.leaf_index and h.signature is not null);
