package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes the result as a table for people.
func (r Result) Print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\t\n", args...) }
	line("\tfloor\tKapsel, %s\tof the floor", r.Lane)
	line("accepted/s\t%.0f\t%.0f\t%s", r.FloorAcceptPerS, r.AcceptedPerS, part(r.AcceptedPerS, r.FloorAcceptPerS))
	line("delivered/s\t\t%.0f\t", r.DeliveredPerS)
	line("attested/s\t%.0f\t%.0f\t%s", r.FloorPerS, r.AttestedPerS, part(r.AttestedPerS, r.FloorPerS))
	_ = w.Flush()
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line("\n\tp50\tp95\tp99\tmax")
	for _, l := range []struct {
		name string
		Latency
	}{{"ingest ms", r.Ingest}, {"end to end ms", r.EndToEnd}} {
		line("%s\t%.1f\t%.1f\t%.1f\t%.1f", l.name, l.P50, l.P95, l.P99, l.Max)
	}
	_ = w.Flush()
	if r.Hanging > 0 {
		_, _ = fmt.Fprintf(out, "\n%d destinations hang; %d webhooks were accepted for them and are not in \"end to end\"\n", r.Hanging, r.Stuck)
	}
	_, _ = fmt.Fprintf(out, `
per event      %.2f ms CPU (%.2f without Postgres), %.2f commits, %.0f bytes of WAL, %.3f requests to Temporal
memory         %.0f MB at most
%d accepted in %.0f s, %d refused; drained in %.1f s
%d lost, %d delivered twice, %d without leaf, %d leaves too many
`, r.CPUMSPerEvent, r.OwnCPUMSPerEvent, r.CommitsPerEvent, r.WALPerEvent, r.TemporalPerEvent, r.PeakRSSMB,
		r.Accepted, r.Seconds, r.Refused, r.DrainSeconds, r.Lost, r.Duplicated, r.Unattested, r.AttestedTwice)
}

func part(of, whole float64) string {
	if whole == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f %%", 100*of/whole)
}
