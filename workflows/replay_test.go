package workflows_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// savedHistories returns the histories of real runs, by their file names. Never edit one, and never record one again to
// make a test pass: a workflow that runs while a new version is deployed is replayed by it just so.
func savedHistories(t *testing.T) map[string]*historypb.History {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "histories", "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "no saved histories: nothing would be replayed")
	saved := map[string]*historypb.History{}
	for _, file := range files {
		saved[strings.TrimSuffix(filepath.Base(file), ".json")] = readHistory(t, file)
	}
	return saved
}

func readHistory(t *testing.T, file string) *historypb.History {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	history, err := client.HistoryFromJSON(f, client.HistoryJSONOptions{})
	require.NoError(t, err, file)
	return history
}

func savedHistory(t *testing.T, name string) *historypb.History {
	t.Helper()
	return readHistory(t, filepath.Join("testdata", "histories", name+".json"))
}

// The workflows as they would be registered: by the names in the histories.
type (
	deliverWebhook = func(workflow.Context, workflows.DeliverInput) (workflows.DeliverResult, error)
	attestLog      = func(workflow.Context, workflows.AttestInput) error
)

// replay runs the history through the workflows and returns what they did.
func replay(t *testing.T, history *historypb.History, deliver deliverWebhook, attest attestLog) (*spy, error) {
	t.Helper()
	seen := &spy{}
	replayer, err := worker.NewWorkflowReplayerWithOptions(worker.WorkflowReplayerOptions{
		Interceptors: []interceptor.WorkerInterceptor{seen},
	})
	require.NoError(t, err)
	replayer.RegisterWorkflowWithOptions(deliver, workflow.RegisterOptions{Name: workflows.DeliverWebhookName})
	replayer.RegisterWorkflowWithOptions(attest, workflow.RegisterOptions{Name: workflows.AttestLogName})
	replayer.RegisterWorkflowWithOptions(workflows.DeliverBatch, workflow.RegisterOptions{Name: workflows.DeliverBatchName})
	replayer.RegisterWorkflowWithOptions(workflows.Reconcile, workflow.RegisterOptions{Name: workflows.ReconcileName})
	return seen, replayer.ReplayWorkflowHistory(quiet, history)
}

func workflowName(history *historypb.History) string {
	return history.Events[0].GetWorkflowExecutionStartedEventAttributes().GetWorkflowType().GetName()
}

func TestSavedHistoriesReplay(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for name, history := range savedHistories(t) {
		names[workflowName(history)] = true
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seen, err := replay(t, history, workflows.DeliverWebhook, workflows.AttestLog)
			require.NoError(t, err)
			requireSameResult(t, history, seen)
		})
	}
	require.Equal(t, map[string]bool{workflows.DeliverWebhookName: true, workflows.DeliverBatchName: true, workflows.AttestLogName: true,
		workflows.ReconcileName: true}, names,
		"each workflow has a history")
}

// requireSameResult compares the results, which the SDK doesn't.
func requireSameResult(t *testing.T, history *historypb.History, seen *spy) {
	t.Helper()
	last := history.Events[len(history.Events)-1]
	if last.EventType != enums.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED {
		return
	}
	payloads := last.GetWorkflowExecutionCompletedEventAttributes().GetResult()
	result := reflect.New(reflect.TypeOf(seen.result))
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(payloads, result.Interface()))
	require.Equal(t, result.Elem().Interface(), seen.result)
}

// nondeterministic is the SDK's name for a replay that makes other commands than the history holds.
const nondeterministic = "TMPRL1100"

// The replay is worth something only if it notices a workflow that decides otherwise.
func TestReplayRejectsAChangedDelivery(t *testing.T) {
	t.Parallel()
	for name, changed := range map[string]deliverWebhook{
		"waits first": func(ctx workflow.Context, in workflows.DeliverInput) (workflows.DeliverResult, error) {
			if err := workflow.Sleep(ctx, time.Second); err != nil {
				return workflows.DeliverResult{}, err
			}
			return workflows.DeliverWebhook(ctx, in)
		},
		"makes the first attempt by an ordinary activity": func(ctx workflow.Context, in workflows.DeliverInput) (workflows.DeliverResult, error) {
			in.Local = false
			return workflows.DeliverWebhook(ctx, in)
		},
		"tells the outcome twice": func(ctx workflow.Context, in workflows.DeliverInput) (workflows.DeliverResult, error) {
			result, err := workflows.DeliverWebhook(ctx, in)
			if err != nil {
				return result, err
			}
			return result, workflow.UpsertTypedSearchAttributes(ctx, workflows.OutcomeAttribute.ValueSet(result.Outcome))
		},
		"gives up after the first attempt": func(ctx workflow.Context, in workflows.DeliverInput) (workflows.DeliverResult, error) {
			var a *activities.Activities
			ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: time.Minute})
			err := workflow.ExecuteLocalActivity(ctx, a.SendAttempt, activities.SendInput{}).Get(ctx, nil)
			return workflows.DeliverResult{Outcome: "dead", Attempts: 1}, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := replay(t, savedHistory(t, "deliver-retried"), changed, workflows.AttestLog)
			require.ErrorContains(t, err, nondeterministic)
		})
	}
}

func TestReplayRejectsAChangedLog(t *testing.T) {
	t.Parallel()
	history := savedHistory(t, "attest-running")
	_, err := replay(t, history, workflows.DeliverWebhook, func(ctx workflow.Context, in workflows.AttestInput) error {
		if err := workflow.Sleep(ctx, time.Second); err != nil {
			return err
		}
		return workflows.AttestLog(ctx, in)
	})
	require.ErrorContains(t, err, nondeterministic)
}

// A local activity that takes long keeps its workflow by completing one task after the other. If its worker dies then,
// the first task is replayed from history and looks as it did the first time, but the request may have been sent: the
// repeated send must be counted, or the leaf's lost_starts would hide the first.
func TestALocalSendThatIsRepeatedCountsItsStart(t *testing.T) {
	t.Parallel()
	whole := savedHistory(t, "deliver-recorded-late").Events
	started := slices.IndexFunc(whole, func(e *historypb.HistoryEvent) bool {
		return e.EventType == enums.EVENT_TYPE_WORKFLOW_TASK_STARTED && e.EventId > 3
	})
	require.Equal(t, enums.EVENT_TYPE_WORKFLOW_TASK_COMPLETED, whole[3].EventType, "the first task was completed without a command")
	history := &historypb.History{Events: append(slices.Clone(whole[:started+1]), workerDied(whole[started])...)}
	seen, err := replay(t, history, workflows.DeliverWebhook, workflows.AttestLog)
	require.NoError(t, err)
	require.Len(t, seen.locals, 1)
	require.False(t, seen.locals[0].Counted, "the claim's count was used up by the send of the worker that died")
}

// workerDied are the events that follow a task whose worker never answered, up to its next start elsewhere.
func workerDied(started *historypb.HistoryEvent) []*historypb.HistoryEvent {
	at := started.EventId
	return []*historypb.HistoryEvent{
		{
			EventId: at + 1, EventTime: started.EventTime, EventType: enums.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT,
			Attributes: &historypb.HistoryEvent_WorkflowTaskTimedOutEventAttributes{
				WorkflowTaskTimedOutEventAttributes: &historypb.WorkflowTaskTimedOutEventAttributes{
					ScheduledEventId: at - 1, StartedEventId: at, TimeoutType: enums.TIMEOUT_TYPE_START_TO_CLOSE,
				},
			},
		},
		{
			EventId: at + 2, EventTime: started.EventTime, EventType: enums.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
			Attributes: &historypb.HistoryEvent_WorkflowTaskScheduledEventAttributes{
				WorkflowTaskScheduledEventAttributes: &historypb.WorkflowTaskScheduledEventAttributes{Attempt: 2},
			},
		},
		{
			EventId: at + 3, EventTime: started.EventTime, EventType: enums.EVENT_TYPE_WORKFLOW_TASK_STARTED,
			Attributes: &historypb.HistoryEvent_WorkflowTaskStartedEventAttributes{
				WorkflowTaskStartedEventAttributes: &historypb.WorkflowTaskStartedEventAttributes{ScheduledEventId: at + 2},
			},
		},
	}
}
