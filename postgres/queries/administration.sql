-- What the administrative commands write, as role kapsel_owner.

-- name: InsertLog :exec
insert into logs (id, origin) values ($1, $2);

-- name: InsertTreeRoot :exec
insert into tree_roots (log_id, tree_size, root_hash) values ($1, $2, $3);

-- name: InsertLogHead :exec
insert into log_heads (log_id, tree_size, root_hash) values ($1, $2, $3);

-- name: InsertAttestationKey :exec
insert into attestation_keys (log_id, key_id, public_key, purpose) values ($1, $2, $3, $4);

-- name: ListOpenLogs :many
select id, origin from logs where closed_at is null order by id;

-- name: InsertTenant :exec
insert into tenants (id, name, log_id) values ($1, $2, $3);

-- name: ListTenants :many
select t.id, t.name, t.log_id, t.created_at from tenants t where t.deleted_at is null order by t.id;

-- name: InsertAPIKey :exec
insert into api_keys (id, tenant_id, name, key_hash, expires_at) values ($1, $2, $3, $4, $5);
