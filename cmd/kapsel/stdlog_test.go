package main

import (
	"io"
	"log"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every command's logger also takes what libraries print past it, without what they print: it may be a receiver's answer.
func TestStandardLogHoldsNoContent(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://k:s@db/kapsel")
	flags, stderr := log.Flags(), os.Stderr
	read, write, err := os.Pipe()
	require.NoError(t, err)
	os.Stderr = write
	t.Cleanup(func() {
		os.Stderr = stderr
		log.SetFlags(flags)
		log.SetOutput(stderr)
	})
	log.SetOutput(write) // as it is in a process whose stderr this is
	_, _, err = load()
	require.NoError(t, err)
	log.Print("card=4111")
	require.NoError(t, write.Close())
	printed, err := io.ReadAll(read)
	require.NoError(t, err)
	require.Contains(t, string(printed), `"source":"stdlog_test.go:`)
	require.NotContains(t, string(printed), "4111")
}
