//go:build unix

package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// childDir tells a copy of this test binary to be the process that is killed, on a server in this directory.
const childDir = "PGSERVER_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(serveUntilKilled(dir))
	}
	os.Exit(m.Run())
}

// serveUntilKilled commits a row, says so, and waits for the end.
func serveUntilKilled(dir string) int {
	ctx := context.Background()
	s, err := Start(ctx, Config{Dir: dir})
	if err == nil {
		err = execute(ctx, s.URL("postgres"), "create table kept as select 42 as answer")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("committed")
	<-s.Done()
	return 1
}

func execute(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

func queryText(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var answer string
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&answer))
	return answer
}

// openDir is a directory that the server's user can reach, unlike t.TempDir for root.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgserver-*") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop(context.WithoutCancel(t.Context()))) })
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	require.NoError(t, s.Stop(t.Context()))
	require.ErrorIs(t, syscall.Kill(s.pid, 0), syscall.ESRCH, "the process is still there")
	require.NoError(t, s.Err())
}

func TestRestartKeepsData(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	first := start(t, Config{Dir: dir, Settings: map[string]string{"fsync": "off", "work_mem": "7MB", "port": "1"}})
	require.Equal(t, "7MB", queryText(t, first.URL("postgres"), "show work_mem"))
	require.NoError(t, execute(t.Context(), first.URL("postgres"), "create table kept as select 42 as answer"))
	stop(t, first)
	require.NoError(t, first.Stop(t.Context()), "stopping twice")

	second := start(t, Config{Dir: dir})
	require.Equal(t, "42", queryText(t, second.URL("postgres"), "select answer::text from kept"))
	require.Equal(t, "on", queryText(t, second.URL("postgres"), "show fsync"))
	require.Equal(t, second.DataDir(), queryText(t, second.URL("postgres"), "show data_directory"))
}

// Another user of the machine can connect to loopback; without the password that must be all.
func TestOnlyThePasswordGetsIn(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	s := start(t, Config{Dir: dir, Settings: map[string]string{"fsync": "off"}})

	require.ErrorContains(t, execute(t.Context(), databaseURL(s.port, "wrong", "postgres"), "select 1"), "28P01")
	require.Equal(t, "127.0.0.1", queryText(t, s.URL("postgres"), "show listen_addresses"))
	require.Empty(t, queryText(t, s.URL("postgres"), "show unix_socket_directories"))
	info, err := os.Stat(filepath.Join(dir, "password"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	stop(t, s)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "password"), []byte("wrong\n"), 0o600))
	_, err = Start(t.Context(), Config{Dir: dir})
	require.ErrorContains(t, err, "is not the cluster's")
	require.NoError(t, os.Remove(filepath.Join(dir, "password")))
	_, err = Start(t.Context(), Config{Dir: dir})
	require.ErrorContains(t, err, "is missing: restore it")
}

func TestKilledParent(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), childDir+"="+dir)
	out, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	t.Cleanup(func() { _ = parent.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "committed\n", line)
	old, ok := readPostmaster(filepath.Join(dir, "data"))
	require.True(t, ok)

	require.NoError(t, parent.Process.Kill())
	_ = parent.Wait() // "signal: killed"

	s := start(t, Config{Dir: dir}) // at once, while the old server may still be going down
	require.NotEqual(t, old.pid, s.pid)
	require.Equal(t, "42", queryText(t, s.URL("postgres"), "select answer::text from kept"))
	if runtime.GOOS == "linux" {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", old.pid))
		require.True(t, err != nil || strings.Contains(string(stat), ") Z "), "the old postmaster lives: %s", stat)
	}
}

// What other systems than Linux do about a predecessor, tried with a server of our own in its role.
func TestPredecessorIsStoppedOnlyIfItIsOurs(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Dir: openDir(t), Settings: map[string]string{"fsync": "off"}})
	old, ok := readPostmaster(s.DataDir())
	require.True(t, ok)
	require.Equal(t, postmaster{pid: s.pid, port: s.port}, old)

	stranger := s.place
	stranger.data += "-other"
	require.NoError(t, stranger.stopPredecessor(t.Context(), old, s.password))
	require.NoError(t, s.place.stopPredecessor(t.Context(), old, "wrong"))
	require.Equal(t, "on", queryText(t, s.URL("postgres"), "select case when pg_is_in_recovery() then 'off' else 'on' end"))

	require.NoError(t, s.place.stopPredecessor(t.Context(), old, s.password))
	select {
	case <-s.Done():
	case <-t.Context().Done():
	}
	require.ErrorContains(t, s.Err(), "ended unexpectedly")
	require.ErrorContains(t, s.Err(), "database system is shut down")
}

func TestDeadlineTurnsStopIntoImmediateShutdown(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	s := start(t, Config{Dir: dir})
	require.NoError(t, execute(t.Context(), s.URL("postgres"), "create table kept as select 42 as answer"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Stop(ended), context.Canceled)
	require.ErrorIs(t, syscall.Kill(s.pid, 0), syscall.ESRCH)

	again := start(t, Config{Dir: dir})
	require.Equal(t, "42", queryText(t, again.URL("postgres"), "select answer::text from kept"))
}

// A postmaster that is killed itself leaves its lock file, and its children for a moment.
func TestKilledPostmaster(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	s := start(t, Config{Dir: dir})
	require.NoError(t, execute(t.Context(), s.URL("postgres"), "create table kept as select 42 as answer"))
	require.NoError(t, syscall.Kill(s.pid, syscall.SIGKILL))
	<-s.Done()
	require.Error(t, s.Err())

	again := start(t, Config{Dir: dir})
	require.Equal(t, "42", queryText(t, again.URL("postgres"), "select answer::text from kept"))
}

func TestInterruptedInitialisationStartsAfresh(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "password.new"), nil, 0o600))
	half := filepath.Join(dir, "initdb-123", "data")
	require.NoError(t, os.MkdirAll(half, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600))

	s := start(t, Config{Dir: dir, Settings: map[string]string{"fsync": "off"}})
	require.Equal(t, "1", queryText(t, s.URL("postgres"), "select '1'"))
	left, err := filepath.Glob(filepath.Join(dir, "initdb-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	_, err = Start(t.Context(), Config{
		Dir: openDir(t), Port: l.Addr().(*net.TCPAddr).Port, Settings: map[string]string{"fsync": "off"},
	})
	require.ErrorIs(t, err, ErrPortTaken)
	require.ErrorContains(t, err, "choose another port")
}

func TestFailedStartShowsTheServersLog(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	_, err := Start(t.Context(), Config{Dir: dir, Settings: map[string]string{"fsync": "off", "no_such_setting": "1"}})
	require.ErrorContains(t, err, `unrecognized configuration parameter "no_such_setting"`)

	require.NoError(t, os.RemoveAll(filepath.Join(dir, "data")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "data"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data", "thesis.txt"), nil, 0o600))
	_, err = Start(t.Context(), Config{Dir: dir})
	require.ErrorContains(t, err, "no Postgres cluster")
	require.FileExists(t, filepath.Join(dir, "data", "thesis.txt"))
}

// For root, t.TempDir is behind a directory that the server's user can't pass.
func TestUnreachableDirectoryIsLinked(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "pg")
	s := start(t, Config{Dir: dir, Settings: map[string]string{"fsync": "off"}})
	real, err := filepath.EvalSymlinks(filepath.Join(dir, "data"))
	require.NoError(t, err)
	require.Equal(t, real, s.DataDir())
	if os.Geteuid() != 0 {
		return
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(filepath.Dir(real))) })
	require.True(t, strings.HasPrefix(real, "/var/lib/kapsel-"), real)
	require.NoError(t, execute(t.Context(), s.URL("postgres"), "create table kept as select 42 as answer"))
	stop(t, s)
	again := start(t, Config{Dir: dir})
	require.Equal(t, "42", queryText(t, again.URL("postgres"), "select answer::text from kept"))
}

func TestMissingBinaries(t *testing.T) {
	t.Parallel()
	_, err := Start(t.Context(), Config{Dir: openDir(t), BinDir: t.TempDir()})
	require.ErrorIs(t, err, ErrNoBinaries)
	require.ErrorContains(t, err, "apt-get install postgresql")
}

func TestBinariesAreChosenByVersion(t *testing.T) {
	t.Parallel()
	fake := func(version string) string {
		dir := t.TempDir()
		script := "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + "'\n"
		for _, name := range []string{"postgres", "initdb"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
		}
		return dir
	}
	newer, older, empty := fake("17.2"), fake("9.6.1"), t.TempDir()
	all := []string{empty, newer, older}
	for _, tt := range []struct {
		major, want string
	}{{"", newer}, {"17", newer}, {"9", older}} {
		got, err := choose(t.Context(), all, tt.major)
		require.NoError(t, err)
		require.Equal(t, tt.want, got, "version %q", tt.major)
	}
	_, err := choose(t.Context(), all, "16")
	require.ErrorIs(t, err, ErrNoBinaries)
	require.ErrorContains(t, err, "install postgresql-16")
}

func TestCandidatesAreNewestFirst(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, version := range []string{"9.6", "15", "17"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, version, "bin"), 0o755))
	}
	newest := func(path string) string { return filepath.Base(filepath.Dir(path)) }
	var got []string
	for _, dir := range candidates(t.Context(), []string{filepath.Join(root, "*", "bin")}) {
		if strings.HasPrefix(dir, root) {
			got = append(got, newest(dir))
		}
	}
	require.Equal(t, []string{"17", "15", "9.6"}, got)
}

func TestLogTailIsBounded(t *testing.T) {
	t.Parallel()
	p := place{dir: t.TempDir()}
	require.Empty(t, p.logTail(0))
	text := strings.Repeat("x", maxLogTail) + "the end\n"
	require.NoError(t, os.WriteFile(p.logFile(), []byte(text), 0o600))
	require.Len(t, p.logTail(0), maxLogTail-1)
	require.Equal(t, "end", p.logTail(int64(len(text)-4)))

	require.NoError(t, os.Truncate(p.logFile(), maxLogSize+1))
	f, err := p.openLog()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.FileExists(t, p.logFile()+".1")
}

// A number that a process had once says nothing: only the lock file's own process holds a start up, and not for ever.
func TestStaleLockFileDoesNotStopAStart(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	s := start(t, Config{Dir: dir, Settings: map[string]string{"fsync": "off"}})
	lock, err := os.ReadFile(filepath.Join(s.DataDir(), "postmaster.pid"))
	require.NoError(t, err)
	stop(t, s)
	gone := strings.Replace(string(lock), fmt.Sprint(s.pid), "2147483646", 1)
	require.NoError(t, os.WriteFile(filepath.Join(s.DataDir(), "postmaster.pid"), []byte(gone), 0o600))
	if s.place.cred != nil {
		require.NoError(t, os.Chown(filepath.Join(s.DataDir(), "postmaster.pid"), int(s.place.cred.Uid), int(s.place.cred.Gid)))
	}
	begun := time.Now()
	again := start(t, Config{Dir: dir, Settings: map[string]string{"fsync": "off"}})
	t.Logf("started in %v", time.Since(begun))
	require.Equal(t, "1", queryText(t, again.URL("postgres"), "select '1'"))
}
