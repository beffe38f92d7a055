package workflows_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// reconciled runs Reconcile in virtual time, whose parts are as part says, which is told how many there were before.
func reconciled(t *testing.T, part func(before int) (activities.Reconciled, error)) (env *testsuite.TestWorkflowEnvironment, inputs []activities.ReconcileInput) {
	t.Helper()
	env = newEnvironment()
	env.RegisterWorkflowWithOptions(workflows.Reconcile, workflow.RegisterOptions{Name: workflows.ReconcileName})
	env.RegisterActivityWithOptions((&activities.Reconciling{}).Reconcile, activity.RegisterOptions{Name: "Reconcile"})
	env.OnActivity("Reconcile", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.ReconcileInput) (activities.Reconciled, error) {
		inputs = append(inputs, in) // one after the other
		return part(len(inputs) - 1)
	})
	env.ExecuteWorkflow(workflows.ReconcileName)
	require.True(t, env.IsWorkflowCompleted())
	return env, inputs
}

func TestReconcileGoesOnUntilNothingIsLeft(t *testing.T) {
	t.Parallel()
	env, inputs := reconciled(t, func(before int) (activities.Reconciled, error) {
		if before == 1 {
			return activities.Reconciled{}, errors.New("Postgres is away")
		}
		part := activities.Reconciled{Attempts: 10, Leaves: 20, Waiting: 1, Requeued: 2, Findings: activities.Problems{Missing: 15}, More: before < 3}
		for range 15 {
			part.Examples = append(part.Examples, activities.ReconcileFinding{Problem: "missing"})
		}
		return part, nil
	})
	var done activities.Reconciled
	require.NoError(t, env.GetWorkflowResult(&done))
	require.Len(t, inputs, 4)
	for _, in := range inputs {
		require.Equal(t, inputs[0], in, "the parts of one run")
	}
	require.NotZero(t, inputs[0].BegunMS)
	require.Len(t, done.Examples, 20)
	done.Examples = nil
	require.Equal(t, activities.Reconciled{Attempts: 30, Leaves: 60, Waiting: 3, Requeued: 6, Findings: activities.Problems{Missing: 45}}, done)
}

// A run is bounded, however much there is: the next goes on.
func TestReconcileIsBounded(t *testing.T) {
	t.Parallel()
	env, inputs := reconciled(t, func(int) (activities.Reconciled, error) { return activities.Reconciled{More: true, Attempts: 1}, nil })
	var done activities.Reconciled
	require.NoError(t, env.GetWorkflowResult(&done))
	require.True(t, done.More)
	require.Len(t, inputs, 50)
}

// A run that fails ends, and doesn't stand in the way of the next.
func TestReconcileFails(t *testing.T) {
	t.Parallel()
	env, inputs := reconciled(t, func(int) (activities.Reconciled, error) {
		return activities.Reconciled{}, errors.New("Postgres is away")
	})
	require.ErrorContains(t, env.GetWorkflowError(), "Postgres is away")
	require.Len(t, inputs, 8)
}
