-- The logs and their keys, read by role kapsel_engine.

-- name: OpenLogs :many
select l.id, l.origin, k.key_id, k.public_key
from logs l
join attestation_keys k on k.log_id = l.id and k.purpose = 'log' and k.not_after is null
where l.closed_at is null
order by l.id;

-- name: LogByID :one
select l.id, l.origin, k.key_id, k.public_key
from logs l
join attestation_keys k on k.log_id = l.id and k.purpose = 'log' and k.not_after is null
where l.id = $1 and l.closed_at is null;
