-- What people command of deliveries, as role kapsel_api: row-level security shows it one tenant's rows. Workers carry it out.

-- name: DeliveryState :one
select d.state from deliveries d where d.id = any(sqlc.arg(ids)::uuid[]);

-- name: RequestCancel :execrows
-- From now on no attempt begins.
update deliveries d set cancel_requested = true where d.id = any(sqlc.arg(ids)::uuid[]) and d.state = 'pending';

-- name: InsertCommand :exec
-- A command that waits already is given again, and looked at at once.
insert into delivery_commands (delivery_id, tenant_id, command) values ($1, $2, $3)
on conflict (delivery_id, command) where relayed_at is null
do update set asked = delivery_commands.asked + 1, try_at = now();

-- name: EndpointCreated :one
select e.created_at from endpoints e where e.id = $1;

-- name: DestinationCreated :one
select d.created_at, d.endpoint_id from destinations d where d.id = $1;

-- name: LockRedeliveryJobs :exec
-- Serialises those who create jobs for a tenant, so that the limit on their number holds.
select pg_advisory_xact_lock(hashtextextended('kapsel redelivery jobs ' || sqlc.arg(tenant_id)::text, 0));

-- name: TryLockRedeliveryCount :one
-- One count of a tenant at a time: each may take seconds and holds a connection.
select pg_try_advisory_xact_lock(hashtextextended('kapsel redelivery count ' || sqlc.arg(tenant_id)::text, 0));

-- name: CountOpenRedeliveryJobs :one
select count(*) from redelivery_jobs j where j.finished_at is null;

-- name: InsertRedeliveryJob :one
insert into redelivery_jobs (id, tenant_id, endpoint_id, destination_id, states, accepted_from, accepted_until, rate_per_second,
    key_hash, request_hash, cursor_event)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, uuid_floor($6))
returning created_at;

-- name: RedeliveryJobOfKey :one
select j.id, j.request_hash from redelivery_jobs j where j.key_hash = $1;

-- name: ListRedeliveryJobs :many
select j.id, j.state, j.endpoint_id, j.destination_id, j.states, j.accepted_from, j.accepted_until, j.rate_per_second, j.total, j.done,
    j.skipped_redelivered, j.skipped_erased, j.skipped_removed, j.error, j.created_at, j.finished_at
from redelivery_jobs j
where j.id < sqlc.arg(before)
order by j.id desc
limit sqlc.arg(max_rows);

-- name: GetRedeliveryJob :one
select j.id, j.state, j.endpoint_id, j.destination_id, j.states, j.accepted_from, j.accepted_until, j.rate_per_second, j.total, j.done,
    j.skipped_redelivered, j.skipped_erased, j.skipped_removed, j.error, j.created_at, j.finished_at
from redelivery_jobs j
where j.id = $1;

-- name: CancelRedeliveryJob :execrows
update redelivery_jobs j set state = 'canceled', finished_at = now() where j.id = $1 and j.finished_at is null;
