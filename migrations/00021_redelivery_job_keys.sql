-- The Idempotency-Key with which a redelivery job was asked for, so that whoever asks again gets the same job.
-- Locks: ACCESS EXCLUSIVE on redelivery_jobs, for a moment (new columns without a rewrite, and an index on a small table: a row for each
-- job that was ever asked for).

-- +goose Up
set local role kapsel_owner;

-- The hashes of the key and of the request it came with. Both are forgotten after a week; the job stays.
alter table redelivery_jobs
    add column key_hash bytea check (octet_length(key_hash) = 32),
    add column request_hash bytea check (octet_length(request_hash) = 32),
    add constraint key_has_request check ((key_hash is null) = (request_hash is null));
create unique index redelivery_jobs_once on redelivery_jobs (tenant_id, key_hash) where key_hash is not null;

reset role;
