package chaos

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// Both releases carry on what is under way when they come: they replay every saved history.
func TestReleasesReplayTheHistoriesBeforeThem(t *testing.T) {
	for release := range releases {
		path, err := overlay(t.TempDir(), release)
		require.NoError(t, err)
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^TestSavedHistoriesReplay$", "-v", "-overlay", path,
			"github.com/kapsel-io/kapsel/workflows")
		output, err := cmd.CombinedOutput()
		require.NoError(t, err, string(output))
		require.Contains(t, string(output), "--- PASS: TestSavedHistoriesReplay/deliver-retried")
	}
}
