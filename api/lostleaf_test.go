package api_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
)

// The leaf of what a filter left out is made when the webhook is accepted; lost, it is made again like any other.
func TestALostLeafOfASkippedDeliveryIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered("", `{"expression":"false"}`))
	acceptedID(t, b.ingest(t, endpoint.ID, `{"n":1}`))
	read := func() (leaf, secrets []byte) {
		require.NoError(t, b.engine.QueryRow(t.Context(), "select leaf, secrets from leaf_queue").Scan(&leaf, &secrets))
		return leaf, secrets
	}
	leaf, secrets := read()
	for _, sql := range []string{
		"delete from leaf_queue", "alter table attempts disable trigger erase_only", "update attempts set recorded_at = recorded_at - interval '1 hour'",
	} {
		_, err := b.owner.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	reconciling := activities.NewReconciling(activities.ReconcilingConfig{DB: b.engine, Log: zap.NewNop()})
	done, err := reconciling.Reconcile(t.Context(), activities.ReconcileInput{BegunMS: time.Now().UnixMilli()})
	require.NoError(t, err)
	require.Equal(t, 1, done.Requeued)
	again, opens := read()
	require.Equal(t, string(leaf), string(again))
	require.Equal(t, secrets, opens)
	b.sealNow(t)
	var sequenced int
	require.NoError(t, b.engine.QueryRow(t.Context(), "select count(*) from merkle_leaves where leaf = $1", leaf).Scan(&sequenced))
	require.Equal(t, 1, sequenced)
}
