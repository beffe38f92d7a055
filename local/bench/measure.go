package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// clockTick is USER_HZ, in which Linux counts CPU time in /proc, on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// usage is what a run has used so far.
type usage struct {
	cpu     time.Duration // of this process and of Postgres
	own     time.Duration // of this process alone
	commits int64
	wal     int64 // bytes
}

// meter reads what is used. db may be nil: then Postgres isn't measured.
type meter struct {
	db  *pgxpool.Pool
	pid int // of the postmaster, 0 if it isn't on this machine
}

// newMeter finds the Postgres server's process by the database itself.
func newMeter(ctx context.Context, db *pgxpool.Pool) (*meter, error) {
	m := &meter{db: db}
	if db == nil {
		return m, nil
	}
	var dir string
	if err := db.QueryRow(ctx, "show data_directory").Scan(&dir); err != nil {
		return nil, fmt.Errorf("find Postgres: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return m, nil //nolint:nilerr // on another machine
	}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	m.pid, _ = strconv.Atoi(string(first))
	return m, nil
}

func (m *meter) read(ctx context.Context) (usage, error) {
	var u usage
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return u, fmt.Errorf("read CPU time: %w", err)
	}
	u.own = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	u.cpu = u.own + treeCPU(m.pid)
	if m.db == nil {
		return u, nil
	}
	err := m.db.QueryRow(ctx, `select (select sum(xact_commit) from pg_stat_database)::bigint,
		pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint`).Scan(&u.commits, &u.wal)
	if err != nil {
		return u, fmt.Errorf("read Postgres's statistics: %w", err)
	}
	return u, nil
}

func (u usage) since(before usage) usage {
	return usage{u.cpu - before.cpu, u.own - before.own, u.commits - before.commits, u.wal - before.wal}
}

// treeCPU is the CPU time of a process and its children, those that have ended included: sessions of Postgres end.
func treeCPU(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	var ticks int64
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		fields := statFields(path)
		if len(fields) < 15 {
			continue
		}
		number := func(i int) int64 { n, _ := strconv.ParseInt(fields[i], 10, 64); return n }
		switch own := filepath.Base(filepath.Dir(path)) == strconv.Itoa(pid); {
		case own:
			ticks += number(11) + number(12) + number(13) + number(14)
		case number(1) == int64(pid):
			ticks += number(11) + number(12)
		}
	}
	return time.Duration(ticks) * clockTick
}

// statFields returns what follows the command's name in /proc/<pid>/stat: state, parent, … (see proc(5)).
func statFields(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil // it has ended
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return strings.Fields(after)
}

// resetPeak makes peakMemory start anew, where the kernel lets us.
func resetPeak() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }

// peakMemory is the most memory that this process had in use since resetPeak, in bytes; 0 where that can't be read.
func peakMemory() int64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kilobytes, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kilobytes << 10
		}
	}
	return 0
}

// profile writes a CPU profile to a file until stop is called; no file, no profile.
func profile(file string) (stop func(), err error) {
	if file == "" {
		return func() {}, nil
	}
	out, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = out.Close()
	}, nil
}

// heapProfile writes a profile of what is in use, if it is to.
func heapProfile(path string) error {
	if path == "" {
		return nil
	}
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write heap profile: %w", err)
	}
	runtime.GC()
	if err := errors.Join(pprof.WriteHeapProfile(out), out.Close()); err != nil {
		return fmt.Errorf("write heap profile: %w", err)
	}
	return nil
}
