package worker

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// The sweeper removes a stray whose worker lives, which nobody would take over, and tells of it.
func TestTheSweeperRemovesStrays(t *testing.T) {
	t.Parallel()
	url := postgrestest.New(t)
	owner, engine := postgrestest.Pool(t, url, postgres.Owner), postgrestest.Pool(t, url, postgres.Engine)
	worker, stray, fresh := id.New(), id.New(), id.New()
	require.NoError(t, postgres.AddWorker(t.Context(), engine, worker, "test"))
	const claimed = `insert into delivery_queue (delivery_id, destination_id, tenant_id, claim_id, claim_owner)
		values ($1, $1, $1, uuid_floor(now() - $2 * interval '1 minute'), $3)`
	_, err := owner.Exec(t.Context(), claimed, stray, 6, worker)
	require.NoError(t, err)
	_, err = owner.Exec(t.Context(), claimed, fresh, 3, worker)
	require.NoError(t, err)

	core, lines := observer.New(zapcore.DebugLevel)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go (&Sweeper{db: engine, log: zap.New(core), every: 10 * time.Millisecond, metrics: newMetrics(nil)}).Run(ctx)
	require.Eventually(t, func() bool { return lines.Len() > 0 }, 30*time.Second, 10*time.Millisecond)
	require.Equal(t, id.Delivery.Format(stray), lines.All()[0].ContextMap()["delivery_id"])
	var left []string
	require.NoError(t, owner.QueryRow(t.Context(), "select array_agg(delivery_id::text) from delivery_queue").Scan(&left))
	require.Equal(t, []string{fresh.String()}, left)
}
