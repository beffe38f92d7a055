package replay

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/converter"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// History is the history of one workflow, and where it comes from.
type History struct {
	WorkflowID string
	RunID      string
	Source     string // "temporal", or a file's name
	Events     []*historypb.HistoryEvent
	// Changed says why the file can't be trusted: it isn't what was exported. Empty: nothing is known against it.
	Changed string
	// Unsealed: no manifest says what the file was.
	Unsealed bool
}

// name is the name of the workflow's definition.
func (h *History) name() string {
	return h.started().GetWorkflowType().GetName()
}

func (h *History) started() *historypb.WorkflowExecutionStartedEventAttributes {
	if len(h.Events) == 0 {
		return nil
	}
	return h.Events[0].GetWorkflowExecutionStartedEventAttributes()
}

// status says how the workflow ended, or that it is running.
func (h *History) status() string {
	if len(h.Events) > 0 {
		if name, ended := endings[h.Events[len(h.Events)-1].GetEventType()]; ended {
			return name
		}
	}
	return "running"
}

// Closed reports whether nothing can follow any more.
func (h *History) Closed() bool { return h.status() != "running" }

// endings are the events that close a workflow.
var endings = map[enums.EventType]string{
	enums.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:        "completed",
	enums.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:           "failed",
	enums.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:        "timed out",
	enums.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:         "canceled",
	enums.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:       "terminated",
	enums.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: "continued as new",
}

// story is what a history of DeliverWebhook or DeliverBatch tells of attempts.
type story struct {
	*History
	in     workflows.DeliverInput // of DeliverWebhook
	batch  workflows.BatchInput   // of DeliverBatch
	steps  []step
	timers []timer
	result *workflows.DeliverResult
	sent   *activities.BatchResult // of DeliverBatch
	late   []lateRecord            // outcomes that went through a batch's history
	// sending is the attempt whose activity was scheduled and isn't over; 0: none.
	sending int
	// strange are events that can't be read, others those that aren't compared.
	strange, others []Finding

	scheduled map[int64]*historypb.HistoryEvent // activities by the event that scheduled them
	current   int                               // the attempt that is being made
	since     time.Time                         // from when on it may have been made
}

// step is what a history says of one attempt.
type step struct {
	event        int64 // that says so
	number       int
	since, until time.Time // between which it was made, by Temporal's clock
	sent         activities.SendResult
	recordEvent  int64                   // that says that RecordAttempt recorded it; 0: it wasn't needed, or isn't over
	recording    *activities.RecordInput // what it was asked to record
	progress     *activities.Progress    // where the delivery stood then
}

// tells reports whether the step says what became of a request.
func (st *step) tells() bool { return st.progress != nil || st.sent.Unrecorded != nil }

// tells reports whether the history says what became of an attempt.
func (s *story) tells(number int) bool {
	return slices.ContainsFunc(s.steps, func(st step) bool { return st.number == number && st.tells() })
}

// timer is a wait between attempts.
type timer struct {
	event    int64
	after    int // the attempt before it
	duration time.Duration
	stopped  bool // before its time, by a command
}

// lateRecord is an outcome that a batch's sender couldn't record.
type lateRecord struct {
	event int64
	activities.RecordInput
}

// read tells a history's story.
func read(h *History) *story {
	s := &story{History: h, scheduled: map[int64]*historypb.HistoryEvent{}}
	for _, event := range h.Events {
		s.add(event)
	}
	return s
}

func (s *story) add(e *historypb.HistoryEvent) {
	switch e.GetEventType() {
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
		s.addStarted(e)
	case enums.EVENT_TYPE_MARKER_RECORDED:
		s.addMarker(e)
	case enums.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
		s.addScheduled(e)
	case enums.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
		s.addCompleted(e)
	case enums.EVENT_TYPE_TIMER_STARTED:
		s.timers = append(s.timers, timer{
			event: e.GetEventId(), after: s.current - 1, duration: e.GetTimerStartedEventAttributes().GetStartToFireTimeout().AsDuration(),
		})
	case enums.EVENT_TYPE_TIMER_CANCELED:
		for i := range s.timers {
			if s.timers[i].event == e.GetTimerCanceledEventAttributes().GetStartedEventId() {
				s.timers[i].stopped = true
			}
		}
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
		s.addResult(e)
	}
}

func (s *story) addStarted(e *historypb.HistoryEvent) {
	input := e.GetWorkflowExecutionStartedEventAttributes().GetInput()
	switch s.name() {
	case workflows.DeliverWebhookName:
		s.decode(e, input, &s.in)
	case workflows.DeliverBatchName:
		s.decode(e, input, &s.batch)
	}
	s.current, s.since = s.in.Attempt, e.GetEventTime().AsTime()
}

// addMarker takes the result of a local activity, which leaves nothing else behind.
func (s *story) addMarker(e *historypb.HistoryEvent) {
	attributes := e.GetMarkerRecordedEventAttributes()
	if attributes.GetMarkerName() != "LocalActivity" {
		return // a version, or another thing that only the code needs
	}
	var what struct{ ActivityType string }
	if !s.decode(e, attributes.GetDetails()["data"], &what) {
		return
	}
	if what.ActivityType != "SendAttempt" {
		s.other(e, "local activity "+what.ActivityType)
		return
	}
	if attributes.GetFailure() != nil {
		return // nothing was sent, or nobody knows: an ordinary activity follows
	}
	s.addSent(e, attributes.GetDetails()["result"])
}

func (s *story) addScheduled(e *historypb.HistoryEvent) {
	s.scheduled[e.GetEventId()] = e
	attributes := e.GetActivityTaskScheduledEventAttributes()
	switch name := attributes.GetActivityType().GetName(); name {
	case "SendAttempt":
		var in activities.SendInput
		if !s.decode(e, attributes.GetInput(), &in) {
			return
		}
		s.sending = in.Attempt
		if in.DeliveryID != s.in.DeliveryID || in.Epoch != s.in.Epoch || in.Attempt != s.current {
			s.odd(e, "asks for attempt %d of %s under epoch %d; attempt %d of %s under epoch %d is next",
				in.Attempt, in.DeliveryID, in.Epoch, s.current, s.in.DeliveryID, s.in.Epoch)
		}
	case "RecordAttempt", "Requeue", "SendBatch", "RecordBatch":
	default:
		s.other(e, "activity "+name)
	}
}

func (s *story) addCompleted(e *historypb.HistoryEvent) {
	attributes := e.GetActivityTaskCompletedEventAttributes()
	scheduled := s.scheduled[attributes.GetScheduledEventId()]
	asked := scheduled.GetActivityTaskScheduledEventAttributes()
	switch asked.GetActivityType().GetName() {
	case "SendAttempt":
		s.sending = 0
		s.addSent(e, attributes.GetResult())
	case "RecordAttempt":
		s.addRecorded(e, scheduled, attributes.GetResult())
	case "SendBatch":
		s.sent = &activities.BatchResult{}
		if s.decode(e, attributes.GetResult(), s.sent) {
			for _, one := range s.sent.Unrecorded {
				s.late = append(s.late, lateRecord{e.GetEventId(), one})
			}
		}
	case "":
		s.odd(e, "completes an activity that nobody scheduled")
	}
}

func (s *story) addSent(e *historypb.HistoryEvent, result *commonpb.Payloads) {
	st := step{event: e.GetEventId(), number: s.current, since: s.since, until: e.GetEventTime().AsTime()}
	if !s.decode(e, result, &st.sent) {
		return
	}
	if !st.sent.Canceled && !st.sent.Dead { // else it says that the delivery is over, and nothing was sent
		st.progress = st.sent.Progress
	}
	s.steps = append(s.steps, st)
	if st.progress != nil {
		s.current++
	}
	s.since = e.GetEventTime().AsTime()
}

// addRecorded completes the step whose outcome its sender couldn't record.
func (s *story) addRecorded(e, scheduled *historypb.HistoryEvent, result *commonpb.Payloads) {
	var in activities.RecordInput
	var progress activities.Progress
	if !s.decode(scheduled, scheduled.GetActivityTaskScheduledEventAttributes().GetInput(), &in) || !s.decode(e, result, &progress) {
		return
	}
	if len(s.steps) == 0 || s.steps[len(s.steps)-1].sent.Unrecorded == nil {
		s.odd(scheduled, "records an outcome that no attempt of this history had")
		return
	}
	last := &s.steps[len(s.steps)-1]
	last.recordEvent, last.recording, last.progress = e.GetEventId(), &in, &progress
	s.current++
}

func (s *story) addResult(e *historypb.HistoryEvent) {
	if s.name() != workflows.DeliverWebhookName {
		return
	}
	var result workflows.DeliverResult
	if s.decode(e, e.GetWorkflowExecutionCompletedEventAttributes().GetResult(), &result) {
		s.result = &result
	}
}

// unheard reports whether an attempt may have been recorded by this carrier without its history telling of it: while its
// activity was under way when the workflow ended, or by a run of the activity whose answer was lost.
func (s *story) unheard(number int) bool {
	if s.sending == number || len(s.steps) == 0 && number == s.in.Attempt {
		return true
	}
	last := len(s.steps) - 1
	return last >= 0 && s.steps[last].number == number && s.steps[last].sent.Moved
}

// decode reads the payload that an event holds.
func (s *story) decode(e *historypb.HistoryEvent, payloads *commonpb.Payloads, into any) bool {
	if err := converter.GetDefaultDataConverter().FromPayloads(payloads, into); err != nil {
		s.odd(e, "can't be read: %v", err)
		return false
	}
	return true
}

func (s *story) odd(e *historypb.HistoryEvent, format string, args ...any) {
	s.strange = append(s.strange, Finding{History: s.WorkflowID, Event: e.GetEventId(), Text: fmt.Sprintf(format, args...)})
}

func (s *story) other(e *historypb.HistoryEvent, what string) {
	s.others = append(s.others, Finding{History: s.WorkflowID, Event: e.GetEventId(), Text: what + " is replayed, and not compared"})
}

// sameJSON compares two values by what they say.
func sameJSON(a, b any) bool {
	one, err1 := json.Marshal(a)
	two, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(one) == string(two)
}
