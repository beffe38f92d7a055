package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each kind of failure is shown by a test. That those exist is TestDocumentsNameTestsThatExist's to check.
func TestEachFailureIsShownByATest(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../docs/failure-modes.md")
	require.NoError(t, err)
	named := regexp.MustCompile("^`Test\\w+`(, `Test\\w+`)*$")
	rows := 0
	for _, line := range strings.Split(string(document), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what ") || strings.HasPrefix(line, "| --- ") {
			continue
		}
		if strings.HasSuffix(line, "| shown by |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		require.Len(t, cells, 6, line)
		for _, cell := range cells {
			require.NotEmpty(t, strings.TrimSpace(cell), line)
		}
		require.Regexp(t, named, strings.TrimSpace(cells[5]), line)
	}
	require.Greater(t, rows, 30)
}
