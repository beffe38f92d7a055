package workflows_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

var quiet = log.NewStructuredLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))

func newEnvironment() *testsuite.TestWorkflowEnvironment {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(quiet)
	return suite.NewTestWorkflowEnvironment()
}

// sent is one run of SendAttempt.
type sent struct {
	activities.SendInput
	Local bool
	Run   int32 // of the same activity, from 1
}

// answer is how a run of SendAttempt ends.
type answer func() (activities.SendResult, error)

// carrier runs DeliverWebhook in virtual time, with activities that answer as the test says and write down what was
// asked of them. A test reads these notes when the workflow is over, or from a callback of the environment.
type carrier struct {
	env *testsuite.TestWorkflowEnvironment
	spy *spy

	mu       sync.Mutex
	answers  []answer
	sent     []sent
	recorded []activities.RecordInput
	requeued []activities.RequeueInput
	order    []string // activities and upserts, in the order of their calls
	waits    []time.Duration
	outcomes []string
}

func newCarrier(t *testing.T, answers ...answer) *carrier {
	t.Helper()
	c := &carrier{env: newEnvironment(), spy: &spy{}, answers: answers}
	c.env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{c.spy}})
	c.env.RegisterWorkflowWithOptions(workflows.DeliverWebhook, workflow.RegisterOptions{Name: workflows.DeliverWebhookName})
	var a *activities.Activities
	c.env.RegisterActivity(&activities.Activities{})
	c.env.OnActivity(a.SendAttempt, mock.Anything, mock.Anything).Return(c.sendAttempt).Maybe()
	c.env.OnUpsertTypedSearchAttributes(mock.Anything).Run(c.upsert).Return(nil).Maybe()
	c.env.SetOnTimerScheduledListener(func(_ string, d time.Duration) { c.waits = append(c.waits, d) })
	return c
}

func (c *carrier) note(what string) {
	c.order = append(c.order, what)
}

func (c *carrier) sendAttempt(ctx context.Context, in activities.SendInput) (activities.SendResult, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := activity.GetInfo(ctx)
	c.sent = append(c.sent, sent{SendInput: in, Local: info.IsLocalActivity, Run: info.Attempt})
	c.note("SendAttempt")
	if len(c.answers) == 0 {
		return activities.SendResult{}, temporal.NewNonRetryableApplicationError("one attempt too many", "Test", nil)
	}
	next := c.answers[0]
	c.answers = c.answers[1:]
	return next()
}

func (c *carrier) upsert(args mock.Arguments) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note("upsert")
	outcome, _ := args.Get(0).(temporal.SearchAttributes).GetKeyword(workflows.OutcomeAttribute)
	c.outcomes = append(c.outcomes, outcome)
}

// onRecord lets RecordAttempt fail some times and then say where the delivery stands.
func (c *carrier) onRecord(failures int, progress activities.Progress) {
	var a *activities.Activities
	c.env.OnActivity(a.RecordAttempt, mock.Anything, mock.Anything).Return(
		func(_ context.Context, in activities.RecordInput) (activities.Progress, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.recorded = append(c.recorded, in)
			c.note("RecordAttempt")
			if len(c.recorded) <= failures {
				return activities.Progress{}, errors.New("no connection to Postgres")
			}
			return progress, nil
		})
}

// onRequeue lets Requeue fail some times.
func (c *carrier) onRequeue(failures int) {
	var a *activities.Activities
	c.env.OnActivity(a.Requeue, mock.Anything, mock.Anything).Return(
		func(_ context.Context, in activities.RequeueInput) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.requeued = append(c.requeued, in)
			c.note("Requeue")
			if len(c.requeued) <= failures {
				return errors.New("no connection to Postgres")
			}
			return nil
		})
}

// run carries the delivery to its end.
func (c *carrier) run(t *testing.T, in workflows.DeliverInput) workflows.DeliverResult {
	t.Helper()
	c.env.ExecuteWorkflow(workflows.DeliverWebhookName, in)
	require.True(t, c.env.IsWorkflowCompleted())
	require.NoError(t, c.env.GetWorkflowError())
	var result workflows.DeliverResult
	require.NoError(t, c.env.GetWorkflowResult(&result))
	require.Empty(t, c.answers, "attempts that were not made")
	return result
}

// spy sees what a workflow asks of the SDK, in a run as in a replay.
type spy struct {
	interceptor.WorkerInterceptorBase
	locals    []activities.SendInput              // of the local activities
	options   map[string]workflow.ActivityOptions // of the first ordinary one of each name
	summaries []string                            // of the timers
	result    any
}

func (s *spy) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	return &inbound{WorkflowInboundInterceptorBase: interceptor.WorkflowInboundInterceptorBase{Next: next}, spy: s}
}

type inbound struct {
	interceptor.WorkflowInboundInterceptorBase
	spy *spy
}

func (i *inbound) Init(next interceptor.WorkflowOutboundInterceptor) error {
	return i.Next.Init(&outbound{WorkflowOutboundInterceptorBase: interceptor.WorkflowOutboundInterceptorBase{Next: next}, spy: i.spy})
}

func (i *inbound) ExecuteWorkflow(ctx workflow.Context, in *interceptor.ExecuteWorkflowInput) (any, error) {
	result, err := i.Next.ExecuteWorkflow(ctx, in)
	i.spy.result = result
	return result, err
}

type outbound struct {
	interceptor.WorkflowOutboundInterceptorBase
	spy *spy
}

func (o *outbound) ExecuteLocalActivity(ctx workflow.Context, name string, args ...any) workflow.Future {
	o.spy.locals = append(o.spy.locals, args[0].(activities.SendInput))
	return o.Next.ExecuteLocalActivity(ctx, name, args...)
}

func (o *outbound) ExecuteActivity(ctx workflow.Context, name string, args ...any) workflow.Future {
	if o.spy.options == nil {
		o.spy.options = map[string]workflow.ActivityOptions{}
	}
	if _, known := o.spy.options[name]; !known { // the test environment writes its own limit into a policy that it has used
		o.spy.options[name] = workflow.GetActivityOptions(ctx)
	}
	return o.Next.ExecuteActivity(ctx, name, args...)
}

func (o *outbound) NewTimerWithOptions(ctx workflow.Context, d time.Duration, options workflow.TimerOptions) workflow.Future {
	o.spy.summaries = append(o.spy.summaries, options.Summary)
	return o.Next.NewTimerWithOptions(ctx, d, options)
}
