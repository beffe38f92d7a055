-- What happened: events, their payloads, deliveries and attempts, partitioned by the day in their UUIDv7 primary key.
-- Partitions are made ahead by ensure_partitions; there is no DEFAULT one, so that a row in the wrong place is an error
-- and not a slow surprise. No foreign keys (see 00002).
-- Locks: new tables only.

-- +goose Up
set local role kapsel_owner;

-- The smallest UUIDv7 of a moment.
create function uuid_floor(moment timestamptz) returns uuid
    language sql immutable
    return (lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid;

create table events (
    id              uuid not null primary key,
    tenant_id       uuid not null,
    endpoint_id     uuid not null,
    accepted_at     timestamptz not null default now(),
    content_type    text not null,
    body_size       integer not null check (body_size >= 0),
    payload_hash    bytea not null check (octet_length(payload_hash) = 32),
    duplicate_key   bytea check (octet_length(duplicate_key) = 32)
) partition by range (id);
create index events_of_tenant on events (tenant_id, id);
comment on column events.payload_hash is 'commitment to the body: C("payload", salt, body)';

-- salt opens payload_hash. secret is what the secrets of the attempts are derived from, so that an outcome can be
-- recorded by another process than the one that sent the request, and no secret passes through a workflow.
create table event_payloads (
    event_id        uuid not null primary key,
    tenant_id       uuid not null,
    headers         bytea not null,
    body            bytea not null,
    salt            bytea not null check (octet_length(salt) = 32),
    secret          bytea not null check (octet_length(secret) = 32)
) partition by range (event_id);
alter table event_payloads alter column body set storage external;

create table deliveries (
    id              uuid not null primary key,
    event_id        uuid not null,
    tenant_id       uuid not null,
    endpoint_id     uuid not null,
    destination_id  uuid not null,
    log_id          uuid not null,
    redelivery_of   uuid,
    order_key       bytea check (octet_length(order_key) = 32),
    order_seq       bigint,
    -- what changes; none of it is indexed but check_after, which stays null on the way straight to delivered
    state           text not null default 'pending' check (state in ('pending', 'delivered', 'dead', 'canceled', 'skipped')),
    lane            text check (lane in ('workflow', 'batch')),
    epoch           integer not null default 0 check (epoch >= 0),
    next_attempt    integer not null default 1 check (next_attempt >= 1),
    lost_starts     integer not null default 0 check (lost_starts >= 0),
    leaves          integer not null default 0 check (leaves >= 0),
    last_leaf_hash  bytea check (octet_length(last_leaf_hash) = 32),
    cancel_requested boolean not null default false,
    due_at          timestamptz,
    check_after     timestamptz,
    finished_at     timestamptz,
    check ((leaves = 0) = (last_leaf_hash is null)),
    check ((state = 'pending') = (finished_at is null)),
    check (state = 'pending' or (leaves > 0 and check_after is null and due_at is null)),
    check ((order_key is null) = (order_seq is null))
) partition by range (id);
create index deliveries_of_event on deliveries (event_id);
create index deliveries_to_check on deliveries (check_after) where check_after is not null;

-- One HTTP request, or (number 0) the one decision to send no more.
create table attempts (
    id                  uuid not null primary key,
    delivery_id         uuid not null,
    event_id            uuid not null,
    tenant_id           uuid not null,
    endpoint_id         uuid not null,
    destination_id      uuid not null,
    log_id              uuid not null,
    number              integer not null check (number >= 0),
    epoch               integer not null,
    kind                text not null check (kind in ('attempt', 'skipped', 'dead', 'canceled')),
    outcome             text not null,
    error               text not null,
    attempted_at        timestamptz not null,
    duration_ms         bigint not null check (duration_ms >= 0),
    endpoint_url        text not null,
    response_status     integer not null,
    response_size       bigint not null check (response_size >= 0),
    response_truncated  boolean not null,
    response_headers    bytea,
    response_body       bytea,
    leaf_hash           bytea not null check (octet_length(leaf_hash) = 32),
    recorded_at         timestamptz not null default now(),
    check ((number = 0) = (kind <> 'attempt'))
) partition by range (id);

-- +goose StatementBegin
create function guard_attempt() returns trigger language plpgsql as $$
begin
    -- Erasure may take the response away; nothing may change it.
    if new.response_body is not null and new.response_body is distinct from old.response_body
        or new.response_headers is not null and new.response_headers is distinct from old.response_headers then
        raise exception 'an attempt''s response can be erased, not changed' using errcode = 'restrict_violation';
    end if;
    old.response_body := new.response_body;
    old.response_headers := new.response_headers;
    if new is distinct from old then
        raise exception 'UPDATE on attempts refused: an attempt is a record and never changes' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;
-- +goose StatementEnd

create trigger append_only before update or delete on events for each row execute function refuse_change();
create trigger append_only before update on event_payloads for each row execute function refuse_change();
create trigger append_only before delete on attempts for each row execute function refuse_change();
create trigger erase_only before update on attempts for each row execute function guard_attempt();
create trigger never_gone before delete on deliveries for each row execute function refuse_change();
create trigger finished_for_good before update on deliveries for each row
    when (old.state <> 'pending' or new.epoch < old.epoch or new.leaves < old.leaves or new.next_attempt < old.next_attempt)
    execute function refuse_change();

alter table events enable row level security;
alter table event_payloads enable row level security;
alter table deliveries enable row level security;
alter table attempts enable row level security;
create policy tenant_only on events for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on event_payloads for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on deliveries for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on attempts for select to kapsel_api using (tenant_id = (select current_tenant()));

grant select, insert on events, event_payloads, attempts to kapsel_engine;
grant select, insert, update on deliveries to kapsel_engine;
grant select on events, deliveries, attempts to kapsel_api;
grant select (event_id, tenant_id, headers, body) on event_payloads to kapsel_api;

-- An event found before is answered again instead of stored again. One partition a day, by Postgres's clock.
create table dedup (
    day         date not null,
    endpoint_id uuid not null,
    key_hash    bytea not null check (octet_length(key_hash) = 32),
    event_id    uuid not null,
    body_hash   bytea not null check (octet_length(body_hash) = 32),
    accepted_at timestamptz not null,
    expires_at  timestamptz not null,
    primary key (day, endpoint_id, key_hash)
) partition by range (day);
grant select, insert, update on dedup to kapsel_engine;

reset role;
