-- How the endpoints of a tenant are verified and how that changes, as role kapsel_api, which can't read a secret.

-- name: LockEndpointSource :one
-- Serialises those who change an endpoint's verification or its secrets, so that the two always fit.
select e.verification from endpoints e where e.id = $1 and e.deleted_at is null for update;

-- name: OrderingOfEndpoint :one
select e.ordering from endpoints e where e.id = $1;

-- name: IsOperational :one
select e.operational from endpoints e where e.id = $1;

-- name: UpdateEndpoint :exec
-- What is null stays as it is.
update endpoints set
    name = coalesce(sqlc.narg(name), name),
    verification = coalesce(sqlc.narg(verification), verification),
    duplicates = coalesce(sqlc.narg(duplicates), duplicates),
    lane = coalesce(sqlc.narg(lane), lane),
    ordering = coalesce(sqlc.narg(ordering), ordering),
    event_type = coalesce(sqlc.narg(event_type), event_type),
    record_skipped = coalesce(sqlc.narg(record_skipped), record_skipped),
    attest_acceptance = coalesce(sqlc.narg(attest_acceptance), attest_acceptance),
    updated_at = now()
where id = sqlc.arg(id);

-- name: EndpointSecrets :many
select s.id, s.created_at, s.expires_at
from endpoint_secrets s
where s.endpoint_id = $1 and (s.expires_at is null or s.expires_at > now())
order by s.id;

-- name: ExpireEndpointSecrets :exec
-- Never makes one live longer.
update endpoint_secrets
set expires_at = now() + make_interval(secs => sqlc.arg(seconds)::double precision)
where endpoint_id = sqlc.arg(endpoint_id)
  and (expires_at is null or expires_at > now() + make_interval(secs => sqlc.arg(seconds)::double precision));

-- name: ExpireEndpointSecret :exec
update endpoint_secrets set expires_at = now() where id = $1 and (expires_at is null or expires_at > now());

-- name: AddEndpointSecret :one
insert into endpoint_secrets (id, endpoint_id, tenant_id, secret) values ($1, $2, $3, $4) returning created_at;
