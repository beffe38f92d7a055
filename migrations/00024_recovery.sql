-- What became of logs whose database was restored from a backup that was older than what they had published. A row of
-- log_recoveries says which leaves came back from a mirror, as hashes: their bytes were lost. A row of log_closures says that a
-- log couldn't be completed: it ends, and its successor takes what is recorded from then on.
-- Locks: new tables, and for a moment logs and log_heads, to add a trigger.

-- +goose Up
set local role kapsel_owner;

create table log_recoveries (
    log_id       uuid not null references logs,
    old_size     bigint not null check (old_size >= 0),
    new_size     bigint not null check (new_size > old_size),
    adopted      bigint not null,   -- of these leaves, with their bytes: they were waiting in the queue
    recovered_at timestamptz not null default now(),
    primary key (log_id, old_size),
    foreign key (log_id, new_size) references tree_roots (log_id, tree_size)
);

-- published_* is the head that the high-water record named: what may have been published last. The log ends before it.
create table log_closures (
    log_id              uuid primary key references logs,
    successor           uuid not null unique references logs,
    tree_size           bigint not null,
    published_size      bigint not null,
    published_root      bytea not null check (octet_length(published_root) = 32),
    published_timestamp bigint not null,
    closed_at           timestamptz not null default now(),
    foreign key (log_id, tree_size) references tree_roots (log_id, tree_size),
    check (log_id <> successor)
);

-- A leaf names its log. One that was waiting when its log was closed was made anew for the successor; this is what it was.
-- attempts keeps the log and the hash that were recorded; whoever compares them with the log looks here.
create table moved_leaves (
    attempt_id    uuid not null,
    log_id        uuid not null references logs,
    new_log_id    uuid not null references logs,
    tenant_id     uuid not null,
    old_leaf_hash bytea not null check (octet_length(old_leaf_hash) = 32),
    leaf_hash     bytea not null check (octet_length(leaf_hash) = 32),
    moved_at      timestamptz not null default now(),
    primary key (attempt_id, log_id)
);

-- +goose StatementBegin
do $$
declare
    t text;
begin
    foreach t in array array['log_recoveries', 'log_closures', 'moved_leaves'] loop
        execute format('create trigger append_only before update or delete on %I for each row execute function refuse_change()', t);
        execute format('create trigger never_emptied before truncate on %I for each statement execute function refuse_change()', t);
    end loop;
end
$$;

-- The log that goes on for one, however often it was closed.
create function open_log(log uuid) returns uuid language plpgsql stable set search_path = public, pg_temp as $$
declare
    next uuid;
begin
    loop
        select l.successor into next from logs l where l.id = log;
        exit when next is null;
        log := next;
    end loop;
    return log;
end
$$;

-- The tenants of a closed log went over to another; the keys that their deliveries were signed with are still its own, too.
create or replace function signing_keys_of_log(log uuid, before uuid, max_rows integer)
    returns table (id uuid, public_key bytea, not_before timestamptz, not_after timestamptz)
    language sql stable security definer set search_path = public, pg_temp
    begin atomic
        select k.id, k.public_key, k.created_at, least(k.expires_at, d.deleted_at)
        from destination_keys k join destinations d on d.id = k.destination_id join tenants t on t.id = k.tenant_id
        where t.log_id in (log, open_log(log)) and k.id < before
        order by k.id desc
        limit max_rows;
    end;

-- A closed log gets no leaves and no heads, whoever writes.
create function refuse_closed() returns trigger language plpgsql as $$
begin
    if exists (select from logs l where l.id = new.log_id and l.closed_at is not null) then
        raise exception 'the log is closed: no more leaves, no more heads' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;
-- +goose StatementEnd
create trigger not_closed before update on log_heads for each row execute function refuse_closed();
create trigger not_closed before insert or update on signed_tree_heads for each row execute function refuse_closed();

alter table moved_leaves enable row level security;
create policy tenant_only on moved_leaves for select to kapsel_api using (tenant_id = (select current_tenant()));
grant select on log_recoveries, log_closures, moved_leaves to kapsel_engine, kapsel_api;
revoke execute on function open_log from public;
grant execute on function open_log to kapsel_engine, kapsel_api;

reset role;
