-- Managing destinations and endpoints that exist, as role kapsel_api (see management.sql).

-- name: EndpointOfDestination :one
select d.endpoint_id from destinations d where d.id = $1 and d.deleted_at is null;

-- name: LockDestination :one
select d.endpoint_id, d.url, d.secret_path from destinations d where d.id = $1 and d.deleted_at is null for update;

-- name: UpdateDestination :exec
update destinations set url = $2, secret_path = $3, timeout_ms = coalesce(sqlc.narg(timeout_ms), timeout_ms),
    schedule = coalesce(sqlc.narg(schedule), schedule), headers = coalesce(sqlc.narg(headers), headers),
    circuit = coalesce(sqlc.narg(circuit), circuit), filter = nullif(coalesce(sqlc.narg(filter)::jsonb, filter), '{}'),
    max_concurrency = nullif(coalesce(sqlc.narg(max_concurrency)::int, max_concurrency), 0),
    rate_per_second = nullif(coalesce(sqlc.narg(rate_per_second)::int, rate_per_second), 0),
    proof_token = coalesce(sqlc.narg(proof_token), proof_token), updated_at = now()
where id = $1;

-- name: PauseDestination :execrows
update destinations set paused_at = coalesce(paused_at, now()), updated_at = now() where id = $1 and deleted_at is null;

-- name: ResumeDestination :execrows
update destinations set paused_at = null, updated_at = now() where id = $1 and deleted_at is null;

-- name: EnableDestination :execrows
update destinations set disabled_at = null, disabled_reason = null, updated_at = now() where id = $1 and deleted_at is null;

-- name: DeleteDestination :execrows
update destinations set deleted_at = now(), updated_at = now() where id = $1 and deleted_at is null;

-- name: DeleteEndpoint :execrows
update endpoints set deleted_at = now(), updated_at = now() where id = $1 and deleted_at is null;

-- name: SigningSecrets :many
select s.id, s.created_at, s.expires_at from destination_secrets s
where s.destination_id = $1 and (s.expires_at is null or s.expires_at > now())
order by s.id desc;

-- name: ExpireSigningSecrets :exec
-- None gets more time than it has.
update destination_secrets set expires_at = now() + sqlc.arg(seconds)::bigint * interval '1 s'
where destination_id = $1 and (expires_at is null or expires_at > now() + sqlc.arg(seconds)::bigint * interval '1 s');

-- name: ExpireSigningSecret :execrows
update destination_secrets set expires_at = now()
where id = $1 and destination_id = $2 and (expires_at is null or expires_at > now());

-- name: CountWaiting :one
select count(*) from (
    select from delivery_queue q where q.destination_id = $1 and q.claim_id is null limit sqlc.arg(most)
) as waiting;

-- name: OldestDue :one
select q.due_at from delivery_queue q where q.destination_id = $1 and q.claim_id is null order by q.due_at limit 1;
