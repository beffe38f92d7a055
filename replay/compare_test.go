package replay_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/proto"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/replay"
	"github.com/kapsel-io/kapsel/workflows"
)

func decode(t *testing.T, payloads *commonpb.Payloads, into any) {
	t.Helper()
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(payloads, into))
}

// retried is what the history deliver-retried tells, as Postgres and the log have it.
func retried(t *testing.T) (*replay.History, []attempt) {
	t.Helper()
	h := saved(t, "deliver-retried")
	at := times(h)
	require.Len(t, at, 3)
	return h, []attempt{
		{number: 1, outcome: "retry", status: 503, at: at[0]},
		{number: 2, outcome: "retry", status: 503, at: at[1]},
		{number: 3, outcome: "delivered", status: 200, at: at[2]},
	}
}

// What each saved history tells agrees with what Postgres and the log held after that run.
func TestHistoriesAgreeWithWhatTheyTell(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]struct {
		attempts func(at []time.Time) []attempt
		state    string
		epoch    int // of the delivery afterwards
		note     string
	}{
		"deliver-delivered": {attempts: func(at []time.Time) []attempt {
			return []attempt{{number: 1, outcome: "delivered", status: 200, at: at[0]}}
		}, state: "delivered"},
		"deliver-retried": {attempts: func(at []time.Time) []attempt {
			return []attempt{{number: 1, outcome: "retry", status: 503, at: at[0]}, {number: 2, outcome: "retry", status: 503, at: at[1]},
				{number: 3, outcome: "delivered", status: 200, at: at[2]}}
		}, state: "delivered"},
		"deliver-dead": {attempts: func(at []time.Time) []attempt {
			return []attempt{{number: 1, outcome: "retry", status: 500, at: at[0]}, {number: 2, outcome: "failed", status: 500, at: at[1]},
				{number: 0, kind: "dead", outcome: "attempts_exhausted", at: at[1]}}
		}, state: "dead"},
		"deliver-gone": {attempts: func(at []time.Time) []attempt {
			return []attempt{{number: 1, outcome: "failed", status: 410, at: at[0]}, {number: 0, kind: "dead", outcome: "gone", at: at[0]}}
		}, state: "dead"},
		"deliver-parked": {attempts: func(at []time.Time) []attempt {
			return []attempt{{number: 1, outcome: "retry", status: 500, at: at[0]}}
		}, state: "pending", epoch: 1},
		"deliver-held": {attempts: func(at []time.Time) []attempt {
			return []attempt{{number: 1, outcome: "retry", status: 500, at: at[0]}}
		}, state: "pending", epoch: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := saved(t, name)
			account := delivery(t, h)
			account.Epoch = of.epoch
			record(t, account, of.attempts(times(h))...)
			require.Equal(t, of.state, account.State)
			report := replay.Compare(account, []*replay.History{h})
			require.Empty(t, report.Disagreements)
			require.Equal(t, replay.Agreement, report.Verdict)
			require.Len(t, report.Attempts, len(account.Attempts))
			for _, line := range report.Attempts {
				require.True(t, line.Covered)
				require.Equal(t, line.Attempt != id.Decision, line.Event > 0, "attempt %d", line.Attempt)
			}
			require.True(t, report.Carriers[0].SameToday)
		})
	}
}

// An outcome that went through the workflow is in its history whole, so that each of its members is compared.
func TestARecordedLateOutcomeAgrees(t *testing.T) {
	t.Parallel()
	h := saved(t, "deliver-recorded-late")
	outcome := late(t, h)
	account := record(t, delivery(t, h), attempt{number: 1, known: &outcome, outcome: outcome.Outcome})
	report := replay.Compare(account, []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Agreement, report.Verdict)
	requireNote(t, report, "by way of the workflow")
}

func requireNote(t *testing.T, report *replay.Report, text string) {
	t.Helper()
	require.Contains(t, report.Text(), text)
	for _, note := range report.Notes {
		if strings.Contains(note.Text, text) {
			return
		}
	}
	require.Fail(t, "no such note", "%q in %v", text, report.Notes)
}

// requirePart wants a report to name a place: an attempt (-1: none), an event (0: none) and a member.
func requirePart(t *testing.T, report *replay.Report, number int, event int64, member string) {
	t.Helper()
	require.Equal(t, replay.Disagreement, report.Verdict)
	require.True(t, slices.ContainsFunc(report.Disagreements, func(f replay.Finding) bool {
		sameAttempt := f.Attempt == nil && number < 0 || f.Attempt != nil && *f.Attempt == number
		return sameAttempt && f.Event == event && f.Member == member
	}), "attempt %d, event %d, member %q isn't among\n%s", number, event, member, report.Text())
	require.Contains(t, report.Text(), "they part: ")
}

func TestEachWayToPartIsNamed(t *testing.T) {
	t.Parallel()
	for name, p := range parts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, attempts := retried(t)
			if p.attempts != nil {
				attempts = p.attempts(attempts)
			}
			account := record(t, delivery(t, h), attempts...)
			if p.account != nil {
				p.account(account)
			}
			if p.history != nil {
				p.history(t, h)
			}
			requirePart(t, replay.Compare(account, []*replay.History{h}), p.number, p.event, p.member)
			if p.account != nil { // what is wrong in Postgres and the log is found without a history too
				requirePart(t, replay.Compare(account, nil), p.number, p.event, p.member)
			}
		})
	}
}

// Each member of a row is in its leaf, and a row that says something else than its leaf is named with the member.
func TestEachMemberOfARowIsCompared(t *testing.T) {
	t.Parallel()
	for member, change := range map[string]func(a *postgres.Account, r *postgres.AccountAttempt){
		"attempted_at": func(_ *postgres.Account, r *postgres.AccountAttempt) {
			r.AttemptedAt = r.AttemptedAt.Add(time.Millisecond)
		},
		"duration_ms":        func(_ *postgres.Account, r *postgres.AccountAttempt) { r.Duration += time.Millisecond },
		"endpoint_url":       func(_ *postgres.Account, r *postgres.AccountAttempt) { r.EndpointURL = "https://example.com/out" },
		"error":              func(_ *postgres.Account, r *postgres.AccountAttempt) { r.Error = "timeout" },
		"kind":               func(_ *postgres.Account, r *postgres.AccountAttempt) { r.Kind = "dead" },
		"outcome":            func(_ *postgres.Account, r *postgres.AccountAttempt) { r.Outcome = "delivered" },
		"response_size":      func(_ *postgres.Account, r *postgres.AccountAttempt) { r.ResponseSize++ },
		"response_status":    func(_ *postgres.Account, r *postgres.AccountAttempt) { r.ResponseStatus = 502 },
		"response_truncated": func(_ *postgres.Account, r *postgres.AccountAttempt) { r.ResponseTruncated = true },
		"destination_id":     func(a *postgres.Account, _ *postgres.AccountAttempt) { a.DestinationID = id.New() },
		"endpoint_id":        func(a *postgres.Account, _ *postgres.AccountAttempt) { a.EndpointID = id.New() },
		"event_id":           func(a *postgres.Account, _ *postgres.AccountAttempt) { a.EventID = id.New() },
		"tenant_id":          func(a *postgres.Account, _ *postgres.AccountAttempt) { a.TenantID = id.New() },
		"origin":             func(a *postgres.Account, _ *postgres.AccountAttempt) { a.Origin = "elsewhere.example/log/x" },
	} {
		t.Run(member, func(t *testing.T) {
			t.Parallel()
			h, attempts := retried(t)
			account := record(t, delivery(t, h), attempts...)
			change(account, &account.Attempts[1])
			requirePart(t, replay.Compare(account, []*replay.History{h}), 2, 0, member)
		})
	}
}

// What went through the history in full is compared in full, also with what only the leaf holds.
func TestEachMemberOfARecordedLateOutcomeIsCompared(t *testing.T) {
	t.Parallel()
	for member, change := range map[string]func(o *activities.Outcome){
		"attempted_at":       func(o *activities.Outcome) { o.AttemptedAt = o.AttemptedAt.Add(time.Millisecond) },
		"duration_ms":        func(o *activities.Outcome) { o.Duration += time.Second },
		"endpoint_url":       func(o *activities.Outcome) { o.EndpointURL = "https://example.com/elsewhere" },
		"error":              func(o *activities.Outcome) { o.Error = "body_read" },
		"response_size":      func(o *activities.Outcome) { o.ResponseSize = 3 },
		"response_status":    func(o *activities.Outcome) { o.ResponseStatus = 204 },
		"response_truncated": func(o *activities.Outcome) { o.ResponseTruncated = true },
		"url_hash":           func(o *activities.Outcome) { o.URLHash = strings.Repeat("00", 32) },
		"headers_hash":       func(o *activities.Outcome) { o.HeadersHash = strings.Repeat("00", 32) },
		"response_hash":      func(o *activities.Outcome) { o.ResponseHash = strings.Repeat("00", 32) },
	} {
		t.Run(member, func(t *testing.T) {
			t.Parallel()
			h := saved(t, "deliver-recorded-late")
			outcome := late(t, h)
			change(&outcome)
			account := record(t, delivery(t, h), attempt{number: 1, known: &outcome, outcome: outcome.Outcome})
			requirePart(t, replay.Compare(account, []*replay.History{h}), 1, 8, member)
		})
	}
}

// A request that was repeated after a crash may be recorded with either outcome; the leaf says that there was another.
func TestAnotherSendOfTheSameAttemptMayBeRecorded(t *testing.T) {
	t.Parallel()
	h := saved(t, "deliver-recorded-late")
	outcome := late(t, h)
	outcome.AttemptedAt, outcome.ResponseStatus = outcome.AttemptedAt.Add(time.Second), 204
	account := record(t, delivery(t, h), attempt{number: 1, known: &outcome, outcome: outcome.Outcome, lost: 1})
	report := replay.Compare(account, []*replay.History{h})
	require.Empty(t, report.Disagreements)
	requireNote(t, report, "another send than the one of event 8 was recorded")
	requireNote(t, report, "1 send whose outcome was lost")
}

// What RecordAttempt is asked to record is the outcome that the sender had.
func TestARecordThatIsntTheOutcome(t *testing.T) {
	t.Parallel()
	h := saved(t, "deliver-recorded-late")
	outcome := late(t, h)
	changed := outcome
	changed.ResponseStatus = 500
	setInput(t, h, 9, activities.RecordInput{DeliveryID: input(t, h).DeliveryID, Attempt: 1, Outcome: changed})
	account := record(t, delivery(t, h), attempt{number: 1, known: &outcome, outcome: outcome.Outcome})
	report := replay.Compare(account, []*replay.History{h})
	requirePart(t, report, 1, 11, "")
	requirePart(t, report, -1, 9, "code")

	setInput(t, h, 9, activities.RecordInput{DeliveryID: input(t, h).DeliveryID, Attempt: 2, Outcome: outcome})
	requirePart(t, replay.Compare(account, []*replay.History{h}), 1, 11, "")
}

// terminate ends a history after an event, as somebody in Temporal's UI, or an operator, would.
func terminate(h *replay.History, after int64) {
	h.Events = append(slices.Clone(h.Events[:after]), &historypb.HistoryEvent{
		EventId: after + 1, EventTime: h.Events[after-1].EventTime, EventType: enums.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionTerminatedEventAttributes{
			WorkflowExecutionTerminatedEventAttributes: &historypb.WorkflowExecutionTerminatedEventAttributes{Reason: "by hand"},
		},
	})
}

// A workflow that was terminated while its attempt was under way: that attempt may be recorded, what follows is carried
// under the next epoch, and a report doesn't claim to have seen it.
func TestATerminatedWorkflow(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	terminate(h, 12) // attempt 2 is under way
	attempts[2].epoch = 1
	report := replay.Compare(record(t, delivery(t, h), attempts...), []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Partial, report.Verdict)
	require.Equal(t, "terminated", report.Carriers[0].Status)
	requireNote(t, report, "it was terminated before its end")
	requireNote(t, report, "the workflow never heard of it")
	requireNote(t, report, "no history tells of it (deliver/"+report.DeliveryID+"/1, epoch 1)")
}

// One that was terminated while it waited can't have made the attempt that it waited for.
func TestATerminatedWorkflowThatWaitedMadeNoAttempt(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	terminate(h, 6)
	requirePart(t, replay.Compare(record(t, delivery(t, h), attempts...), []*replay.History{h}), 2, 0, "")
}

// A workflow that is running when it is read may be behind Postgres, never ahead of it.
func TestARunningWorkflow(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	h.Events = h.Events[:15]
	account := record(t, delivery(t, h), attempts...)
	report := replay.Compare(account, []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Partial, report.Verdict)
	requireNote(t, report, "it was still running")
	requireNote(t, report, "after the history had been read")

	h, attempts = retried(t)
	h.Events = h.Events[:15]
	requirePart(t, replay.Compare(record(t, delivery(t, h), attempts[0]), []*replay.History{h}), 2, 13, "")
}

// fencedOff makes the history's third attempt one whose carrier had lost the delivery when the answer came.
func fencedOff(t *testing.T, h *replay.History) {
	t.Helper()
	completed(t, h, 24, activities.SendResult{Progress: &activities.Progress{State: "pending", Moved: true}})
	setResult(t, h, workflows.DeliverResult{Outcome: workflows.OutcomeParked, Attempts: 3})
}

// A fenced-off carrier records nothing: its request is a lost one, which the leaf of the next carrier must count.
func TestAFencedOffCarrier(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	fencedOff(t, h)
	attempts[2].epoch, attempts[2].lost = 1, 1
	report := replay.Compare(record(t, delivery(t, h), attempts...), []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Partial, report.Verdict)
	requireNote(t, report, "its outcome never recorded, because the delivery had been handed over")

	attempts[2].lost = 0
	requirePart(t, replay.Compare(record(t, delivery(t, h), attempts...), []*replay.History{h}), 3, 24, "lost_starts")
}

// A delivery with several epochs is compared epoch by epoch; the workflow of a later one begins where the last ended.
func TestEpochsFollowEachOther(t *testing.T) {
	t.Parallel()
	h := saved(t, "deliver-parked")
	at := times(h)[0]
	account := record(t, delivery(t, h), attempt{number: 1, outcome: "retry", status: 500, at: at},
		attempt{number: 2, epoch: 1, outcome: "delivered", status: 200, at: at.Add(time.Hour)})
	report := replay.Compare(account, []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Partial, report.Verdict)
	require.Equal(t, 2, report.Epochs)

	account.Epoch = 0 // it is said never to have been handed over
	report = replay.Compare(account, []*replay.History{h})
	requirePart(t, report, -1, 7, "epoch")
	requirePart(t, report, 1, 5, "epoch")
}

// A workflow that finds its delivery elsewhere ends; then it must be elsewhere.
func TestASupersededCarrier(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	completed(t, h, 24, activities.SendResult{Moved: true})
	setResult(t, h, workflows.DeliverResult{Outcome: workflows.OutcomeSuperseded, Attempts: 2})
	attempts[2].epoch = 1
	report := replay.Compare(record(t, delivery(t, h), attempts...), []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Partial, report.Verdict)

	report = replay.Compare(record(t, delivery(t, h), attempts[:2]...), []*replay.History{h})
	requirePart(t, report, 3, 24, "")
	requirePart(t, report, -1, 29, "epoch")
}

// The last attempt of a delivery that is given up is a failed one.
func TestADeadDeliverysLastAttemptFailed(t *testing.T) {
	t.Parallel()
	h := saved(t, "deliver-dead")
	at := times(h)
	report := replay.Compare(record(t, delivery(t, h), attempt{number: 1, outcome: "retry", status: 500, at: at[0]},
		attempt{number: 2, outcome: "retry", status: 500, at: at[1]}, attempt{kind: "dead", outcome: "attempts_exhausted", at: at[1]}), []*replay.History{h})
	requirePart(t, report, 2, report.Attempts[1].Event, "outcome")
}

// batchAccount is what Postgres and the log hold of the delivery that batch-recorded-late names.
func batchAccount(t *testing.T, h *replay.History) (*postgres.Account, activities.RecordInput) {
	t.Helper()
	var result activities.BatchResult
	decode(t, event(h, 7).GetActivityTaskCompletedEventAttributes().GetResult(), &result)
	one := result.Unrecorded[0]
	account := delivery(t, saved(t, "deliver-delivered")) // for its IDs
	account.ID, account.Lane = parse(t, id.Delivery, one.DeliveryID), "batch"
	return account, one
}

func TestABatchThatNamesTheDelivery(t *testing.T) {
	t.Parallel()
	h := saved(t, "batch-recorded-late")
	account, one := batchAccount(t, h)
	record(t, account, attempt{number: 1, known: &one.Outcome, outcome: one.Outcome.Outcome})
	report := replay.Compare(account, []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Agreement, report.Verdict)

	one.Outcome.ResponseStatus = 204
	record(t, account, attempt{number: 1, known: &one.Outcome, outcome: one.Outcome.Outcome})
	requirePart(t, replay.Compare(account, []*replay.History{h}), 1, 7, "response_status")

	record(t, account)
	requirePart(t, replay.Compare(account, []*replay.History{h}), 1, 7, "")
}

// Why a delivery was given up is in the history of an outcome that was recorded late, and in the leaf of the decision.
func TestTheReasonToGiveUpIsCompared(t *testing.T) {
	t.Parallel()
	h := saved(t, "batch-recorded-late")
	account, one := batchAccount(t, h)
	one.Outcome.ResponseStatus, one.Outcome.Outcome, one.Outcome.State, one.Outcome.Reason = 410, "failed", "dead", "gone"
	completed(t, h, 7, activities.BatchResult{Sent: 1, Unrecorded: []activities.RecordInput{one}})
	setInput(t, h, 11, []activities.RecordInput{one})
	failed := attempt{number: 1, known: &one.Outcome, outcome: "failed"}
	decision := attempt{kind: "dead", outcome: "gone", at: one.Outcome.AttemptedAt}
	require.Empty(t, replay.Compare(record(t, account, failed, decision), []*replay.History{h}).Disagreements)
	decision.outcome = "rejected"
	requirePart(t, replay.Compare(record(t, account, failed, decision), []*replay.History{h}), 0, 7, "outcome")
}

// An attempt may be put off and made later in the same workflow: what counts is whether it was made at all.
func TestAnAttemptThatWasPutOffAndMadeLater(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	again := []*historypb.HistoryEvent{}
	for _, e := range h.Events[10:13] { // a first run of attempt 2 that sent nothing
		again = append(again, proto.CloneOf(e))
	}
	h.Events = slices.Concat(h.Events[:10], again, h.Events[10:])
	for i, e := range h.Events {
		e.EventId = int64(i + 1)
	}
	for _, e := range h.Events[13:] {
		if done := e.GetActivityTaskCompletedEventAttributes(); done != nil {
			done.ScheduledEventId += 3
		}
	}
	completed(t, h, 13, activities.SendResult{})
	report := replay.Compare(record(t, delivery(t, h), attempts...), []*replay.History{h})
	for _, f := range report.Disagreements {
		require.Equal(t, "code", f.Member, "today's code doesn't do so, and nothing else parts: %+v", f)
	}
	require.Len(t, report.Disagreements, 1)
}

// A batch's history doesn't name what it recorded in time, and nothing else is claimed.
func TestABatchThatDoesntNameTheDelivery(t *testing.T) {
	t.Parallel()
	h := saved(t, "batch-delivered")
	account := delivery(t, saved(t, "deliver-delivered"))
	account.Lane = "batch"
	record(t, account, attempt{number: 1, outcome: "delivered", status: 200, at: time.Now()})
	report := replay.Compare(account, []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Partial, report.Verdict)
	requireNote(t, report, "it doesn't name this one")
	requireNote(t, report, "a batch carried it, whose history holds counts")
	completed(t, h, 7, activities.BatchResult{Sent: 9})
	requirePart(t, replay.Compare(account, []*replay.History{h}), -1, 0, "sent")
	require.Contains(t, report.Text(), "agreement in part")
}

// Without any history the record is still compared with the log, and the verdict says that this is all.
func TestWithoutHistories(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	account := record(t, delivery(t, h), attempts...)
	require.Equal(t, replay.Partial, replay.Compare(account, nil).Verdict)
	account.Attempts[0].ResponseStatus = 504
	requirePart(t, replay.Compare(account, nil), 1, 0, "response_status")
}

// A delivery that a filter left out was never carried, so nothing is missing.
func TestASkippedDeliveryHasNoHistory(t *testing.T) {
	t.Parallel()
	account := record(t, delivery(t, saved(t, "deliver-delivered")), attempt{number: 0, kind: "skipped", outcome: "filter", at: time.Now()})
	report := replay.Compare(account, nil)
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Agreement, report.Verdict)
	requireNote(t, report, "no workflow carried the delivery")
	require.Contains(t, report.Text(), "decision: skipped, filter")
}

// Whoever says of a delivery that was carried that a filter left it out has its workflow against him, even if nothing was
// sent by then, and its attempts.
func TestWhatWasCarriedWasNotSkipped(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	skipped := attempt{number: 0, kind: "skipped", outcome: "filter", at: attempts[0].at}
	report := replay.Compare(record(t, delivery(t, h), skipped), []*replay.History{h})
	requirePart(t, report, 0, 1, "kind")
	require.Equal(t, replay.Disagreement, report.Verdict)
	requirePart(t, replay.Compare(record(t, delivery(t, h), attempts[0], skipped), nil), 0, 0, "kind")
}

// Leaves that are on their way into the log, or whose bytes were erased, are no disagreement; the report says so.
func TestLeavesOnTheirWayAndErasedOnes(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	account := record(t, delivery(t, h), attempts...)
	account.Attempts[2].Leaf.Place, account.Attempts[0].Leaf.Bytes = postgres.LeafInQueue, nil
	report := replay.Compare(account, []*replay.History{h})
	require.Empty(t, report.Disagreements)
	require.Equal(t, replay.Agreement, report.Verdict)
	requireNote(t, report, "waits for its place")
	requireNote(t, report, "bytes were erased")
	require.False(t, report.Attempts[2].Covered)
	require.True(t, report.Attempts[0].Covered)

	account.Signed = nil
	report = replay.Compare(account, []*replay.History{h})
	require.Equal(t, replay.Agreement, report.Verdict)
	requireNote(t, report, "no signed head covers it yet")
	require.False(t, report.Attempts[0].Covered)
}

// What somebody wrote into the database or a history can't do anything to the terminal of who looks at it.
func TestAReportIsPrintable(t *testing.T) {
	t.Parallel()
	h, attempts := retried(t)
	account := record(t, delivery(t, h), attempts...)
	evil := "\x1b]0;owned\x07\u202e\x00\u009b31m" + strings.Repeat("x", 1000)
	account.State, account.Attempts[0].Error, account.Attempts[1].Outcome, account.Attempts[2].EndpointURL = evil, evil, evil, evil
	account.Attempts[0].Leaf.Place, account.Attempts[0].Leaf.Reason = postgres.LeafAside, evil
	h.WorkflowID, h.Source = evil, evil
	report := replay.Compare(account, []*replay.History{h})
	require.Equal(t, replay.Disagreement, report.Verdict)
	for line := range strings.Lines(report.Text()) {
		for _, r := range strings.TrimSuffix(line, "\n") {
			require.True(t, r >= ' ' && r <= '~', "%q", line)
		}
	}
}

// A file may hold anything that reads as a history: it is refused or disagrees, and nothing panics.
func TestAHistoryMayHoldAnything(t *testing.T) {
	t.Parallel()
	whole, attempts := retried(t)
	for cut := range len(whole.Events) {
		h, _ := retried(t)
		h.Events = slices.Delete(h.Events, cut, cut+1)
		account := record(t, delivery(t, whole), attempts...)
		report := replay.Compare(account, []*replay.History{h})
		require.NotNil(t, report)
		h, _ = retried(t)
		h.Events[cut].Attributes = nil
		report = replay.Compare(account, []*replay.History{h})
		require.NotNil(t, report)
	}
}
