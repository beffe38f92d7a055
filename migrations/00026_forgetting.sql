-- What is kept for a week is found by its age when it is removed: commands that were carried out, and the keys of redeliveries.
-- Locks: SHARE on delivery_commands, redelivery_keys and redelivery_jobs while their indexes are built: some milliseconds for a hundred
-- thousand rows. Commands that are given meanwhile wait.

-- +goose Up
set local role kapsel_owner;

create index delivery_commands_relayed on delivery_commands (relayed_at) where relayed_at is not null;
create index redelivery_keys_created on redelivery_keys (created_at);
create index redelivery_jobs_keyed on redelivery_jobs (created_at) where key_hash is not null;

reset role;
