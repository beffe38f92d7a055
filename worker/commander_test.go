package worker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/workflows"
)

// signaler takes the place of Temporal where only signals matter: it notes them, and answers with err.
type signaler struct {
	client.Client
	err     error
	mu      sync.Mutex
	signals []signal
}

type signal struct {
	workflowID, name string
	arg              any
}

func (s *signaler) SignalWorkflow(_ context.Context, workflowID, _, name string, arg any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signals = append(s.signals, signal{workflowID, name, arg})
	return s.err
}

// commandTest is a commander on a real database, with one delivery.
type commandTest struct {
	*Commander
	*dispatchTest
	signaler  *signaler
	delivery  uuid.UUID
	due, leaf atomic.Int32
}

func commanding(t *testing.T, f func(t *testing.T, c *commandTest)) {
	t.Helper()
	dispatching(t, 10, func(t *testing.T, d *dispatchTest) {
		c := &commandTest{dispatchTest: d, signaler: &signaler{}}
		c.Commander = &Commander{
			db: d.db, temporal: c.signaler, log: zap.NewNop(),
			onDue: func() { c.due.Add(1) }, onLeaf: func() { c.leaf.Add(1) },
		}
		d.accept(t, 1, postgres.LaneWorkflow, 0)
		require.NoError(t, d.db.QueryRow(t.Context(), "select id from deliveries").Scan(&c.delivery))
		f(t, c)
	})
}

// carried makes the delivery one that a workflow carries, which waits for attempt 2 in epoch 3.
func (c *commandTest) carried(t *testing.T) string {
	t.Helper()
	c.exec(t, "delete from delivery_queue")
	c.exec(t, "update deliveries set epoch = 3, next_attempt = 2, lane = 'workflow', due_at = now() + interval '1 hour', check_after = now() + interval '2 hours'")
	return workflows.DeliveryWorkflowID(id.Delivery.Format(c.delivery), 3)
}

// give stores a command, carries out what waits, and reports whether that is over.
func (c *commandTest) give(t *testing.T, order postgres.Order) (over bool) {
	t.Helper()
	c.exec(t, "insert into delivery_commands (delivery_id, tenant_id, command) values ($1, $2, $3)", c.delivery, c.tenant, string(order))
	return c.again(t)
}

func (c *commandTest) again(t *testing.T) (over bool) {
	t.Helper()
	c.exec(t, "update delivery_commands set try_at = now()")
	require.NoError(t, c.round(t.Context()))
	require.NoError(t, c.db.QueryRow(t.Context(), "select bool_and(relayed_at is not null) from delivery_commands").Scan(&over))
	return over
}

func (c *commandTest) state(t *testing.T) (state string) {
	t.Helper()
	require.NoError(t, c.db.QueryRow(t.Context(), "select state from deliveries").Scan(&state))
	return state
}

// The delivery ends although Temporal is away, and its workflow hears of it when that is back.
func TestCancelNeedsNoTemporal(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		workflowID := c.carried(t)
		c.signaler.err = serviceerror.NewUnavailable("away")
		require.False(t, c.give(t, postgres.OrderCancel))
		require.Equal(t, "canceled", c.state(t))
		c.signaler.err = nil
		require.True(t, c.again(t))
		require.Equal(t, []signal{{workflowID, "Cancel", nil}, {workflowID, "Cancel", nil}}, c.signaler.signals)
		require.Positive(t, c.leaf.Load(), "the log hears of the leaf")
	})
}

// While a request is in flight the command waits; it is over when the delivery is.
func TestCancelWaitsForTheRequestInFlight(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		c.carried(t)
		c.exec(t, "update deliveries set lost_starts = 1")
		require.False(t, c.give(t, postgres.OrderCancel))
		require.False(t, c.again(t))
		require.Equal(t, "pending", c.state(t))
		c.exec(t, "update deliveries set state = 'delivered', finished_at = now(), leaves = 1, last_leaf_hash = sha256('x'), due_at = null, check_after = null")
		require.True(t, c.again(t))
		require.Empty(t, c.signaler.signals)
	})
}

// A carrier that died with a request in flight, and was found out by the sweeper: what it left in the queue is canceled there.
func TestCancelFindsWhatCameBackIntoTheQueue(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		c.carried(t)
		c.exec(t, "update deliveries set lost_starts = 1")
		require.False(t, c.give(t, postgres.OrderCancel))
		requeued, err := postgres.Requeue(t.Context(), c.db, c.delivery, 3, 2, 0, 0)
		require.NoError(t, err)
		require.True(t, requeued)
		require.True(t, c.again(t))
		require.Equal(t, "canceled", c.state(t))
	})
}

func TestRetryNowTellsTheWorkflowThatWaits(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		workflowID := c.carried(t)
		c.signaler.err = errors.New("away")
		require.False(t, c.give(t, postgres.OrderRetryNow))
		c.signaler.err = nil
		require.True(t, c.again(t))
		told := signal{workflowID, "RetryNow", workflows.RetryNow{Attempt: 2}}
		require.Equal(t, []signal{told, told}, c.signaler.signals)
	})
}

// A workflow that was terminated hears nothing: the sweeper looks for it at once.
func TestRetryNowFindsThatTheCarrierIsGone(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		c.carried(t)
		c.signaler.err = serviceerror.NewNotFound("no such workflow")
		require.True(t, c.give(t, postgres.OrderRetryNow))
		overdue, err := postgres.Overdue(t.Context(), c.db, 10)
		require.NoError(t, err)
		require.Len(t, overdue, 1)
	})
}

func TestRetryNowWakesTheDispatcher(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		c.exec(t, "update delivery_queue set due_at = now() + interval '1 hour'")
		require.True(t, c.give(t, postgres.OrderRetryNow))
		require.EqualValues(t, 1, c.due.Load())
		require.Empty(t, c.signaler.signals)
	})
}

// One command that can't be carried out holds up none of the others.
func TestACommandThatFailsHoldsUpNoOther(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		c.accept(t, 1, postgres.LaneWorkflow, 0)
		// No leaf can name this URL, so no leaf can say that nothing is sent there.
		c.exec(t, "update destinations set url = 'nowhere' where id = (select destination_id from deliveries where id = $1)", c.delivery)
		c.exec(t, "insert into delivery_commands (delivery_id, tenant_id, command) select id, tenant_id, 'cancel' from deliveries where id <> $1", c.delivery)
		require.False(t, c.give(t, postgres.OrderCancel))
		var waiting uuid.UUID
		require.NoError(t, c.db.QueryRow(t.Context(), "select delivery_id from delivery_commands where relayed_at is null").Scan(&waiting))
		require.Equal(t, c.delivery, waiting)
	})
}

// What is old is removed soon after the start, all of it, and commands are carried out meanwhile.
func TestOldCommandsAreForgottenSoonAfterTheStart(t *testing.T) {
	commanding(t, func(t *testing.T, c *commandTest) {
		c.exec(t, `insert into redelivery_keys (tenant_id, key_hash, delivery_id, redelivery_id, created_at)
			select $1, sha256(n::text::bytea), gen_random_uuid(), gen_random_uuid(), now() - interval '8 days' from generate_series(1, 2500) n`, c.tenant)
		c.exec(t, "insert into delivery_commands (delivery_id, tenant_id, command) values ($1, $2, 'cancel')", c.delivery, c.tenant)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { c.Run(ctx) })
		defer running.Wait()
		defer stop()
		require.Eventually(t, func() bool {
			var left int
			require.NoError(t, c.db.QueryRow(t.Context(), "select count(*) from redelivery_keys").Scan(&left))
			return left == 0
		}, time.Minute, 50*time.Millisecond)
		require.Equal(t, "canceled", c.state(t))
	})
}
