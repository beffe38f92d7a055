package chaos

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/workflows"
)

// Both releases carry on whatever is under way when they come: they replay all saved histories of the versions before, and those of each
// other (testdata holds one of a run of each).
func TestEachReleaseReplaysTheOthersHistories(t *testing.T) {
	t.Parallel()
	saved, err := filepath.Glob("../../workflows/testdata/histories/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, saved)
	own, err := filepath.Glob("testdata/*.json")
	require.NoError(t, err)
	require.Len(t, own, len(releases))
	for _, release := range slices.Sorted(maps.Keys(releases)) {
		dir := t.TempDir()
		histories := filepath.Join(dir, "testdata", "histories")
		require.NoError(t, os.MkdirAll(histories, 0o755))
		for _, file := range slices.Concat(saved, own) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(histories, filepath.Base(file)), text, 0o600))
		}
		changes, err := overlay(dir, release)
		require.NoError(t, err)
		binary := filepath.Join(dir, "workflows.test")
		output, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", changes, "-o", binary,
			"github.com/kapsel-io/kapsel/workflows").CombinedOutput()
		require.NoError(t, err, string(output))
		replay := exec.CommandContext(t.Context(), binary, "-test.run", "^TestSavedHistoriesReplay$", "-test.v")
		replay.Dir = dir
		output, err = replay.CombinedOutput()
		require.NoError(t, err, release+": "+string(output))
		require.Contains(t, string(output), "--- PASS: TestSavedHistoriesReplay/changed")
		require.Contains(t, string(output), "--- PASS: TestSavedHistoriesReplay/prepared")
	}
}

// What makes the first of the two necessary: a release that doesn't know the change carries on what the first began, and not what the
// second did.
func TestOnlyThePreparedReleaseCanBeTakenBack(t *testing.T) {
	t.Parallel()
	replay := func(name string) error {
		file, err := os.Open(filepath.Join("testdata", name))
		require.NoError(t, err)
		defer func() { _ = file.Close() }()
		history, err := client.HistoryFromJSON(file, client.HistoryJSONOptions{})
		require.NoError(t, err)
		replayer := worker.NewWorkflowReplayer()
		replayer.RegisterWorkflowWithOptions(workflows.DeliverWebhook, workflow.RegisterOptions{Name: workflows.DeliverWebhookName})
		return replayer.ReplayWorkflowHistory(nil, history)
	}
	require.NoError(t, replay("prepared.json"))
	require.ErrorContains(t, replay("changed.json"), nondeterministic)
}
