-- Read by role kapsel_engine on the way in.

-- name: EndpointForIngest :one
-- The secrets that are valid, oldest first, and when each expires: in Unix milliseconds, 0 for never.
select e.id, e.tenant_id, t.log_id, e.verification, e.duplicates, e.ordering, e.operational,
    array(select s.secret from endpoint_secrets s
        where s.endpoint_id = e.id and (s.expires_at is null or s.expires_at > now()) order by s.id)::bytea[] as secrets,
    array(select coalesce((extract(epoch from s.expires_at) * 1000)::bigint, 0) from endpoint_secrets s
        where s.endpoint_id = e.id and (s.expires_at is null or s.expires_at > now()) order by s.id)::bigint[] as secret_expiries,
    array(select d.id from destinations d where d.endpoint_id = e.id and d.deleted_at is null order by d.id)::uuid[] as destinations
from endpoints e
join tenants t on t.id = e.tenant_id
where e.id = $1 and e.deleted_at is null and t.deleted_at is null;
