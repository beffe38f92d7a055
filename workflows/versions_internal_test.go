package workflows

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

// A change that a release doesn't make yet is begun in its old version, any other in its newest.
func TestAReleaseBeginsTheVersionItPrefers(t *testing.T) {
	before := maps.Clone(notYet)
	defer func() { notYet = before }()
	notYet = map[string]workflow.Version{"later": workflow.DefaultVersion}
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestWorkflowEnvironment()
	env.SetWorkerOptions(worker.Options{PreferredVersionProvider: PreferredVersion})
	env.ExecuteWorkflow(func(ctx workflow.Context) ([]workflow.Version, error) {
		return []workflow.Version{
			workflow.GetVersion(ctx, "later", workflow.DefaultVersion, 1), workflow.GetVersion(ctx, "now", workflow.DefaultVersion, 1),
		}, nil
	})
	require.NoError(t, env.GetWorkflowError())
	var begun []workflow.Version
	require.NoError(t, env.GetWorkflowResult(&begun))
	require.Equal(t, []workflow.Version{workflow.DefaultVersion, 1}, begun)
}
