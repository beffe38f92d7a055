package replay_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/replay"
)

// A file may be anybody's: whatever it holds is refused, or compared to an end, and the report is printable.
func FuzzLoadAndCompare(f *testing.F) {
	for _, name := range []string{"deliver-retried", "deliver-recorded-late", "deliver-held", "batch-recorded-late", "attest-running"} {
		text, err := os.ReadFile(filepath.Join("..", "workflows", "testdata", "histories", name+".json"))
		require.NoError(f, err)
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "history.json")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		loaded, err := replay.Load([]string{path})
		if err != nil {
			return
		}
		h, attempts := retried(t)
		report := replay.Compare(record(t, delivery(t, h), attempts...), loaded)
		for _, r := range report.Text() {
			require.True(t, r == '\n' || r >= ' ' && r <= '~', "%q", report.Text())
		}
	})
}
