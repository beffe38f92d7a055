package main

import (
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What libraries print past the stack's log is told there, without what they print: it may be a receiver's answer.
func TestStandardLogHoldsNoContent(t *testing.T) {
	flags := log.Flags()
	t.Cleanup(func() {
		log.SetFlags(flags)
		log.SetOutput(os.Stderr)
	})
	s := &stack{dir: t.TempDir()}
	require.NoError(t, s.openLog("warn"))
	log.Print("card=4111")
	require.NoError(t, s.log.Sync())
	written, err := os.ReadFile(filepath.Join(s.dir, "kapsel.log"))
	require.NoError(t, err)
	require.Contains(t, string(written), `"source":"stdlog_test.go:`)
	require.NotContains(t, string(written), "4111")
}
