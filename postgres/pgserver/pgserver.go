//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
)

const (
	// superuser owns the cluster; the password file is its password.
	superuser = "postgres"
	// startTimeout bounds Start as a whole. Crash recovery of a large cluster is what takes long.
	startTimeout = 2 * time.Minute
	// quitTimeout is how long an immediate shutdown may take. Postgres kills its own children after 5 s.
	quitTimeout = 15 * time.Second
)

// ErrPortTaken says that something else listens on [Config.Port].
var ErrPortTaken = errors.New("port is taken")

// Config says what to run and where.
type Config struct {
	// Dir holds the cluster, the password and the log; made if it is missing. Required.
	Dir string
	// Port on 127.0.0.1; 0 picks a free one at each start.
	Port int
	// BinDir holds the binaries postgres and initdb. Default: searched for, see [FindBinaries].
	BinDir string
	// Settings are passed to the server as name=value, over the defaults ({"fsync": "off"} for a test, say). Where it
	// listens and how it logs can't be changed.
	Settings map[string]string
	// Env is added to the server's environment.
	Env []string
	// Log gets a line for what happens to the server as a whole. Default: none.
	Log *zap.Logger
}

// Server is a running Postgres server.
type Server struct {
	place    place
	port     int
	password string
	log      *zap.Logger

	pid      int
	logStart int64         // where this run's lines begin in the server's log
	stopping atomic.Bool   // set before the first signal, so that an exit can be told from a crash
	done     chan struct{} // closed once the process is gone and reaped
}

// Start runs a server and returns once it answers queries. A directory without a cluster gets one first. ctx bounds the
// start only (two minutes at most, whatever it says); the server runs until Stop, or until this process dies.
//
// Errors end in what to do: [ErrNoBinaries], [ErrPortTaken], or what the server itself wrote to its log.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	p, err := findPlace(ctx, cfg.Dir, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("place Postgres in %s: %w", cfg.Dir, err)
	}
	bin, err := binaries(ctx, cfg.BinDir, p.version())
	if err != nil {
		return nil, fmt.Errorf("find Postgres: %w", err)
	}
	password, err := p.password()
	if err != nil {
		return nil, err
	}
	if p.version() == "" {
		cfg.Log.Info("making a Postgres cluster", zap.String("data", p.data), zap.String("binaries", bin))
		if err := p.initialise(ctx, bin, cfg.Settings["fsync"] != "off"); err != nil {
			return nil, fmt.Errorf("make Postgres cluster %s: %w", p.data, err)
		}
	}
	if err := p.awaitPredecessor(ctx, password); err != nil {
		return nil, err
	}
	return startRetrying(ctx, cfg, p, bin, password)
}

// startRetrying starts the server, again where trying again helps: another process was quicker to take the free port
// that was picked, or backends of a killed postmaster still hold its shared memory for a moment.
func startRetrying(ctx context.Context, cfg Config, p place, bin, password string) (*Server, error) {
	for {
		port, err := pickPort(cfg.Port)
		if err != nil {
			return nil, err
		}
		s := &Server{place: p, port: port, password: password, log: cfg.Log, done: make(chan struct{})}
		err = s.start(ctx, filepath.Join(bin, "postgres"), arguments(p.data, port, cfg.Settings), cfg.Env)
		if err == nil {
			cfg.Log.Info("Postgres is ready", zap.Int("port", port), zap.Int("pid", s.pid), zap.String("data", p.data))
			return s, nil
		}
		again := errors.Is(err, errSharedMemory) || errors.Is(err, ErrPortTaken) && cfg.Port == 0
		if !again || ctx.Err() != nil {
			return nil, fmt.Errorf("start Postgres on port %d: %w", port, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// pickPort returns port, once it is known to be free, or a free one for 0.
func pickPort(port int) (int, error) {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return 0, fmt.Errorf("start Postgres: %w: %d on 127.0.0.1; stop what listens there, or choose another port",
			ErrPortTaken, port)
	}
	if err != nil {
		return 0, fmt.Errorf("start Postgres on port %d: %w", port, err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// URL is the superuser's connection URL for a database, password included.
func (s *Server) URL(database string) string { return databaseURL(s.port, s.password, database) }

func databaseURL(port int, password, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port is where the server listens on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// DataDir is the cluster's real directory, behind any symbolic link.
func (s *Server) DataDir() string { return s.place.data }

// Done is closed when the server's process is gone, whatever ended it.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is nil while the server runs and after Stop. If it ended by itself, Err has the end of its log.
func (s *Server) Err() error {
	select {
	case <-s.done:
	default:
		return nil
	}
	if s.stopping.Load() {
		return nil
	}
	return fmt.Errorf("server ended unexpectedly; the end of %s:\n%s", s.place.logFile(), s.place.logTail(s.logStart))
}

// Stop shuts the server down in the fast mode: transactions in progress are rolled back, connections closed, a
// checkpoint written. When ctx ends first it becomes an immediate shutdown, from which the next start recovers; the error
// is then ctx's. Stopping a server that is gone already is no error.
func (s *Server) Stop(ctx context.Context) error {
	s.stopping.Store(true)
	s.signal(syscall.SIGINT)
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	s.quit()
	return fmt.Errorf("stop Postgres in order: %w", ctx.Err())
}

// quit ends the server at once and waits until it is gone. It loses nothing that was committed.
func (s *Server) quit() {
	s.stopping.Store(true)
	s.signal(syscall.SIGQUIT)
	select {
	case <-s.done:
	case <-time.After(quitTimeout):
		s.log.Warn("Postgres ignores SIGQUIT: killing it", zap.Int("pid", s.pid))
		s.signal(syscall.SIGKILL)
		<-s.done
	}
}

// signal sends to the postmaster alone, which deals with its children. The check keeps a signal from reaching a stranger
// who got the number of a process that has been reaped.
func (s *Server) signal(sig syscall.Signal) {
	select {
	case <-s.done:
	default:
		_ = syscall.Kill(s.pid, sig)
	}
}
