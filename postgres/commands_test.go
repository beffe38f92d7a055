package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// give stores a command, as the api does.
func (b *testBundle) give(t testing.TB, tenant, delivery uuid.UUID, order postgres.Order) {
	t.Helper()
	require.NoError(t, postgres.InTenant(t.Context(), b.api, tenant, func(tx pgx.Tx) error {
		return db.New(tx).InsertCommand(t.Context(), delivery, tenant, string(order))
	}))
}

func (b *testBundle) taken(t testing.TB) []postgres.Command {
	t.Helper()
	commands, err := postgres.TakeCommands(t.Context(), b.engine)
	require.NoError(t, err)
	return commands
}

// A command waits until it is done: what a worker took that died is taken again.
func TestCommandsAreTakenUntilTheyAreDone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	b.give(t, b.tenant, delivery, postgres.OrderCancel)
	b.give(t, b.tenant, delivery, postgres.OrderRetryNow)
	commands := b.taken(t)
	require.Len(t, commands, 2)
	require.Equal(t, delivery, commands[0].DeliveryID)
	require.Empty(t, b.taken(t), "another worker has them")
	b.exec(t, "update delivery_commands set try_at = now()")
	require.Len(t, b.taken(t), 2)
	for _, c := range commands {
		require.NoError(t, postgres.CommandDone(t.Context(), b.engine, c))
	}
	b.exec(t, "update delivery_commands set try_at = now()")
	require.Empty(t, b.taken(t))
	b.forgetCommands(t, time.Hour)
	require.Equal(t, 2, b.count(t, "select count(*) from delivery_commands"))
	b.forgetCommands(t, -time.Hour)
	require.Zero(t, b.count(t, "select count(*) from delivery_commands"))
}

// Given twice, a command waits once; given while it is carried out, it is carried out again.
func TestACommandThatIsGivenAgainIsNotLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	for range 3 {
		b.give(t, b.tenant, delivery, postgres.OrderRetryNow)
	}
	commands := b.taken(t)
	require.Len(t, commands, 1)
	b.give(t, b.tenant, delivery, postgres.OrderRetryNow)
	require.NoError(t, postgres.CommandDone(t.Context(), b.engine, commands[0]), "of what was given before")
	again := b.taken(t)
	require.Len(t, again, 1, "at once")
	require.NoError(t, postgres.CommandDone(t.Context(), b.engine, again[0]))
	b.give(t, b.tenant, delivery, postgres.OrderRetryNow)
	require.Len(t, b.taken(t), 1, "a new one")
	require.Equal(t, 2, b.count(t, "select count(*) from delivery_commands"))
}

// Many commands of one tenant don't hold up another's.
func TestCommandsAreTakenFairly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other, _, _ := b.addTenant(t, "Other Bank")
	b.exec(t, `insert into delivery_commands (delivery_id, tenant_id, command)
		select gen_random_uuid(), $1, 'cancel' from generate_series(1, 1000)`, b.tenant)
	last := id.New()
	b.give(t, other, last, postgres.OrderCancel)
	commands := b.taken(t)
	require.Len(t, commands, 21)
	require.Contains(t, commands, postgres.Command{ID: 1001, DeliveryID: last, Order: postgres.OrderCancel, Asked: 1})
	require.Len(t, b.taken(t), 20)
}

func TestACommandIsGivenToOwnDeliveriesOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	other, _, _ := b.addTenant(t, "Other Bank")
	err := postgres.InTenant(t.Context(), b.api, other, func(tx pgx.Tx) error {
		n, err := db.New(tx).RequestCancel(t.Context(), []uuid.UUID{delivery})
		require.Zero(t, n)
		if err != nil {
			return err
		}
		return db.New(tx).InsertCommand(t.Context(), delivery, b.tenant, "cancel")
	})
	require.ErrorContains(t, err, "row-level security")
	require.Zero(t, b.count(t, "select count(*) from deliveries where cancel_requested"))
	_, err = b.api.Exec(t.Context(), "update deliveries set due_at = now()")
	require.ErrorContains(t, err, "permission denied")
}

// The wait in the queue ends; what is claimed, or carried by a workflow, is left alone.
func TestRetryNow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.accept(t, 1)[0]
	b.exec(t, "update deliveries set due_at = now() + interval '1 hour'")
	b.exec(t, "update delivery_queue set due_at = now() + interval '1 hour'")
	for range 2 {
		at, err := postgres.RetryNow(t.Context(), b.engine, delivery)
		require.NoError(t, err)
		require.Equal(t, postgres.Standing{State: "pending", Attempt: 1}, at)
		require.Equal(t, 1, b.count(t, "select count(*) from deliveries d join delivery_queue q on q.delivery_id = d.id where d.due_at <= now() and q.due_at <= now()"))
	}
	claimed, err := postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: b.worker(t), Claim: id.New(), Destinations: []uuid.UUID{b.destination}, Quotas: []int{1}, Lane: postgres.LaneWorkflow})
	require.NoError(t, err)
	require.Len(t, claimed, 1)
	at, err := postgres.RetryNow(t.Context(), b.engine, delivery)
	require.NoError(t, err)
	require.Equal(t, postgres.Standing{State: "pending", Attempt: 1}, at)

	b.exec(t, "delete from delivery_queue")
	b.exec(t, "update deliveries set next_attempt = 2, check_after = now() + interval '1 hour'")
	at, err = postgres.RetryNow(t.Context(), b.engine, delivery)
	require.NoError(t, err)
	require.Equal(t, postgres.Standing{State: "pending", Attempt: 2, Carried: true}, at)
	require.Zero(t, b.count(t, "select count(*) from delivery_queue"), "its workflow is told")

	at, err = postgres.RetryNow(t.Context(), b.engine, id.New())
	require.NoError(t, err)
	require.True(t, at.Over(), "one that isn't there")
}

// die ends deliveries as dead.
func (b *testBundle) die(t testing.TB, deliveries ...uuid.UUID) {
	t.Helper()
	b.exec(t, "update deliveries set state = 'dead', finished_at = now(), leaves = 2, last_leaf_hash = sha256('x'), due_at = null where id = any($1)", deliveries)
	b.exec(t, "delete from delivery_queue where delivery_id = any($1)", deliveries)
}

func TestRedeliver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.accept(t, 1)[0]
	other, _, _ := b.addTenant(t, "Other Bank")
	_, err := postgres.Redeliver(t.Context(), b.engine, b.tenant, old, nil)
	require.ErrorIs(t, err, postgres.ErrNotFinished)
	b.die(t, old)
	_, err = postgres.Redeliver(t.Context(), b.engine, other, old, nil)
	require.ErrorIs(t, err, postgres.ErrNotFinished, "another tenant's")

	redelivery, err := postgres.Redeliver(t.Context(), b.engine, b.tenant, old, nil)
	require.NoError(t, err)
	require.Equal(t, id.Time(old), id.Time(redelivery), "in the same partition")
	require.Equal(t, 1, b.count(t, `select count(*) from deliveries n join deliveries o on o.id = n.redelivery_of
		join delivery_queue q on q.delivery_id = n.id and q.destination_id = n.destination_id and q.tenant_id = n.tenant_id and q.due_at <= now() and q.attempt = 1
		where n.id = $1 and o.id = $2 and n.state = 'pending' and n.next_attempt = 1 and n.leaves = 0
		and (n.event_id, n.tenant_id, n.endpoint_id, n.destination_id, n.log_id) = (o.event_id, o.tenant_id, o.endpoint_id, o.destination_id, o.log_id)`,
		redelivery, old))
	require.Equal(t, 1, b.count(t, "select count(*) from redeliveries where delivery_id = $1 and redelivery_id = $2 and tenant_id = $3", old, redelivery, b.tenant))

	b.exec(t, "update destinations set deleted_at = now()")
	_, err = postgres.Redeliver(t.Context(), b.engine, b.tenant, old, nil)
	require.ErrorIs(t, err, postgres.ErrRemoved)
	b.exec(t, "update destinations set deleted_at = null")
	b.exec(t, "delete from event_payloads")
	_, err = postgres.Redeliver(t.Context(), b.engine, b.tenant, old, nil)
	require.ErrorIs(t, err, postgres.ErrErased)
	require.Equal(t, 2, b.count(t, "select count(*) from deliveries"))
}

// One key, one redelivery, however many ask at once.
func TestRedeliverWithAKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.accept(t, 2)
	b.die(t, old...)
	key := make([]byte, 32)
	ids := make(chan uuid.UUID, 10)
	for range cap(ids) {
		go func() {
			redelivery, err := postgres.Redeliver(context.Background(), b.engine, b.tenant, old[0], key)
			if err != nil {
				t.Error(err)
			}
			ids <- redelivery
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		require.Equal(t, first, <-ids)
	}
	require.Equal(t, 3, b.count(t, "select count(*) from deliveries"))
	_, err := postgres.Redeliver(t.Context(), b.engine, b.tenant, old[1], key)
	require.ErrorIs(t, err, postgres.ErrKeyUsed)
	// A request that failed leaves its key free.
	b.exec(t, "update destinations set deleted_at = now()")
	key[0] = 1
	_, err = postgres.Redeliver(t.Context(), b.engine, b.tenant, old[1], key)
	require.ErrorIs(t, err, postgres.ErrRemoved)
	require.Equal(t, 1, b.count(t, "select count(*) from redelivery_keys"))
}

func (b *testBundle) forgetCommands(t testing.TB, age time.Duration) (more bool) {
	t.Helper()
	more, err := postgres.ForgetCommands(t.Context(), b.engine, age)
	require.NoError(t, err)
	return more
}

// However many commands and keys are old, they go a thousand at a time, and what waits or is young stays.
func TestForgettingCommandsIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, `insert into delivery_commands (delivery_id, tenant_id, command, created_at, relayed_at)
		select gen_random_uuid(), $1, 'cancel', now() - interval '1 month', case when n > 2 then now() - interval '1 month' end
		from generate_series(1, 1502) n`, b.tenant)
	b.exec(t, `insert into redelivery_keys (tenant_id, key_hash, delivery_id, redelivery_id, created_at)
		select $1, sha256(n::text::bytea), gen_random_uuid(), gen_random_uuid(), case when n > 2 then now() - interval '1 month' else now() end
		from generate_series(1, 2302) n`, b.tenant)
	b.exec(t, `insert into redelivery_jobs (id, tenant_id, states, accepted_from, accepted_until, rate_per_second, cursor_event, key_hash, request_hash, created_at)
		select gen_random_uuid(), $1, '{dead}', now() - interval '1 day', now(), 1, gen_random_uuid(), sha256(n::text::bytea), sha256('r'),
		    case when n > 2 then now() - interval '1 month' else now() end
		from generate_series(1, 1102) n`, b.tenant)
	left := func() [3]int {
		return [3]int{
			b.count(t, "select count(*) from delivery_commands"), b.count(t, "select count(*) from redelivery_keys"),
			b.count(t, "select count(*) from redelivery_jobs where key_hash is not null"),
		}
	}
	require.True(t, b.forgetCommands(t, week))
	require.Equal(t, [3]int{502, 1302, 102}, left())
	require.True(t, b.forgetCommands(t, week))
	require.Equal(t, [3]int{2, 302, 2}, left())
	require.False(t, b.forgetCommands(t, week))
	require.Equal(t, [3]int{2, 2, 2}, left())
	require.Equal(t, 1102, b.count(t, "select count(*) from redelivery_jobs"))
}

// What is old is found by an index, also among many that are young.
func TestOldCommandsAreFoundByAnIndex(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, `insert into redelivery_keys (tenant_id, key_hash, delivery_id, redelivery_id)
		select $1, sha256(n::text::bytea), gen_random_uuid(), gen_random_uuid() from generate_series(1, 20000) n`, b.tenant)
	b.exec(t, `insert into delivery_commands (delivery_id, tenant_id, command, relayed_at)
		select gen_random_uuid(), $1, 'cancel', now() from generate_series(1, 20000) n`, b.tenant)
	b.exec(t, "analyze redelivery_keys, delivery_commands")
	postgres.CheckForgettingPlans(t, func(sql string, args ...any) (pgx.Rows, error) { return b.engine.Query(t.Context(), sql, args...) })
}
