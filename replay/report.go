package replay

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Verdict is what a comparison comes to.
type Verdict string

// The verdicts.
const (
	// Agreement: each attempt is in a history, and all say the same.
	Agreement Verdict = "agreement"
	// Partial: nothing disagrees, and not each attempt is in a history that could be read.
	Partial Verdict = "partial"
	// Disagreement: they part somewhere, or today's code decides otherwise.
	Disagreement Verdict = "disagreement"
)

// Finding is one place where histories, attempts and leaves part, or (as a note) something that must be known about them.
type Finding struct {
	Attempt *int   `json:"attempt,omitempty"` // its number; 0: the decision to send no more
	History string `json:"history,omitempty"` // a workflow's ID
	Event   int64  `json:"event_id,omitempty"`
	Member  string `json:"member,omitempty"` // of the attempt, the leaf or the event
	Text    string `json:"text"`
}

// Carrier is one workflow that carried the delivery, or should have.
type Carrier struct {
	WorkflowID string `json:"workflow_id"`
	RunID      string `json:"run_id,omitempty"`
	Source     string `json:"source"` // "temporal", or the file
	Events     int    `json:"events"`
	Status     string `json:"status"`
	SameToday  bool   `json:"same_today"` // today's code decides the same
}

// Line is one attempt of the report.
type Line struct {
	Attempt   int    `json:"attempt"` // 0: the decision to send no more
	Epoch     int    `json:"epoch"`
	Outcome   string `json:"outcome"`
	Status    int    `json:"response_status"`
	Leaf      string `json:"leaf"` // where it is
	LeafIndex *int64 `json:"leaf_index,omitempty"`
	Covered   bool   `json:"covered"` // by a signed tree head
	History   string `json:"history,omitempty"`
	Event     int64  `json:"event_id,omitempty"`
}

// Report is the outcome of a comparison. Its strings are printable ASCII.
type Report struct {
	DeliveryID    string    `json:"delivery_id"`
	State         string    `json:"state"`
	Epochs        int       `json:"epochs"`
	Verdict       Verdict   `json:"verdict"`
	Carriers      []Carrier `json:"carriers"`
	Attempts      []Line    `json:"attempts"`
	Disagreements []Finding `json:"disagreements"`
	Notes         []Finding `json:"notes"`
}

// shown escapes a string that somebody else wrote: printable ASCII, cut short.
func shown(s string) string {
	const most = 400
	quoted := strconv.QuoteToASCII(s)
	quoted = strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
	if len(quoted) > most {
		quoted = quoted[:most] + "..."
	}
	return quoted
}

// clean escapes the strings of a report once it is complete.
func (r *Report) clean() {
	for i := range r.Carriers {
		c := &r.Carriers[i]
		c.WorkflowID, c.RunID, c.Source, c.Status = shown(c.WorkflowID), shown(c.RunID), shown(c.Source), shown(c.Status)
	}
	for i := range r.Attempts {
		l := &r.Attempts[i]
		l.Outcome, l.Leaf, l.History = shown(l.Outcome), shown(l.Leaf), shown(l.History)
	}
	for _, findings := range [][]Finding{r.Disagreements, r.Notes} {
		for i := range findings {
			f := &findings[i]
			f.History, f.Member, f.Text = shown(f.History), shown(f.Member), shown(f.Text)
		}
	}
	r.State = shown(r.State)
}

// Text writes the report for people, each line ending in a line feed.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "delivery %s: %s, %s in %s\n", r.DeliveryID, r.State, count(len(r.httpAttempts()), "attempt"), count(r.Epochs, "epoch"))
	for _, c := range r.Carriers {
		today := "today's code decides the same"
		if !c.SameToday {
			today = "today's code decides otherwise"
		}
		fmt.Fprintf(&b, "  history %s, %s, %s, from %s: %s\n", c.WorkflowID, count(c.Events, "event"), c.Status, c.Source, today)
	}
	for _, l := range r.Attempts {
		fmt.Fprintf(&b, "  %s\n", l.text())
	}
	for _, f := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", f.text())
	}
	for _, f := range r.Disagreements {
		fmt.Fprintf(&b, "they part: %s\n", f.text())
	}
	fmt.Fprintf(&b, "%s\n", r.conclusion())
	return b.String()
}

func (r *Report) conclusion() string {
	switch r.Verdict {
	case Agreement:
		return "agreement: histories, attempts and leaves say the same"
	case Partial:
		return "agreement in part: nothing parts, but not every attempt is in a history"
	}
	return fmt.Sprintf("disagreement: they part in %s", count(len(r.Disagreements), "place"))
}

func (r *Report) httpAttempts() []Line {
	return slices.DeleteFunc(slices.Clone(r.Attempts), func(l Line) bool { return l.Attempt == 0 })
}

func (l *Line) text() string {
	text := fmt.Sprintf("attempt %d: %s", l.Attempt, l.Outcome)
	switch {
	case l.Attempt == 0:
		text = "decision: " + l.Outcome
	case l.Status != 0:
		text += fmt.Sprintf(", HTTP status %d", l.Status)
	}
	text += fmt.Sprintf("; epoch %d", l.Epoch)
	if l.History != "" {
		text += fmt.Sprintf(", event %d", l.Event)
	} else if l.Attempt != 0 {
		text += ", in no history"
	}
	switch {
	case l.LeafIndex == nil:
		text += "; leaf: " + l.Leaf
	case l.Covered:
		text += fmt.Sprintf("; leaf %d, under a signed head", *l.LeafIndex)
	default:
		text += fmt.Sprintf("; leaf %d, not under a signed head yet", *l.LeafIndex)
	}
	return text
}

// text says first where to look.
func (f *Finding) text() string {
	var where []string
	if f.Attempt != nil {
		name := fmt.Sprintf("attempt %d", *f.Attempt)
		if *f.Attempt == 0 {
			name = "decision"
		}
		where = append(where, name)
	}
	if f.History != "" {
		where = append(where, "history "+f.History)
	}
	if f.Event != 0 {
		where = append(where, fmt.Sprintf("event %d", f.Event))
	}
	if f.Member != "" {
		where = append(where, f.Member)
	}
	if len(where) == 0 {
		return f.Text
	}
	return strings.Join(where, ", ") + ": " + f.Text
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
