package chaos

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a run has found. Durations are in seconds; -1 is never.
type Report struct {
	Seed     uint64        `json:"seed"`
	Seconds  float64       `json:"seconds"` // of load and faults
	Dir      string        `json:"dir,omitempty"`
	Planned  int           `json:"planned"` // faults; those that had no room any more were left out
	Faults   []FaultReport `json:"faults"`
	Kinds    []KindReport  `json:"kinds"`
	Left     []string      `json:"not_made"` // faults that this machine can't make, and why
	Accepted int           `json:"accepted"`
	Refused  int           `json:"refused"` // sources that gave up after all their tries
	Skipped  int           `json:"skipped"` // webhooks that were not sent because too many were under way
	// Answered again: sources that had lost the first answer, and were told the same event.
	AnsweredAgain int            `json:"answered_again"`
	Answers       map[int]int    `json:"answers"` // by status; 0 is none
	Events        int            `json:"events"`
	Deliveries    map[string]int `json:"deliveries"` // by state
	Attempts      int            `json:"attempts"`
	Leaves        int            `json:"leaves"`
	// ChangedWorkflows took the branch that only the changed release begins.
	ChangedWorkflows int `json:"changed_workflows"`
	Heads            int `json:"heads"` // sizes that were shown and compared
	HeadChecks       int `json:"head_checks"`
	// LongestWithoutHead is how long the log showed no new head while webhooks were sent.
	LongestWithoutHead float64 `json:"longest_without_head"`
	// Duplicates are requests that receivers saw again under the same attempt, LostStarts what the leaves count of them and
	// of those that never arrived.
	Duplicates     int         `json:"duplicates"`
	LostStarts     int         `json:"lost_starts"`
	Lost           int         `json:"lost"`
	SettledSeconds float64     `json:"settled_seconds"`
	Violations     []Violation `json:"violations"`
}

// FaultReport is a fault as it was made.
type FaultReport struct {
	At      float64 `json:"at"`
	Seconds float64 `json:"seconds"`
	Kind    string  `json:"kind"`
	Target  string  `json:"target"`
	// With are the faults that overlapped with it; its times then count from the end of the last of them.
	With []string `json:"with,omitempty"`
	// Next is how long it took until a webhook sent afterwards had arrived, CaughtUp until all that had been accepted before had. A
	// killed process (also the primary that is failed over from) is counted from the kill, everything else from the end of the fault.
	Next     float64 `json:"next"`
	CaughtUp float64 `json:"caught_up"`
	// FailedTwice are the webhooks that neither api took meanwhile, one asked right after the other.
	FailedTwice int `json:"failed_twice"`
}

// KindReport are the longest of a kind of fault and its target.
type KindReport struct {
	Kind     string  `json:"kind"`
	Target   string  `json:"target"`
	Times    int     `json:"times"`
	Next     float64 `json:"next"`
	CaughtUp float64 `json:"caught_up"`
	// FailedTwice is the sum.
	FailedTwice int `json:"failed_twice"`
}

// Err says that a promise was broken.
func (r *Report) Err() error {
	if len(r.Violations) == 0 {
		return nil
	}
	return fmt.Errorf("%d violations; read the processes' logs in %s, or run it again with --seed %d", len(r.Violations), r.Dir, r.Seed)
}

func (r *Report) addFaults(start time.Time, faults []happened, l *ledger) {
	for i, h := range faults {
		f := FaultReport{
			At: seconds(h.began.Sub(start)), Seconds: seconds(h.mended.Sub(h.began)), Kind: h.Kind, Target: h.Target,
			FailedTwice: l.failedTwiceIn(h.began, h.mended),
		}
		from := h.mended
		if h.Kind == "kill" || h.Kind == "kill-all" || h.Kind == "failover" {
			from = h.began
		}
		for j, other := range faults { // two at once are over when both are
			if i != j && h.began.Before(other.mended) && other.began.Before(h.mended) {
				f.With = append(f.With, other.String())
				from = later(h.mended, later(from, other.mended))
			}
		}
		next, caughtUp := l.recovery(from)
		f.Next, f.CaughtUp = seconds(next), seconds(caughtUp)
		r.Faults = append(r.Faults, f)
	}
	for _, f := range r.Faults {
		kind, target := f.Kind, f.Target
		if len(f.With) > 0 {
			both := append([]string{f.Kind + " " + f.Target}, f.With...)
			slices.Sort(both)
			kind, target = togetherName, strings.Join(both, " + ")
		}
		i := slices.IndexFunc(r.Kinds, func(k KindReport) bool { return k.Kind == kind && k.Target == target })
		if i < 0 {
			i = len(r.Kinds)
			r.Kinds = append(r.Kinds, KindReport{Kind: kind, Target: target})
		}
		k := &r.Kinds[i]
		k.Next, k.CaughtUp = longest(k.Next, f.Next), longest(k.CaughtUp, f.CaughtUp)
		k.Times, k.FailedTwice = k.Times+1, k.FailedTwice+f.FailedTwice
		if kind == togetherName { // each of them is here
			k.Times, k.FailedTwice = 1, max(k.FailedTwice-f.FailedTwice, f.FailedTwice)
		}
	}
	slices.SortFunc(r.Kinds, func(a, b KindReport) int {
		return cmp.Or(cmp.Compare(slices.Index(kindNames(), a.Kind), slices.Index(kindNames(), b.Kind)), cmp.Compare(a.Target, b.Target))
	})
}

// togetherName is the row of two faults at once, each of which would spoil the other's figures.
const togetherName = "together"

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// longest of two times, of which a negative one is never.
func longest(a, b float64) float64 {
	if a < 0 || b < 0 {
		return -1
	}
	return max(a, b)
}

func seconds(d time.Duration) float64 {
	if d < 0 {
		return -1
	}
	return math.Round(d.Seconds()*100) / 100
}

// shownPerPromise is how many violations of a promise are printed; --json has all.
const shownPerPromise = 10

// Print writes the report for people.
func (r *Report) Print(out io.Writer) {
	_, _ = fmt.Fprintf(out, "\nseed %d, %d of %d faults in %.0f s; settled in %.1f s\n\n", r.Seed, len(r.Faults), r.Planned, r.Seconds, r.SettledSeconds)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "fault\twhat\ttimes\tnext delivery\tcaught up\tfailed twice")
	for _, k := range r.Kinds {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d\n", k.Kind, k.Target, k.Times, span(k.Next), span(k.CaughtUp), k.FailedTwice)
	}
	_ = w.Flush()
	for _, left := range r.Left {
		_, _ = fmt.Fprintf(out, "not made: %s\n", left)
	}
	_, _ = fmt.Fprintf(out, `
webhooks     %d accepted, %d given up by their source, %d not sent; %d were told that they were there already
stored       %d events, deliveries %v, %d attempts, %d leaves
log          %d heads shown, %d compared by the monitor; %.1f s without a new one at most
duplicates   %d requests came again; the leaves count %d lost starts
workflows    %d took the branch of the changed release
lost         %d
`, r.Accepted, r.Refused, r.Skipped, r.AnsweredAgain, r.Events, r.Deliveries, r.Attempts, r.Leaves, r.Heads, r.HeadChecks, r.LongestWithoutHead,
		r.Duplicates, r.LostStarts, r.ChangedWorkflows, r.Lost)
	r.printViolations(out)
}

func (r *Report) printViolations(out io.Writer) {
	if len(r.Violations) == 0 {
		_, _ = fmt.Fprintln(out, "\nEvery promise held.")
		return
	}
	shown := map[string]int{}
	for _, v := range r.Violations {
		if shown[v.Promise]++; shown[v.Promise] == 1 {
			_, _ = fmt.Fprintf(out, "\nBROKEN: %s\n", v.Promise)
			for _, same := range slices.DeleteFunc(slices.Clone(r.Violations), func(o Violation) bool { return o.Promise != v.Promise }) {
				if shown[v.Promise]++; shown[v.Promise] > shownPerPromise+1 {
					break
				}
				_, _ = fmt.Fprintf(out, "  %s\n", same.What)
			}
		}
	}
}

func span(s float64) string {
	if s < 0 {
		return "never"
	}
	return fmt.Sprintf("%.1f s", s)
}
