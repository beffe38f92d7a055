package workflows_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	sdkpb "go.temporal.io/api/sdk/v1"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// batcher runs DeliverBatch in virtual time, and writes down what it asks of its activities.
type batcher struct {
	env      *testsuite.TestWorkflowEnvironment
	spy      *spy
	sent     []activities.BatchInput
	recorded [][]activities.RecordInput
	details  string // as the Web UI shows them while RecordBatch runs
}

// newBatcher has SendBatch fail some times and then return result, and RecordBatch fail some times and then succeed.
func newBatcher(t *testing.T, result activities.BatchResult, sendFailures, recordFailures int) *batcher {
	t.Helper()
	b := &batcher{env: newEnvironment(), spy: &spy{}}
	b.env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{b.spy}})
	b.env.RegisterWorkflowWithOptions(workflows.DeliverBatch, workflow.RegisterOptions{Name: workflows.DeliverBatchName})
	var a *activities.Activities
	b.env.RegisterActivity(&activities.Activities{})
	b.env.OnActivity(a.SendBatch, mock.Anything, mock.Anything).Return(
		func(_ context.Context, in activities.BatchInput) (activities.BatchResult, error) { // one run at a time
			b.sent = append(b.sent, in)
			if len(b.sent) <= sendFailures {
				return activities.BatchResult{}, errNotSent
			}
			return result, nil
		}).Maybe()
	b.env.OnActivity(a.RecordBatch, mock.Anything, mock.Anything).Return(
		func(_ context.Context, in []activities.RecordInput) error {
			b.recorded = append(b.recorded, in)
			if len(b.recorded) <= recordFailures {
				return errors.New("no connection to Postgres")
			}
			return nil
		}).Maybe()
	return b
}

func batchInput() workflows.BatchInput {
	return workflows.BatchInput{BatchInput: activities.BatchInput{ClaimID: "clm_1"}, Deliveries: 3}
}

// run carries the batch to its end.
func (b *batcher) run(t *testing.T) activities.BatchResult {
	t.Helper()
	b.env.ExecuteWorkflow(workflows.DeliverBatchName, batchInput())
	require.True(t, b.env.IsWorkflowCompleted())
	require.NoError(t, b.env.GetWorkflowError())
	var result activities.BatchResult
	require.NoError(t, b.env.GetWorkflowResult(&result))
	return result
}

// unrecorded are two outcomes that a sender couldn't record.
func unrecorded() []activities.RecordInput {
	outcome := activities.Outcome{
		AttemptedAt: time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC), Duration: 41 * time.Millisecond, EndpointURL: "https://example.com/in",
		URLHash: "aa", HeadersHash: "bb", ResponseStatus: 503, ResponseHash: "cc", ResponseSize: 2,
		Outcome: "retry", State: "pending", Delay: time.Second, Park: true, Grace: 5 * time.Minute,
	}
	return []activities.RecordInput{{DeliveryID: "dlv_1", Epoch: 2, Attempt: 3, Outcome: outcome}, {DeliveryID: "dlv_2", Attempt: 1, Outcome: outcome}}
}

func TestABatchThatIsRecordedIsOver(t *testing.T) {
	t.Parallel()
	want := activities.BatchResult{Sent: 2, Deferred: 1}
	b := newBatcher(t, want, 0, 0)
	require.Equal(t, want, b.run(t))
	require.Equal(t, []activities.BatchInput{{ClaimID: "clm_1"}}, b.sent)
	require.Empty(t, b.recorded)
	require.Equal(t, 8*time.Second, b.spy.options["SendBatch"].HeartbeatTimeout)
	require.Greater(t, b.spy.options["SendBatch"].StartToCloseTimeout, 2*time.Minute+activities.BatchBudget, "the longest request, begun last")
}

func TestOutcomesOfABatchAreRecordedByTheWorkflow(t *testing.T) {
	t.Parallel()
	b := newBatcher(t, activities.BatchResult{Sent: 3, Unrecorded: unrecorded()}, 0, 1)
	b.env.RegisterDelayedCallback(func() { b.details = b.currentDetails(t) }, 100*time.Millisecond) // before the second run
	require.Equal(t, activities.BatchResult{Sent: 3}, b.run(t), "nothing is left to be recorded")
	require.Len(t, b.sent, 1, "nothing is sent again")
	require.Equal(t, [][]activities.RecordInput{unrecorded(), unrecorded()}, b.recorded)
	require.Equal(t, "2 outcomes are still to be recorded", b.details)
	require.Empty(t, b.currentDetails(t))
}

func (b *batcher) currentDetails(t *testing.T) string {
	t.Helper()
	value, err := b.env.QueryWorkflow(metadataQuery)
	require.NoError(t, err)
	var metadata sdkpb.WorkflowMetadata
	require.NoError(t, value.Get(&metadata))
	return metadata.CurrentDetails
}

// As with a single delivery, no activity may ever give up. (The test environment ends even an unlimited policy after ten
// runs, so the policies themselves are looked at too.)
func TestABatchIsRetriedWithoutEnd(t *testing.T) {
	t.Parallel()
	b := newBatcher(t, activities.BatchResult{Sent: 2, Unrecorded: unrecorded()}, 9, 9)
	require.Equal(t, activities.BatchResult{Sent: 2}, b.run(t))
	require.Equal(t, slices.Repeat([]activities.BatchInput{{ClaimID: "clm_1"}}, 10), b.sent)
	require.Len(t, b.recorded, 10)
	require.Len(t, b.spy.options, 2)
	for name, options := range b.spy.options {
		require.NotNil(t, options.RetryPolicy, name)
		require.Zero(t, options.RetryPolicy.MaximumAttempts, name)
		require.Empty(t, options.RetryPolicy.NonRetryableErrorTypes, name)
		require.Zero(t, options.ScheduleToCloseTimeout, name)
		require.Zero(t, options.ScheduleToStartTimeout, name)
		require.Positive(t, options.StartToCloseTimeout, name)
	}
}

// The replay of a batch, too, is worth something only if it notices one that decides otherwise.
func TestReplayRejectsAChangedBatch(t *testing.T) {
	t.Parallel()
	var a *activities.Activities
	options := workflow.ActivityOptions{StartToCloseTimeout: time.Minute}
	for name, changed := range map[string]func(workflow.Context, workflows.BatchInput) (activities.BatchResult, error){
		"waits first": func(ctx workflow.Context, in workflows.BatchInput) (activities.BatchResult, error) {
			if err := workflow.Sleep(ctx, time.Second); err != nil {
				return activities.BatchResult{}, err
			}
			return workflows.DeliverBatch(ctx, in)
		},
		"forgets what is to be recorded": func(ctx workflow.Context, in workflows.BatchInput) (result activities.BatchResult, err error) {
			err = workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, options), a.SendBatch, in.BatchInput).Get(ctx, &result)
			return result, err
		},
		"sends twice": func(ctx workflow.Context, in workflows.BatchInput) (activities.BatchResult, error) {
			if result, err := workflows.DeliverBatch(ctx, in); err != nil {
				return result, err
			}
			return workflows.DeliverBatch(ctx, in)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			replayer := worker.NewWorkflowReplayer()
			replayer.RegisterWorkflowWithOptions(changed, workflow.RegisterOptions{Name: workflows.DeliverBatchName})
			require.ErrorContains(t, replayer.ReplayWorkflowHistory(quiet, savedHistory(t, "batch-recorded-late")), nondeterministic)
		})
	}
}
