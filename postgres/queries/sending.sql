-- How destinations are reached and signed for; as role kapsel_api, under row-level security (see management.sql).

-- name: LockForSending :one
-- Serialises those who change how a destination is reached or signed for.
select d.tenant_id from destinations d where d.id = $1 and d.deleted_at is null for update;

-- name: DestinationExists :one
select exists (select from destinations d where d.id = $1 and d.deleted_at is null);

-- name: InsertSigningKey :one
insert into destination_keys (id, destination_id, tenant_id, public_key, private_key) values ($1, $2, $3, $4, $5)
returning created_at;

-- name: ExpireSigningKeys :exec
-- All that are valid expire then, unless they expire before. A time and not an interval, so that all processes agree on it.
update destination_keys set expires_at = least(expires_at, now() + sqlc.arg(seconds)::integer * interval '1 s')
where destination_id = $1 and (expires_at is null or expires_at > now());

-- name: ExpireSigningKey :execrows
update destination_keys set expires_at = now()
where destination_id = $1 and id = $2 and (expires_at is null or expires_at > now());

-- name: SigningKeysOf :many
select k.id, k.public_key, k.created_at, k.expires_at
from destination_keys k
where k.destination_id = $1 and (k.expires_at is null or k.expires_at > now())
order by k.id desc;

-- name: CountSigningKeysOfDay :one
-- How many keys were made within a day, also those that are valid no more: each is listed for ever.
select count(*) from destination_keys k where k.destination_id = $1 and k.created_at > now() - interval '1 day';

-- name: CountSignatures :one
-- How many signatures each request carries now.
select ((select count(*) from destination_keys k where k.destination_id = $1 and (k.expires_at is null or k.expires_at > now()))
    + (select count(s.id) from destination_secrets s where s.destination_id = $1 and (s.expires_at is null or s.expires_at > now())))::bigint as signatures;

-- name: InsertTransport :exec
insert into destination_transports
    (destination_id, tenant_id, min_tls, ca_pem, client_cert_pem, client_key_pem, client_cert_expires_at, proxy_url, proxy)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: DeleteTransport :exec
delete from destination_transports where destination_id = $1;

-- name: GetTransport :one
select t.min_tls, t.ca_pem, t.client_cert_pem, t.client_cert_expires_at, t.proxy
from destination_transports t
where t.destination_id = $1;
