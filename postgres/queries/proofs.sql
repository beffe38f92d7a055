-- What proofs of many attempts and tiles read of the log, as role kapsel_api. Leaves are their tenant's (row-level security).

-- name: PublishedBetween :one
-- Whether a published head has a size of at least from_size and below end_size.
select exists (
    select from signed_tree_heads h
    where h.log_id = $1 and h.tree_size >= sqlc.arg(from_size) and h.tree_size < sqlc.arg(end_size) and h.signature is not null
);

-- name: PlacesOfAttempts :many
select a.attempt_id, a.log_id, a.leaf_index, l.origin
from leaf_of_attempt a
join logs l on l.id = a.log_id
where a.attempt_id = any(sqlc.arg(attempt_ids)::uuid[]);

-- name: LeavesAt :many
-- Leaf by leaf: with = any, a planner without statistics looks at every leaf of the log.
select m.leaf_index, m.leaf_hash, m.leaf
from unnest(sqlc.arg(leaf_indexes)::bigint[]) as i(leaf_index)
cross join lateral (
    select l.leaf_index, l.leaf_hash, l.leaf from merkle_leaves l where l.log_id = $1 and l.leaf_index = i.leaf_index limit 1
) m;

-- name: FirstSignedHeadsAbove :many
-- For each leaf the earliest published head that covers it; leaves that none covers are left out.
select i.leaf_index::bigint as leaf_index, h.tree_size, h."timestamp", h.root_hash, h.key_id, h.signature, h.checkpoint
from unnest(sqlc.arg(leaf_indexes)::bigint[]) as i(leaf_index)
cross join lateral (
    select s.tree_size, s."timestamp", s.root_hash, s.key_id, s.signature, s.checkpoint
    from signed_tree_heads s
    where s.log_id = $1 and s.tree_size > i.leaf_index and s.signature is not null
    order by s.tree_size, s."timestamp"
    limit 1
) h;

-- name: AttemptAges :many
-- For how many seconds each attempt has waited for its leaf to be published.
select a.id, greatest(extract(epoch from now() - a.recorded_at), 0)::double precision as seconds
from attempts a
where a.id = any(sqlc.arg(ids)::uuid[]);
