-- Operational webhooks: what Kapsel tells a tenant of its deliveries goes through an endpoint of the tenant's own. What is to
-- be told is written here in the transaction that makes it true, and turned into an event by a worker.
-- Locks: ACCESS EXCLUSIVE on endpoints and circuits for a moment (new columns without a rewrite); SHARE on endpoints while its
-- index is built over no rows, and SHARE ROW EXCLUSIVE on circuits and destinations for the triggers: some milliseconds each.

-- +goose Up
set local role kapsel_owner;

-- At most one of a tenant: so it is found by one look into this index, which is as good as empty for everybody else.
alter table endpoints add column operational boolean not null default false;
create unique index endpoints_operational on endpoints (tenant_id) where operational and deleted_at is null;

-- What a circuit's last failure was, so that whoever is told of it learns why.
alter table circuits add column last_status integer, add column last_error text;

-- Small: a row goes when its event is accepted, in the same transaction.
create table operational_outbox (
    id              bigint generated always as identity primary key,
    tenant_id       uuid not null,
    type            text not null check (type in ('delivery_dead', 'circuit_opened', 'destination_disabled')),
    occurred_at     timestamptz not null default now(),
    endpoint_id     uuid not null,
    destination_id  uuid not null,
    delivery_id     uuid,
    event_id        uuid,
    attempts        integer check (attempts >= 0),
    reason          text,
    failing_since   timestamptz,
    last_status     integer not null,
    last_error      text not null,
    check ((type = 'delivery_dead') = (delivery_id is not null)),
    check ((delivery_id is null) = (event_id is null) and (delivery_id is null) = (attempts is null)),
    check ((type = 'circuit_opened') = (reason is null))
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000);
create index operational_outbox_of_tenant on operational_outbox (tenant_id, id);
alter table operational_outbox enable row level security; -- and no policy: the api has no business here
grant select, insert, update, delete on operational_outbox to kapsel_engine; -- update: for update skip locked needs it

-- Whether a tenant is told of something that happened at an endpoint: it has an operational one, and this is an ordinary one.
-- +goose StatementBegin
create function is_told(tenant uuid, endpoint uuid) returns boolean
    language sql stable
    begin atomic
        select exists (select from endpoints o where o.tenant_id = tenant and o.operational and o.deleted_at is null)
            and not exists (select from endpoints e where e.id = endpoint and e.operational);
    end;
-- +goose StatementEnd
revoke execute on function is_told from public;
grant execute on function is_told to kapsel_engine;

-- By triggers, so that whoever writes the next statement that opens a circuit or disables a destination can't forget it, and
-- a worker of the version before tells it too. What a delivery died of they can't see: postgres/operational.go writes that.
-- +goose StatementBegin
create function tell_circuit_opened() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    insert into operational_outbox (tenant_id, type, endpoint_id, destination_id, failing_since, last_status, last_error)
    select d.tenant_id, 'circuit_opened', d.endpoint_id, d.id, new.failing_since, coalesce(new.last_status, 0), coalesce(new.last_error, '')
    from destinations d
    where d.id = new.destination_id and d.deleted_at is null and is_told(d.tenant_id, d.endpoint_id);
    return null;
end
$$;

create function tell_destination_disabled() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    if is_told(new.tenant_id, new.endpoint_id) then
        insert into operational_outbox (tenant_id, type, endpoint_id, destination_id, reason, failing_since, last_status, last_error)
        select new.tenant_id, 'destination_disabled', new.endpoint_id, new.id, coalesce(new.disabled_reason, ''), c.failing_since,
            case when new.disabled_reason = 'gone' then 410 else coalesce(c.last_status, 0) end,
            case when new.disabled_reason = 'gone' then '' else coalesce(c.last_error, '') end
        from (values (1)) as one left join circuits c on c.destination_id = new.id;
    end if;
    return null;
end
$$;
-- +goose StatementEnd
revoke execute on function tell_circuit_opened, tell_destination_disabled from public;

create trigger tell_circuit_opened after update on circuits for each row
    when (old.state = 'closed' and new.state = 'open')
    execute function tell_circuit_opened();
create trigger tell_destination_disabled after update on destinations for each row
    when (old.disabled_at is null and new.disabled_at is not null and new.deleted_at is null)
    execute function tell_destination_disabled();

reset role;
