package activities_test

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

// reconcile does a whole run.
func (b *testBundle) reconcile(t testing.TB) activities.Reconciled {
	t.Helper()
	r := activities.NewReconciling(activities.ReconcilingConfig{DB: b.engine, Log: zap.NewNop()})
	done := activities.Reconciled{More: true}
	in := activities.ReconcileInput{BegunMS: time.Now().UnixMilli() + 1}
	for time.Now().UnixMilli() <= in.BegunMS { // a day that was finished in the millisecond in which a run begins isn't looked at in it
		runtime.Gosched()
	}
	for range 20 {
		part, err := r.Reconcile(context.Background(), in)
		require.NoError(t, err)
		if done.Add(part); !done.More {
			return done
		}
	}
	t.Fatal("a run has no end")
	return done
}

// later makes what was recorded old enough to be looked at.
func (b *testBundle) later(t testing.TB) {
	t.Helper()
	b.tamper(t, "update attempts set recorded_at = recorded_at - interval '1 hour'")
	b.tamper(t, "update events set accepted_at = accepted_at - interval '1 hour'")
	b.tamper(t, "update leaf_queue set queued_at = queued_at - interval '1 hour'")
}

func (b *testBundle) findings(t testing.TB) map[string]int {
	t.Helper()
	figures, err := postgres.Figures(t.Context(), b.engine)
	require.NoError(t, err)
	return figures.Findings
}

// everyKind records deliveries that have leaves of every kind, and returns all attempts.
func (b *testBundle) everyKind(t testing.TB) []uuid.UUID {
	t.Helper()
	d := b.accept(t, 4, b.destination)
	record := func(delivery uuid.UUID, attempt int, outcome activities.Outcome) {
		results, err := activities.CommitRecordings(t.Context(), b.engine, []activities.Recording{{Delivery: delivery, Attempt: attempt, Outcome: outcome}})
		require.NoError(t, err)
		require.NoError(t, results[0].Err)
	}
	record(d[0], 1, delivered())
	record(d[1], 1, retried(time.Second))
	timedOut := retried(time.Second)
	timedOut.ResponseStatus, timedOut.ResponseSize, timedOut.ResponseHash, timedOut.Error = 0, 0, "", "timeout"
	record(d[1], 2, timedOut)
	record(d[1], 3, failed("rejected")) // and the dead leaf
	record(d[2], 1, retried(time.Second))
	_, err := activities.Cancel(t.Context(), b.engine, nil, d[2])
	require.NoError(t, err)
	b.claim(t, 1, b.destination)
	b.exec(t, "update deliveries set lost_starts = 3 where id = $1", d[3])
	record(d[3], 1, delivered())
	return collectIDs(t, b, "select id from attempts order by id")
}

func collectIDs(t testing.TB, b *testBundle, sql string, args ...any) []uuid.UUID {
	t.Helper()
	var ids []uuid.UUID
	for _, row := range collect[struct{ ID uuid.UUID }](t, b, sql, args...) {
		ids = append(ids, row.ID)
	}
	return ids
}

// Whoever deletes leaves from the queue deletes nothing: they are made again, to the byte, with what opens them.
func TestReconciliationMakesLostLeavesAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	all := b.everyKind(t)
	require.Equal(t, 4, value[int](t, b, "select count(distinct kind || outcome) from attempts where kind in ('dead', 'canceled') or outcome in ('retry', 'delivered')"))
	type row struct {
		Attempt               uuid.UUID
		Tenant                uuid.UUID
		Hash, Bytes, Unlocked []byte
	}
	const queue = "select attempt_id, tenant_id, leaf_hash, leaf, secrets from leaf_queue order by attempt_id"
	want := collect[row](t, b, queue)
	require.Len(t, want, len(all))
	b.exec(t, "delete from leaf_queue")
	require.Zero(t, b.reconcile(t).Requeued, "they may be on their way")
	require.Zero(t, b.queued(t))

	b.later(t)
	done := b.reconcile(t)
	require.Equal(t, len(all), done.Requeued)
	require.Equal(t, len(all), done.Attempts)
	require.Empty(t, done.Examples)
	require.Equal(t, want, collect[row](t, b, queue))
	require.Zero(t, b.reconcile(t).Requeued, "they wait already")
	b.seal(t)
	b.newestHead(t, len(all)) // each has a package that verifies
	done = b.reconcile(t)
	require.Zero(t, done.Requeued)
	require.Equal(t, len(all), done.Leaves)
	require.Empty(t, b.findings(t))
	require.Equal(t, len(all), value[int](t, b, "select count(*) from merkle_leaves where secrets is not null"))
}

// What is erased stays so; and what opened the payload isn't needed for its leaf.
func TestReconciliationOfAnErasedPayload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 2)
	b.exec(t, "delete from leaf_queue")
	b.exec(t, "delete from event_payloads where event_id = (select min(event_id::text)::uuid from attempts)")
	b.later(t)
	require.Equal(t, 2, b.reconcile(t).Requeued)
	b.seal(t)
	b.newestHead(t, 2)
	require.Equal(t, 1, value[int](t, b, "select count(*) from merkle_leaves where secrets is null"))
}

// Nothing is invented: where the row doesn't lead to the recorded hash, or says too little, that is told, and told to be over
// when it is.
func TestReconciliationReportsWhatItCannotRepair(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 4)
	b.exec(t, "create table kept as select * from leaf_queue")
	b.exec(t, "delete from leaf_queue")
	attempts := collectIDs(t, b, "select id from attempts order by id")
	b.tamper(t, "create table parts as select id, leaf_parts from attempts")
	b.tamper(t, "update attempts set response_status = 201 where id = $1", attempts[0])
	b.tamper(t, "update attempts set leaf_parts = null where id = $1", attempts[1])
	b.tamper(t, "update attempts set leaf_parts = set_byte(leaf_parts, 3, get_byte(leaf_parts, 3) # 1) where id = $1", attempts[2])
	b.tamper(t, "delete from events where id = (select event_id from attempts where id = $1)", attempts[3])
	b.later(t)
	done := b.reconcile(t)
	require.Zero(t, done.Requeued)
	require.Equal(t, activities.Problems{Missing: 4}, done.Findings)
	require.Len(t, done.Examples, 4)
	require.Equal(t, map[string]int{activities.ProblemMissing: 4}, b.findings(t))
	require.Equal(t, 3, value[int](t, b, "select count(distinct detail) from attestation_findings"), "each has its reason; two rows say something else now")

	require.Equal(t, activities.Problems{Missing: 4}, b.reconcile(t).Findings, "again in the next run")
	require.Equal(t, 4, value[int](t, b, "select count(*) from attestation_findings where last_seen > first_seen"))

	b.tamper(t, "update attempts set response_status = 200, leaf_parts = parts.leaf_parts from parts where parts.id = attempts.id")
	require.Equal(t, 3, b.reconcile(t).Requeued)
	require.Equal(t, map[string]int{activities.ProblemMissing: 1}, b.findings(t))
	b.exec(t, "insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets) select log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets from kept")
	b.seal(t)
	b.reconcile(t)
	require.Empty(t, b.findings(t))
	b.newestHead(t, 4)
}

// Leaves that no attempt recorded are told of, wherever they are, and so are those that say something else.
func TestReconciliationReportsLeavesThatNobodyRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	attempts := collectIDs(t, b, "select attempt_id from leaf_queue order by id")
	b.tamper(t, "delete from attempts where id = $1", attempts[0])
	b.tamper(t, "update attempts set leaf_hash = sha256('') where id = $1", attempts[1])
	b.tamper(t, "update attempts set log_id = gen_random_uuid() where id = $1", attempts[1]) // else it would be set aside
	b.seal(t)
	b.newestHead(t, 3)
	b.tamper(t, "update attempts set log_id = $2 where id = $1", attempts[1], b.log.ID)
	done := b.reconcile(t)
	require.Equal(t, activities.Problems{LeafUnknown: 1, Differs: 1}, done.Findings)
	require.Equal(t, id.Attempt.Format(attempts[0]), done.Examples[indexOf(done.Examples, activities.ProblemLeafUnknown)].AttemptID)
	require.Equal(t, id.Attempt.Format(attempts[1]), done.Examples[indexOf(done.Examples, activities.ProblemDiffers)].AttemptID)
	require.Equal(t, 3, done.Leaves)
	require.Zero(t, b.reconcile(t).Leaves, "leaves never change, and are looked at once")

	b.queueLeaves(t, 1)
	b.tamper(t, "delete from attempts where id = (select attempt_id from leaf_queue)")
	require.Empty(t, b.reconcile(t).Findings, "its seal may be under way")
	b.later(t)
	require.Equal(t, activities.Problems{QueuedUnknown: 1}, b.reconcile(t).Findings)
}

func indexOf(examples []activities.ReconcileFinding, problem string) int {
	for i, e := range examples {
		if e.Problem == problem {
			return i
		}
	}
	return -1
}

func TestReconciliationOfAClosedLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 2)
	b.exec(t, "update logs set closed_at = now()")
	b.later(t)
	done := b.reconcile(t)
	require.Equal(t, activities.Problems{LogClosed: 2}, done.Findings)
	require.Zero(t, done.Requeued)
	require.Equal(t, 2, b.queued(t))
}

// While leaves wait for a log that stands still nothing is taken for lost, and nothing comes twice.
func TestReconciliationWaitsForTheLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 50)
	b.later(t)
	done := b.reconcile(t)
	require.Equal(t, 50, done.Waiting)
	require.Zero(t, done.Attempts)
	require.Equal(t, 50, b.queued(t))
	b.seal(t)
	done = b.reconcile(t)
	require.Equal(t, 50, done.Attempts)
	require.Zero(t, done.Requeued)
	b.newestHead(t, 50)
}

// Beside sealers and carriers, while rows are deleted from the queue: in the end each attempt has one leaf.
func TestReconciliationBesideSealersAndCarriers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 300, b.destination)
	done := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			r := activities.NewReconciling(activities.ReconcilingConfig{DB: b.engine, Log: zap.NewNop()})
			for {
				if _, err := r.Reconcile(context.Background(), activities.ReconcileInput{BegunMS: time.Now().UnixMilli()}); err != nil {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	sealing := b.sealing()
	others.Go(func() {
		for {
			if err := sealing.SealNow(t.Context(), b.log.ID); err != nil {
				t.Error(err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i := 0; i < len(deliveries); i += 10 {
		require.NoError(t, b.deliverAll(t.Context(), deliveries[i:i+10]))
		b.exec(t, "delete from leaf_queue where id in (select id from leaf_queue where id % 3 = 0 for update skip locked)") // a sealer locks them in its own order
		b.tamper(t, "update attempts set recorded_at = recorded_at - interval '1 hour' where recorded_at > now() - interval '1 minute'")
	}
	close(done)
	others.Wait()
	b.reconcile(t)
	b.seal(t)
	b.newestHead(t, 300)
	require.Empty(t, b.findings(t))
}

// A page at a time, and each day goes on where the last part of a run ended.
func TestReconciliationGoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const attempts = 4500
	b.queueLeaves(t, attempts)
	b.seal(t)
	b.later(t)
	r := activities.NewReconciling(activities.ReconcilingConfig{DB: b.engine, Log: zap.NewNop()})
	begun := time.Now()
	day, after, ok, err := postgres.NextDay(t.Context(), b.engine, begun)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, uuid.Nil, after)
	page, err := postgres.AttemptsOfDay(t.Context(), b.engine, day, after, 1000)
	require.NoError(t, err)
	require.Len(t, page, 1000)
	require.NoError(t, postgres.DayReached(t.Context(), b.engine, day, page[999].AttemptID, false))
	done, err := r.Reconcile(t.Context(), activities.ReconcileInput{BegunMS: begun.UnixMilli()})
	require.NoError(t, err)
	require.Equal(t, attempts-1000, done.Attempts)
	require.Equal(t, attempts, done.Leaves)
	_, _, ok, err = postgres.NextDay(t.Context(), b.engine, begun)
	require.NoError(t, err)
	require.False(t, ok, "no day comes twice in a run")
	_, after, ok, err = postgres.NextDay(t.Context(), b.engine, time.Now())
	require.NoError(t, err)
	require.True(t, ok, "but the present day does in every run")
	require.Equal(t, uuid.Nil, after)
}

// acceptAttested stores webhooks whose acceptance is attested, and returns their events.
func (b *testBundle) acceptAttested(t testing.TB, n int) (events []uuid.UUID) {
	t.Helper()
	for range n {
		row := b.acceptance("{}", "", b.destination)
		a := attestation.Acceptance{
			Origin: b.log.Origin, Tenant: b.tenant, Endpoint: b.endpoint, Event: row.EventID, At: time.Now(),
			PayloadHash: row.PayloadHash, PayloadSize: 2, Nonce: attestation.NewNonce(),
		}
		leaf, hash, err := a.Leaf()
		require.NoError(t, err)
		parts, err := a.Parts()
		require.NoError(t, err)
		secrets := slices.Concat(row.Salt, attestation.AttemptSecret(row.Secret, row.EventID, id.Decision))
		row.Leaf = &postgres.AcceptedLeaf{Bytes: leaf, Hash: hash, Parts: parts, Secrets: secrets}
		_, err = postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
		require.NoError(t, err)
		events = append(events, row.EventID)
	}
	return events
}

// The leaf of an acceptance that is lost is made again, to the byte, beside those of attempts.
func TestReconciliationMakesLostAcceptancesAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.acceptAttested(t, 3)
	b.accept(t, 2, b.destination) // whose acceptance isn't attested
	b.queueLeaves(t, 2)
	type row struct {
		Subject, Tenant       uuid.UUID
		Hash, Bytes, Unlocked []byte
	}
	const queue = "select attempt_id, tenant_id, leaf_hash, leaf, secrets from leaf_queue order by attempt_id"
	want := collect[row](t, b, queue)
	require.Len(t, want, 5)
	b.exec(t, "delete from leaf_queue")
	require.Zero(t, b.reconcile(t).Requeued, "they may be on their way")
	b.later(t)
	done := b.reconcile(t)
	require.Equal(t, 5, done.Requeued)
	require.Equal(t, 5, done.Attempts)
	require.Equal(t, want, collect[row](t, b, queue))
	require.Zero(t, b.reconcile(t).Requeued, "they wait already")
	b.seal(t)
	b.newestHead(t, 5)
	b.later(t)
	require.Zero(t, b.reconcile(t).Requeued)
	require.Empty(t, b.findings(t))
}

// What can't be made again is a finding, which names the event; another leaf than the event recorded gets no place.
func TestReconciliationReportsLostAcceptances(t *testing.T) {
	t.Parallel()
	b := setup(t)
	events := b.acceptAttested(t, 4)
	lost, old, erased, forged := events[0], events[1], events[2], events[3]
	b.tamper(t, "update events set leaf_parts = null where id = $1", lost)
	b.tamper(t, "update events set leaf_parts = null, leaf_log_id = null where id = $1", old)
	b.exec(t, "delete from event_payloads where event_id = $1", erased)
	b.exec(t, "delete from leaf_queue where attempt_id <> $1", forged)
	b.exec(t, `update leaf_queue set leaf = convert_to(replace(convert_from(leaf, 'UTF8'), '"payload_size":2', '"payload_size":3'), 'UTF8')`)
	b.exec(t, `update leaf_queue set leaf_hash = sha256('\x00'::bytea || leaf)`)
	b.seal(t)
	b.newestHead(t, 0)
	require.Equal(t, 1, value[int](t, b, "select count(*) from attestation_dead_letters where reason like 'hash isn%'"))

	b.later(t)
	done := b.reconcile(t)
	require.Equal(t, 2, done.Requeued, "the one without payload, and the right one of the forged")
	require.Equal(t, 2, done.Findings.Missing)
	var named []string
	for _, e := range done.Examples {
		named = append(named, e.AttemptID)
	}
	require.ElementsMatch(t, []string{id.Event.Format(lost), id.Event.Format(old)}, named)
	require.Equal(t, map[string]int{"missing": 2}, b.findings(t))
	require.Zero(t, value[int](t, b, "select count(*) from attestation_dead_letters where resolved_at is null"))
	b.seal(t)
	b.newestHead(t, 2)
	require.Equal(t, 1, value[int](t, b, "select count(*) from merkle_leaves where secrets is null and attempt_id = $1", erased))
}
