package main

import (
	"os"
	"testing"
)

// asCommand makes the test binary behave as the command itself, so that tests can run and kill it as a process.
const asCommand = "KAPSEL_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}
