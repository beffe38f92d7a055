-- Three roles, so that what a process may do is the database's word and not only the code's.
--   kapsel_owner   owns the tables; migrations and the administrative commands use it
--   kapsel_engine  ingest, delivery and sealing: sees all tenants (a group commit mixes them), may only add to the log
--   kapsel_api     management requests: row-level security shows it one tenant's rows
-- The user who logs in (DATABASE_URL) is a member of all three and changes into one of them.
-- Roles belong to the whole server, so another database's migration may be making them at this moment.
-- Locks: nothing that anybody waits for.

-- +goose Up
-- +goose StatementBegin
do $$
declare
    r record;
begin
    for r in
        select * from (values
            ('kapsel_owner', 'nologin nobypassrls'),
            ('kapsel_engine', 'nologin bypassrls'),
            ('kapsel_api', 'nologin nobypassrls')
        ) as wanted(name, options)
    loop
        if not exists (select from pg_roles where rolname = r.name) then
            begin
                execute format('create role %I %s', r.name, r.options);
            exception
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then
                    raise exception 'role % does not exist and % may not create it', r.name, current_user
                        using hint = format('As a superuser run: create role %I %s; grant %I to %I;', r.name, r.options, r.name, current_user);
            end;
        end if;
        if not pg_has_role(current_user, r.name, 'member') then
            begin
                execute format('grant %I to %I', r.name, current_user);
            exception when insufficient_privilege then
                raise exception '% is not a member of role %', current_user, r.name
                    using hint = format('As a superuser run: grant %I to %I;', r.name, current_user);
            end;
        end if;
    end loop;
    if not (select rolbypassrls from pg_roles where rolname = 'kapsel_engine') then
        raise exception 'role kapsel_engine lacks BYPASSRLS'
            using hint = 'As a superuser run: alter role kapsel_engine bypassrls;';
    end if;
end
$$;
-- +goose StatementEnd

revoke create on schema public from public;
grant usage, create on schema public to kapsel_owner;
grant usage on schema public to kapsel_engine, kapsel_api;

set local role kapsel_owner;

-- The tenant of the present transaction, set by set_config('kapsel.tenant', …, true); null shows no row at all.
create function current_tenant() returns uuid
    language sql stable
    return nullif(current_setting('kapsel.tenant', true), '')::uuid;

-- Append-only tables: what was recorded can't be changed by anyone who doesn't own the table.
-- +goose StatementBegin
create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% on % refused: its rows are a record and never change', tg_op, tg_table_name
        using errcode = 'restrict_violation';
end
$$;
-- +goose StatementEnd

reset role;
