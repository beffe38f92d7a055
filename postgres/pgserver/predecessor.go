//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// predecessorTimeout is how long an earlier server may take to end. An immediate shutdown takes 5 s at most.
const predecessorTimeout = 10 * time.Second

// postmaster is what postmaster.pid says about the server that wrote it.
type postmaster struct{ pid, port int }

// readPostmaster reads postmaster.pid: line 1 is the process, line 4 the port (0 while it isn't written yet).
func readPostmaster(data string) (postmaster, bool) {
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return postmaster{}, false
	}
	lines := strings.Split(string(content), "\n")
	var p postmaster
	if p.pid, err = strconv.Atoi(strings.TrimSpace(lines[0])); err != nil || p.pid <= 0 {
		return postmaster{}, false
	}
	if len(lines) > 3 {
		p.port, _ = strconv.Atoi(strings.TrimSpace(lines[3]))
	}
	return p, true
}

// alive reports whether a process has this number. It need not be the one that wrote it down.
func (p postmaster) alive() bool {
	err := syscall.Kill(p.pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// awaitPredecessor waits until the server of a process that was killed is gone; where the kernel doesn't see to that, it
// stops it. A process that merely got the number of one long dead looks alive here: when the time is over Postgres
// itself decides, which knows more about its lock file than we do.
func (p place) awaitPredecessor(ctx context.Context, password string) error {
	ctx, cancel := context.WithTimeout(ctx, predecessorTimeout)
	defer cancel()
	old, ok := readPostmaster(p.data)
	if !ok || !old.alive() {
		return nil
	}
	if !diesWithParent {
		if err := p.stopPredecessor(ctx, old, password); err != nil {
			return fmt.Errorf("stop earlier Postgres, process %d: %w", old.pid, err)
		}
	}
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		now, ok := readPostmaster(p.data)
		if !ok || now.pid != old.pid || !now.alive() {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// stopPredecessor sends the fast shutdown, but only to a process that proves to be the server of this very cluster: it
// knows the password and names the directory.
func (p place) stopPredecessor(ctx context.Context, old postmaster, password string) error {
	conn, err := pgx.Connect(ctx, databaseURL(old.port, password, "postgres"))
	if err != nil {
		return nil //nolint:nilerr // nobody, or not ours, or on its way down
	}
	var directory string
	err = conn.QueryRow(ctx, "show data_directory").Scan(&directory)
	_ = conn.Close(ctx)
	if err != nil || directory != p.data {
		return nil //nolint:nilerr // not ours
	}
	return syscall.Kill(old.pid, syscall.SIGINT)
}
