package attestation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kapsel-io/kapsel/verify"
)

var (
	// ErrHighWaterMissing is returned where there is no record. While a signed head exists the log must stop: only with
	// the record is it known that no later head was signed, and then lost in a restore.
	ErrHighWaterMissing = errors.New("high-water record is missing, so the log signs nothing: " + stopAndFind)
	// ErrHighWaterCorrupt is returned for a record that can't be trusted.
	ErrHighWaterCorrupt = errors.New("high-water record is corrupt, so the log signs nothing: " + stopAndFind)
	// ErrHighWaterConflict is returned for a head that must not be signed: it is older than the recorded one, or
	// contradicts it.
	ErrHighWaterConflict = errors.New("head conflicts with the high-water record, so it isn't signed: " + stopAndFind)
)

// stopAndFind is all that can be done about a record without giving up what it guards against: a second tree.
const stopAndFind = "stop the workers and find out whether LOG_HIGH_WATER_DIR is the wrong directory or the database was restored, " +
	"and then run `kapsel log recover`; never write, copy back or make the record again by hand"

// Head is the state of a log that is to be signed.
type Head struct {
	TreeSize  uint64
	Timestamp int64  // Unix ms
	RootHash  []byte // 32 bytes
}

// Equal reports whether both are the same state at the same time.
func (h Head) Equal(other Head) bool {
	return h.TreeSize == other.TreeSize && h.Timestamp == other.Timestamp && bytes.Equal(h.RootHash, other.RootHash)
}

// check wants every field in the range that is ever signed.
func (h Head) check() error {
	if h.TreeSize > verify.MaxTreeSize || h.Timestamp < 0 || h.Timestamp > verify.MaxTreeSize || len(h.RootHash) != hashSize {
		return fmt.Errorf("size %d, timestamp %d, root hash of %d bytes: %w", h.TreeSize, h.Timestamp, len(h.RootHash), ErrHead)
	}
	return nil
}

// HighWater is the newest head that may have been signed, in a file outside the database, so that it outlives a restore
// of the database from an old backup. Every worker on the host shares it; it must be on a local file system, for locks.
//
// The file is six lines of text and is only ever replaced as a whole:
//
//	kapsel.io/high-water/v1
//	<origin>
//	<tree size>
//	<timestamp, Unix ms>
//	<root hash, lowercase hex>
//	<SHA-256 of the lines above, lowercase hex>
type HighWater struct {
	path   string
	origin string
}

// NewHighWater names the record of the log origin. It touches no file.
func NewHighWater(path, origin string) *HighWater {
	return &HighWater{path: path, origin: origin}
}

// Init makes the record of a new log, which has signed nothing yet: size 0 at time 0. It never replaces a record: if
// there is one, whatever it holds, the error wraps fs.ErrExist.
func (w *HighWater) Init() error {
	if err := verify.CheckOrigin(w.origin); err != nil {
		return fmt.Errorf("make high-water record: %w", err)
	}
	empty := Head{RootHash: verify.EmptyRoot()}
	if err := createFile(w.path, formatHighWater(w.origin, empty)); err != nil {
		return fmt.Errorf("make high-water record: %w", err)
	}
	return nil
}

// Read returns the recorded head. A log whose stored size is below its TreeSize was restored from an old backup and
// must not be signed. Errors wrap ErrHighWaterMissing, ErrHighWaterCorrupt or ErrHighWaterConflict (another log's).
func (w *HighWater) Read() (Head, error) {
	text, err := os.ReadFile(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return Head{}, fmt.Errorf("read %s: %w", w.path, ErrHighWaterMissing)
	}
	if err != nil {
		return Head{}, fmt.Errorf("read high-water record: %w", err)
	}
	origin, head, err := parseHighWater(text)
	if err != nil {
		return Head{}, fmt.Errorf("read %s: %w", w.path, err)
	}
	if origin != w.origin {
		return Head{}, fmt.Errorf("read %s: it belongs to %s, not to %s: %w", w.path, origin, w.origin, ErrHighWaterConflict)
	}
	return head, nil
}

// Advance records head, which must be done before head is signed. It is a compare-and-set: the size may not fall, at an
// equal size the root must be equal, and the time must be later; the recorded head itself is accepted again, since a
// caller who crashed before signing repeats the call. When it returns nil the record is on disk.
//
// Errors wrap ErrHead, ErrHighWaterConflict, ErrHighWaterMissing or ErrHighWaterCorrupt, or ctx's error if another
// process kept the lock.
func (w *HighWater) Advance(ctx context.Context, head Head) error {
	if err := head.check(); err != nil {
		return fmt.Errorf("advance high-water record: %w", err)
	}
	unlock, err := lockFile(ctx, w.path+".lock")
	if err != nil {
		return fmt.Errorf("lock high-water record: %w", err)
	}
	defer unlock()
	recorded, err := w.Read()
	if err != nil {
		return err
	}
	if err := mayFollow(recorded, head); err != nil {
		return fmt.Errorf("advance high-water record: %w", err)
	}
	// Written even if equal: the process that wrote it may have died before the directory was on disk.
	if err := replaceFile(w.path, formatHighWater(w.origin, head)); err != nil {
		return fmt.Errorf("write high-water record: %w", err)
	}
	return nil
}

// mayFollow is the rule of the compare-and-set.
func mayFollow(recorded, head Head) error {
	switch {
	case head.Equal(recorded):
		return nil
	case head.TreeSize < recorded.TreeSize:
		return fmt.Errorf("size %d is below the recorded %d: %w", head.TreeSize, recorded.TreeSize, ErrHighWaterConflict)
	case head.TreeSize == recorded.TreeSize && !bytes.Equal(head.RootHash, recorded.RootHash):
		return fmt.Errorf("size %d has root %x, recorded is %x: %w",
			head.TreeSize, head.RootHash, recorded.RootHash, ErrHighWaterConflict)
	case head.Timestamp <= recorded.Timestamp:
		return fmt.Errorf("time %d is not after the recorded %d: %w", head.Timestamp, recorded.Timestamp, ErrHighWaterConflict)
	}
	return nil
}

const highWaterVersion = "kapsel.io/high-water/v1"

func formatHighWater(origin string, head Head) []byte {
	text := fmt.Sprintf("%s\n%s\n%d\n%d\n%x\n", highWaterVersion, origin, head.TreeSize, head.Timestamp, head.RootHash)
	return fmt.Appendf(nil, "%s%x\n", text, sha256.Sum256([]byte(text)))
}

// parseHighWater accepts exactly what formatHighWater writes.
func parseHighWater(text []byte) (origin string, head Head, err error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) != 7 || lines[0] != highWaterVersion {
		return "", Head{}, fmt.Errorf("not six lines of %s: %w", highWaterVersion, ErrHighWaterCorrupt)
	}
	origin = lines[1]
	size, sizeErr := strconv.ParseUint(lines[2], 10, 64)
	timestamp, timeErr := strconv.ParseInt(lines[3], 10, 64)
	root, rootErr := hex.DecodeString(lines[4])
	head = Head{TreeSize: size, Timestamp: timestamp, RootHash: root}
	if err := errors.Join(sizeErr, timeErr, rootErr, verify.CheckOrigin(origin), head.check()); err != nil {
		return "", Head{}, fmt.Errorf("%w: %w", ErrHighWaterCorrupt, err)
	}
	if !bytes.Equal(formatHighWater(origin, head), text) {
		return "", Head{}, fmt.Errorf("checksum or spelling is wrong: %w", ErrHighWaterCorrupt)
	}
	return origin, head, nil
}

// lockFile takes an exclusive lock that ends with the process. The lock is on a file of its own, which is never removed:
// one on the record itself would be lost when the record is replaced.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing the only descriptor releases the lock
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-again.C:
		}
	}
}

// replaceFile exchanges the contents of path as a whole: after a crash the file holds the old ones or the new ones. The
// caller holds the lock, so the temporary name is its own; a crash here leaves it behind, and the next call reuses it.
func replaceFile(path string, contents []byte) error {
	temp, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := writeSynced(temp, contents); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
