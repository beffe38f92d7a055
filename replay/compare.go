package replay

import (
	"fmt"
	"time"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/workflows"
)

// clocks is how far the clocks of Temporal and of the workers may be apart.
const clocks = time.Minute

// Compare sets histories against the account of a delivery. The histories were read before the account: what an account
// holds more may have been recorded in between, what it holds less may not.
func Compare(account *postgres.Account, histories []*History) *Report {
	c := &comparison{account: account}
	c.checkRecord()
	report := &Report{
		DeliveryID: id.Delivery.Format(account.ID), State: account.State, Epochs: account.Epoch + 1,
		Carriers: []Carrier{}, Disagreements: []Finding{}, Notes: []Finding{},
	}
	told := map[int]telling{}
	for _, h := range histories {
		checked := len(c.disagreements)
		code := Code(h)
		c.disagreements = append(c.disagreements, code...)
		report.Carriers = append(report.Carriers, Carrier{
			WorkflowID: h.WorkflowID, RunID: h.RunID, Source: h.Source, Events: len(h.Events), Status: h.status(), SameToday: len(code) == 0,
		})
		c.checkFile(h)
		s := read(h)
		c.disagreements, c.notes = append(c.disagreements, s.strange...), append(c.notes, s.others...)
		if h.name() == workflows.DeliverBatchName {
			c.compareBatch(s, told)
		} else {
			c.compareStory(s, told)
		}
		for i := range c.disagreements[checked:] {
			c.disagreements[checked+i].History = h.WorkflowID
		}
	}
	report.Attempts = c.lines(told)
	report.Verdict = c.verdict(told)
	if report.Verdict == Partial {
		c.explainGaps(told)
	}
	report.Disagreements = append(report.Disagreements, c.disagreements...)
	report.Notes = append(report.Notes, c.notes...)
	report.clean()
	return report
}

// telling is the event of a history that tells of an attempt.
type telling struct {
	history string
	event   int64
}

func (c *comparison) verdict(told map[int]telling) Verdict {
	if len(c.disagreements) > 0 {
		return Disagreement
	}
	for i := range c.account.Attempts {
		if n := c.account.Attempts[i].Number; n != id.Decision && told[n].event == 0 {
			return Partial
		}
	}
	return Agreement
}

func (c *comparison) checkFile(h *History) {
	if h.Changed != "" {
		c.disagreements = append(c.disagreements, Finding{Member: "file", Text: h.Changed})
	}
	if h.Unsealed {
		c.notes = append(c.notes, Finding{History: h.WorkflowID, Member: "file",
			Text: "no manifest lists it, so nothing says whether it was changed since it was exported"})
	}
}

// partAt notes that they part at an event.
func (c *comparison) partAt(event int64, attempt int, member, format string, args ...any) {
	c.part(attempt, member, format, args...)
	c.disagreements[len(c.disagreements)-1].Event = event
}

func (c *comparison) row(number int) *postgres.AccountAttempt {
	for i := range c.account.Attempts {
		if c.account.Attempts[i].Number == number {
			return &c.account.Attempts[i]
		}
	}
	return nil
}

// compareStory sets one DeliverWebhook against the account.
func (c *comparison) compareStory(s *story, told map[int]telling) {
	if !c.checkCarrier(s) {
		return
	}
	if c.account.State == string(delivery.Skipped) {
		c.partAt(1, id.Decision, "kind", "is %q, which is decided before there is any workflow; yet this one carried the delivery", delivery.KindSkipped)
	}
	for i := range s.steps {
		st := &s.steps[i]
		if st.tells() {
			if r := c.row(st.number); r != nil && r.Epoch == s.in.Epoch {
				told[st.number] = telling{s.WorkflowID, st.event}
			}
		}
		c.compareStep(s, st)
	}
	c.compareTimers(s)
	c.compareEpoch(s)
	c.compareResult(s)
	switch status := s.status(); status {
	case "completed":
	case "running":
		c.notes = append(c.notes, Finding{History: s.WorkflowID, Text: "it was still running when it was read"})
	default:
		c.notes = append(c.notes, Finding{History: s.WorkflowID, Event: s.Events[len(s.Events)-1].GetEventId(),
			Text: "it was " + status + " before its end: what it had begun by then is known from Postgres only"})
	}
}

// checkCarrier wants the workflow to be one of this delivery; if it isn't, nothing else of it matters.
func (c *comparison) checkCarrier(s *story) bool {
	before := len(c.disagreements)
	d := c.account
	for _, m := range []struct{ name, history, row string }{
		{"delivery_id", s.in.DeliveryID, id.Delivery.Format(d.ID)},
		{"event_id", s.in.EventID, id.Event.Format(d.EventID)},
		{"endpoint_id", s.in.EndpointID, id.Endpoint.Format(d.EndpointID)},
		{"destination_id", s.in.DestinationID, id.Destination.Format(d.DestinationID)},
		{"tenant_id", s.in.TenantID, id.Tenant.Format(d.TenantID)},
		{"workflow_id", s.WorkflowID, workflows.DeliveryWorkflowID(s.in.DeliveryID, s.in.Epoch)},
	} {
		if m.history != m.row {
			c.disagreements = append(c.disagreements, Finding{Event: 1, Member: m.name,
				Text: fmt.Sprintf("the workflow was started with %q, the delivery has %q", m.history, m.row)})
		}
	}
	if s.in.Epoch > d.Epoch {
		c.disagreements = append(c.disagreements, Finding{Event: 1, Member: "epoch",
			Text: fmt.Sprintf("the workflow was started under epoch %d, the delivery is in epoch %d", s.in.Epoch, d.Epoch)})
	}
	return len(c.disagreements) == before
}

// compareStep sets what a history says of one attempt against its row.
func (c *comparison) compareStep(s *story, st *step) {
	r := c.row(st.number)
	mine := r != nil && r.Epoch == s.in.Epoch // recorded by this carrier
	switch {
	case st.sent.Moved:
		if !c.movedOn(s.in.Epoch, st.number) {
			c.partAt(st.event, st.number, "", "the delivery had moved on, says the history; in Postgres it waits for this attempt")
		}
	case st.progress == nil && st.sent.Unrecorded == nil: // held, or put off for another reason
		if mine && !s.tells(st.number) {
			c.partAt(st.event, st.number, "", "nothing was sent, says the history; yet Postgres has an outcome: %s", r.Outcome)
		}
	default:
		c.compareOutcome(s, st, r, mine)
	}
}

// movedOn reports whether a carrier that waits for an attempt would be told that the delivery isn't its own any more.
func (c *comparison) movedOn(epoch, number int) bool {
	d := c.account
	return d.Epoch > epoch || d.NextAttempt > number+1 || delivery.State(d.State).Terminal()
}

// compareOutcome sets an attempt that was made against its row.
func (c *comparison) compareOutcome(s *story, st *step, r *postgres.AccountAttempt, mine bool) {
	if st.recording != nil && !sameJSON(st.recording.Outcome, st.sent.Unrecorded) {
		c.partAt(st.recordEvent, st.number, "", "what is recorded isn't what event %d says of the attempt", st.event)
	}
	if st.recording != nil && (st.recording.Attempt != st.number || st.recording.Epoch != s.in.Epoch || st.recording.DeliveryID != s.in.DeliveryID) {
		c.partAt(st.recordEvent, st.number, "", "recorded as attempt %d of %s under epoch %d", st.recording.Attempt, st.recording.DeliveryID, st.recording.Epoch)
	}
	p := st.progress
	if !mine {
		c.compareFenced(s, st, r)
		return
	}
	if r.AttemptedAt.Before(st.since.Add(-clocks)) || r.AttemptedAt.After(st.until.Add(clocks)) {
		c.partAt(st.event, st.number, "attempted_at", "Postgres has %s; the workflow made the attempt between %s and %s",
			stamp(r.AttemptedAt), stamp(st.since), stamp(st.until))
	}
	if st.sent.Unrecorded != nil {
		c.compareUnrecorded(st.event, st.number, st.sent.Unrecorded, r)
	}
	if p == nil {
		return // recorded, and the workflow ended before it heard of it
	}
	c.compareProgress(s, st, r)
}

// compareFenced looks at a request of a carrier that was fenced off before its outcome was recorded.
func (c *comparison) compareFenced(s *story, st *step, r *postgres.AccountAttempt) {
	p := st.progress
	switch {
	case p == nil && !s.Closed():
		return // its record is under way
	case p == nil && s.status() != "completed", p != nil && p.Moved && c.movedOn(s.in.Epoch, st.number):
		c.note(st.number, "a request of it was sent under epoch %d (history %s, event %d) and its outcome never recorded, because the delivery had been handed over",
			s.in.Epoch, s.WorkflowID, st.event)
		c.wantLostStart(st, r)
	case r == nil:
		c.partAt(st.event, st.number, "", "the history has it (%s), Postgres doesn't", outcomeOf(st))
	default:
		c.partAt(st.event, st.number, "epoch", "the history has it (%s) under epoch %d, Postgres under epoch %d", outcomeOf(st), s.in.Epoch, r.Epoch)
	}
}

// wantLostStart wants the leaf of an attempt that was made again to count the request whose outcome was lost.
func (c *comparison) wantLostStart(st *step, r *postgres.AccountAttempt) {
	if r == nil || r.Leaf.Bytes == nil {
		return
	}
	if l, err := verify.ParseLeaf(r.Leaf.Bytes); err == nil && l.LostStarts == 0 {
		c.partAt(st.event, st.number, "lost_starts", "the history has a request whose outcome was lost, the leaf counts none")
	}
}

func outcomeOf(st *step) string {
	if st.progress != nil {
		return "after it the delivery was " + st.progress.State
	}
	return st.sent.Unrecorded.Outcome
}

// compareProgress sets where the delivery stood after an attempt against what Postgres has.
func (c *comparison) compareProgress(s *story, st *step, r *postgres.AccountAttempt) {
	p, at := st.progress, st.event
	if st.recordEvent != 0 {
		at = st.recordEvent
	}
	decision := ""
	if end := c.row(id.Decision); end != nil {
		decision = end.Kind
	}
	agrees := false
	switch delivery.State(p.State) {
	case delivery.Delivered:
		agrees = r.Outcome == string(delivery.OutcomeDelivered)
	case delivery.Pending:
		agrees = r.Outcome == string(delivery.OutcomeRetry)
	case delivery.Dead:
		agrees = r.Outcome == string(delivery.OutcomeFailed) && decision == string(delivery.KindDead)
	case delivery.Canceled:
		agrees = r.Outcome != string(delivery.OutcomeDelivered) && decision == string(delivery.KindCanceled)
	}
	if !agrees {
		c.partAt(at, st.number, "outcome", "the history says that the delivery was %s after it; Postgres has the outcome %q%s",
			p.State, r.Outcome, ifAny(" and the decision ", decision))
	}
	if p.Moved && p.State == string(delivery.Pending) && c.account.Epoch <= s.in.Epoch {
		c.partAt(at, st.number, "epoch", "the history says that the delivery was handed over after it; in Postgres it wasn't")
	}
}

func ifAny(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

// compareTimers wants the workflow to have waited as long as what was decided with the attempt says.
func (c *comparison) compareTimers(s *story) {
	waits := map[int]timer{}
	for _, t := range s.timers {
		if _, again := waits[t.after]; !again { // later ones are of something else
			waits[t.after] = t
		}
	}
	for i := range s.steps {
		st := &s.steps[i]
		t, waited := waits[st.number]
		if st.progress == nil || !waited || delivery.State(st.progress.State).Terminal() || st.progress.Moved {
			continue
		}
		if t.duration != st.progress.Delay {
			c.partAt(t.event, st.number, "delay", "the workflow waited %s after it, and event %d says %s", t.duration, st.event, st.progress.Delay)
		}
		next := c.row(st.number + 1)
		if r := c.row(st.number); !t.stopped && r != nil && next != nil && next.Epoch == s.in.Epoch && next.AttemptedAt.Sub(r.AttemptedAt) < t.duration-clocks {
			c.partAt(t.event, next.Number, "attempted_at", "Postgres has %s after attempt %d; the workflow waited %s",
				next.AttemptedAt.Sub(r.AttemptedAt), st.number, t.duration)
		}
	}
}

// compareEpoch wants the attempts of Postgres that belong to this carrier to be in its history, and no others.
func (c *comparison) compareEpoch(s *story) {
	for i := range c.account.Attempts {
		r := &c.account.Attempts[i]
		if r.Number == id.Decision {
			continue
		}
		if r.Epoch < s.in.Epoch && r.Number >= s.in.Attempt || r.Epoch >= s.in.Epoch && r.Number < s.in.Attempt {
			c.partAt(1, r.Number, "epoch", "Postgres has it under epoch %d; the workflow of epoch %d began with attempt %d", r.Epoch, s.in.Epoch, s.in.Attempt)
			continue
		}
		if r.Epoch != s.in.Epoch || s.tells(r.Number) {
			continue
		}
		switch {
		case !s.Closed():
			c.note(r.Number, "it was recorded after the history had been read")
		case s.unheard(r.Number):
			c.note(r.Number, "it was recorded, and the workflow never heard of it (history %s)", s.WorkflowID)
		default:
			c.part(r.Number, "", "Postgres has it under epoch %d (%s), and the history doesn't", r.Epoch, r.Outcome)
		}
	}
}

// compareResult sets what the workflow said at its end against the delivery.
func (c *comparison) compareResult(s *story) {
	if s.result == nil {
		return
	}
	event := s.Events[len(s.Events)-1].GetEventId()
	wrong := func(member, format string, args ...any) {
		c.disagreements = append(c.disagreements, Finding{Event: event, Member: member, Text: fmt.Sprintf(format, args...)})
	}
	d := c.account
	switch outcome := s.result.Outcome; outcome {
	case workflows.OutcomeParked:
		if d.Epoch <= s.in.Epoch {
			wrong("epoch", "the workflow handed the delivery over, which is still in epoch %d", d.Epoch)
		}
	case workflows.OutcomeSuperseded:
		if d.Epoch <= s.in.Epoch && !delivery.State(d.State).Terminal() {
			wrong("epoch", "the workflow says that another one carries the delivery, which is still in epoch %d", d.Epoch)
		}
	default:
		if d.State != outcome {
			wrong("state", "the workflow ended with %q, the delivery is %q", outcome, d.State)
		}
		if d.Epoch == s.in.Epoch && d.NextAttempt-1 != s.result.Attempts {
			wrong("attempts", "the workflow counted %d attempts, Postgres %d", s.result.Attempts, d.NextAttempt-1)
		}
	}
}

// explainGaps says why attempts are in no history.
func (c *comparison) explainGaps(told map[int]telling) {
	for i := range c.account.Attempts {
		r := &c.account.Attempts[i]
		if r.Number == id.Decision || told[r.Number].event != 0 {
			continue
		}
		why := "none that was read holds it: a batch carried it, Temporal has removed the workflow, or its file wasn't given"
		if c.account.Lane == string(postgres.LaneBatch) && r.Epoch == c.account.Epoch {
			why = "a batch carried it, whose history holds counts and doesn't name it"
		}
		c.note(r.Number, "no history tells of it (%s, epoch %d): %s", workflows.DeliveryWorkflowID(id.Delivery.Format(c.account.ID), r.Epoch), r.Epoch, why)
	}
}

func (c *comparison) lines(told map[int]telling) []Line {
	lines := []Line{}
	for i := range c.account.Attempts {
		a := &c.account.Attempts[i]
		line := Line{Attempt: a.Number, Epoch: a.Epoch, Outcome: a.Outcome, Status: a.ResponseStatus, Leaf: a.Leaf.Place}
		if a.Number == id.Decision {
			line.Outcome = a.Kind + ", " + a.Outcome
		} else {
			line.History, line.Event = told[a.Number].history, told[a.Number].event
		}
		switch a.Leaf.Place {
		case "":
			line.Leaf = "missing"
		case postgres.LeafInLog:
			line.LeafIndex, line.Covered = &a.Leaf.Index, c.account.Covering(&a.Leaf).Signature != nil
		}
		lines = append(lines, line)
	}
	return lines
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
