-- What sealing does about faults: leaves that can be made again, what was done about those that were set aside, and how far
-- reconciliation has come.
-- Locks: ACCESS EXCLUSIVE on attempts, its partitions and attestation_dead_letters for a moment: new columns without a rewrite, and
-- triggers. No row is read.

-- +goose Up
set local role kapsel_owner;

-- The leaf of an attempt says a few things that no column of its row does. With them it can be made again, to the byte, if it is
-- lost before it is in the log; leaf_hash says whether that succeeded. Null: of an attempt from before this migration, or erased.
alter table attempts add column leaf_parts bytea;
comment on column attempts.leaf_parts is 'nonce, lost starts, hashes: attestation.Entry.Parts';

-- +goose StatementBegin
create or replace function guard_attempt() returns trigger language plpgsql as $$
begin
    -- Erasure may take the response away, and what the leaf can be made from; nothing may change them.
    if new.response_body is not null and new.response_body is distinct from old.response_body
        or new.response_headers is not null and new.response_headers is distinct from old.response_headers
        or new.leaf_parts is not null and new.leaf_parts is distinct from old.leaf_parts then
        raise exception 'an attempt''s response can be erased, not changed' using errcode = 'restrict_violation';
    end if;
    old.response_body := new.response_body;
    old.response_headers := new.response_headers;
    old.leaf_parts := new.leaf_parts;
    if new is distinct from old then
        raise exception 'UPDATE on attempts refused: an attempt is a record and never changes' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;

-- A dead letter is a record too: it is resolved once, and its secrets can be erased.
create function guard_dead_letter() returns trigger language plpgsql as $$
begin
    if old.resolved_at is null then
        old.resolved_at := new.resolved_at;
        old.resolution := new.resolution;
        old.resolved_by := new.resolved_by;
    end if;
    if new.secrets = ''::bytea then
        old.secrets := new.secrets;
    end if;
    if new is distinct from old then
        raise exception 'UPDATE on attestation_dead_letters refused: a dead letter is resolved once and never changes' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;
-- +goose StatementEnd

-- queued: the attempt's recorded leaf was put into the queue again. in_log: it had its place in the log already.
alter table attestation_dead_letters
    add column resolution text,
    add column resolved_by text;
alter table attestation_dead_letters add constraint resolution_word check (resolution in ('queued', 'in_log')) not valid;
create trigger resolved_once before update on attestation_dead_letters for each row execute function guard_dead_letter();
create trigger never_gone before delete on attestation_dead_letters for each row execute function refuse_change();
create trigger never_emptied before truncate on attestation_dead_letters for each statement execute function refuse_change();
grant update (resolution, resolved_by) on attestation_dead_letters to kapsel_engine;

-- How far the attempts of a day were compared with the log. after: the last attempt that was looked at, null at the day's beginning.
create table reconciled_days (
    day         date primary key,
    after       uuid,
    finished_at timestamptz -- when the day was last looked at as a whole
);

-- How far the leaves of a log were compared with the attempts.
create table reconciled_logs (
    log_id      uuid primary key references logs,
    leaf_index  bigint not null default 0 check (leaf_index >= 0)
);

-- What was found and couldn't be repaired. subject is the attempt.
create table attestation_findings (
    problem     text not null check (problem in ('missing', 'log_closed', 'differs', 'leaf_unknown', 'queued_unknown')),
    subject     uuid not null,
    log_id      uuid not null,
    tenant_id   uuid not null,
    detail      text not null,
    first_seen  timestamptz not null default now(),
    last_seen   timestamptz not null default now(),
    resolved_at timestamptz,
    primary key (problem, subject)
);
create trigger never_gone before delete on attestation_findings for each row execute function refuse_change();
create trigger never_emptied before truncate on attestation_findings for each statement execute function refuse_change();
create index attestation_findings_open on attestation_findings (problem) where resolved_at is null;
alter table attestation_findings enable row level security;
create policy tenant_only on attestation_findings for select to kapsel_api using (tenant_id = (select current_tenant()));

grant select, insert, update on reconciled_days, reconciled_logs to kapsel_engine;
grant select, insert, update (detail, last_seen, resolved_at) on attestation_findings to kapsel_engine;

reset role;
