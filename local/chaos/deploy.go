package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/local/temporal"
)

// A change of a workflow comes in two releases (ADR 36): the first can carry on what the second begins. The harness makes both from
// the source as it is, by replacing lines while it is compiled, so that production has no branch for it.
const (
	preparedRelease = "kapsel-prepared"
	changedRelease  = "kapsel-changed"
	// changeID is that of the change: a wait of a delivery begins with a timer of its own.
	changeID = "chaos"
)

// edit replaces a text that stands in a file once.
type edit struct{ file, old, new string }

var (
	branch = edit{"workflows/deliver.go", "	timerCtx, stop := workflow.WithCancel(ctx)\n", `	if workflow.GetVersion(ctx, "` + changeID + `", workflow.DefaultVersion, 1) == 1 {
		if err := workflow.Sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	timerCtx, stop := workflow.WithCancel(ctx)
`}
	releases = map[string][]edit{
		preparedRelease: {branch, {"workflows/versions.go", "var notYet = map[string]workflow.Version{",
			`var notYet = map[string]workflow.Version{"` + changeID + `": workflow.DefaultVersion, `}},
		changedRelease: {branch},
	}
)

// overlay writes the changed files of a release into dir, and what tells the compiler to take them.
func overlay(dir, release string) (path string, err error) {
	source, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kapsel-io/kapsel").Output()
	if err != nil {
		return "", fmt.Errorf("find the source: %w", err)
	}
	replace := map[string]string{}
	for _, e := range releases[release] {
		file := filepath.Join(strings.TrimSpace(string(source)), e.file)
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if n := bytes.Count(text, []byte(e.old)); n != 1 {
			return "", fmt.Errorf("%s has %q %d times: change deploy.go with it", e.file, e.old, n)
		}
		replace[file] = filepath.Join(dir, release+"-"+filepath.Base(e.file))
		if err := os.WriteFile(replace[file], bytes.Replace(text, []byte(e.old), []byte(e.new), 1), 0o600); err != nil {
			return "", err
		}
	}
	content, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, release+".json")
	return path, os.WriteFile(path, content, 0o600)
}

// buildReleases builds both.
func (m *machine) buildReleases(ctx context.Context) error {
	for release := range releases {
		path, err := overlay(m.config.Dir, release)
		if err != nil {
			return err
		}
		if err := build(ctx, filepath.Join(m.config.Dir, release), "-overlay", path); err != nil {
			return fmt.Errorf("build %s: %w", release, err)
		}
	}
	return nil
}

// deploy replaces the workers, one after the other: by the release that knows the change, by the one that makes it, and when the fault
// is over by the one before it again. Workflows of both are under way all the time.
func (m *machine) deploy() (func(context.Context) error, error) {
	back := func(context.Context) error { return m.release(preparedRelease) }
	if err := m.release(preparedRelease); err != nil {
		return back, err
	}
	return back, m.release(changedRelease)
}

// release replaces those workers that run another one.
func (m *machine) release(name string) error {
	for _, worker := range workers {
		if m.processes[worker].runs(filepath.Join(m.config.Dir, name)) {
			continue
		}
		if err := m.rollOut([]string{worker}); err != nil {
			return err
		}
	}
	return nil
}

// nondeterministic is what the SDK logs when a replay makes other commands than the history holds.
const nondeterministic = "TMPRL1100"

// checkWorkflows looks for workflows that no worker can carry on: none may have been replayed to other decisions, by whichever worker,
// and none may be left whose tasks fail. It returns how many took the new branch.
func (m *machine) checkWorkflows(ctx context.Context) (changed int, err error) {
	for _, name := range workers {
		log, err := os.ReadFile(m.processes[name].output.Name())
		if err != nil {
			return 0, err
		}
		if n := bytes.Count(log, []byte(nondeterministic)); n > 0 {
			m.broken(promiseReplay, "%s says %s %d times; see %s", name, nondeterministic, n, m.processes[name].output.Name())
		}
	}
	c, err := client.Dial(client.Options{HostPort: m.network.proxies["worker-1:temporal"].Upstream, Namespace: temporal.Namespace})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	stuck, err := stuckWorkflows(ctx, c)
	if err != nil {
		return 0, err
	}
	for _, s := range stuck {
		m.broken(promiseReplay, "%s", s)
	}
	answer, err := c.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{
		Query: fmt.Sprintf("TemporalChangeVersion = '%s-1'", changeID),
	})
	return int(answer.GetCount()), err
}

// stuckWorkflows are those whose task has failed again and again, and isn't done.
func stuckWorkflows(ctx context.Context, c client.Client) (stuck []string, err error) {
	var page []byte
	for {
		open, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: "ExecutionStatus = 'Running'", NextPageToken: page})
		if err != nil {
			return nil, err
		}
		for _, execution := range open.GetExecutions() {
			attempt, err := taskAttempt(ctx, c, execution)
			if err != nil {
				return nil, err
			}
			if attempt > 2 {
				stuck = append(stuck, fmt.Sprintf("the task of %s is tried for the %d. time", execution.GetExecution().GetWorkflowId(), attempt))
			}
		}
		if page = open.GetNextPageToken(); len(page) == 0 {
			return stuck, nil
		}
	}
}

func taskAttempt(ctx context.Context, c client.Client, execution *workflow.WorkflowExecutionInfo) (int32, error) {
	d, err := c.DescribeWorkflowExecution(ctx, execution.GetExecution().GetWorkflowId(), execution.GetExecution().GetRunId())
	if err != nil {
		return 0, err
	}
	if d.GetWorkflowExecutionInfo().GetStatus() != enums.WORKFLOW_EXECUTION_STATUS_RUNNING {
		return 0, nil
	}
	return d.GetPendingWorkflowTask().GetAttempt(), nil
}
