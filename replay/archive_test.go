package replay_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/kapsel-io/kapsel/replay"
)

// exported writes one history into a directory of its own.
func exported(t *testing.T, name string) (dir, file string, h *replay.History) {
	t.Helper()
	h = saved(t, name)
	dir = filepath.Join(t.TempDir(), "archive", "dlv_1")
	digest, err := replay.Export(dir, replay.Manifest{
		DeliveryID: "dlv_1", State: "delivered", Epochs: 2, ExportedAt: time.Now().UTC(), Missing: []string{"deliver/dlv_1/1"},
	}, []*replay.History{h})
	require.NoError(t, err)
	require.Len(t, digest, 64)
	return dir, filepath.Join(dir, strings.ReplaceAll(h.WorkflowID, "/", "-")+".json"), h
}

func TestAnExportReadsAsItWas(t *testing.T) {
	t.Parallel()
	dir, file, h := exported(t, "deliver-retried")
	for _, path := range []string{dir, file} {
		loaded, err := replay.Load([]string{path})
		require.NoError(t, err)
		require.Len(t, loaded, 1)
		require.Equal(t, h.WorkflowID, loaded[0].WorkflowID)
		require.Equal(t, h.RunID, loaded[0].RunID)
		require.Len(t, loaded[0].Events, len(h.Events))
		for i := range h.Events {
			require.True(t, proto.Equal(h.Events[i], loaded[0].Events[i]))
		}
		require.Empty(t, loaded[0].Changed)
		require.False(t, loaded[0].Unsealed)
	}
	text, err := os.ReadFile(filepath.Join(dir, replay.ManifestName))
	require.NoError(t, err)
	var m replay.Manifest
	require.NoError(t, json.Unmarshal(text, &m))
	require.Equal(t, 1, m.Version)
	require.Equal(t, []string{"deliver/dlv_1/1"}, m.Missing)
	require.Equal(t, replay.Entry{WorkflowID: h.WorkflowID, RunID: h.RunID, File: filepath.Base(file), SHA256: m.Histories[0].SHA256,
		Events: len(h.Events), Status: "completed"}, m.Histories[0])
}

// Files that were changed after the export are still compared, and the report says that they were.
func TestAChangedFileIsNamed(t *testing.T) {
	t.Parallel()
	dir, file, _ := exported(t, "deliver-retried")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), `"0.228s"`, `"0.229s"`, 1)), 0o600))
	loaded, err := replay.Load([]string{dir})
	require.NoError(t, err)
	h, attempts := retried(t)
	report := replay.Compare(record(t, delivery(t, h), attempts...), loaded)
	requirePart(t, report, -1, 0, "file")
	requirePart(t, report, 2, 17, "delay")
}

func TestAChangedManifestIsNamed(t *testing.T) {
	t.Parallel()
	dir, _, h := exported(t, "deliver-retried")
	path := filepath.Join(dir, replay.ManifestName)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(text), h.WorkflowID, "deliver/dlv_2/0")), 0o600))
	loaded, err := replay.Load([]string{dir})
	require.NoError(t, err)
	require.Contains(t, loaded[0].Changed, "the manifest was changed")
}

func TestAnExportNeverOverwrites(t *testing.T) {
	t.Parallel()
	h := saved(t, "deliver-delivered")
	parent := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("mine"), 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink("nowhere", path) },
	} {
		path := filepath.Join(parent, name)
		require.NoError(t, make(path))
		_, err := replay.Export(path, replay.Manifest{}, []*replay.History{h})
		require.ErrorContains(t, err, "is there already", name)
	}
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Len(t, entries, 3, "nothing is left aside")
	text, err := os.ReadFile(filepath.Join(parent, "file"))
	require.NoError(t, err)
	require.Equal(t, "mine", string(text))
}

// An export that fails leaves nothing behind: no half directory that looks like a whole one.
func TestAnExportThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	h := saved(t, "deliver-delivered")
	_, err := replay.Export(filepath.Join(parent, "out"), replay.Manifest{}, []*replay.History{h, h}) // one name for two files
	require.Error(t, err)
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestWhatIsNoHistoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"no JSON": "nonsense", "no events": "{}", "no start": `{"events":[{"eventId":"1","eventType":"EVENT_TYPE_TIMER_FIRED"}]}`,
		"null": "null", "empty": "", "no attributes": `{"events":[{"eventId":"1","eventType":"EVENT_TYPE_WORKFLOW_EXECUTION_STARTED"}]}`,
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := replay.Load([]string{path})
		require.Error(t, err, name)
	}
	_, err := replay.Load([]string{filepath.Join(dir, "absent")})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = replay.Load([]string{t.TempDir()})
	require.ErrorContains(t, err, "holds no manifest.json")
}

// A manifest comes from whoever gave the files: it can't make kapsel read others.
func TestAManifestCantNameFilesElsewhere(t *testing.T) {
	t.Parallel()
	_, file, _ := exported(t, "deliver-retried")
	history, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, name := range []string{"../elsewhere.json", file, "a/b.json", "..", "."} {
		dir := filepath.Join(t.TempDir(), "export")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "..", "elsewhere.json"), history, 0o600))
		text, err := json.Marshal(replay.Manifest{Version: 1, Histories: []replay.Entry{{File: name}}})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, replay.ManifestName), text, 0o600))
		_, err = replay.Load([]string{dir})
		require.Error(t, err, name)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, replay.ManifestName), []byte(`{"version":2}`), 0o600))
	_, err = replay.Load([]string{dir})
	require.ErrorContains(t, err, "is not a manifest of version 1")
}
