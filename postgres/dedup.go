package postgres

import (
	"bytes"
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Duplicates are found in dedup, one partition a day by Postgres's clock. A key is looked for in the older days of its
// window and then taken in today's by its primary key, so that of two transactions one waits for the other. Only around
// midnight could both win, one in each day; so in a day's last 60 s (no transaction lives that long) a key is taken in
// both days.

// MaxDuplicateWindow is the longest window in which duplicates are found, and how far back dedup is read.
const MaxDuplicateWindow = maxWindowDays * 24 * 3600 * 1e9

const maxWindowDays = 7

// takeKeysSQL takes each key ($1 endpoints, $2 hashes) that no older day holds. It returns the rows written: one per
// key won, two in a day's last minute. An entry whose window has passed is overwritten.
const takeKeysSQL = `
with clock as (
    select (now() at time zone 'utc')::date as today,
           ((now() + interval '60 s') at time zone 'utc')::date as last_day
), key as (
    select * from unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::bytea[], $5::bigint[])
        as k(endpoint_id, key_hash, event_id, body_hash, window_ms)
)
insert into dedup (day, endpoint_id, key_hash, event_id, body_hash, accepted_at, expires_at)
select day::date, k.endpoint_id, k.key_hash, k.event_id, k.body_hash, now(), now() + k.window_ms * interval '1 ms'
from key k, clock, generate_series(clock.today, clock.last_day, interval '1 day') as day
where not exists (
    select from dedup d
    where d.endpoint_id = k.endpoint_id and d.key_hash = k.key_hash and d.expires_at > now()
      and d.day >= (now() at time zone 'utc')::date - 7 and d.day < (now() at time zone 'utc')::date)
order by day, k.endpoint_id, k.key_hash
on conflict (day, endpoint_id, key_hash) do update
    set event_id = excluded.event_id, body_hash = excluded.body_hash,
        accepted_at = excluded.accepted_at, expires_at = excluded.expires_at
    where dedup.expires_at <= now()
returning endpoint_id, key_hash, event_id`

// holdersSQL finds who holds keys: the first event that took each and whose window still runs.
const holdersSQL = `
select distinct on (d.endpoint_id, d.key_hash) d.endpoint_id, d.key_hash, d.event_id, d.body_hash
from unnest($1::uuid[], $2::bytea[]) as k(endpoint_id, key_hash)
join dedup d on d.endpoint_id = k.endpoint_id and d.key_hash = k.key_hash
where d.day >= (now() at time zone 'utc')::date - 7 and d.expires_at > now()
order by d.endpoint_id, d.key_hash, d.accepted_at`

// daysSQL is how many days each key is taken in at this moment of the transaction's clock.
const daysSQL = `select 1 + ((now() + interval '60 s') at time zone 'utc')::date - (now() at time zone 'utc')::date`

// keyHolder is the event that holds a key.
type keyHolder struct {
	eventID  uuid.UUID
	bodyHash []byte // nil: erased
	leafHash []byte // nil: its acceptance isn't attested
}

// takeKeys takes the keys of rows, which are distinct, and returns who holds each: the row's own event, or an earlier one.
func takeKeys(ctx context.Context, tx pgx.Tx, rows []*Acceptance) (map[dedupKey]keyHolder, error) {
	won, days, err := insertKeys(ctx, tx, rows)
	if err != nil {
		return nil, fmt.Errorf("take duplicate keys: %w", err)
	}
	holders := make(map[dedupKey]keyHolder, len(rows))
	var lost []*Acceptance
	for _, r := range rows {
		switch won[r.dedupKey()] {
		case days:
			holders[r.dedupKey()] = keyHolder{r.EventID, r.Duplicate.BodyHash, r.leafHash()}
		case 0:
			lost = append(lost, r)
		default:
			return nil, errDayTurned
		}
	}
	if len(lost) == 0 {
		return holders, nil
	}
	return holders, findHolders(ctx, tx, lost, holders)
}

// insertKeys returns in how many days each key was won, and in how many it had to be.
func insertKeys(ctx context.Context, tx pgx.Tx, rows []*Acceptance) (map[dedupKey]int, int, error) {
	var endpoints, events []uuid.UUID
	var hashes, bodies [][]byte
	var windows []int64
	for _, r := range rows {
		endpoints = append(endpoints, r.EndpointID)
		hashes = append(hashes, r.Duplicate.Hash)
		events = append(events, r.EventID)
		bodies = append(bodies, r.Duplicate.BodyHash)
		windows = append(windows, r.Duplicate.Window.Milliseconds())
	}
	batch := &pgx.Batch{}
	days, won := 0, map[dedupKey]int{}
	batch.Queue(daysSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&days) })
	batch.Queue(takeKeysSQL, endpoints, hashes, events, bodies, windows).Query(func(found pgx.Rows) error {
		var endpoint, event uuid.UUID
		var hash []byte
		_, err := pgx.ForEachRow(found, []any{&endpoint, &hash, &event}, func() error {
			won[dedupKey{endpoint, [32]byte(hash)}]++
			return nil
		})
		return err
	})
	return won, days, tx.SendBatch(ctx, batch).Close()
}

// findHolders adds who holds the keys that rows lost. The winners are committed, so a new statement sees them.
func findHolders(ctx context.Context, tx pgx.Tx, rows []*Acceptance, holders map[dedupKey]keyHolder) error {
	var endpoints []uuid.UUID
	var hashes [][]byte
	for _, r := range rows {
		endpoints = append(endpoints, r.EndpointID)
		hashes = append(hashes, r.Duplicate.Hash)
	}
	found, err := tx.Query(ctx, holdersSQL, endpoints, hashes)
	if err != nil {
		return fmt.Errorf("find holders of duplicate keys: %w", err)
	}
	var endpoint, event uuid.UUID
	var hash, bodyHash []byte
	_, err = pgx.ForEachRow(found, []any{&endpoint, &hash, &event, &bodyHash}, func() error {
		holders[dedupKey{endpoint, [32]byte(hash)}] = keyHolder{eventID: event, bodyHash: bytes.Clone(bodyHash)}
		return nil
	})
	if err == nil {
		err = addLeafHashes(ctx, tx, holders)
	}
	if err != nil {
		return fmt.Errorf("find holders of duplicate keys: %w", err)
	}
	for _, r := range rows {
		if _, ok := holders[r.dedupKey()]; !ok {
			return errDayTurned // the entry's window passed between two statements: run again
		}
	}
	return nil
}

const toldHashesSQL = `select e.id, e.leaf_hash from events e where e.id = any($1) and e.leaf_hash is not null`

// addLeafHashes reads for holders that were accepted before what their senders were told: a duplicate gets the first answer again.
func addLeafHashes(ctx context.Context, tx pgx.Tx, holders map[dedupKey]keyHolder) error {
	var events []uuid.UUID
	for _, holder := range holders {
		events = append(events, holder.eventID)
	}
	rows, err := tx.Query(ctx, toldHashesSQL, events)
	if err != nil {
		return err
	}
	hashes := map[uuid.UUID][]byte{}
	var event uuid.UUID
	var hash []byte
	_, err = pgx.ForEachRow(rows, []any{&event, &hash}, func() error {
		hashes[event] = bytes.Clone(hash)
		return nil
	})
	for key, holder := range holders {
		if hash := hashes[holder.eventID]; hash != nil {
			holder.leafHash = hash
			holders[key] = holder
		}
	}
	return err
}
