package postgres

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Circuits are moved by the transactions that record attempts, at their end and in the order of their IDs, so that two of
// them never wait for each other; and by whoever wins a probe, which is one statement. The rule is delivery.Circuit, which a
// test compares with the statements here. A destination whose receiver has not failed lately has no row, or one that says
// so, and then nothing is written.

// circuitWait is how many milliseconds it is until a probe of circuit c may be won. While one is under way its outcome may
// come at any moment, so it is worth another look soon.
const circuitWait = `least(greatest(extract(epoch from c.probe_until - now()) * 1000, 0), case when c.probe_token is not null then 1000 end)`

// ringSize is how many outcomes a circuit's ring holds.
const ringSize = 10

// Verdict is what a recorded attempt says about its receiver, and the probe (of a half-open circuit) that it was.
type Verdict struct {
	Counts bool // it says something
	Failed bool
	Probe  uuid.UUID // its token; uuid.Nil: it was none
	// Status and Error (a class) are how it failed: whoever is told of the circuit learns them.
	Status int
	Error  string
}

// Circuits is how a transaction moves circuits, and whom it tells.
type Circuits struct {
	// The figures of destinations that have none of their own.
	FailuresInRow, FailuresOfLast10, Successes int
	Open                                       time.Duration
	// Moved is told, after the commit, how long it is until a circuit may be probed; 0: it is closed.
	Moved func(destination uuid.UUID, wait time.Duration)
}

// addCircuitsSQL makes the rows of destinations that fail for the first time.
const addCircuitsSQL = `
insert into circuits (destination_id, tenant_id)
select u.destination_id, u.tenant_id from unnest($1::uuid[], $2::uuid[]) as u(destination_id, tenant_id)
order by u.destination_id
on conflict (destination_id) do nothing`

// lockCircuitsSQL comes before moveCircuitsSQL, which then sees the rows as they are under the lock.
const lockCircuitsSQL = `
select from circuits where destination_id = any($1) order by destination_id for update`

// moveCircuitsSQL shifts what was recorded into the rings of circuits and moves those whose state follows from that:
// $2 outcomes, whose newest ten are the bits $3, all of them failures ($4) or not; $5 is the token of a probe among them, and
// $6 its verdict; $11 and $12 are how the last of the failures failed. ring 0 means that there were only successes, so that nothing need be written where that stays so.
const moveCircuitsSQL = `
with figures as (
    select u.*, coalesce((t.circuit ->> 'off')::boolean, false) as off,
        coalesce((t.circuit ->> 'failures_in_row')::int, $7) as failures_in_row,
        coalesce((t.circuit ->> 'failures_of_last_10')::int, $8) as failures_of_last_10,
        coalesce((t.circuit ->> 'successes')::int, $9) as successes_to_close,
        coalesce((t.circuit ->> 'open_ms')::bigint, $10) as open_ms
    from unnest($1::uuid[], $2::int[], $3::bigint[], $4::boolean[], $5::uuid[], $6::text[], $11::int[], $12::text[])
        as u(destination_id, outcomes, failures, all_failed, probe_token, verdict, last_status, last_error)
    join destinations t on t.id = u.destination_id
), shifted as (
    select f.*, c.state, c.successes, ((c.ring << least(f.outcomes, 10)) | f.failures) & 1023 as new_ring,
        case when c.state = 'half_open' and c.probe_token = f.probe_token then f.verdict end as probe
    from figures f
    join circuits c on c.destination_id = f.destination_id
    where c.ring <> 0 or f.failures <> 0 or c.state <> 'closed'
), judged as (
    select s.*, case
            when s.off then 'closed'
            when s.probe = 'fails' then 'open'
            when s.probe = 'works' and s.successes + 1 >= s.successes_to_close then 'closed'
            when s.state = 'closed' and (
                s.new_ring & ((1 << s.failures_in_row) - 1) = (1 << s.failures_in_row) - 1
                or bit_count(s.new_ring::bit(10)) >= s.failures_of_last_10) then 'open'
            else s.state
        end as next
    from shifted s
), moved as (
    select j.*, j.next = 'open' and (j.state = 'closed' or j.probe is not null) as opens,
        j.next = 'closed' and j.state <> 'closed' and not j.off as closes
    from judged j
)
update circuits c set
    state = m.next,
    ring = case when m.closes then 0 else m.new_ring end,
    opened_at = case when m.opens then now() when m.next <> 'closed' then c.opened_at end,
    probe_until = case
        when m.opens then now() + m.open_ms * interval '1 ms'
        when m.next = 'closed' then null
        when m.probe is not null then now()
        else c.probe_until end,
    probe_token = case when m.next = 'half_open' and m.probe is null then c.probe_token end,
    successes = case when m.next <> 'half_open' then 0 when m.probe = 'works' then c.successes + 1 else c.successes end,
    closed_at = case when m.closes then now() when m.next = 'closed' and not m.off then c.closed_at end,
    failing_since = case
        when m.closes then null
        when m.outcomes = 0 or m.all_failed and c.failing_since is not null then c.failing_since
        when m.failures & 1 = 1 then now() end,
    failed_at = case when m.failures & 1 = 1 then greatest(c.failed_at, now()) else c.failed_at end,
    last_status = case when m.failures <> 0 then m.last_status else c.last_status end,
    last_error = case when m.failures <> 0 then m.last_error else c.last_error end
from moved m
where c.destination_id = m.destination_id
returning c.destination_id, case when c.state = 'closed' then 0 else greatest(` + circuitWait + `, 1) end::float8`

// moving are the outcomes of one destination that a transaction records.
type moving struct {
	destination, tenant uuid.UUID
	outcomes            int
	failures            int64
	allFailed           bool
	probe               uuid.UUID
	verdict             string
	lastStatus          int // of the last failure
	lastError           string
	known               bool // its circuit isn't at rest, as far as was seen when its deliveries were locked
}

func (m *moving) add(v Verdict) {
	if v.Probe != uuid.Nil {
		m.probe, m.verdict = v.Probe, verdictName(v)
	}
	if !v.Counts {
		return
	}
	m.allFailed = v.Failed && (m.outcomes == 0 || m.allFailed)
	m.failures = m.failures << 1 & (1<<ringSize - 1)
	if v.Failed {
		m.failures |= 1
		m.lastStatus, m.lastError = v.Status, v.Error
	}
	m.outcomes++
}

func verdictName(v Verdict) string {
	switch {
	case !v.Counts:
		return "none"
	case v.Failed:
		return "fails"
	default:
		return "works"
	}
}

// rests reports whether nothing is to be written: nothing was learnt, or only successes of a receiver that has not failed
// lately.
func (m *moving) rests() bool {
	return m.probe == uuid.Nil && (m.outcomes == 0 || m.failures == 0 && !m.known)
}

// circuitMoves collects what changes say of each destination, sorted by destination.
func circuitMoves(changes []Change) []*moving {
	byDestination := map[uuid.UUID]*moving{}
	for _, c := range changes {
		d := c.Delivery
		m := byDestination[d.DestinationID]
		if m == nil {
			m = &moving{destination: d.DestinationID, tenant: d.TenantID}
			byDestination[d.DestinationID] = m
		}
		m.known = m.known || d.CircuitActive
		m.add(c.Verdict)
	}
	var moves []*moving
	for _, m := range byDestination {
		if !m.rests() {
			moves = append(moves, m)
		}
	}
	slices.SortFunc(moves, func(a, b *moving) int { return bytes.Compare(a.destination[:], b.destination[:]) })
	return moves
}

// queue moves the circuits of destinations whose receivers have failed, lately or in these changes. committed tells of
// those that were moved.
func (c Circuits) queue(batch *pgx.Batch, changes []Change) (committed func()) {
	moves := circuitMoves(changes)
	if len(moves) == 0 {
		return func() {}
	}
	var all, failing, tenants, probes []uuid.UUID
	var outcomes []int
	var failures []int64
	var allFailed []bool
	var verdicts, lastErrors []string
	var lastStatuses []int
	var moved []movedCircuit
	for _, m := range moves {
		if m.failures != 0 {
			failing, tenants = append(failing, m.destination), append(tenants, m.tenant)
		}
		all, outcomes, failures = append(all, m.destination), append(outcomes, m.outcomes), append(failures, m.failures)
		allFailed, probes, verdicts = append(allFailed, m.allFailed), append(probes, m.probe), append(verdicts, m.verdict)
		lastStatuses, lastErrors = append(lastStatuses, m.lastStatus), append(lastErrors, m.lastError)
	}
	if len(failing) > 0 {
		batch.Queue(addCircuitsSQL, failing, tenants)
	}
	batch.Queue(lockCircuitsSQL, all)
	batch.Queue(moveCircuitsSQL, all, outcomes, failures, allFailed, probes, verdicts, c.FailuresInRow,
		c.FailuresOfLast10, c.Successes, c.Open.Milliseconds(), lastStatuses, lastErrors).Query(func(rows pgx.Rows) (err error) {
		moved, err = pgx.CollectRows(rows, pgx.RowToStructByPos[movedCircuit])
		return err
	})
	return func() {
		for _, m := range moved {
			c.Moved(m.Destination, milliseconds(m.WaitMS))
		}
	}
}

type movedCircuit struct {
	Destination uuid.UUID
	WaitMS      float64
}

func milliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// winProbeSQL: the row lock makes winners one at a time, and whoever waited for it sees that it is too late.
const winProbeSQL = `
update circuits set state = 'half_open', probe_token = $2, probe_until = now() + $3 * interval '1 ms'
where destination_id = $1 and state <> 'closed' and probe_until <= now()`

const circuitWaitSQL = `
select (` + circuitWait + `)::float8 from circuits c where c.destination_id = $1 and c.state <> 'closed'`

// Probe is the answer to WinProbe.
type Probe struct {
	// Token, if it isn't uuid.Nil, is that of the probe that was won: one attempt may be sent, and its record says so.
	Token uuid.UUID
	// Wait, without a token, is how long to wait before trying again; 0: the circuit is closed, and anything may be sent.
	Wait time.Duration
}

// WinProbe asks whether an attempt may be sent to a destination whose circuit is not closed, or was not a moment ago. hold
// is how long after that its outcome is surely recorded: then another may try.
func WinProbe(ctx context.Context, pool *pgxpool.Pool, destination, token uuid.UUID, hold time.Duration) (Probe, error) {
	tag, err := pool.Exec(ctx, winProbeSQL, destination, token, hold.Milliseconds())
	if err != nil {
		return Probe{}, fmt.Errorf("win probe of circuit: %w", err)
	}
	if tag.RowsAffected() == 1 {
		return Probe{Token: token}, nil
	}
	rows, err := pool.Query(ctx, circuitWaitSQL, destination)
	if err != nil {
		return Probe{}, fmt.Errorf("read circuit: %w", err)
	}
	waits, err := pgx.CollectRows(rows, pgx.RowTo[float64])
	if err != nil {
		return Probe{}, fmt.Errorf("read circuit: %w", err)
	}
	if len(waits) == 0 {
		return Probe{}, nil
	}
	return Probe{Wait: max(milliseconds(waits[0]), time.Millisecond)}, nil
}

// CircuitStates counts the circuits of destinations that are in use, by state; those that are closed aren't among them.
func CircuitStates(ctx context.Context, pool *pgxpool.Pool) (map[string]int, error) {
	rows, err := pool.Query(ctx, `select c.state, count(*)::int from circuits c join destinations d on d.id = c.destination_id
		where c.state <> 'closed' and d.deleted_at is null group by c.state`)
	if err != nil {
		return nil, fmt.Errorf("count circuits: %w", err)
	}
	counts := map[string]int{}
	var state string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		counts[state] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count circuits: %w", err)
	}
	return counts, nil
}

// DisabledFailing is why a destination was disabled whose receiver kept failing.
const DisabledFailing = "failing"

const failingSQL = `
select c.destination_id from circuits c join destinations d on d.id = c.destination_id
where c.failed_at - c.failing_since >= $1 * interval '1 ms' and d.disabled_at is null and d.deleted_at is null
order by c.destination_id`

// disableFailingSQL looks again, under the lock of the destination: whoever changes one renews its circuit in the same
// transaction.
const disableFailingSQL = `
update destinations d set disabled_at = now(), disabled_reason = $3, updated_at = now()
where d.id = $1 and d.disabled_at is null and exists (
    select from circuits c where c.destination_id = $1 and c.failed_at - c.failing_since >= $2 * interval '1 ms')`

// DisableFailing disables destinations whose receiver has failed for so long: each outcome was a failure, and the last one
// came so long after the first. It returns those that it disabled. What waits for them stays in the queue.
func DisableFailing(ctx context.Context, pool *pgxpool.Pool, failingFor time.Duration) ([]uuid.UUID, error) {
	rows, err := pool.Query(ctx, failingSQL, failingFor.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("list failing destinations: %w", err)
	}
	failing, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("list failing destinations: %w", err)
	}
	var disabled []uuid.UUID
	for _, destination := range failing { // one at a time: nobody waits for two of them
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "select from destinations where id = $1 for update", destination); err != nil {
				return err
			}
			tag, err := tx.Exec(ctx, disableFailingSQL, destination, failingFor.Milliseconds(), DisabledFailing)
			if tag.RowsAffected() == 1 {
				disabled = append(disabled, destination)
			}
			return err
		})
		if err != nil {
			return disabled, fmt.Errorf("disable failing destination: %w", err)
		}
	}
	return disabled, nil
}
