-- Read by role kapsel_engine on the way in.

-- name: EndpointsForIngest :many
-- The secrets that are valid, oldest first, and when each expires: in Unix milliseconds, 0 for never.
select e.id, e.tenant_id, t.log_id, l.origin, e.verification, e.duplicates, e.ordering, e.event_type, e.record_skipped,
    e.operational, e.attest_acceptance,
    array(select s.secret from endpoint_secrets s
        where s.endpoint_id = e.id and (s.expires_at is null or s.expires_at > now()) order by s.id)::bytea[] as secrets,
    array(select coalesce((extract(epoch from s.expires_at) * 1000)::bigint, 0) from endpoint_secrets s
        where s.endpoint_id = e.id and (s.expires_at is null or s.expires_at > now()) order by s.id)::bigint[] as secret_expiries
from endpoints e
join tenants t on t.id = e.tenant_id
join logs l on l.id = t.log_id
where e.id = any(sqlc.arg(ids)::uuid[]) and e.deleted_at is null and t.deleted_at is null;

-- name: DestinationsForIngest :many
select d.endpoint_id, d.id, d.url, d.secret_path, d.filter from destinations d
where d.endpoint_id = any(sqlc.arg(ids)::uuid[]) and d.deleted_at is null order by d.id;
