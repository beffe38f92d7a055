-- The attestation log. Everything here is append-only; what may change is named beside each table, and a trigger
-- refuses the rest, also to the engine itself.
-- Locks: new tables only.

-- +goose Up
set local role kapsel_owner;

-- Every root the tree has had. One row per size: a second root for one size can't be written, and heads refer to it.
create table tree_roots (
    log_id       uuid not null references logs,
    tree_size    bigint not null check (tree_size between 0 and 9007199254740991),
    root_hash    bytea not null check (octet_length(root_hash) = 32),
    sequenced_at timestamptz not null default now(),
    primary key (log_id, tree_size),
    unique (log_id, tree_size, root_hash)
);

-- The newest root; its row is the lock under which the log grows.
create table log_heads (
    log_id      uuid primary key references logs,
    tree_size   bigint not null,
    root_hash   bytea not null,
    foreign key (log_id, tree_size, root_hash) references tree_roots (log_id, tree_size, root_hash)
) with (fillfactor = 50);

-- Leaf bytes on their way into the log, written by the transaction that recorded the attempt.
create table leaf_queue (
    id          bigint generated always as identity,
    log_id      uuid not null,
    tenant_id   uuid not null,
    attempt_id  uuid not null,
    leaf_hash   bytea not null,
    leaf        bytea not null,
    secrets     bytea not null,
    queued_at   timestamptz not null default now(),
    primary key (log_id, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_cost_delay = 0);

-- The leaves. leaf and secrets (payload salt, then the attempt's secret) become null when the payload is erased;
-- hashes never go. A leaf without an attempt is a key transition.
create table merkle_leaves (
    log_id      uuid not null,
    leaf_index  bigint not null check (leaf_index >= 0),
    tenant_id   uuid,
    attempt_id  uuid,
    leaf_hash   bytea not null check (octet_length(leaf_hash) = 32),
    leaf        bytea,
    secrets     bytea check (octet_length(secrets) = 64),
    primary key (log_id, leaf_index),
    check ((tenant_id is null) = (attempt_id is null))
) partition by range (leaf_index);

-- An attempt has at most one leaf: this primary key says so.
create table leaf_of_attempt (
    attempt_id  uuid primary key,
    tenant_id   uuid not null,
    log_id      uuid not null,
    leaf_index  bigint not null
);

-- C2SP tlog-tiles of height 8: up to 256 hashes of 32 bytes. A tile only ever grows at its end.
create table merkle_tiles (
    log_id      uuid not null references logs,
    level       smallint not null check (level between 0 and 7),
    tile_index  bigint not null check (tile_index >= 0),
    hashes      bytea not null check (octet_length(hashes) between 32 and 8192 and octet_length(hashes) % 32 = 0),
    primary key (log_id, level, tile_index)
) with (fillfactor = 80);
alter table merkle_tiles alter column hashes set storage external;

-- Signed tree heads. The row is committed unsigned; the two signatures come in one update, once.
create table signed_tree_heads (
    log_id      uuid not null,
    tree_size   bigint not null,
    "timestamp" bigint not null check ("timestamp" between 1 and 9007199254740991),
    root_hash   bytea not null,
    key_id      bytea not null check (octet_length(key_id) = 32),
    signature   bytea check (octet_length(signature) = 64),
    checkpoint  bytea,
    primary key (log_id, tree_size, "timestamp"),
    unique (log_id, "timestamp"),
    foreign key (log_id, tree_size, root_hash) references tree_roots (log_id, tree_size, root_hash),
    check ((signature is null) = (checkpoint is null))
);

create table attestation_keys (
    log_id      uuid not null references logs,
    key_id      bytea not null check (octet_length(key_id) = 32),
    public_key  bytea not null check (octet_length(public_key) = 32),
    purpose     text not null check (purpose in ('log', 'v1a')),
    not_before  timestamptz not null default now(),
    not_after   timestamptz,
    primary key (log_id, key_id)
);
create unique index attestation_keys_current on attestation_keys (log_id) where purpose = 'log' and not_after is null;

-- What could not be sequenced, set aside with its reason so that the rest goes on.
create table attestation_dead_letters (
    id          bigint generated always as identity primary key,
    log_id      uuid not null,
    tenant_id   uuid not null,
    attempt_id  uuid not null,
    leaf_hash   bytea not null,
    leaf        bytea not null,
    secrets     bytea not null,
    reason      text not null,
    failed_at   timestamptz not null default now(),
    resolved_at timestamptz
);
create index attestation_dead_letters_open on attestation_dead_letters (log_id, id) where resolved_at is null;

-- +goose StatementBegin
create function guard_leaf() returns trigger language plpgsql as $$
begin
    if new.leaf is null and new.secrets is null
        and (new.log_id, new.leaf_index, new.tenant_id, new.attempt_id, new.leaf_hash)
            is not distinct from (old.log_id, old.leaf_index, old.tenant_id, old.attempt_id, old.leaf_hash) then
        return new;
    end if;
    raise exception 'UPDATE on merkle_leaves refused: bytes can be erased, nothing can be changed' using errcode = 'restrict_violation';
end
$$;
create function guard_tile() returns trigger language plpgsql as $$
begin
    if (new.log_id, new.level, new.tile_index) = (old.log_id, old.level, old.tile_index)
        and octet_length(new.hashes) >= octet_length(old.hashes)
        and substring(new.hashes for octet_length(old.hashes)) = old.hashes then
        return new;
    end if;
    raise exception 'UPDATE on merkle_tiles refused: a tile only grows at its end' using errcode = 'restrict_violation';
end
$$;
create function guard_head() returns trigger language plpgsql as $$
begin
    if new.log_id = old.log_id and new.tree_size > old.tree_size then
        return new;
    end if;
    raise exception 'UPDATE on log_heads refused: a log only grows' using errcode = 'restrict_violation';
end
$$;
create function guard_signature() returns trigger language plpgsql as $$
begin
    if old.signature is null and new.signature is not null
        and (new.log_id, new.tree_size, new."timestamp", new.root_hash, new.key_id)
            = (old.log_id, old.tree_size, old."timestamp", old.root_hash, old.key_id) then
        return new;
    end if;
    raise exception 'UPDATE on signed_tree_heads refused: a head is signed once and never changes' using errcode = 'restrict_violation';
end
$$;
create function guard_key() returns trigger language plpgsql as $$
begin
    if old.not_after is null and (new.log_id, new.key_id, new.public_key, new.purpose, new.not_before)
        = (old.log_id, old.key_id, old.public_key, old.purpose, old.not_before) then
        return new;
    end if;
    raise exception 'UPDATE on attestation_keys refused: a key can be retired, nothing else' using errcode = 'restrict_violation';
end
$$;
-- +goose StatementEnd

create trigger append_only before update or delete on tree_roots for each row execute function refuse_change();
create trigger grows_only before update on log_heads for each row execute function guard_head();
create trigger never_gone before delete on log_heads for each row execute function refuse_change();
create trigger erase_only before update on merkle_leaves for each row execute function guard_leaf();
create trigger never_gone before delete on merkle_leaves for each row execute function refuse_change();
create trigger append_only before update or delete on leaf_of_attempt for each row execute function refuse_change();
create trigger grows_only before update on merkle_tiles for each row execute function guard_tile();
create trigger never_gone before delete on merkle_tiles for each row execute function refuse_change();
create trigger signed_once before update on signed_tree_heads for each row execute function guard_signature();
create trigger never_gone before delete on signed_tree_heads for each row execute function refuse_change();
create trigger retired_only before update on attestation_keys for each row execute function guard_key();
create trigger never_gone before delete on attestation_keys for each row execute function refuse_change();

-- TRUNCATE fires no row trigger. Partitions get theirs from ensure_partitions.
-- +goose StatementBegin
do $$
declare
    t text;
begin
    foreach t in array array['events', 'event_payloads', 'deliveries', 'attempts', 'tree_roots', 'log_heads', 'merkle_leaves',
        'leaf_of_attempt', 'merkle_tiles', 'signed_tree_heads', 'attestation_keys'] loop
        execute format('create trigger never_emptied before truncate on %I for each statement execute function refuse_change()', t);
    end loop;
end
$$;
-- +goose StatementEnd

alter table leaf_queue enable row level security;
alter table merkle_leaves enable row level security;
alter table leaf_of_attempt enable row level security;
alter table attestation_dead_letters enable row level security;
create policy tenant_only on leaf_queue for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on merkle_leaves for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on leaf_of_attempt for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on attestation_dead_letters for select to kapsel_api using (tenant_id = (select current_tenant()));

grant select, insert, delete on leaf_queue to kapsel_engine;
grant select, insert on tree_roots, merkle_leaves, leaf_of_attempt, signed_tree_heads, attestation_dead_letters to kapsel_engine;
grant update (signature, checkpoint) on signed_tree_heads to kapsel_engine;
grant update (resolved_at) on attestation_dead_letters to kapsel_engine;
grant select, update (tree_size, root_hash) on log_heads to kapsel_engine;
grant select, insert, update (hashes) on merkle_tiles to kapsel_engine;
grant select on attestation_keys to kapsel_engine;
grant select on tree_roots, log_heads, merkle_tiles, signed_tree_heads, attestation_keys, merkle_leaves, leaf_of_attempt to kapsel_api;

reset role;
