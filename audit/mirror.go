package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// A mirror is a directory with everything of a log but its leaves, as Export writes it:
//
//	checkpoint                     the newest published one, written last
//	tile/0/x001/234                full tiles, and partial ones for the checkpoint's size: c2sp.org/tlog-tiles
//	tile/0/x001/235.p/17
//	heads/000000.jsonl             every published head, oldest first, headsPerFile in each file
//	log.json                       the log's name and keys
//
// A static web server that serves it is a log that tile clients can read.
const (
	checkpointFile = "checkpoint"
	logFile        = "log.json"
	headsDir       = "heads"
	lockFile       = ".lock"

	headsPerFile = 4096

	logFormat = "kapsel.log/v1"
)

// TilePath is where a tile of so many hashes is, relative to the log's URL or directory (c2sp.org/tlog-tiles): the index in
// groups of three digits, all but the last with an x before them.
func TilePath(id attestation.TileID, width int) string {
	path := fmt.Sprintf("%03d", id.Index%1000)
	for rest := id.Index / 1000; rest > 0; rest /= 1000 {
		path = fmt.Sprintf("x%03d/%s", rest%1000, path)
	}
	path = fmt.Sprintf("tile/%d/%s", id.Level, path)
	if width < tileWidth {
		path += fmt.Sprintf(".p/%d", width)
	}
	return path
}

// MirroredLog is the file log.json of a mirror.
type MirroredLog struct {
	Format string        `json:"format"` // kapsel.log/v1
	LogID  string        `json:"log_id"`
	Origin string        `json:"origin"`
	Keys   []MirroredKey `json:"keys"` // oldest first
}

// MirroredKey is a key that signs or has signed the log's heads.
type MirroredKey struct {
	VKey      string     `json:"vkey"`
	NotBefore time.Time  `json:"not_before"`
	NotAfter  *time.Time `json:"not_after,omitempty"`
	// Transition is the note by which the key came, a leaf of the log; absent of the first key.
	Transition string `json:"transition,omitempty"`
}

// MirroredHead is one line of a mirror's heads.
type MirroredHead struct {
	TreeSize   uint64     `json:"tree_size"`
	Timestamp  int64      `json:"timestamp"` // Unix ms
	RootHash   verify.Hex `json:"root_hash"`
	KeyID      verify.Hex `json:"key_id"` // SHA-256 of the key
	Signature  verify.Hex `json:"signature"`
	Checkpoint string     `json:"checkpoint"` // the note, verbatim
}

func mirroredHead(h *postgres.PublishedHead) MirroredHead {
	return MirroredHead{TreeSize: h.TreeSize, Timestamp: h.Timestamp, RootHash: h.RootHash, KeyID: h.KeyID,
		Signature: h.Signature, Checkpoint: string(h.Checkpoint)}
}

func (h *MirroredHead) published() *postgres.PublishedHead {
	return &postgres.PublishedHead{Head: postgres.Head{TreeSize: h.TreeSize, Timestamp: h.Timestamp, RootHash: h.RootHash},
		KeyID: h.KeyID, Signature: h.Signature, Checkpoint: []byte(h.Checkpoint)}
}

// MirrorOf reads of which log a directory is the mirror.
func MirrorOf(dir string) (*MirroredLog, error) {
	text, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		return nil, err
	}
	var log MirroredLog
	if err := json.Unmarshal(text, &log); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, logFile), err)
	}
	if log.Format != logFormat {
		return nil, fmt.Errorf("%s: format %q, want %q", filepath.Join(dir, logFile), log.Format, logFormat)
	}
	return &log, nil
}

// headFiles lists a mirror's files of heads, oldest first.
func headFiles(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, headsDir, "[0-9][0-9][0-9][0-9][0-9][0-9]*.jsonl"))
	slices.SortFunc(files, func(a, b string) int { // a seventh digit sorts after six
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return files, err
}

// readHeads calls f with each head of a mirror, oldest first. The last line may be torn, by a crash while it was written.
func readHeads(dir string, f func(*MirroredHead) error) error {
	files, err := headFiles(dir)
	if err != nil {
		return err
	}
	for _, path := range files {
		if _, err := readHeadFile(path, f); err != nil {
			return err
		}
	}
	return nil
}

// readHeadFile reads one file of heads and returns how many bytes its whole lines have.
func readHeadFile(path string, f func(*MirroredHead) error) (whole int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }() // read only
	return readHeadLines(bufio.NewReader(file), path, f)
}

// readHeadLines reads heads, one a line.
func readHeadLines(lines *bufio.Reader, name string, f func(*MirroredHead) error) (whole int64, err error) {
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return whole, nil // without its newline a line isn't whole
		}
		if err != nil {
			return whole, err
		}
		var head MirroredHead
		if err := json.Unmarshal(line, &head); err != nil {
			return whole, fmt.Errorf("%s, line %d: %w", name, number, err)
		}
		if err := f(&head); err != nil {
			return whole, err
		}
		whole += int64(len(line))
	}
}

// headWriter writes heads after those that a mirror has. What a crash left behind the last whole line is cut off.
type headWriter struct {
	dir   string
	file  int           // number of the last file
	lines int           // whole ones in it
	whole int64         // bytes of these
	last  *MirroredHead // nil if there is none yet
}

func openHeadWriter(dir string) (*headWriter, error) {
	w := &headWriter{dir: dir}
	files, err := headFiles(dir)
	if err != nil || len(files) == 0 {
		return w, err
	}
	w.file = len(files) - 1
	for _, path := range files[max(len(files)-2, 0):] { // a crash may have left the last one empty
		w.lines = 0
		w.whole, err = readHeadFile(path, func(h *MirroredHead) error {
			w.lines++
			w.last = h
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// write appends heads, and returns when they are on disk.
func (w *headWriter) write(heads []MirroredHead) error {
	for len(heads) > 0 {
		if w.lines >= headsPerFile {
			w.file, w.lines, w.whole = w.file+1, 0, 0
		}
		n := min(len(heads), headsPerFile-w.lines)
		var text bytes.Buffer
		for _, h := range heads[:n] {
			if err := json.NewEncoder(&text).Encode(h); err != nil {
				return err
			}
		}
		if err := w.append(text.Bytes()); err != nil {
			return err
		}
		w.lines, w.whole = w.lines+n, w.whole+int64(text.Len())
		w.last, heads = &heads[n-1], heads[n:]
	}
	return nil
}

func (w *headWriter) append(text []byte) error {
	path := filepath.Join(w.dir, headsDir, fmt.Sprintf("%06d.jsonl", w.file))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err = file.Truncate(w.whole); err == nil {
		_, err = file.WriteAt(text, w.whole)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// lockMirror keeps a second export out of the directory until the returned function is called, or the process ends.
func lockMirror(dir string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another export is writing to %s", dir)
		}
		return nil, err
	}
	return func() { _ = file.Close() }, nil
}

// readCheckpoint reads a mirror's checkpoint; nil if it has none yet.
func readCheckpoint(dir string) (*verify.Checkpoint, error) {
	text, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	checkpoint, err := verify.ParseCheckpoint(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, checkpointFile), err)
	}
	return checkpoint, nil
}
