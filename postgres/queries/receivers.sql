-- What receivers and senders ask for: proofs by token, and proofs of acceptance.

-- name: ProofKeyOfDelivery :one
-- Read by role kapsel_engine, before it is known whose the delivery is: the key by which its proof token is checked, unless its
-- destination has none. Also for a destination that was deleted: what it was sent stays provable.
select d.tenant_id, n.proof_key
from deliveries d
join destinations t on t.id = d.destination_id
join tenants n on n.id = d.tenant_id
where d.id = any(sqlc.arg(ids)::uuid[]) and t.proof_token and n.deleted_at is null;

-- name: RevokeProofTokens :execrows
-- A new key, which role kapsel_api can't read.
update tenants set proof_key = default where id = $1;

-- name: AcceptanceAges :many
-- For how many seconds the leaves of events' acceptance have waited to be published.
select e.id, greatest(extract(epoch from now() - e.accepted_at), 0)::double precision as seconds
from events e
where e.id = any(sqlc.arg(ids)::uuid[]) and e.leaf_hash is not null;
