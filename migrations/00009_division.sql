-- Workers divide the limits of destinations among them. Each says here which workers it counts, so that a new one knows when
-- all others have made room for it.
-- Locks: workers, for the moment of adding a column without rewriting the table.

-- +goose Up
set local role kapsel_owner;

alter table workers add column counted uuid[] not null default '{}';

reset role;
