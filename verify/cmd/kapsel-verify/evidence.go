package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/report"
)

const evidenceUsage = `kapsel-verify evidence judges, offline, what a monitor kept of a log that contradicted itself: two heads, both signed, that
no honest log can have.

Usage:
  kapsel-verify evidence FILE --public-key HEX [--origin NAME] [--json]
  kapsel-verify evidence FILE --vkey VKEY [--json]

With --public-key alone, the log's name is the one in the file.

Exit status: 0 the evidence convicts whoever holds the log's key, 1 it doesn't, 2 the arguments can't be used.

Example:
  kapsel-verify evidence fork-0a1b2c3d4e5f6071.evidence.json --vkey "$(cat kapsel.vkey)"
`

// misconduct says what a verdict means.
var misconduct = map[verify.Verdict]string{
	verify.Split:    "one size, two roots",
	verify.Fork:     "the smaller tree isn't a prefix of the larger",
	verify.Rollback: "the smaller tree isn't the older one",
}

func runEvidence(args []string, stdout, stderr io.Writer) int {
	var o verify.Options
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	trustFlags(fs, &o)
	asJSON := fs.Bool("json", false, "")
	var file string
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") { // the flag package wants flags first; people don't
		file, args = args[0], args[1:]
	}
	err := fs.Parse(args)
	surplus := fs.Args()
	if file == "" && len(surplus) > 0 {
		file, surplus = surplus[0], surplus[1:]
	}
	switch {
	case err != nil:
	case len(surplus) > 0:
		err = fmt.Errorf("unexpected argument %q", surplus[0])
	case file == "":
		err = errors.New("no evidence: give its file")
	default:
		err = trusted(&o)
	}
	var b []byte
	if err == nil {
		b, err = readFile(file, verify.MaxPackageSize)
	}
	if err != nil {
		return unusable(err, evidenceUsage, "kapsel-verify evidence", stdout, stderr)
	}
	e, seen, now, err := judge(b, o)
	switch {
	case err != nil && *asJSON:
		return finish(stdout, report.Encode(evidenceVerdict{Error: report.Printable(err.Error())}), exitRejected)
	case err != nil:
		return finish(stderr, "Evidence rejected: "+report.Printable(err.Error())+"\n", exitRejected)
	case *asJSON:
		return finish(stdout, report.Encode(evidenceVerdict{
			Convicts: true, Verdict: e.Verdict, VKey: e.VKey, Seen: newHead(seen), Now: newHead(now),
		}), exitVerified)
	}
	return finish(stdout, evidenceReport(e, seen, now), exitVerified)
}

// judge trusts o's key, under the name in the evidence if o has none.
func judge(b []byte, o verify.Options) (e *verify.Evidence, seen, now verify.SignedTreeHead, err error) {
	if e, err = verify.ParseEvidence(b); err != nil {
		return e, seen, now, err
	}
	if o.Origin == "" {
		if o.Origin, _, err = verify.ParseVKey(e.VKey); err != nil {
			return e, seen, now, err
		}
	}
	vkey := verify.VKey(o.Origin, o.PublicKey)
	e.VKey = vkey
	seen, now, err = e.Judge(vkey)
	return e, seen, now, err
}

func evidenceReport(e *verify.Evidence, seen, now verify.SignedTreeHead) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(report.Printable(fmt.Sprintf(format, args...)) + "\n")
	}
	line("The log contradicted itself: %s (%s)", e.Verdict, misconduct[e.Verdict])
	line("  key: %s", e.VKey)
	for _, h := range []struct {
		name    string
		head    verify.SignedTreeHead
		fetched string
	}{{"first", seen, e.Seen.FetchedAt}, {"then", now, e.Now.FetchedAt}} {
		line("  %s: size %d, root %x, signed %s, fetched %s", h.name, h.head.TreeSize, h.head.RootHash,
			verify.FormatTime(time.UnixMilli(h.head.Timestamp)), h.fetched)
	}
	line("Both heads carry valid signatures of that key. When they were fetched is the monitor's word.")
	return b.String()
}

// evidenceVerdict is what a program reads about evidence.
type evidenceVerdict struct {
	Convicts bool                `json:"convicts"`
	Error    string              `json:"error,omitempty"`
	Verdict  verify.Verdict      `json:"verdict,omitempty"`
	VKey     string              `json:"vkey,omitempty"`
	Seen     *verify.PackageHead `json:"seen,omitempty"`
	Now      *verify.PackageHead `json:"now,omitempty"`
}

func newHead(sth verify.SignedTreeHead) *verify.PackageHead {
	h := verify.NewPackageHead(sth)
	return &h
}
