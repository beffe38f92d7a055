package main

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	sdk "go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/workflows"
)

// The worker makes the schedule, and what the schedule starts finds a leaf that somebody took out of the queue: the attempt has
// its proof in the end.
func TestReconciliationRunsByItself(t *testing.T) {
	s := startTestStack(t)
	temporalClient := s.temporalClient(t)
	schedule := temporalClient.ScheduleClient().GetHandle(t.Context(), workflows.ReconcileScheduleID)
	var described *sdk.ScheduleDescription
	require.Eventually(t, func() bool {
		var err error
		described, err = schedule.Describe(t.Context())
		return err == nil && len(described.Info.RecentActions) > 0 && len(described.Info.RunningWorkflows) == 0
	}, 2*time.Minute, 50*time.Millisecond)
	require.Equal(t, 5*time.Minute, described.Schedule.Spec.Intervals[0].Every)

	for _, sql := range []string{
		"create function swallow() returns trigger language plpgsql as 'begin return null; end'",
		"create trigger swallow before insert on leaf_queue for each row execute function swallow()",
	} {
		_, err := s.db.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	s.mustIngest(t, s.createEndpoint(t, client.NewDestination{URL: startReceiver(t, ok).URL}), "lost")
	s.awaitZero(t, time.Minute, "select 1 - count(*) from deliveries where state = 'delivered'")
	_, err := s.db.Exec(t.Context(), "drop trigger swallow on leaf_queue")
	require.NoError(t, err)
	require.Zero(t, s.count(t, "select (select count(*) from leaf_queue) + (select count(*) from leaf_of_attempt)"))
	require.NoError(t, pgx.BeginFunc(t.Context(), s.db, func(tx pgx.Tx) error { // as if an hour had passed
		_, err := tx.Exec(t.Context(), "set local session_replication_role = replica")
		if err == nil {
			_, err = tx.Exec(t.Context(), "update attempts set recorded_at = recorded_at - interval '1 hour'")
		}
		return err
	}))

	require.NoError(t, schedule.Trigger(t.Context(), sdk.ScheduleTriggerOptions{}))
	s.awaitZero(t, time.Minute, "select 1 - count(*) from leaf_of_attempt")
	s.awaitSealed(t, time.Minute)
	pkg, err := s.api.DownloadProofWithResponse(t.Context(), s.onlyAttempt(t), nil)
	require.NoError(t, err)
	_, err = verify.Package(pkg.Body, verify.Options{VKey: s.made.VKey})
	require.NoError(t, err)

	described, err = schedule.Describe(t.Context())
	require.NoError(t, err)
	last := described.Info.RecentActions[len(described.Info.RecentActions)-1].StartWorkflowResult
	var done activities.Reconciled
	require.NoError(t, temporalClient.GetWorkflow(t.Context(), last.WorkflowID, last.FirstExecutionRunID).Get(t.Context(), &done))
	require.Equal(t, 1, done.Requeued)
	require.Empty(t, done.Findings)
	save(t, temporalClient, last.WorkflowID, "reconcile-requeued")
}
