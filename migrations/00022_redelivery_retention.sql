-- What is over is removed: redelivery jobs some time after their end, and which delivery was delivered again when both are gone.
-- Locks: SHARE on redelivery_jobs while its index is built: some milliseconds, with a row for each job that was ever asked for.

-- +goose Up
set local role kapsel_owner;

create index redelivery_jobs_finished on redelivery_jobs (finished_at) where finished_at is not null;
grant delete on redelivery_jobs, redeliveries to kapsel_engine;

reset role;
