-- Changes of a log's key. Each row is the note that is also the leaf with the index tree_size, byte for byte; it is kept
-- here too because leaves belong to tenants, and a change of the key concerns everybody.
-- Locks: a new table only.

-- +goose Up
set local role kapsel_owner;

create table key_transitions (
    log_id      uuid not null references logs,
    tree_size   bigint not null check (tree_size between 0 and 9007199254740990),
    old_key_id  bytea not null,
    new_key_id  bytea not null,
    reason      text not null check (reason in ('rotation', 'compromise')),
    note        bytea not null,
    changed_at  timestamptz not null,
    primary key (log_id, tree_size),
    -- A key comes once and is given up once.
    unique (log_id, old_key_id),
    unique (log_id, new_key_id),
    foreign key (log_id, old_key_id) references attestation_keys (log_id, key_id),
    foreign key (log_id, new_key_id) references attestation_keys (log_id, key_id),
    check (old_key_id <> new_key_id)
);
create trigger append_only before update or delete on key_transitions for each row execute function refuse_change();
create trigger never_emptied before truncate on key_transitions for each statement execute function refuse_change();

grant select on key_transitions to kapsel_engine, kapsel_api;

reset role;
