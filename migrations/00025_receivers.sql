-- What receivers and senders hold Kapsel to, and what a tenant may take back: proof tokens, leaves of acceptance, erasure.
-- Locks: ACCESS EXCLUSIVE on destinations, endpoints, events, attempts, dedup, deliveries and leaf_queue for a
-- moment each (new columns without a rewrite; triggers and functions change without looking at a row). tenants is rewritten, which
-- is small. No table is read.

-- +goose Up
set local role kapsel_owner;

-- Proof tokens. A tenant's key is 32 bytes out of 366 random bits; exchanging it revokes all tokens that were ever sent. The api's
-- role may exchange it and not read it: whoever manages a tenant has the proofs already, and needs no token.
alter table tenants add column proof_key bytea not null check (octet_length(proof_key) = 32) default
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
comment on column tenants.proof_key is 'proof tokens are its HMACs of delivery IDs';
revoke select on tenants from kapsel_api;
grant select (id, name, log_id, created_at, deleted_at), update (proof_key) on tenants to kapsel_api;
alter table destinations add column proof_token boolean not null default false;

-- Leaves of acceptance. In leaf_queue, merkle_leaves and leaf_of_attempt they stand under the event's ID as attempt_id: no attempt
-- can have it, since IDs of attempts are hashes.
alter table endpoints add column attest_acceptance boolean not null default false;
alter table events add column leaf_hash bytea;
alter table events add constraint leaf_hash_length check (octet_length(leaf_hash) = 32) not valid;
comment on column events.leaf_hash is 'of the leaf that attests its acceptance; null: there is none';

-- Erasure. What is erased can't come back: a sender whose request was under way meanwhile finds it here, under the row's lock.
alter table deliveries add column erased text;
alter table deliveries add constraint erased_word check (erased in ('payload', 'leaves')) not valid;
comment on column deliveries.erased is 'what of its event was erased while it was pending: payload, or its leaves too';
alter table leaf_queue add column erased boolean not null default false;
comment on column leaf_queue.erased is 'only its hash is to be kept once it has its place in the log';
alter table dedup alter column body_hash drop not null; -- null: erased
alter table attempts add column if not exists leaf_parts bytea; -- of 00023: with it a leaf can be made again, so it goes with the leaf
grant update (event_id) on event_payloads to kapsel_engine; -- select for key share needs it; the trigger refuses any update

create table erasures (
    event_id    uuid primary key,
    tenant_id   uuid not null,
    leaves      boolean not null,
    erased_at   timestamptz not null default now()
);
alter table erasures enable row level security;
create policy tenant_only on erasures for select to kapsel_api using (tenant_id = (select current_tenant()));
grant select on erasures to kapsel_api, kapsel_engine;

-- +goose StatementBegin
create function guard_event() returns trigger language plpgsql as $$
begin
    -- Erasure may take the duplicate key away, which may be a hash of the body; nothing may change it.
    if new.duplicate_key is null then
        old.duplicate_key := null;
    end if;
    if new is distinct from old then
        raise exception 'UPDATE on events refused: its rows are a record and never change' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;

-- The secrets of a leaf go with the payload; its bytes only if that is asked for too.
create or replace function guard_leaf() returns trigger language plpgsql as $$
begin
    if new.secrets is null and (new.leaf is null or new.leaf is not distinct from old.leaf)
        and (new.log_id, new.leaf_index, new.tenant_id, new.attempt_id, new.leaf_hash)
            is not distinct from (old.log_id, old.leaf_index, old.tenant_id, old.attempt_id, old.leaf_hash) then
        return new;
    end if;
    raise exception 'UPDATE on merkle_leaves refused: bytes can be erased, nothing can be changed' using errcode = 'restrict_violation';
end
$$;
-- +goose StatementEnd

create or replace trigger append_only before delete on events for each row execute function refuse_change();
create trigger erase_only before update on events for each row execute function guard_event();

-- Erasing is done by two functions, so that the role that may call them can erase what is its tenant's and nothing else, and no role
-- needs the right to change records. They are called in this order, in one transaction. The order of their locks is that of all
-- others: payload, deliveries, head of the log, queue, leaves.
--
-- The payload is deleted first: who makes a new delivery of the event holds the payload's row (insertRedeliveries), so either it is seen
-- below, or it finds no payload. Then each delivery that isn't over is marked: that waits for whoever is recording an attempt, whose
-- leaf is seen by erase_leaves, and who records later finds the mark. Returns false if the tenant has no such event.
-- +goose StatementBegin
create function erase_payload(event uuid, with_leaves boolean, first_delivery uuid, last_delivery uuid) returns boolean
    language plpgsql security definer set search_path = public, pg_temp as $$
declare
    tenant uuid := current_tenant();
    found_event record;
    content_key bytea;
begin
    select e.endpoint_id, e.duplicate_key into found_event from events e where e.id = event and e.tenant_id = tenant;
    if not found then
        return false;
    end if;
    insert into erasures (event_id, tenant_id, leaves) values (event, tenant, with_leaves)
        on conflict (event_id) do update set leaves = erasures.leaves or excluded.leaves;
    -- The key of endpoints that recognize duplicates by their content, as package webhook makes it.
    select sha256('kapsel.io/duplicate-key/v1'::bytea || '\x00'::bytea || int8send(7) || 'content'::bytea || int8send(0)
            || int8send(32) || sha256(p.body)) into content_key
        from event_payloads p where p.event_id = event;
    delete from event_payloads p where p.event_id = event and p.tenant_id = tenant;
    -- In the order in which those lock them who record attempts.
    perform from deliveries d where d.event_id = event and d.id between first_delivery and last_delivery and d.state = 'pending'
        order by d.id for update;
    update deliveries d set erased = case when with_leaves then 'leaves' else coalesce(d.erased, 'payload') end
        where d.event_id = event and d.id between first_delivery and last_delivery and d.state = 'pending';
    -- Any other key goes on being found until its window is over: forgotten, the same webhook sent again would be stored again.
    delete from dedup d where d.endpoint_id = found_event.endpoint_id and d.key_hash = content_key and d.event_id = event;
    update dedup d set body_hash = null
        where d.endpoint_id = found_event.endpoint_id and d.key_hash = found_event.duplicate_key and d.event_id = event;
    update events e set duplicate_key = null where e.id = event and e.duplicate_key is not null;
    return true;
end
$$;

-- subjects are the IDs of all attempts that the event's deliveries may have, and the event's own. The heads of the logs are locked, so
-- that no leaf is on its way from the queue to its place, where it could be seen in neither, or back into the queue.
create function erase_leaves(subjects uuid[], with_leaves boolean, out attempts bigint, out leaves bigint)
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
    end if;
    perform from log_heads h where h.log_id in (
            select q.log_id from leaf_queue q where q.attempt_id = any(subjects) and q.tenant_id = tenant
            union select p.log_id from leaf_of_attempt p where p.attempt_id = any(subjects) and p.tenant_id = tenant
            union select a.log_id from attempts a where a.id = any(subjects) and a.tenant_id = tenant)
        order by h.log_id for update;
    update leaf_queue q set secrets = '', erased = q.erased or with_leaves
        where q.attempt_id = any(subjects) and q.tenant_id = tenant and (q.secrets <> '' or with_leaves and not q.erased);
    get diagnostics leaves = row_count;
    update attestation_dead_letters l set secrets = ''
        where l.attempt_id = any(subjects) and l.tenant_id = tenant and l.secrets <> '';
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
revoke execute on function erase_payload, erase_leaves from public;
grant execute on function erase_payload, erase_leaves to kapsel_api;

reset role;
