-- What people configure: logs, tenants, keys, endpoints, destinations. Small tables with foreign keys among themselves;
-- the tables of events never refer to them, since each row would lock a few hot ones. Removal is soft (deleted_at).
-- Locks: new tables only.

-- +goose Up
set local role kapsel_owner;

create table logs (
    id          uuid primary key,
    origin      text not null unique check (octet_length(origin) between 1 and 255 and origin !~ '[[:space:]+]'),
    created_at  timestamptz not null default now(),
    closed_at   timestamptz,
    successor   uuid references logs
);

create table tenants (
    id          uuid primary key,
    name        text not null check (length(name) between 1 and 200),
    log_id      uuid not null references logs,
    created_at  timestamptz not null default now(),
    deleted_at  timestamptz
);

-- Only the SHA-256 of a key is kept; a key holds 256 bits of randomness, so a slow hash would add nothing.
create table api_keys (
    id          uuid primary key,
    tenant_id   uuid not null references tenants,
    name        text not null check (length(name) between 1 and 200),
    key_hash    bytea not null unique check (octet_length(key_hash) = 32),
    created_at  timestamptz not null default now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);

create table endpoints (
    id              uuid primary key,
    tenant_id       uuid not null references tenants,
    name            text not null check (length(name) between 1 and 200),
    verification    jsonb not null,
    duplicates      jsonb not null,
    lane            text not null default 'auto' check (lane in ('auto', 'workflow', 'batch')),
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    deleted_at      timestamptz,
    unique (id, tenant_id)
);
create index endpoints_of_tenant on endpoints (tenant_id, id);

-- Secrets by which an endpoint verifies its source: several may be valid at once, so that one can be rotated.
create table endpoint_secrets (
    id          uuid primary key,
    endpoint_id uuid not null,
    tenant_id   uuid not null,
    secret      bytea not null check (octet_length(secret) > 0),
    created_at  timestamptz not null default now(),
    expires_at  timestamptz,
    foreign key (endpoint_id, tenant_id) references endpoints (id, tenant_id)
);
create index endpoint_secrets_of_endpoint on endpoint_secrets (endpoint_id);

create table destinations (
    id              uuid primary key,
    tenant_id       uuid not null,
    endpoint_id     uuid not null,
    url             text not null check (octet_length(url) between 1 and 2048),
    secret_path     boolean not null,
    timeout_ms      integer not null check (timeout_ms between 100 and 120000),
    schedule        jsonb not null,
    headers         jsonb not null default '{}',
    max_concurrency integer check (max_concurrency > 0),
    rate_per_second integer check (rate_per_second > 0),
    filter          jsonb,
    circuit         jsonb,
    paused_at       timestamptz,
    disabled_at     timestamptz,
    disabled_reason text,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    deleted_at      timestamptz,
    foreign key (endpoint_id, tenant_id) references endpoints (id, tenant_id),
    unique (id, tenant_id)
);
create index destinations_of_endpoint on destinations (endpoint_id, id);

-- Secrets by which Kapsel signs what it sends (Standard Webhooks).
create table destination_secrets (
    id              uuid primary key,
    destination_id  uuid not null,
    tenant_id       uuid not null,
    secret          bytea not null check (octet_length(secret) between 24 and 64),
    created_at      timestamptz not null default now(),
    expires_at      timestamptz,
    foreign key (destination_id, tenant_id) references destinations (id, tenant_id)
);
create index destination_secrets_of_destination on destination_secrets (destination_id);

alter table tenants enable row level security;
alter table api_keys enable row level security;
alter table endpoints enable row level security;
alter table endpoint_secrets enable row level security;
alter table destinations enable row level security;
alter table destination_secrets enable row level security;
create policy tenant_only on tenants to kapsel_api using (id = (select current_tenant()));
create policy tenant_only on api_keys to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on endpoints to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on endpoint_secrets to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on destinations to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on destination_secrets to kapsel_api using (tenant_id = (select current_tenant()));

-- A request's key is looked up before its tenant is known; this is the only way to it.
-- +goose StatementBegin
create function authenticate(hash bytea) returns table (key_id uuid, tenant_id uuid)
    language sql stable security definer set search_path = public, pg_temp
    begin atomic
        select k.id, k.tenant_id
        from api_keys k join tenants t on t.id = k.tenant_id
        where k.key_hash = hash and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
          and t.deleted_at is null;
    end;
-- +goose StatementEnd
revoke execute on function authenticate from public;
grant execute on function authenticate to kapsel_api;

grant select on logs, tenants, endpoints, endpoint_secrets, destinations, destination_secrets to kapsel_engine;
grant update (disabled_at, disabled_reason, updated_at) on destinations to kapsel_engine;
grant select on logs, tenants to kapsel_api;
grant select, insert, update on endpoints, destinations to kapsel_api;
grant select (id, endpoint_id, tenant_id, created_at, expires_at), insert, update (expires_at) on endpoint_secrets to kapsel_api;
grant select (id, destination_id, tenant_id, created_at, expires_at), insert, update (expires_at) on destination_secrets to kapsel_api;

reset role;
