-- A leaf of acceptance that is lost can be found and made again, as one of an attempt can (00023), and the bytes of leaves that were
-- set aside are erased too.
-- Locks: ACCESS EXCLUSIVE on attestation_dead_letters and events for a moment each (new columns without a rewrite;
-- triggers and functions change without looking at a row).
-- Then SHARE while the index is built, which reads events once: some seconds for each ten million of them, during which no webhook is
-- accepted. On a large system build it first, by hand: add the columns, then on each partition
-- `create index concurrently on events_… (id) where leaf_hash is not null`; this then only takes them over.

-- +goose Up
set local role kapsel_owner;

alter table events
    add column if not exists leaf_log_id uuid,
    add column if not exists leaf_parts bytea;
comment on column events.leaf_log_id is 'the log for which its leaf of acceptance was made; null: there is none, or it is from before this migration';
comment on column events.leaf_parts is 'nonce and time of that leaf: attestation.Acceptance.Parts; null: likewise, or erased';
alter table attestation_dead_letters add column erased boolean not null default false;
comment on column attestation_dead_letters.erased is 'only its hash is to be kept once it is resolved';
create index events_attested on events (id) where leaf_hash is not null;

-- +goose StatementBegin
create or replace function guard_event() returns trigger language plpgsql as $$
begin
    -- Erasure may take away the duplicate key, which may be a hash of the body, and what the leaf can be made from; nothing may change them.
    if new.duplicate_key is null then
        old.duplicate_key := null;
    end if;
    if new.leaf_parts is null then
        old.leaf_parts := null;
    end if;
    if new is distinct from old then
        raise exception 'UPDATE on events refused: its rows are a record and never change' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;

-- A dead letter is a record too: it is resolved once, and its secrets and bytes can be erased. Until it is resolved its bytes may be
-- the only ones from which the log can get the leaf.
create or replace function guard_dead_letter() returns trigger language plpgsql as $$
begin
    if old.resolved_at is null then
        old.resolved_at := new.resolved_at;
        old.resolution := new.resolution;
        old.resolved_by := new.resolved_by;
    end if;
    if new.secrets = ''::bytea then
        old.secrets := new.secrets;
    end if;
    if new.erased then
        old.erased := true;
    end if;
    if new is distinct from old then
        raise exception 'UPDATE on attestation_dead_letters refused: a dead letter is resolved once and never changes' using errcode = 'restrict_violation';
    end if;
    if new.erased and new.resolved_at is not null then
        new.leaf := '';
    end if;
    return new;
end
$$;

-- subjects are the IDs of all attempts that the event's deliveries may have, and the event's own. The heads of the logs are locked, so
-- that no leaf is on its way from the queue to its place, where it could be seen in neither, or back into the queue.
-- The head of the log of a leaf of acceptance is locked wherever that leaf is: it may be lost, and be made again at this moment.
create or replace function erase_leaves(subjects uuid[], with_leaves boolean, out attempts bigint, out leaves bigint)
    language plpgsql security definer set search_path = public, pg_temp as $$
declare
    tenant uuid := current_tenant();
    place record;
    changed bigint;
begin
    update attempts a set response_headers = null, response_body = null
        where a.id = any(subjects) and a.tenant_id = tenant and (a.response_headers is not null or a.response_body is not null);
    get diagnostics attempts = row_count;
    if with_leaves then
        update attempts a set leaf_parts = null where a.id = any(subjects) and a.tenant_id = tenant and a.leaf_parts is not null;
        update events e set leaf_parts = null where e.id = any(subjects) and e.tenant_id = tenant and e.leaf_parts is not null;
    end if;
    perform from log_heads h where h.log_id in (
            select q.log_id from leaf_queue q where q.attempt_id = any(subjects) and q.tenant_id = tenant
            union select p.log_id from leaf_of_attempt p where p.attempt_id = any(subjects) and p.tenant_id = tenant
            union select a.log_id from attempts a where a.id = any(subjects) and a.tenant_id = tenant
            union select e.leaf_log_id from events e where e.id = any(subjects) and e.tenant_id = tenant and e.leaf_log_id is not null)
        order by h.log_id for update;
    update leaf_queue q set secrets = '', erased = q.erased or with_leaves
        where q.attempt_id = any(subjects) and q.tenant_id = tenant and (q.secrets <> '' or with_leaves and not q.erased);
    get diagnostics leaves = row_count;
    update attestation_dead_letters l set secrets = '', erased = l.erased or with_leaves
        where l.attempt_id = any(subjects) and l.tenant_id = tenant and (l.secrets <> '' or with_leaves and not l.erased);
    get diagnostics changed = row_count;
    leaves := leaves + changed;
    for place in select p.log_id, p.leaf_index from leaf_of_attempt p
            where p.attempt_id = any(subjects) and p.tenant_id = tenant order by p.log_id, p.leaf_index loop
        update merkle_leaves m set secrets = null, leaf = case when with_leaves then null else m.leaf end
            where m.log_id = place.log_id and m.leaf_index = place.leaf_index and m.tenant_id = tenant
              and (m.secrets is not null or with_leaves and m.leaf is not null);
        get diagnostics changed = row_count;
        leaves := leaves + changed;
    end loop;
end
$$;
-- +goose StatementEnd

reset role;
