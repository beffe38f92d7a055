package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Deliveries of an endpoint that keeps an order wait in a line for each destination and key, and only the first of a line is
// in the queue. Whoever adds to a line or takes from it holds the line's row in order_keys until it has committed: so the
// numbers are in the order of the commits, and nobody misses the one who comes behind.

// line is a destination and the hash of a key, comparable.
type line struct {
	destination uuid.UUID
	key         [32]byte
}

func (l line) compare(other line) int {
	return cmp.Or(bytes.Compare(l.destination[:], other.destination[:]), bytes.Compare(l.key[:], other.key[:]))
}

// turn is a delivery's place in its line.
type turn struct {
	seq   int64
	first bool // nobody is before it: it goes into the queue
}

// takeTurnsSQL gives out the next $4[i] numbers of each line; lines are locked in one order by everybody.
const takeTurnsSQL = `
insert into order_keys as k (destination_id, key_hash, tenant_id, next_seq)
select u.destination_id, u.key_hash, u.tenant_id, 1 + u.n
from unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::bigint[]) as u(destination_id, key_hash, tenant_id, n)
order by u.destination_id, u.key_hash
on conflict (destination_id, key_hash) do update set next_seq = k.next_seq + excluded.next_seq - 1, updated_at = now()
returning destination_id, key_hash, next_seq, head_seq`

// takeTurns puts the deliveries of rows that have a key into their lines, in the order of rows. What is skipped is over: it
// waits for nobody, and nobody for it.
func takeTurns(ctx context.Context, tx pgx.Tx, rows []*Acceptance) (map[uuid.UUID]turn, error) {
	lines := map[line][]uuid.UUID{}
	tenants := map[line]uuid.UUID{}
	for _, r := range rows {
		if r.OrderKey == nil {
			continue
		}
		for _, d := range r.Deliveries {
			if d.Skipped != nil {
				continue
			}
			l := line{d.DestinationID, [32]byte(r.OrderKey)}
			lines[l], tenants[l] = append(lines[l], d.ID), r.TenantID
		}
	}
	if len(lines) == 0 {
		return nil, nil
	}
	return insertTurns(ctx, tx, lines, tenants)
}

func insertTurns(ctx context.Context, tx pgx.Tx, lines map[line][]uuid.UUID, tenantOf map[line]uuid.UUID) (map[uuid.UUID]turn, error) {
	sorted := make([]line, 0, len(lines))
	for l := range lines {
		sorted = append(sorted, l)
	}
	slices.SortFunc(sorted, line.compare)
	var destinations, tenants []uuid.UUID
	var keys [][]byte
	var counts []int64
	for _, l := range sorted {
		destinations, keys = append(destinations, l.destination), append(keys, l.key[:])
		tenants, counts = append(tenants, tenantOf[l]), append(counts, int64(len(lines[l])))
	}
	found, err := tx.Query(ctx, takeTurnsSQL, destinations, keys, tenants, counts)
	if err != nil {
		return nil, fmt.Errorf("take turns: %w", err)
	}
	turns := map[uuid.UUID]turn{}
	var destination uuid.UUID
	var key []byte
	var next, head int64
	_, err = pgx.ForEachRow(found, []any{&destination, &key, &next, &head}, func() error {
		deliveries := lines[line{destination, [32]byte(key)}]
		for i, delivery := range deliveries {
			seq := next - int64(len(deliveries)-i)
			turns[delivery] = turn{seq: seq, first: seq == head}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("take turns: %w", err)
	}
	return turns, nil
}

const insertOrderedSQL = `
insert into ordered_deliveries (destination_id, key_hash, seq, delivery_id, tenant_id)
select * from unnest($1::uuid[], $2::bytea[], $3::bigint[], $4::uuid[], $5::uuid[])`

const (
	// lockLinesSQL locks the lines of deliveries, in the order in which everybody does.
	lockLinesSQL = `
select from order_keys k
where (k.destination_id, k.key_hash) in (select o.destination_id, o.key_hash from ordered_deliveries o where o.delivery_id = any($1))
order by k.destination_id, k.key_hash
for update`
	// passTurnsSQL takes deliveries out of their lines and puts whoever is first now into the queue. It runs after
	// lockLinesSQL, as a statement of its own: what it sees includes all that was added before the line was locked.
	passTurnsSQL = `
with done as (
    delete from ordered_deliveries where delivery_id = any($1) returning destination_id, key_hash
), line as (
    select distinct destination_id, key_hash from done
), first as (
    select l.destination_id, l.key_hash, o.seq, o.delivery_id, o.tenant_id
    from line l
    left join lateral (
        select o.seq, o.delivery_id, o.tenant_id from ordered_deliveries o
        where o.destination_id = l.destination_id and o.key_hash = l.key_hash and o.delivery_id <> all($1)
        order by o.seq limit 1) as o on true
), raised as (
    update order_keys k set head_seq = coalesce(f.seq, k.next_seq), updated_at = now()
    from first f
    where k.destination_id = f.destination_id and k.key_hash = f.key_hash and coalesce(f.seq, k.next_seq) > k.head_seq
    returning k.destination_id, k.key_hash
)
insert into delivery_queue (delivery_id, destination_id, tenant_id)
select f.delivery_id, f.destination_id, f.tenant_id
from first f join raised r on r.destination_id = f.destination_id and r.key_hash = f.key_hash
where f.delivery_id is not null
on conflict (delivery_id) do nothing`
)

// queueTurns passes on the turns of the ordered deliveries that are over with changes. A dead one keeps its own if its
// endpoint says that it blocks.
func queueTurns(batch *pgx.Batch, changes []Change) {
	var over []uuid.UUID
	for _, c := range changes {
		if c.PassesTurn() {
			over = append(over, c.Delivery.ID)
		}
	}
	if len(over) > 0 {
		batch.Queue(lockLinesSQL, over)
		batch.Queue(leaveQueueSQL, over) // whoever was before one of them may have queued it while this waited for the line
		batch.Queue(passTurnsSQL, over)
	}
}

// PassesTurn reports whether the change lets the next delivery of a line go.
func (c *Change) PassesTurn() bool {
	d := c.Delivery
	return d.Ordered && d.State != "pending" && (d.State != "dead" || !d.DeadBlocks)
}

// ErrNotBlocking means that nothing waits for the delivery.
var ErrNotBlocking = errors.New("delivery blocks nothing")

const deadBlockerSQL = `
select o.delivery_id from ordered_deliveries o
join deliveries d on d.id = any($1) and d.id = o.delivery_id and d.state = 'dead'
where o.delivery_id = any($1) and o.tenant_id = $2`

// ReleaseTurn lets the deliveries behind a dead one that blocks them go on. tenant is whose delivery it must be.
func ReleaseTurn(ctx context.Context, pool *pgxpool.Pool, tenant, delivery uuid.UUID) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		ids := []uuid.UUID{delivery}
		if _, err := tx.Exec(ctx, lockLinesSQL, ids); err != nil {
			return err
		}
		var blocker uuid.UUID
		err := tx.QueryRow(ctx, deadBlockerSQL, ids, tenant).Scan(&blocker)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotBlocking
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, passTurnsSQL, ids)
		return err
	})
	if err != nil {
		return fmt.Errorf("release turn: %w", err)
	}
	return nil
}

const forgetLinesSQL = `
delete from order_keys where ctid = any(array(
    select ctid from order_keys where head_seq = next_seq and updated_at < now() - $1 * interval '1 ms' limit 10000 for update skip locked))`

// ForgetLines removes lines in which nobody has waited for a while; a later delivery of the key starts with 1 again.
func ForgetLines(ctx context.Context, pool *pgxpool.Pool, idle time.Duration) (int64, error) {
	tag, err := pool.Exec(ctx, forgetLinesSQL, idle.Milliseconds())
	if err != nil {
		return 0, fmt.Errorf("forget idle lines: %w", err)
	}
	return tag.RowsAffected(), nil
}
