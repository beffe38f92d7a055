package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	sdk "go.temporal.io/sdk/client"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/replay"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/workflows"
)

// requireReplays compares every delivery with its workflows' histories: whatever happened to them, nothing may disagree. It
// returns how many came to each verdict.
func requireReplays(t *testing.T, databaseURL, temporalAddress string) map[replay.Verdict]int {
	t.Helper()
	engine, err := postgres.Open(databaseURL, postgres.Engine, 2)
	require.NoError(t, err)
	defer engine.Close()
	c, err := sdk.Dial(sdk.Options{HostPort: temporalAddress, Namespace: temporal.Namespace})
	require.NoError(t, err)
	defer c.Close()
	rows, err := engine.Query(t.Context(), "select id from deliveries")
	require.NoError(t, err)
	deliveries, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	require.NoError(t, err)
	require.NotEmpty(t, deliveries)
	verdicts := map[replay.Verdict]int{}
	for _, delivery := range deliveries {
		report, err := replay.Online(t.Context(), engine, c, delivery)
		require.NoError(t, err)
		require.NotEqual(t, replay.Disagreement, report.Verdict, report.Text())
		verdicts[report.Verdict]++
	}
	return verdicts
}

// auditor runs the production binary against a stack.
type auditor struct {
	*testStack
	binary string
	dir    string
}

func newAuditor(t *testing.T, s *testStack) *auditor {
	t.Helper()
	a := &auditor{testStack: s, dir: t.TempDir()}
	a.binary = filepath.Join(a.dir, "kapsel")
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", a.binary, "github.com/kapsel-io/kapsel/cmd/kapsel").CombinedOutput()
	require.NoError(t, err, string(output))
	return a
}

func (a *auditor) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = a.dir
	cmd.Env = append(os.Environ(), "PATH="+a.dir+":"+os.Getenv("PATH"),
		"DATABASE_URL="+a.dbURL, "TEMPORAL_ADDRESS="+a.temporal, "TEMPORAL_NAMESPACE="+temporal.Namespace)
	return cmd
}

// run runs kapsel and returns what it printed and its exit status.
func (a *auditor) run(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := a.command(t, a.binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// replayed is the JSON of kapsel replay, as a program would read it.
type replayed struct {
	Verdict  string `json:"verdict"`
	State    string `json:"state"`
	Carriers []struct {
		WorkflowID string `json:"workflow_id"`
		SameToday  bool   `json:"same_today"`
	} `json:"carriers"`
	Attempts []struct {
		Attempt int    `json:"attempt"`
		Covered bool   `json:"covered"`
		History string `json:"history"`
		Event   int    `json:"event_id"`
	} `json:"attempts"`
	Disagreements []replayedPart `json:"disagreements"`
}

type replayedPart struct {
	Attempt int    `json:"attempt"`
	Event   int    `json:"event_id"`
	Member  string `json:"member"`
}

// replay runs kapsel replay --json and wants it to end with a status.
func (a *auditor) replay(t *testing.T, wanted int, args ...string) (r replayed) {
	t.Helper()
	stdout, stderr, status := a.run(t, append([]string{"replay", "--json"}, args...)...)
	require.Equal(t, wanted, status, "%s\n%s", stdout, stderr)
	require.NoError(t, json.Unmarshal([]byte(stdout), &r), stderr)
	return r
}

// deliver sends one webhook to an endpoint and returns its delivery.
func (a *auditor) deliver(t *testing.T, endpoint client.Endpoint) string {
	t.Helper()
	event, err := a.api.GetEventWithResponse(t.Context(), a.mustIngest(t, endpoint, "top-secret-payload"))
	require.NoError(t, err)
	return event.JSON200.Deliveries[0].ID
}

// forge changes rows as somebody could who owns the database: no trigger stands in the way.
func (a *auditor) forge(t *testing.T, statement string, args ...any) {
	t.Helper()
	tx, err := a.db.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), "set local session_replication_role = replica")
	require.NoError(t, err)
	tag, err := tx.Exec(t.Context(), statement, args...)
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
	require.NoError(t, tx.Commit(t.Context()))
}

// remove has Temporal forget a workflow, as the end of its retention does.
func (a *auditor) remove(t *testing.T, workflowID string) {
	t.Helper()
	c := a.temporalClient(t)
	_, err := c.WorkflowService().DeleteWorkflowExecution(t.Context(), &workflowservice.DeleteWorkflowExecutionRequest{
		Namespace: temporal.Namespace, WorkflowExecution: &commonpb.WorkflowExecution{WorkflowId: workflowID},
	})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		var unknown *serviceerror.NotFound
		_, err := c.DescribeWorkflowExecution(t.Context(), workflowID, "")
		return errors.As(err, &unknown)
	}, time.Minute, 100*time.Millisecond)
}

// A delivery is checked by its workflow while Temporal has it, by an export when it hasn't, and whatever is changed
// afterwards in Postgres, the log or the files is named.
func TestReplayForAudit(t *testing.T) {
	a := newAuditor(t, startTestStack(t))
	flaky, healthy := startReceiver(t, failing(2)), startReceiver(t, ok)
	retried := a.deliver(t, a.createEndpoint(t, client.NewDestination{URL: flaky.URL, Schedule: schedule(100, 200)}))
	batched := a.deliver(t, a.createLane(t, client.Batch, client.NewDestination{URL: healthy.URL}))
	a.awaitSealed(t, 2*time.Minute)

	report := a.replay(t, 0, retried)
	require.Equal(t, "agreement", report.Verdict)
	require.Equal(t, "delivered", report.State)
	require.Len(t, report.Carriers, 1)
	require.True(t, report.Carriers[0].SameToday)
	require.Len(t, report.Attempts, 3)
	for _, attempt := range report.Attempts {
		require.True(t, attempt.Covered)
		require.Equal(t, workflows.DeliveryWorkflowID(retried, 0), attempt.History)
		require.Positive(t, attempt.Event)
	}

	// No history names what a batch delivered, and the report claims no more.
	require.Equal(t, "partial", a.replay(t, 0, batched).Verdict)
	require.Equal(t, "partial", a.replay(t, 2, "--complete", batched).Verdict)
	_, stderr, status := a.run(t, "history", "export", batched, "--out", "archive")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "a batch carried it, or the retention has ended")

	a.checkGuide(t, retried)
	_, stderr, status = a.run(t, "history", "export", retried, "--out", "archive")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "is there already, and is left as it is")
	files := filepath.Join(a.dir, "archive", retried)
	requireNoPayload(t, files)

	a.remove(t, workflows.DeliveryWorkflowID(retried, 0))
	require.Equal(t, "partial", a.replay(t, 0, retried).Verdict, "Temporal has nothing, and what is left agrees")
	require.Equal(t, "agreement", a.replay(t, 0, retried, "--history", files, "--complete").Verdict)

	a.checkForgeries(t, retried, files)
}

// checkForgeries changes what is recorded, from a lone column to everything that Postgres holds of an attempt.
func (a *auditor) checkForgeries(t *testing.T, delivery, files string) {
	t.Helper()
	deliveryID, err := id.Delivery.Parse(delivery)
	require.NoError(t, err)
	second, third := id.AttemptOf(deliveryID, 2), id.AttemptOf(deliveryID, 3)

	a.forge(t, "update attempts set response_status = 204 where id = $1", third)
	require.Equal(t, []replayedPart{{Attempt: 3, Member: "response_status"}}, a.replay(t, 1, delivery, "--history", files).Disagreements)
	a.forge(t, "update attempts set response_status = 200 where id = $1", third)
	require.Empty(t, a.replay(t, 0, delivery, "--history", files).Disagreements)

	// The leaf's bytes and every hash that Postgres holds of them: only the tree is left to tell.
	var leaf []byte
	require.NoError(t, a.db.QueryRow(t.Context(), "select leaf from merkle_leaves where attempt_id = $1", third).Scan(&leaf))
	forged := bytes.Replace(leaf, []byte(`"response_status":200`), []byte(`"response_status":201`), 1)
	require.NotEqual(t, leaf, forged)
	a.writeLeaf(t, delivery, 3, forged, 201)
	require.Equal(t, []replayedPart{{Attempt: 3, Member: "leaf"}}, a.replay(t, 1, delivery, "--history", files).Disagreements)
	a.writeLeaf(t, delivery, 3, leaf, 200)
	require.Empty(t, a.replay(t, 0, delivery, "--history", files).Disagreements)

	// A row that is gone is gone from Postgres, and still in the history.
	a.forge(t, "delete from attempts where id = $1", second)
	stdout, stderr, status := a.run(t, "replay", delivery, "--history", files)
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "disagree")
	require.Contains(t, stdout, "they part: attempt 2: is not in Postgres\n")
	require.Regexp(t, `they part: attempt 2, history deliver/dlv_\w+/0, event \d+: the history has it`, stdout)
}

// writeLeaf rewrites the leaf of an attempt, its hash and the attempt's status, everywhere but in the tree.
func (a *auditor) writeLeaf(t *testing.T, delivery string, number int, leaf []byte, status int) {
	t.Helper()
	deliveryID, err := id.Delivery.Parse(delivery)
	require.NoError(t, err)
	attempt, hash := id.AttemptOf(deliveryID, number), verify.LeafHash(leaf)
	a.forge(t, "update merkle_leaves set leaf = $2, leaf_hash = $3 where attempt_id = $1", attempt, leaf, hash)
	a.forge(t, "update attempts set leaf_hash = $2, response_status = $3 where id = $1", attempt, hash, status)
	a.forge(t, "update deliveries set last_leaf_hash = $2 where id = $1", deliveryID, hash)
}

func requireNoPayload(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "a history and the manifest")
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		require.NoError(t, err)
		require.NotContains(t, string(text), "top-secret-payload")
	}
}

// varyingInGuide is what differs from one run to the next.
var varyingInGuide = regexp.MustCompile(`dlv_[0-9a-z]{26}|[0-9a-f]{64}|(leaf|event) \d+|\d+ events`)

// checkGuide runs the commands of the guide, and wants them to print what it shows.
func (a *auditor) checkGuide(t *testing.T, delivery string) {
	t.Helper()
	guide, err := os.ReadFile(filepath.Join("..", "docs", "guides", "replay.md"))
	require.NoError(t, err)
	blocks := strings.Split(string(guide), "```")
	require.GreaterOrEqual(t, len(blocks), 5)
	script, shows := strings.TrimPrefix(blocks[1], "sh\n"), strings.TrimPrefix(blocks[3], "\n")
	cmd := a.command(t, "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(cmd.Env, "DELIVERY="+delivery)
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	require.Equal(t, varyingInGuide.ReplaceAllString(shows, "<>"), varyingInGuide.ReplaceAllString(string(output), "<>"))
}
