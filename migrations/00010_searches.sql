-- The index by which a tenant's deliveries are listed, newest first. It holds only columns that never change, so that
-- updates of a delivery stay on their page (HOT); state, which does change, is not in it.
-- Locks: deliveries against writing while its partitions are indexed, some seconds for each million rows of them. The index is
-- built in one transaction, because a partition made meanwhile must not be without it. On a large system do it first, by
-- hand: on each partition `create index concurrently on deliveries_… (tenant_id, id)`; this then only takes them over.

-- +goose Up
set local role kapsel_owner;

create index deliveries_of_tenant on deliveries (tenant_id, id);

reset role;
