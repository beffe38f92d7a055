package workflows_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/proxy"
	sdkpb "go.temporal.io/api/sdk/v1"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/workflows"
)

// Invariant 3: what passes through Temporal are IDs, hashes and small numbers, never a payload, a header, a secret or a
// URL with credentials. checkContents decodes every payload of a history into the one type that may be there, and looks
// at each of its strings.
func checkContents(history *historypb.History) error {
	activityNames := map[int64]string{} // by the event that scheduled them
	for _, event := range history.Events {
		if scheduled := event.GetActivityTaskScheduledEventAttributes(); scheduled != nil {
			activityNames[event.EventId] = scheduled.GetActivityType().GetName()
		}
	}
	for _, event := range history.Events {
		err := proxy.VisitPayloads(context.Background(), event, proxy.VisitPayloadsOptions{
			Visitor: func(visited *proxy.VisitPayloadsContext, payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
				for _, p := range payloads {
					if err := checkPayload(p, allowedIn(visited.Parent, workflowName(history), activityNames)); err != nil {
						return nil, fmt.Errorf("event %d, %T: %w", event.EventId, visited.Parent, err)
					}
				}
				return payloads, nil
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// localMarker is how the SDK records that a local activity was run.
type localMarker struct {
	ActivityID   string
	ActivityType string
	ReplayTime   time.Time
	Attempt      int32
	Backoff      time.Duration
}

// allowedIn returns pointers to what may be in a payload of parent; none: there may be no payload.
func allowedIn(parent any, workflowName string, activityNames map[int64]string) []any {
	switch at := parent.(type) {
	case *historypb.WorkflowExecutionStartedEventAttributes:
		return map[string][]any{
			workflows.AttestLogName:      {&workflows.AttestInput{}},
			workflows.DeliverBatchName:   {&workflows.BatchInput{}},
			workflows.DeliverWebhookName: {&workflows.DeliverInput{}},
			workflows.ReconcileName:      {&activities.Reconciled{}}, // the result of the run before
		}[workflowName]
	case *historypb.WorkflowExecutionCompletedEventAttributes:
		return map[string][]any{
			workflows.DeliverBatchName:   {&activities.BatchResult{}},
			workflows.DeliverWebhookName: {&workflows.DeliverResult{}},
			workflows.ReconcileName:      {&activities.Reconciled{}},
		}[workflowName]
	case *historypb.MarkerRecordedEventAttributes:
		if at.GetMarkerName() == "Version" {
			return []any{new(keyword), new(int), new(bool)}
		}
		return []any{&localMarker{}, &activities.SendResult{}}
	case *historypb.WorkflowExecutionSignaledEventAttributes:
		return map[string][]any{workflows.RetryNowSignal: {&workflows.RetryNow{}}}[at.GetSignalName()]
	case *historypb.ActivityTaskScheduledEventAttributes:
		return map[string][]any{
			"SendAttempt":   {&activities.SendInput{}},
			"RecordAttempt": {&activities.RecordInput{}},
			"SendBatch":     {&activities.BatchInput{}},
			"RecordBatch":   {&[]activities.RecordInput{}},
			"Requeue":       {&activities.RequeueInput{}},
			"SealLog":       {&activities.SealInput{}},
			"Reconcile":     {&activities.ReconcileInput{}},

			"CancelDelivery": {&activities.CancelInput{}},
		}[at.GetActivityType().GetName()]
	case *historypb.ActivityTaskCompletedEventAttributes:
		return map[string][]any{
			"SendAttempt":   {&activities.SendResult{}},
			"RecordAttempt": {&activities.Progress{}},
			"SendBatch":     {&activities.BatchResult{}},
			"Reconcile":     {&activities.Reconciled{}},
		}[activityNames[at.GetScheduledEventId()]]
	case *commonpb.SearchAttributes:
		return []any{new(time.Time), new(keyword), new(versions)} // the time: when a schedule was to start it
	case *sdkpb.UserMetadata:
		return []any{new(summary)}
	}
	return nil
}

type (
	keyword  string   // of a search attribute
	versions []change // of the search attribute by which the SDK shows them
	change   string
	summary  string // of a workflow or a timer
)

const typeID = `(dlv|evt|ep|dst|ten|log|clm)_[0-9a-hjkmnp-tv-z]{26}`

var (
	smallText = regexp.MustCompile(`^(` + typeID + `|[0-9a-f]{64}|[a-z_]{0,24}|SendAttempt|[0-9]{1,9})$`)
	aChange   = regexp.MustCompile(`^([a-z]+-[0-9]+)?$`)
	aSummary  = regexp.MustCompile(`^(event ` + typeID + ` to ` + typeID + `|grows [a-z0-9.:-]+/log/` + typeID + `|until attempt [0-9]+|[0-9]+ deliveries|compares attempts and logs)$`)
)

func checkPayload(payload *commonpb.Payload, allowed []any) error {
	encoding := string(payload.GetMetadata()["encoding"])
	if encoding == "binary/null" && len(payload.GetData()) == 0 {
		return nil // of a signal without an argument
	}
	if encoding != "json/plain" {
		return fmt.Errorf("encoding %q", encoding)
	}
	err := errors.New("there may be no payload here")
	for _, target := range allowed {
		decoder := json.NewDecoder(bytes.NewReader(payload.GetData()))
		decoder.DisallowUnknownFields()
		if err = decoder.Decode(target); err == nil {
			return checkStrings(reflect.ValueOf(target).Elem())
		}
	}
	return err
}

// checkStrings looks at every string in v. A type that could hold more than strings and numbers is refused as such.
func checkStrings(v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		return checkString(v)
	case reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64:
		return nil
	case reflect.Pointer:
		if v.IsNil() {
			return checkStrings(reflect.Zero(v.Type().Elem()))
		}
		return checkStrings(v.Elem())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			break
		}
		for i := range v.Len() {
			if err := checkStrings(v.Index(i)); err != nil {
				return err
			}
		}
		return checkStrings(reflect.Zero(v.Type().Elem()))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return nil
		}
		for i := range v.NumField() {
			field := v.Type().Field(i)
			err := checkStrings(v.Field(i))
			if field.Name == "EndpointURL" {
				err = checkURL(v.Field(i).String())
			}
			if err != nil {
				return fmt.Errorf("%s.%s: %w", v.Type().Name(), field.Name, err)
			}
		}
		return nil
	}
	return fmt.Errorf("%s can hold anything", v.Type())
}

func checkString(v reflect.Value) error {
	pattern := smallText
	switch v.Type() {
	case reflect.TypeFor[summary]():
		pattern = aSummary
	case reflect.TypeFor[change]():
		pattern = aChange
	}
	if !pattern.MatchString(v.String()) {
		return fmt.Errorf("%q is neither an ID nor a hash nor a word", v.String())
	}
	return nil
}

func checkURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return err
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Host == "" {
		return fmt.Errorf("%q says more than where", text)
	}
	return nil
}

func TestHistoriesHoldNoPayloads(t *testing.T) {
	t.Parallel()
	for name, history := range savedHistories(t) {
		require.NoError(t, checkContents(history), name)
	}
}

// What no saved history shows can't be smuggled in by a field either: none could hold it.
func TestWhatPassesThroughTemporalHasNoRoomForPayloads(t *testing.T) {
	t.Parallel()
	for _, v := range []any{
		workflows.DeliverInput{}, workflows.DeliverResult{}, workflows.DeliverState{}, workflows.AttestInput{},
		activities.SendInput{}, activities.SendResult{}, activities.RecordInput{}, activities.Progress{},
		activities.RequeueInput{}, activities.SealInput{}, activities.CancelInput{}, workflows.RetryNow{},
		workflows.BatchInput{}, activities.BatchInput{}, activities.BatchResult{}, []activities.RecordInput{},
	} {
		require.NoError(t, checkStrings(reflect.ValueOf(v)))
	}
}

func TestContentsThatAreNotAllowedAreFound(t *testing.T) {
	t.Parallel()
	for name, smuggle := range map[string]func([]*historypb.HistoryEvent){
		"another field": func(events []*historypb.HistoryEvent) {
			started(events).Input = jsonPayloads(`{"DeliveryID":"dlv_01m860pbwde76rhswffy8164q5","Body":"e30="}`)
		},
		"a value that is no ID": func(events []*historypb.HistoryEvent) {
			started(events).Input = jsonPayloads(`{"DeliveryID":"{\"amount\":12}"}`)
		},
		"a secret as a search attribute": func(events []*historypb.HistoryEvent) {
			started(events).SearchAttributes.IndexedFields["KapselTenant"] = jsonPayloads(`"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"`).Payloads[0]
		},
		"a header in a summary": func(events []*historypb.HistoryEvent) {
			events[0].UserMetadata.Summary = jsonPayloads(`"Authorization: Basic Og=="`).Payloads[0]
		},
		"a URL with credentials": func(events []*historypb.HistoryEvent) {
			events[7].GetMarkerRecordedEventAttributes().Details["result"] = jsonPayloads(`{"Unrecorded":{"EndpointURL":"https://a:b@example.com/"}}`)
		},
		"a URL with a query": func(events []*historypb.HistoryEvent) {
			events[7].GetMarkerRecordedEventAttributes().Details["result"] = jsonPayloads(`{"Unrecorded":{"EndpointURL":"https://example.com/?token=1"}}`)
		},
		"a result that isn't the activity's": func(events []*historypb.HistoryEvent) {
			events[10].GetActivityTaskCompletedEventAttributes().Result = jsonPayloads(`{"Body":"e30="}`)
		},
		"a memo": func(events []*historypb.HistoryEvent) {
			started(events).Memo = &commonpb.Memo{Fields: map[string]*commonpb.Payload{"k": jsonPayloads(`"v"`).Payloads[0]}}
		},
		"bytes": func(events []*historypb.HistoryEvent) {
			started(events).Input.Payloads[0].Metadata["encoding"] = []byte("binary/plain")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			history := savedHistory(t, "deliver-recorded-late")
			require.NoError(t, checkContents(history))
			smuggle(history.Events)
			require.Error(t, checkContents(history))
		})
	}
}

func started(events []*historypb.HistoryEvent) *historypb.WorkflowExecutionStartedEventAttributes {
	return events[0].GetWorkflowExecutionStartedEventAttributes()
}

func jsonPayloads(text string) *commonpb.Payloads {
	return &commonpb.Payloads{Payloads: []*commonpb.Payload{{Metadata: map[string][]byte{"encoding": []byte("json/plain")}, Data: []byte(text)}}}
}
