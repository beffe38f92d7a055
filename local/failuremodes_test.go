package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/local/chaos"
)

// Each kind of failure is shown by a test, or by a fault of the harness. That the tests exist is TestDocumentsNameTestsThatExist's to check.
func TestEachFailureIsShownByATest(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../docs/failure-modes.md")
	require.NoError(t, err)
	named := regexp.MustCompile("^`(Test\\w+|chaos: [a-z-]+)`(, `(Test\\w+|chaos: [a-z-]+)`)*$")
	fault := regexp.MustCompile("`chaos: ([a-z-]+)`")
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
		for _, match := range fault.FindAllStringSubmatch(cells[5], -1) {
			require.Contains(t, chaos.Kinds(), "  "+match[1]+" ", line)
		}
	}
	require.Greater(t, rows, 30)
}
