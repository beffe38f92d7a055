-- What a destination doesn't want: the type of an endpoint's events, and what filters did with them. Destinations have had
-- their filter since 00002.
-- Locks: endpoints, events and deliveries for a moment each; the columns have no default that would rewrite a row, and the
-- constraints are checked for new rows only. Then events against writing while its partitions are indexed: the index is
-- empty, since no event has a type yet, but every row is read once, about a second for a million of them. On a large
-- system do it first, by hand, on each partition: `create index concurrently on events_… (tenant_id, event_type, id) where
-- event_type is not null`; this then only takes them over.

-- +goose Up
set local role kapsel_owner;

alter table endpoints
    add column event_type jsonb not null default '{}',
    add column record_skipped boolean not null default true;
comment on column endpoints.event_type is 'where the type of an event comes from: webhook.EventTypePolicy';

alter table events add column event_type text;
alter table events add constraint event_type_length check (octet_length(event_type) between 1 and 200) not valid;
create index events_of_type on events (tenant_id, event_type, id) where event_type is not null;

alter table deliveries add column filter_error text;
alter table deliveries add constraint filter_error_word check (filter_error ~ '^[a-z_]{1,64}$') not valid;
comment on column deliveries.filter_error is 'why the filter could not be asked, so that the event was taken to match';

reset role;
