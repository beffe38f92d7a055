-- Circuits: when the next probe may be won, when a circuit closed, and since when its receiver has been failing. Nothing
-- wrote circuits before, so the table is empty and the new constraints are checked at once.
-- Locks: ACCESS EXCLUSIVE on circuits and SHARE ROW EXCLUSIVE on destinations (for the trigger), for some milliseconds.

-- +goose Up
set local role kapsel_owner;

alter table circuits
    add column closed_at timestamptz,
    add column failing_since timestamptz,
    add column failed_at timestamptz,
    add check ((state = 'closed') = (opened_at is null)),
    add check ((state = 'closed') = (probe_until is null)),
    add check (probe_token is null or state = 'half_open'),
    add check (successes = 0 or state = 'half_open'),
    add check (closed_at is null or state = 'closed'),
    add check ((failing_since is null) or failed_at >= failing_since),
    add check (ring <> 0 or failing_since is null);
comment on column circuits.opened_at is 'when the circuit last opened; null while it is closed';
comment on column circuits.probe_until is 'from when on a probe may be won; while one is under way, when it counts as lost';
comment on column circuits.closed_at is 'when the circuit closed, after which traffic grows; null if it was never open';
comment on column circuits.failing_since is 'the first failure after which nothing succeeded, and failed_at the last one';

-- What a person changes about a destination is the reason to expect that it works again: its circuit starts anew, and so
-- does the time for which it may fail before it is disabled. The order of locks is that of the transactions that record
-- attempts: destinations first, then circuits.
-- +goose StatementBegin
create function renew_circuit() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    delete from circuits where destination_id = new.id;
    return null;
end
$$;
-- +goose StatementEnd
revoke execute on function renew_circuit from public;

create trigger renew_circuit after update on destinations for each row
    when (old.url is distinct from new.url or old.circuit is distinct from new.circuit
        or old.paused_at is not null and new.paused_at is null or old.disabled_at is not null and new.disabled_at is null)
    execute function renew_circuit();

reset role;
