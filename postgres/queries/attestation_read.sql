-- What the api reads of the log, as role kapsel_api. A head counts once both signatures are stored; nothing beyond the
-- newest such head is handed out. Heads and tiles are everybody's, leaves are their tenant's (row-level security).

-- name: PublicLog :one
select l.id, l.origin, l.closed_at, l.successor from logs l where l.id = $1;

-- name: OpenPublicLogs :many
-- Two are enough to know that there are several.
select l.id, l.origin, l.closed_at, l.successor from logs l where l.closed_at is null order by l.id limit 2;

-- name: NewestSignedHead :one
select h.tree_size, h."timestamp", h.root_hash, h.key_id, h.signature, h.checkpoint
from signed_tree_heads h
where h.log_id = $1 and h.signature is not null
order by h.tree_size desc, h."timestamp" desc
limit 1;

-- name: FirstSignedHeadAbove :one
-- The earliest published head that covers a leaf.
select h.tree_size, h."timestamp", h.root_hash, h.key_id, h.signature, h.checkpoint
from signed_tree_heads h
where h.log_id = $1 and h.tree_size > sqlc.arg(leaf_index) and h.signature is not null
order by h.tree_size, h."timestamp"
limit 1;

-- name: FirstSignedHeadOfSize :one
select h.tree_size, h."timestamp", h.root_hash, h.key_id, h.signature, h.checkpoint
from signed_tree_heads h
where h.log_id = $1 and h.tree_size = $2 and h.signature is not null
order by h."timestamp"
limit 1;

-- name: LogKeys :many
select k.key_id, k.public_key, k.purpose, k.not_before, k.not_after
from attestation_keys k
where k.log_id = $1
order by k.not_before, k.key_id;

-- name: LogKey :one
select k.public_key from attestation_keys k where k.log_id = $1 and k.key_id = $2;

-- name: PlaceOfAttempt :one
select a.log_id, a.leaf_index, l.origin
from leaf_of_attempt a
join logs l on l.id = a.log_id
where a.attempt_id = $1;

-- name: LeafAt :one
-- Not joined with the place: an index that is known when the statement is planned leaves one partition to plan for.
select m.leaf_hash, m.leaf, m.secrets from merkle_leaves m where m.log_id = $1 and m.leaf_index = $2;

-- name: PublishedTransitions :many
-- The changes of a log's key that a published head covers, oldest first. The note is the leaf with the index tree_size.
select t.tree_size, t.new_key_id, t.note
from key_transitions t
where t.log_id = $1
  and t.tree_size < (select h.tree_size from signed_tree_heads h where h.log_id = $1 and h.signature is not null
                     order by h.tree_size desc, h."timestamp" desc limit 1)
order by t.tree_size;

-- name: Closures :many
-- How a log was closed, and how the one was that it goes on for.
select c.log_id, p.origin as log_origin, c.successor, s.origin as successor_origin, c.tree_size, c.published_size, c.published_root,
    c.published_timestamp, c.closed_at
from log_closures c
join logs p on p.id = c.log_id
join logs s on s.id = c.successor
where c.log_id = $1 or c.successor = $1;
