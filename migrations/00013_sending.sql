-- How destinations are reached and signed for where that isn't as usual: key pairs for signatures v1a, and transports (own
-- certificate authorities, client certificate, proxy). Private keys and proxy URLs are kept as destination_secrets are: as they
-- are, and the api's role may write but not read them.
-- Locks: destinations against changes of its schema only, for the moment in which the foreign keys are made (SHARE ROW
-- EXCLUSIVE, which waits for writes under way and then holds up none for long: the new tables are empty).

-- +goose Up
set local role kapsel_owner;

-- Ed25519. Several may be valid at once, so that one can be rotated. The public ones are listed for ever, so no row goes.
create table destination_keys (
    id              uuid primary key,
    destination_id  uuid not null,
    tenant_id       uuid not null,
    public_key      bytea not null check (octet_length(public_key) = 32),
    private_key     bytea not null check (octet_length(private_key) = 64 and substring(private_key from 33) = public_key),
    created_at      timestamptz not null default now(),
    expires_at      timestamptz,
    foreign key (destination_id, tenant_id) references destinations (id, tenant_id)
);
create index destination_keys_of_destination on destination_keys (destination_id);

create table destination_transports (
    destination_id         uuid primary key,
    tenant_id              uuid not null,
    min_tls                text not null check (min_tls in ('1.2', '1.3')),
    ca_pem                 text check (octet_length(ca_pem) between 1 and 65536),
    client_cert_pem        text check (octet_length(client_cert_pem) between 1 and 65536),
    client_key_pem         text check (octet_length(client_key_pem) between 1 and 65536),
    client_cert_expires_at timestamptz,
    proxy_url              text check (octet_length(proxy_url) between 1 and 2048),
    proxy                  text, -- its host and port, which may be shown
    created_at             timestamptz not null default now(),
    foreign key (destination_id, tenant_id) references destinations (id, tenant_id),
    check ((client_cert_pem is null) = (client_key_pem is null) and (client_cert_pem is null) = (client_cert_expires_at is null)),
    check ((proxy_url is null) = (proxy is null))
);

alter table destination_keys enable row level security;
alter table destination_transports enable row level security;
create policy tenant_only on destination_keys to kapsel_api using (tenant_id = (select current_tenant()));
create policy tenant_only on destination_transports to kapsel_api using (tenant_id = (select current_tenant()));

-- Everybody may know which keys the tenants of a log sign with, and when; not whose they are.
-- +goose StatementBegin
create function signing_keys_of_log(log uuid, before uuid, max_rows integer)
    returns table (id uuid, public_key bytea, not_before timestamptz, not_after timestamptz)
    language sql stable security definer set search_path = public, pg_temp
    begin atomic
        select k.id, k.public_key, k.created_at, least(k.expires_at, d.deleted_at)
        from destination_keys k join destinations d on d.id = k.destination_id join tenants t on t.id = k.tenant_id
        where t.log_id = log and k.id < before
        order by k.id desc
        limit max_rows;
    end;
-- +goose StatementEnd
revoke execute on function signing_keys_of_log from public;
grant execute on function signing_keys_of_log to kapsel_api;

grant select on destination_keys, destination_transports to kapsel_engine;
grant select (id, destination_id, tenant_id, public_key, created_at, expires_at), insert, update (expires_at) on destination_keys to kapsel_api;
grant select (destination_id, tenant_id, min_tls, ca_pem, client_cert_pem, client_cert_expires_at, proxy, created_at), insert, delete
    on destination_transports to kapsel_api;

reset role;
