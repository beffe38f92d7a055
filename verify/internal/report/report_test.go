package report

import "testing"

func TestPrintableEscapesWhatFoolsAReader(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain text, ü":  "plain text, ü",
		"a\nb\tc\x1b[0m": `a\nb\tc\x1b[0m`,
		"\u202egnp.exe":  `\u202egnp.exe`,
		"\u2066x\u2069":  `\u2066x\u2069`,
		"\u200b\ufeff":   `\u200b\ufeff`,
		"\u2028\u0085":   `\u2028\u0085`,
		"\xff\x9b":       `\xff\x9b`,
		"\ufffd":         "\ufffd",
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) is %q, want %q", in, got, want)
		}
	}
}
