-- Who carries what: the queue of deliveries that nobody carries, the workers, and what people command.
-- Locks: new tables only.

-- +goose Up
set local role kapsel_owner;

-- Holds exactly the deliveries that nobody carries; a row goes when a carrier has recorded its outcome. Small, and
-- written often: vacuumed as soon as a thousand rows are dead, at full speed.
create table delivery_queue (
    delivery_id     uuid primary key,
    destination_id  uuid not null,
    tenant_id       uuid not null,
    due_at          timestamptz not null default now(),
    attempt         integer not null default 1 check (attempt >= 1),
    claim_id        uuid,
    claim_owner     uuid,
    check ((claim_id is null) = (claim_owner is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000);
create index delivery_queue_due on delivery_queue (destination_id, due_at, delivery_id) where claim_id is null;
create index delivery_queue_claimed on delivery_queue (claim_id) where claim_id is not null;

-- A worker is alive until alive_until; claims of dead workers are free. A worker that finds itself lapsed takes a new ID.
create table workers (
    id          uuid primary key,
    alive_until timestamptz not null,
    started_at  timestamptz not null default now(),
    host        text not null
) with (fillfactor = 50);

-- What a person asked of a delivery that is being carried; a worker relays it as a signal.
create table delivery_commands (
    id          bigint generated always as identity primary key,
    delivery_id uuid not null,
    tenant_id   uuid not null,
    command     text not null check (command in ('cancel', 'retry_now')),
    created_at  timestamptz not null default now(),
    relayed_at  timestamptz
);
create index delivery_commands_waiting on delivery_commands (id) where relayed_at is null;

-- Apart from destinations, because it changes with every failure. ring: the last outcomes, newest in bit 0, 1 = failure.
create table circuits (
    destination_id  uuid primary key,
    tenant_id       uuid not null,
    state           text not null default 'closed' check (state in ('closed', 'open', 'half_open')),
    ring            bigint not null default 0 check (ring between 0 and 1023),
    opened_at       timestamptz,
    probe_until     timestamptz,
    probe_token     uuid,
    successes       integer not null default 0 check (successes >= 0)
) with (fillfactor = 50);

-- Order by key: only seq = head_seq is in the queue.
create table order_keys (
    destination_id  uuid not null,
    key_hash        bytea not null check (octet_length(key_hash) = 32),
    tenant_id       uuid not null,
    next_seq        bigint not null default 1,
    head_seq        bigint not null default 1,
    primary key (destination_id, key_hash),
    check (head_seq between 1 and next_seq)
) with (fillfactor = 70);

alter table delivery_queue enable row level security;
alter table delivery_commands enable row level security;
alter table circuits enable row level security;
alter table order_keys enable row level security;
create policy tenant_only on delivery_queue for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on delivery_commands to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on circuits for select to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on order_keys for select to kapsel_api using (tenant_id = (select current_tenant()));

grant select, insert, update, delete on delivery_queue, workers, circuits, order_keys to kapsel_engine;
grant select, update (relayed_at) on delivery_commands to kapsel_engine;
grant select on delivery_queue, circuits, order_keys to kapsel_api;
grant select, insert on delivery_commands to kapsel_api;

reset role;
