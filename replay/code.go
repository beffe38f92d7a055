package replay

import (
	"fmt"
	"log/slog"
	"reflect"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// Code runs a history through today's workflows. The SDK finds commands that aren't those of the history; what it doesn't
// look at is compared here: what activities were asked, how long timers run, and what the workflow returned.
func Code(h *History) []Finding {
	if len(h.Events) < 3 && !h.Closed() {
		return nil // it was started, and no code has run yet
	}
	w := &watcher{}
	if err := replayHistory(h, w); err != nil {
		return []Finding{{History: h.WorkflowID, Member: "code", Text: "today's code decides otherwise: " + err.Error()}}
	}
	var found []Finding
	for _, d := range w.compare(h) {
		d.History, d.Member = h.WorkflowID, "code"
		found = append(found, d)
	}
	return found
}

func replayHistory(h *History, w *watcher) (err error) {
	defer func() {
		if p := recover(); p != nil { // the SDK takes histories to be well formed, and a file may hold anything
			err = fmt.Errorf("the history can't be replayed: %v", p)
		}
	}()
	replayer, err := worker.NewWorkflowReplayerWithOptions(worker.WorkflowReplayerOptions{
		Interceptors: []interceptor.WorkerInterceptor{w},
		// A loaded machine must not look like code that blocks.
		DisableDeadlockDetection: true,
	})
	if err != nil {
		return err
	}
	replayer.RegisterWorkflowWithOptions(workflows.DeliverWebhook, workflow.RegisterOptions{Name: workflows.DeliverWebhookName})
	replayer.RegisterWorkflowWithOptions(workflows.DeliverBatch, workflow.RegisterOptions{Name: workflows.DeliverBatchName})
	quiet := log.NewStructuredLogger(slog.New(slog.DiscardHandler))
	return replayer.ReplayWorkflowHistoryWithOptions(quiet, &historypb.History{Events: h.Events}, worker.ReplayWorkflowHistoryOptions{
		OriginalExecution: workflow.Execution{ID: h.WorkflowID, RunID: h.RunID},
	})
}

// watcher sees what today's code decides.
type watcher struct {
	interceptor.WorkerInterceptorBase
	activities []asked
	timers     []time.Duration
	result     any
}

// asked is an activity and its arguments.
type asked struct {
	name string
	args []any
}

func (w *watcher) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	return &inbound{WorkflowInboundInterceptorBase: interceptor.WorkflowInboundInterceptorBase{Next: next}, watcher: w}
}

type inbound struct {
	interceptor.WorkflowInboundInterceptorBase
	watcher *watcher
}

func (i *inbound) Init(next interceptor.WorkflowOutboundInterceptor) error {
	return i.Next.Init(&outbound{WorkflowOutboundInterceptorBase: interceptor.WorkflowOutboundInterceptorBase{Next: next}, watcher: i.watcher})
}

func (i *inbound) ExecuteWorkflow(ctx workflow.Context, in *interceptor.ExecuteWorkflowInput) (any, error) {
	result, err := i.Next.ExecuteWorkflow(ctx, in)
	i.watcher.result = result
	return result, err
}

type outbound struct {
	interceptor.WorkflowOutboundInterceptorBase
	watcher *watcher
}

func (o *outbound) ExecuteActivity(ctx workflow.Context, name string, args ...any) workflow.Future {
	o.watcher.activities = append(o.watcher.activities, asked{name, args})
	return o.Next.ExecuteActivity(ctx, name, args...)
}

func (o *outbound) NewTimerWithOptions(ctx workflow.Context, d time.Duration, options workflow.TimerOptions) workflow.Future {
	if d > 0 { // one of 0 fires at once and leaves no event
		o.watcher.timers = append(o.watcher.timers, d)
	}
	return o.Next.NewTimerWithOptions(ctx, d, options)
}

// compare sets what the code decided against the events that say what it decided then. That kinds and order of commands
// are the same is known by now.
func (w *watcher) compare(h *History) (found []Finding) {
	activity, timer := 0, 0
	for _, e := range h.Events {
		var text string
		switch e.GetEventType() {
		case enums.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
			if activity < len(w.activities) {
				text = w.activities[activity].compare(e.GetActivityTaskScheduledEventAttributes())
			}
			activity++
		case enums.EVENT_TYPE_TIMER_STARTED:
			then := e.GetTimerStartedEventAttributes().GetStartToFireTimeout().AsDuration()
			if timer < len(w.timers) && w.timers[timer] != then {
				text = fmt.Sprintf("today's code would wait %s here, the history has %s", w.timers[timer], then)
			}
			timer++
		case enums.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
			if !sameAs([]any{w.result}, e.GetWorkflowExecutionCompletedEventAttributes().GetResult()) {
				text = "today's code would return another result than the history has"
			}
		}
		if text != "" {
			found = append(found, Finding{Event: e.GetEventId(), Text: text})
		}
	}
	return found
}

func (a *asked) compare(then *historypb.ActivityTaskScheduledEventAttributes) string {
	if !sameAs(a.args, then.GetInput()) {
		return "today's code would call " + a.name + " with other arguments than the history has"
	}
	return ""
}

// sameAs compares values with their encoded form, by way of the values' types: members that a type has got since then
// don't count.
func sameAs(now []any, then *commonpb.Payloads) bool {
	if len(now) != len(then.GetPayloads()) {
		return false
	}
	for i, value := range now {
		if value == nil {
			return false // Kapsel's workflows return, and its activities take, no bare nil
		}
		decoded := reflect.New(reflect.TypeOf(value))
		if err := converter.GetDefaultDataConverter().FromPayload(then.GetPayloads()[i], decoded.Interface()); err != nil {
			return false
		}
		if !sameJSON(settle(value), settle(decoded.Elem().Interface())) {
			return false
		}
	}
	return true
}

// settle leaves out what may differ between a run and its replay: see firstWorkflowTask in package workflows.
func settle(v any) any {
	if in, ok := v.(activities.SendInput); ok {
		in.Counted = false
		return in
	}
	return v
}
