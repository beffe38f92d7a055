package attestation_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

// rootOf makes up a root for a size; different names give different roots.
func rootOf(size uint64, name string) []byte {
	return verify.LeafHash(fmt.Appendf(nil, "%d %s", size, name))
}

func headAt(size uint64, timestamp int64) attestation.Head {
	return attestation.Head{TreeSize: size, Timestamp: timestamp, RootHash: rootOf(size, "")}
}

func newHighWater(t *testing.T) (*attestation.HighWater, string) {
	path := filepath.Join(t.TempDir(), "high-water")
	w := attestation.NewHighWater(path, testOrigin)
	require.NoError(t, w.Init())
	return w, path
}

func TestHighWaterRule(t *testing.T) {
	t.Parallel()
	other := attestation.Head{TreeSize: 10, Timestamp: 2000, RootHash: rootOf(10, "fork")}
	for _, c := range []struct {
		name string
		head attestation.Head
		ok   bool
	}{
		{"all equal: a retry", headAt(10, 1000), true},
		{"same size, later", headAt(10, 1001), true},
		{"larger, later", headAt(11, 1001), true},
		{"larger, same time", headAt(11, 1000), false},
		{"larger, earlier", headAt(11, 999), false},
		{"same size, earlier", headAt(10, 999), false},
		{"smaller, later", headAt(9, 2000), false},
		{"empty, later", attestation.Head{Timestamp: 2000, RootHash: verify.EmptyRoot()}, false},
		{"same size, later, another root", other, false},
		{"same size and time, another root", attestation.Head{TreeSize: 10, Timestamp: 1000, RootHash: rootOf(10, "fork")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, _ := newHighWater(t)
			require.NoError(t, w.Advance(t.Context(), headAt(10, 1000)))
			err := w.Advance(t.Context(), c.head)
			recorded, readErr := w.Read()
			require.NoError(t, readErr)
			if c.ok {
				require.NoError(t, err)
				require.Equal(t, c.head, recorded)
				return
			}
			require.ErrorIs(t, err, attestation.ErrHighWaterConflict)
			require.Equal(t, headAt(10, 1000), recorded, "a refused head leaves the record alone")
		})
	}
}

func TestHighWaterRefusesHeadsOutOfRange(t *testing.T) {
	t.Parallel()
	w, _ := newHighWater(t)
	for _, head := range []attestation.Head{
		headAt(1<<53, 1), headAt(1, -1), headAt(1, 1<<53), {TreeSize: 1, Timestamp: 1}, {TreeSize: 1, Timestamp: 1, RootHash: make([]byte, 31)},
	} {
		require.ErrorIs(t, w.Advance(t.Context(), head), attestation.ErrHead)
	}
}

func TestHighWaterMissing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "high-water")
	w := attestation.NewHighWater(path, testOrigin)
	_, err := w.Read()
	require.ErrorIs(t, err, attestation.ErrHighWaterMissing)
	require.ErrorIs(t, w.Advance(t.Context(), headAt(1, 1)), attestation.ErrHighWaterMissing)
	_, err = os.Stat(path)
	require.ErrorIs(t, err, fs.ErrNotExist, "only Init makes the record")

	require.NoError(t, w.Init())
	head, err := w.Read()
	require.NoError(t, err)
	require.Equal(t, attestation.Head{RootHash: verify.EmptyRoot()}, head)
	require.NoError(t, w.Advance(t.Context(), headAt(1, 1)))
	require.ErrorIs(t, w.Init(), fs.ErrExist)
	head, err = w.Read()
	require.NoError(t, err)
	require.Equal(t, headAt(1, 1), head, "Init never lowers a record")

	require.Error(t, attestation.NewHighWater(path+"2", "not an origin").Init())
}

// What the errors advise can be done, and doesn't give up what the record guards against.
func TestHighWaterErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, err := range []error{attestation.ErrHighWaterMissing, attestation.ErrHighWaterCorrupt, attestation.ErrHighWaterConflict} {
		require.ErrorContains(t, err, "stop the workers and find out whether LOG_HIGH_WATER_DIR is the wrong directory or the database was restored")
		require.ErrorContains(t, err, "and then run `kapsel log recover`; never write, copy back or make the record again by hand")
	}
}

func TestHighWaterOfAnotherLog(t *testing.T) {
	t.Parallel()
	_, path := newHighWater(t)
	w := attestation.NewHighWater(path, testOrigin+"x")
	_, err := w.Read()
	require.ErrorIs(t, err, attestation.ErrHighWaterConflict)
	require.ErrorIs(t, w.Advance(t.Context(), headAt(1, 1)), attestation.ErrHighWaterConflict)
}

// Cut at any place, with any byte changed, or spelt in another way: the record is refused and stays as it was.
func TestHighWaterCorrupt(t *testing.T) {
	t.Parallel()
	w, path := newHighWater(t)
	require.NoError(t, w.Advance(t.Context(), headAt(10, 1000)))
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	bad := map[string][]byte{
		"appended":  append(bytes.Clone(good), '\n'),
		"twice":     append(bytes.Clone(good), good...),
		"uppercase": bytes.ToUpper(good),
		"CRLF":      bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")),
	}
	for i := range good {
		bad[fmt.Sprintf("cut at %d", i)] = good[:i]
		changed := bytes.Clone(good)
		changed[i] ^= 1
		bad[fmt.Sprintf("byte %d", i)] = changed
	}
	for name, text := range bad {
		require.NoError(t, os.WriteFile(path, text, 0o600))
		_, err := w.Read()
		require.ErrorIs(t, err, attestation.ErrHighWaterCorrupt, name)
		require.ErrorIs(t, w.Advance(t.Context(), headAt(11, 2000)), attestation.ErrHighWaterCorrupt, name)
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, after, name)
	}
}

// A crash between the temporary file and the rename leaves the old record and half a new one behind; the next call
// succeeds, whatever the leftover holds.
func TestHighWaterAfterCrashBeforeRename(t *testing.T) {
	t.Parallel()
	w, path := newHighWater(t)
	require.NoError(t, w.Advance(t.Context(), headAt(10, 1000)))
	require.NoError(t, os.WriteFile(path+".tmp", bytes.Repeat([]byte("kapsel.io/high-water/v1\n"), 1000), 0o600))
	head, err := w.Read()
	require.NoError(t, err)
	require.Equal(t, headAt(10, 1000), head)
	require.NoError(t, w.Advance(t.Context(), headAt(11, 2000)))
	head, err = w.Read()
	require.NoError(t, err)
	require.Equal(t, headAt(11, 2000), head)
}

func TestHighWaterWaitsForLockUntilContextEnds(t *testing.T) {
	t.Parallel()
	w, path := newHighWater(t)
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, w.Advance(ctx, headAt(1, 1)), context.Canceled)

	done := make(chan error)
	go func() { done <- w.Advance(t.Context(), headAt(1, 1)) }()
	require.NoError(t, lock.Close())
	require.NoError(t, <-done)
}

// TestMain lets the test binary stand in for another process that advances a record (see advanceForever).
func TestMain(m *testing.M) {
	if path := os.Getenv("KAPSEL_TEST_HIGH_WATER"); path != "" {
		advanceForever(path, os.Getenv("KAPSEL_TEST_NAME"))
	}
	os.Exit(m.Run())
}

// advanceForever tries to take each size after the recorded one, with a root of its own, and prints the sizes it got.
func advanceForever(path, name string) {
	w := attestation.NewHighWater(path, testOrigin)
	for {
		head, err := w.Read()
		if err != nil {
			fmt.Println("read:", err)
			os.Exit(1)
		}
		size := head.TreeSize + 1
		next := attestation.Head{TreeSize: size, Timestamp: head.Timestamp + 1, RootHash: rootOf(size, name)}
		if w.Advance(context.Background(), next) == nil {
			fmt.Println(size)
		}
	}
}

// Three processes race for every size; each size has one winner. They are killed in the middle of whatever they do, and
// the record still says what the last winner was told.
func TestHighWaterAmongProcessesThatAreKilled(t *testing.T) {
	t.Parallel()
	w, path := newHighWater(t)
	owner := map[uint64]string{}
	for round := range 3 {
		won := make(chan string)
		var running []*exec.Cmd
		for i := range 3 {
			name := fmt.Sprintf("%d.%d", round, i)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "KAPSEL_TEST_HIGH_WATER="+path, "KAPSEL_TEST_NAME="+name)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() }) // if an assertion ends the test early
			running = append(running, cmd)
			go func() {
				for lines := bufio.NewScanner(out); lines.Scan(); {
					won <- name + " " + lines.Text()
				}
				won <- ""
			}()
		}
		for ended, lines := 0, 0; ended < len(running); {
			line := <-won
			if line == "" {
				ended++
				continue
			}
			name, text, _ := strings.Cut(line, " ")
			size, err := strconv.ParseUint(text, 10, 64)
			require.NoError(t, err, line)
			require.NotContains(t, owner, size, "two processes were given one size")
			owner[size] = name
			if lines++; lines == 30 {
				for _, cmd := range running {
					require.NoError(t, cmd.Process.Kill())
				}
			}
		}
		for _, cmd := range running {
			_ = cmd.Wait() // killed
		}
	}
	require.GreaterOrEqual(t, len(owner), 90)
	head, err := w.Read()
	require.NoError(t, err)
	for size := range owner {
		require.LessOrEqual(t, size, head.TreeSize, "a size that was granted is never forgotten")
	}
	if name, ok := owner[head.TreeSize]; ok { // its owner may have been killed before it could say so
		require.Equal(t, rootOf(head.TreeSize, name), head.RootHash)
	}
}
