-- Management requests, as role kapsel_api. Row-level security shows them the rows of one tenant (see InTenant); so none
-- of these statements says which. Only Authenticate runs before the tenant is known.

-- name: Authenticate :one
select a.key_id::uuid as key_id, a.tenant_id::uuid as tenant_id from authenticate(sqlc.arg(hash)::bytea) a;

-- name: InsertEndpoint :one
insert into endpoints (id, tenant_id, name, verification, duplicates, lane, ordering, event_type, record_skipped, operational, attest_acceptance)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
returning created_at;

-- name: InsertEndpointSecret :exec
insert into endpoint_secrets (id, endpoint_id, tenant_id, secret) values ($1, $2, $3, $4);

-- name: InsertDestination :one
insert into destinations (id, tenant_id, endpoint_id, url, secret_path, timeout_ms, schedule, headers, circuit, max_concurrency, rate_per_second, filter, proof_token)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
returning created_at;

-- name: InsertDestinationSecret :exec
insert into destination_secrets (id, destination_id, tenant_id, secret) values ($1, $2, $3, $4);

-- name: ListEndpoints :many
select e.id, e.name, e.verification, e.duplicates, e.lane, e.ordering, e.event_type, e.record_skipped, e.operational, e.attest_acceptance, e.created_at,
    (select count(*) from endpoint_secrets s
        where s.endpoint_id = e.id and (s.expires_at is null or s.expires_at > now())) as secret_count
from endpoints e
where e.deleted_at is null and e.id < sqlc.arg(before)
order by e.id desc
limit sqlc.arg(max_rows);

-- name: GetEndpoint :one
select e.id, e.name, e.verification, e.duplicates, e.lane, e.ordering, e.event_type, e.record_skipped, e.operational, e.attest_acceptance, e.created_at,
    (select count(*) from endpoint_secrets s
        where s.endpoint_id = e.id and (s.expires_at is null or s.expires_at > now())) as secret_count
from endpoints e
where e.id = $1 and e.deleted_at is null;

-- name: LockEndpoint :one
-- Serialises those who add destinations, so that the limit on their number holds.
select e.id from endpoints e where e.id = $1 and e.deleted_at is null for update;

-- name: CountDestinations :one
select count(*) from destinations where endpoint_id = $1 and deleted_at is null;

-- name: DestinationsOf :many
select d.id, d.endpoint_id, d.url, d.secret_path, d.timeout_ms, d.schedule, d.filter,
    array(select h from jsonb_object_keys(d.headers) h order by h)::text[] as header_names,
    d.max_concurrency, d.rate_per_second, d.proof_token, d.paused_at, d.disabled_at, d.disabled_reason, d.created_at,
    d.circuit, coalesce(c.state, 'closed') as circuit_state, c.opened_at, c.probe_until, c.failing_since, c.failed_at
from destinations d
left join circuits c on c.destination_id = d.id
where d.endpoint_id = any(sqlc.arg(endpoints)::uuid[]) and d.deleted_at is null
order by d.id;

-- name: GetEvent :one
select e.id, e.endpoint_id, e.accepted_at, e.content_type, e.event_type, e.body_size, e.payload_hash, e.leaf_hash,
    x.erased_at, x.leaves as leaves_erased
from events e left join erasures x on x.event_id = e.id
where e.id = $1;

-- name: GetPayload :one
-- found without body: the payload was erased.
select e.id, p.body from events e left join event_payloads p on p.event_id = e.id where e.id = $1;

-- name: DeliveriesOf :many
-- The bounds are those of the event's millisecond, which its deliveries carry too: only one partition is read.
select d.id, d.event_id, d.endpoint_id, d.destination_id, d.state, d.lane, d.filter_error, d.next_attempt, d.due_at, d.finished_at, d.order_seq,
    d.redelivery_of
from deliveries d
where d.event_id = sqlc.arg(event_id) and d.id between sqlc.arg(low) and sqlc.arg(high)
order by d.id;

-- name: AttemptsByID :many
-- IDs of attempts are derived (id.AttemptOf), so those that may exist are simply looked up.
select a.id, a.delivery_id, a.number, a.kind, a.outcome, a.error, a.attempted_at, a.duration_ms, a.endpoint_url,
    a.response_status, a.response_size, a.response_truncated,
    coalesce((select m.leaf_hash from moved_leaves m where m.attempt_id = a.id order by m.moved_at desc limit 1), a.leaf_hash)::bytea as leaf_hash, a.recorded_at
from attempts a
where a.id = any(sqlc.arg(ids)::uuid[]) and a.id between sqlc.arg(low) and sqlc.arg(high)
order by a.delivery_id, a.number = 0, a.number;

-- name: DeliveryExists :one
select d.id from deliveries d where d.id = $1;
