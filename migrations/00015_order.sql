-- Order by key: what an endpoint orders by, and the line in which its deliveries wait.
-- Locks: ACCESS EXCLUSIVE on endpoints and order_keys, for a moment (new columns without a rewrite).

-- +goose Up
set local role kapsel_owner;

alter table endpoints add column ordering jsonb;
alter table order_keys add column updated_at timestamptz not null default now();

-- The deliveries of each key that aren't over, and a dead one that blocks its key. Only the first of a key is in the queue.
create table ordered_deliveries (
    destination_id  uuid not null,
    key_hash        bytea not null check (octet_length(key_hash) = 32),
    seq             bigint not null,
    delivery_id     uuid not null unique,
    tenant_id       uuid not null,
    primary key (destination_id, key_hash, seq)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000);

alter table ordered_deliveries enable row level security;
create policy tenant_only on ordered_deliveries for select to kapsel_api using (tenant_id = (select current_tenant()));
grant select, insert, delete on ordered_deliveries to kapsel_engine;
grant select on ordered_deliveries to kapsel_api;

reset role;
