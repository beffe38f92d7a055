-- Partitions are made ahead: by `kapsel migrate`, and by every worker once an hour through this function, which runs as
-- the tables' owner. A partition is made apart and then attached, which needs only SHARE UPDATE EXCLUSIVE on its parent
-- (CREATE TABLE … PARTITION OF would take ACCESS EXCLUSIVE and stop the world); it is empty, so attaching is instant.

-- +goose Up
set local role kapsel_owner;

-- Leaves in one partition of merkle_leaves.
create function leaves_per_partition() returns bigint language sql immutable return 16777216;

-- +goose StatementBegin
create function ensure_partition(parent text, suffix text, lower text, upper text, options text) returns boolean
    language plpgsql set search_path = public, pg_temp as $$
declare
    child text := parent || '_' || suffix;
begin
    if to_regclass(child) is not null then
        return false;
    end if;
    execute format('create table %I (like %I including all)', child, parent);
    if options <> '' then
        execute format('alter table %I set (%s)', child, options);
    end if;
    execute format('alter table %I attach partition %I for values from (%L) to (%L)', parent, child, lower, upper);
    if parent <> 'dedup' then
        execute format('create trigger never_emptied before truncate on %I for each statement execute function refuse_change()', child);
    end if;
    return true;
end
$$;

-- Makes what is missing of the partitions from yesterday to so many days ahead, and those the logs grow into next.
-- Returns how many it made. Safe to call from many processes at once.
create function ensure_partitions(days_ahead integer) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
declare
    today date := (now() at time zone 'utc')::date;
    day date;
    low timestamptz;
    high timestamptz;
    part bigint;
    made integer := 0;
begin
    if days_ahead not between 1 and 60 then
        raise exception 'days_ahead is %, allowed are 1 to 60', days_ahead;
    end if;
    perform pg_advisory_xact_lock(hashtext('kapsel ensure_partitions'));
    for day in select generate_series(today - 1, today + days_ahead, interval '1 day')::date loop
        low := day::timestamp at time zone 'utc';
        high := (day + 1)::timestamp at time zone 'utc';
        made := made
            + ensure_partition('events', to_char(day, 'YYYYMMDD'), uuid_floor(low)::text, uuid_floor(high)::text, '')::int
            + ensure_partition('event_payloads', to_char(day, 'YYYYMMDD'), uuid_floor(low)::text, uuid_floor(high)::text, '')::int
            + ensure_partition('deliveries', to_char(day, 'YYYYMMDD'), uuid_floor(low)::text, uuid_floor(high)::text, 'fillfactor = 60')::int
            + ensure_partition('attempts', to_char(day, 'YYYYMMDD'), uuid_floor(low)::text, uuid_floor(high)::text, '')::int
            + ensure_partition('dedup', to_char(day, 'YYYYMMDD'), day::text, (day + 1)::text, '')::int;
    end loop;
    for part in select generate_series(0, (select coalesce(max(tree_size), 0) from log_heads) / leaves_per_partition() + 1) loop
        made := made + ensure_partition('merkle_leaves', lpad(part::text, 9, '0'),
            (part * leaves_per_partition())::text, ((part + 1) * leaves_per_partition())::text, '')::int;
    end loop;
    return made;
end
$$;
-- +goose StatementEnd

revoke execute on function ensure_partition, ensure_partitions from public;
grant execute on function ensure_partitions to kapsel_engine;

reset role;
