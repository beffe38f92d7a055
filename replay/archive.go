package replay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/encoding/protojson"
)

// ManifestName is the file of an export that says what the others are.
const ManifestName = "manifest.json"

const (
	maxManifest = 4 << 20
	// maxHistory is beyond what Temporal lets a history grow to (50 MiB), in its JSON.
	maxHistory = 256 << 20
)

// Manifest says what an export holds, so that a later replay knows if a file was changed.
type Manifest struct {
	Version    int       `json:"version"` // 1
	DeliveryID string    `json:"delivery_id"`
	State      string    `json:"state"`
	Epochs     int       `json:"epochs"`
	ExportedAt time.Time `json:"exported_at"`
	Histories  []Entry   `json:"histories"`
	// Missing are the workflows that Temporal didn't have: a batch carried the delivery, or retention had removed them.
	Missing []string `json:"missing"`
}

// Entry is one history of an export.
type Entry struct {
	WorkflowID string `json:"workflow_id"`
	RunID      string `json:"run_id"`
	File       string `json:"file"`
	SHA256     string `json:"sha256"` // of the file
	Events     int    `json:"events"`
	Status     string `json:"status"`
}

// Export writes histories into a new directory, as the protobuf JSON that Temporal's own tools write and read, and
// returns the SHA-256 of the manifest. The directory is there whole or not at all, and one that is there is left alone.
func Export(dir string, m Manifest, histories []*History) (string, error) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is there already, and is left as it is", dir)
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	aside, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(aside) }()
	m.Version, m.Histories, m.Missing = 1, []Entry{}, append([]string{}, m.Missing...)
	for _, h := range histories {
		entry, err := writeHistory(aside, h)
		if err != nil {
			return "", err
		}
		m.Histories = append(m.Histories, entry)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", err
	}
	text = append(text, '\n')
	if err := errors.Join(writeSynced(filepath.Join(aside, ManifestName), text), syncDir(aside)); err != nil {
		return "", err
	}
	// Renaming refuses a directory in which something has appeared meanwhile.
	if err := errors.Join(os.Rename(aside, dir), syncDir(parent)); err != nil {
		return "", err
	}
	return digest(text), nil
}

func writeHistory(dir string, h *History) (Entry, error) {
	text, err := protojson.MarshalOptions{Multiline: true, Indent: "  "}.Marshal(&historypb.History{Events: h.Events})
	if err != nil {
		return Entry{}, fmt.Errorf("write history %s: %w", h.WorkflowID, err)
	}
	text = append(text, '\n')
	name := strings.ReplaceAll(h.WorkflowID, "/", "-") + ".json"
	return Entry{
		WorkflowID: h.WorkflowID, RunID: h.RunID, File: name, SHA256: digest(text), Events: len(h.Events), Status: h.status(),
	}, writeSynced(filepath.Join(dir, name), text)
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Load reads exported histories: each path is the directory of an export, or one history's file. The manifest beside a
// file, if there is one, says what it must be.
func Load(paths []string) ([]*History, error) {
	var loaded []*History
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		load := loadFile
		if info.IsDir() {
			load = loadExport
		}
		histories, err := load(path)
		if err != nil {
			return nil, err
		}
		loaded = append(loaded, histories...)
	}
	return loaded, nil
}

// loadExport reads all that a manifest names.
func loadExport(dir string) ([]*History, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("%s holds no %s; name the history's file instead", dir, ManifestName)
	}
	var loaded []*History
	for _, entry := range m.Histories {
		h, err := loadOne(dir, entry.File, m)
		if err != nil {
			return nil, err
		}
		loaded = append(loaded, h)
	}
	return loaded, nil
}

func loadFile(path string) ([]*History, error) {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	h, err := loadOne(dir, name, m)
	return []*History{h}, err
}

// readManifest returns nil if there is none.
func readManifest(dir string) (*Manifest, error) {
	path := filepath.Join(dir, ManifestName)
	text, err := readLimited(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil || m.Version != 1 {
		return nil, fmt.Errorf("%s is not a manifest of version 1", path)
	}
	return &m, nil
}

// loadOne reads one history; m may be nil.
func loadOne(dir, name string, m *Manifest) (*History, error) {
	if name != filepath.Base(name) { // from a manifest, which anybody may have written
		return nil, fmt.Errorf("%s names %q, which is not a file beside it", filepath.Join(dir, ManifestName), name)
	}
	path := filepath.Join(dir, name)
	text, err := readLimited(path, maxHistory)
	if err != nil {
		return nil, err
	}
	history, err := client.HistoryFromJSON(bytes.NewReader(text), client.HistoryJSONOptions{})
	if err != nil {
		return nil, fmt.Errorf("%s is not a workflow history in Temporal's JSON: %w", path, err)
	}
	h := &History{Source: path, Events: history.GetEvents(), Unsealed: true}
	if h.started() == nil || h.Events[0].GetEventType() != enums.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED {
		return nil, fmt.Errorf("%s is not a workflow history: it doesn't begin with the workflow's start", path)
	}
	h.WorkflowID, h.RunID = h.started().GetWorkflowId(), h.started().GetOriginalExecutionRunId()
	h.check(m, name, text)
	return h, nil
}

// check says whether the manifest's entry fits the file.
func (h *History) check(m *Manifest, name string, text []byte) {
	if m == nil {
		return
	}
	for _, entry := range m.Histories {
		if entry.File != name {
			continue
		}
		h.Unsealed = false
		switch {
		case entry.SHA256 != digest(text):
			h.Changed = fmt.Sprintf("the file was changed after it was exported: its SHA-256 is %s, the manifest has %s", digest(text), entry.SHA256)
		case entry.WorkflowID != h.WorkflowID || entry.Events != len(h.Events):
			h.Changed = fmt.Sprintf("the manifest was changed after the export: it says %s of %d events", entry.WorkflowID, entry.Events)
		}
		return
	}
}

func readLimited(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, most)
	}
	return os.ReadFile(path)
}
