package workflows_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// attester runs AttestLog in virtual time.
type attester struct {
	env    *testsuite.TestWorkflowEnvironment
	spy    *spy
	sealed []activities.SealInput // runs of SealLog
	done   int                    // SealLog activities that ended
}

// newAttester seals as seal says, which is told how many runs there were before.
func newAttester(seal func(before int) error) *attester {
	a := &attester{env: newEnvironment(), spy: &spy{}}
	a.env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{a.spy}})
	a.env.RegisterWorkflowWithOptions(workflows.AttestLog, workflow.RegisterOptions{Name: workflows.AttestLogName})
	sealing := activities.NewSealing(activities.SealingConfig{})
	a.env.RegisterActivityWithOptions(sealing.SealLog, activity.RegisterOptions{Name: "SealLog"})
	a.env.OnActivity("SealLog", mock.Anything, mock.Anything).Return(func(_ context.Context, in activities.SealInput) error {
		a.sealed = append(a.sealed, in) // one run at a time
		if len(a.sealed) > 100 {
			return temporal.NewNonRetryableApplicationError("nothing ends this workflow", "Test", nil)
		}
		return seal(len(a.sealed) - 1)
	})
	return a
}

// after calls f once n SealLog activities have ended.
func (a *attester) after(n int, f func()) {
	a.env.SetOnActivityCompletedListener(func(*activity.Info, converter.EncodedValue, error) {
		if a.done++; a.done == n {
			f()
		}
	})
}

// run grows the log until the workflow continues as new, as it must, with the same input.
func (a *attester) run(t *testing.T) {
	t.Helper()
	a.env.ExecuteWorkflow(workflows.AttestLogName, workflows.AttestInput{LogID: "log_1"})
	require.True(t, a.env.IsWorkflowCompleted())
	var next *workflow.ContinueAsNewError
	require.ErrorAs(t, a.env.GetWorkflowError(), &next)
	require.Equal(t, workflows.AttestLogName, next.WorkflowType.Name)
	var in workflows.AttestInput
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(next.Input, &in))
	require.Equal(t, workflows.AttestInput{LogID: "log_1"}, in)
}

func succeed(int) error { return nil }

func TestALogIsSealedAgainAndAgain(t *testing.T) {
	t.Parallel()
	a := newAttester(succeed)
	a.after(25, func() { a.env.SetContinueAsNewSuggested(true) })
	a.run(t)
	require.Len(t, a.sealed, 25, "the next run goes on")
	for _, in := range a.sealed {
		require.Equal(t, activities.SealInput{LogID: "log_1", For: 10 * time.Minute}, in)
	}
}

func TestALongHistoryContinuesAsNew(t *testing.T) {
	t.Parallel()
	a := newAttester(succeed)
	a.env.SetCurrentHistoryLength(1000)
	a.after(3, func() { a.env.SetCurrentHistoryLength(1001) })
	a.run(t)
	require.Len(t, a.sealed, 3)
}

// What stops a seal needs a person, and must go on by itself afterwards: the workflow never fails.
func TestASealThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	a := newAttester(func(before int) error {
		if before < 9 {
			return errors.New("the key isn't the log's")
		}
		return nil
	})
	a.after(2, func() { a.env.SetContinueAsNewSuggested(true) })
	a.run(t)
	require.Len(t, a.sealed, 11, "nine failures and a success, and the next seal")
	options := a.spy.options["SealLog"]
	require.Zero(t, options.RetryPolicy.MaximumAttempts, "the test environment ends an unlimited policy after ten runs, Temporal doesn't")
	require.Empty(t, options.RetryPolicy.NonRetryableErrorTypes)
	require.Zero(t, options.ScheduleToCloseTimeout)
	require.Equal(t, 10*time.Second, options.HeartbeatTimeout)
	require.Greater(t, options.StartToCloseTimeout, a.sealed[0].For, "a seal ends by itself")
}

// A closed log needs no workflow.
func TestALogThatIsClosedEndsItsWorkflow(t *testing.T) {
	t.Parallel()
	a := newAttester(func(before int) error {
		if before < 3 {
			return nil
		}
		return temporal.NewNonRetryableApplicationError("the log is closed", activities.LogClosed, nil)
	})
	a.env.ExecuteWorkflow(workflows.AttestLogName, workflows.AttestInput{LogID: "log_1"})
	require.True(t, a.env.IsWorkflowCompleted())
	require.NoError(t, a.env.GetWorkflowError())
	require.Len(t, a.sealed, 4)
}
