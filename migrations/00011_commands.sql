-- Commands to deliveries, and redeliveries: what the api writes down and workers carry out.
-- Locks: ACCESS EXCLUSIVE on delivery_commands and deliveries, for a moment (new columns without a rewrite, and a policy).

-- +goose Up
set local role kapsel_owner;

-- A command waits once for each delivery, however often it is given; asked counts that, so that one which is given again
-- while it is carried out is carried out again. try_at is when a worker (again) looks at it: one that dies leaves nothing behind.
alter table delivery_commands
    add column asked integer not null default 1 check (asked >= 1),
    add column try_at timestamptz not null default now();
create unique index delivery_commands_once on delivery_commands (delivery_id, command) where relayed_at is null;
create index delivery_commands_due on delivery_commands (tenant_id, try_at, id) where relayed_at is null;
grant update (asked, try_at) on delivery_commands to kapsel_api;
grant update (try_at), delete on delivery_commands to kapsel_engine;

-- The api may ask for the end of a pending delivery, and change nothing else of it.
create policy cancel_own on deliveries for update to kapsel_api
    using (tenant_id = (select current_tenant())) with check (tenant_id = (select current_tenant()));
grant update (cancel_requested) on deliveries to kapsel_api;

-- Many deliveries that are delivered again, step by step, by whichever worker takes the next step. Each step is one
-- transaction under this row's lock: it creates deliveries and moves the cursor, or does neither.
create table redelivery_jobs (
    id              uuid primary key,
    tenant_id       uuid not null references tenants,
    endpoint_id     uuid,
    destination_id  uuid,
    states          text[] not null,
    accepted_from   timestamptz not null,
    accepted_until  timestamptz not null,
    rate_per_second integer not null check (rate_per_second between 1 and 1000),
    state           text not null default 'counting' check (state in ('counting', 'running', 'done', 'canceled', 'failed')),
    -- the last delivery that was looked at, by its event and itself
    cursor_event    uuid not null,
    cursor_delivery uuid not null default '00000000-0000-0000-0000-000000000000',
    total           bigint not null default 0 check (total >= 0),
    done            bigint not null default 0 check (done >= 0),
    skipped_redelivered bigint not null default 0 check (skipped_redelivered >= 0),
    skipped_erased      bigint not null default 0 check (skipped_erased >= 0),
    skipped_removed     bigint not null default 0 check (skipped_removed >= 0),
    failures        integer not null default 0 check (failures >= 0),
    error           text,
    next_at         timestamptz not null default now(),
    created_at      timestamptz not null default now(),
    finished_at     timestamptz,
    check (accepted_from < accepted_until),
    check ((finished_at is null) = (state in ('counting', 'running')))
) with (fillfactor = 70);
create index redelivery_jobs_of_tenant on redelivery_jobs (tenant_id, id);
create index redelivery_jobs_due on redelivery_jobs (next_at) where finished_at is null;

-- Which delivery was delivered again as which. A job does that once for each.
create table redeliveries (
    delivery_id     uuid not null,
    redelivery_id   uuid not null,
    tenant_id       uuid not null,
    job_id          uuid,
    created_at      timestamptz not null default now(),
    primary key (delivery_id, redelivery_id)
);
create unique index redeliveries_once on redeliveries (job_id, delivery_id) where job_id is not null;

-- The answer to a redelivery that was asked for with an Idempotency-Key, for whoever asks again.
create table redelivery_keys (
    tenant_id       uuid not null,
    key_hash        bytea not null check (octet_length(key_hash) = 32),
    delivery_id     uuid not null,
    redelivery_id   uuid not null,
    created_at      timestamptz not null default now(),
    primary key (tenant_id, key_hash)
);

alter table redelivery_jobs enable row level security;
alter table redeliveries enable row level security;
alter table redelivery_keys enable row level security;
create policy tenant_only on redelivery_jobs to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on redeliveries for select to kapsel_api using (tenant_id = (select current_tenant()));

grant select, insert on redelivery_jobs to kapsel_api;
grant update (state, finished_at) on redelivery_jobs to kapsel_api;
grant select on redeliveries to kapsel_api;
grant select, update on redelivery_jobs to kapsel_engine;
grant select, insert on redeliveries to kapsel_engine;
grant select, insert, delete on redelivery_keys to kapsel_engine;

reset role;
