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

-- name: KeyTransitions :many
-- The changes of a log's key, oldest first.
select t.tree_size, t.reason, t.note, t.changed_at, o.public_key as old_key, n.public_key as new_key
from key_transitions t
join attestation_keys o on o.log_id = t.log_id and o.key_id = t.old_key_id
join attestation_keys n on n.log_id = t.log_id and n.key_id = t.new_key_id
where t.log_id = $1
order by t.tree_size;

-- name: KnowsLogKey :one
-- Whether a key is or was the log's.
select exists (select from attestation_keys k where k.log_id = $1 and k.key_id = $2 and k.purpose = 'log');
