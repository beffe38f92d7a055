package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/kapsel-io/kapsel/verify"
)

// stateFormat is the value of the member "format" of a monitor's state.
const stateFormat = "kapsel.monitor/v1"

// ErrState: the state file can't be read, written or trusted.
var ErrState = errors.New("state of the monitor")

// state is what a monitor remembers: the newest head that was consistent with all before it.
type state struct {
	Format     string `json:"format"`
	URL        string `json:"url"`
	Checkpoint string `json:"checkpoint"` // the note, verbatim
	FetchedAt  string `json:"fetched_at"`
	FirstSeen  string `json:"first_seen"` // when the monitor began; what the log did before is unknown to it
}

// loadState returns nil if there is no file yet. A file that can't be read is an error: beginning afresh would forget
// what was seen.
func loadState(path string) (*state, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 2*verify.MaxNoteSize+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%w: read %s: %w", ErrState, path, err)
	}
	var s state
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil || s.Format != stateFormat {
		return nil, fmt.Errorf("%w: %s is not a state of this monitor; restore it, or move it away to begin afresh", ErrState, path)
	}
	return &s, nil
}

// writeFile puts a file where either the old or the new content is found after a crash, and returns once it is on disk.
func writeFile(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("%w: write %s: %w", ErrState, path, errors.Join(err, os.Remove(f.Name())))
	}
	return syncDir(dir)
}

// syncDir makes a rename durable. Windows has no such call and needs none.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("%w: sync %s: %w", ErrState, dir, err)
	}
	return nil
}
