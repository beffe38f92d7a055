//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// errSharedMemory says that processes of an earlier postmaster, one that was itself killed, are still going.
var errSharedMemory = errors.New("shared memory of an earlier server is still in use")

// arguments are the server's command line. Postgres takes the last value of a setting, so the caller's come after the
// defaults and before what this package relies on.
func arguments(data string, port int, settings map[string]string) []string {
	args := []string{"-D", data}
	set := func(name, value string) { args = append(args, "-c", name+"="+value) }
	set("max_connections", "200") // the Temporal server alone asks for some 40
	set("timezone", "UTC")
	set("log_timezone", "UTC")
	for _, name := range sortedNames(settings) {
		set(name, settings[name])
	}
	set("listen_addresses", "127.0.0.1")
	set("port", strconv.Itoa(port))
	set("unix_socket_directories", "")
	set("logging_collector", "off")
	set("log_destination", "stderr")
	return args
}

func sortedNames(settings map[string]string) []string {
	names := make([]string, 0, len(settings))
	for name := range settings {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// environment is ours without what would steer Postgres (PGDATA, PGOPTIONS, PGPORT …), and with messages that this
// package can read.
func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C")
}

// start executes the server and waits until it answers. After an error nothing of it is left running.
func (s *Server) start(ctx context.Context, postgres string, args, env []string) error {
	logFile, err := s.place.openLog()
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }() // the server has its own copy
	if s.logStart, err = logFile.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("open server log: %w", err)
	}
	cmd := exec.Command(postgres, args...)
	cmd.Env, cmd.Dir = append(environment(), env...), "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = processAttributes(s.place.cred)
	if err := s.spawn(cmd); err != nil {
		return fmt.Errorf("execute %s: %w", postgres, err)
	}
	if err := s.awaitReady(ctx); err != nil {
		s.quit()
		return err
	}
	return nil
}

// spawn starts the process from a thread that lives as long as it. The kernel sends Pdeathsig when the *thread* that
// started the child ends, and the Go runtime ends idle threads as it likes; a locked goroutine keeps its own.
func (s *Server) spawn(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with this goroutine, after the server
		err := cmd.Start()
		if err == nil {
			s.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // how it exited says less than its log
		close(s.done)
	}()
	return <-started
}

// awaitReady polls with real connections: a port that accepts is not yet a server that has recovered.
func (s *Server) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ping(ctx, s.URL("postgres"))
		if err == nil {
			return nil
		}
		var refused *pgconn.PgError
		if errors.As(err, &refused) && strings.HasPrefix(refused.Code, "28") {
			return fmt.Errorf("the password in %s is not the cluster's: restore that file, or remove %s with everything in it: %w",
				s.place.passwordFile(), s.place.dir, err)
		}
		select {
		case <-s.done:
			return s.startFailure()
		case <-ctx.Done():
			return fmt.Errorf("not ready in time (%w); last answer: %w; the end of %s:\n%s",
				ctx.Err(), err, s.place.logFile(), s.place.logTail(s.logStart))
		case <-tick.C:
		}
	}
}

// startFailure reads from the log why the server gave up.
func (s *Server) startFailure() error {
	tail := s.place.logTail(s.logStart)
	cause := errors.New("server gave up")
	switch {
	case strings.Contains(tail, "could not bind"):
		cause = ErrPortTaken
	case strings.Contains(tail, "pre-existing shared memory block"):
		cause = errSharedMemory
	case strings.Contains(tail, `lock file "postmaster.pid" already exists`):
		cause = errors.New("another server uses this cluster; stop it first")
	}
	return fmt.Errorf("%w; the end of %s:\n%s", cause, s.place.logFile(), tail)
}

func ping(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return conn.Ping(ctx)
}
