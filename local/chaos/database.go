package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/local/freeport"
	"github.com/kapsel-io/kapsel/postgres/pgserver"
)

// databaseServer is one Postgres server. It keeps its directory and its port.
type databaseServer struct {
	dir   string
	port  int
	disk  *smallDisk // for the WAL; nil: none
	clock *clock     // nil: the machine's

	mu      sync.Mutex
	running *pgserver.Server
}

// start starts the server, which recovers first if it was killed.
func (s *databaseServer) start(ctx context.Context) error {
	if s.port == 0 { // the same at each start
		port, err := freeport.Find()
		if err != nil {
			return err
		}
		s.port = port
	}
	running, err := pgserver.Start(ctx, pgserver.Config{Dir: s.dir, Port: s.port, Env: s.clock.environment(), Settings: map[string]string{
		"max_connections": "300",
		// A small disk holds all of it, and what a standby that was away for a moment has missed.
		"max_wal_size": "128MB", "min_wal_size": "32MB", "wal_keep_size": "64MB",
		// How soon a standby looks for a primary that was away; commits wait for it.
		"wal_retrieve_retry_interval": "200ms",
	}})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.running = running
	s.mu.Unlock()
	pid, err := s.pid()
	s.clock.usedBy(pid)
	return err
}

func (s *databaseServer) server() *pgserver.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

func (s *databaseServer) url(name string) string { return s.server().URL(name) }

func (s *databaseServer) address() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.server().Port()))
}

// gone says whether the server has ended.
func (s *databaseServer) gone() bool {
	select {
	case <-s.server().Done():
		return true
	default:
		return false
	}
}

// crash sends a signal to the server and waits until it is gone: SIGQUIT is an immediate shutdown.
func (s *databaseServer) crash(sig syscall.Signal) error {
	running := s.server()
	pid, err := s.pid()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return err
	}
	<-running.Done()
	return nil
}

func (s *databaseServer) pid() (pid int, err error) {
	text, err := os.ReadFile(filepath.Join(s.server().DataDir(), "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		return 0, fmt.Errorf("read postmaster.pid: %w", err)
	}
	return pid, nil
}

// ensure starts the server unless it runs, and waits until it has recovered.
func (s *databaseServer) ensure(ctx context.Context) error {
	if s.gone() {
		return s.start(ctx)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.url("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if s.gone() { // it gave up on the way
			return s.start(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for Postgres to recover: %w", err)
		}
	}
}

func (s *databaseServer) execute(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// time is what the server's clock shows.
func (s *databaseServer) time(ctx context.Context) (shown time.Time, err error) {
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return shown, err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, "select clock_timestamp()").Scan(&shown)
	return shown, err
}

func (s *databaseServer) stop(ctx context.Context) (err error) {
	if running := s.server(); running != nil {
		err = running.Stop(ctx)
	}
	if s.disk != nil {
		err = errors.Join(err, s.disk.remove())
		s.disk = nil
	}
	return err
}

// giveSmallDisk moves the WAL of a server that doesn't run to a disk of its own.
func (s *databaseServer) giveSmallDisk(data string) (err error) {
	s.disk, err = moveToSmallDisk(filepath.Join(data, "pg_wal"), filepath.Join(s.dir, "wal"))
	return err
}

// database is where the data is: a primary, and its standby if failovers are to come.
type database struct {
	dir      string
	smallWAL bool
	clock    *clock // nil: the machine's

	mu               sync.Mutex // of the two
	primary, standby *databaseServer
	servers          int // made so far
	standbys         standbys
}

func startDatabase(ctx context.Context, dir string, smallWAL bool, clock *clock) (*database, error) {
	d := &database{dir: dir, smallWAL: smallWAL, clock: clock}
	first, err := d.place()
	if err != nil {
		return nil, err
	}
	if err := first.start(ctx); err != nil {
		return nil, err
	}
	d.primary = first
	if !smallWAL {
		return d, nil
	}
	if err := first.server().Stop(ctx); err != nil {
		return nil, err
	}
	if err := first.giveSmallDisk(first.server().DataDir()); err != nil {
		return nil, err
	}
	if err := first.start(ctx); err != nil {
		return nil, errors.Join(err, first.disk.remove())
	}
	return d, nil
}

// place makes the directory of one more server.
func (d *database) place() (*databaseServer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.servers++
	s := &databaseServer{dir: filepath.Join(d.dir, strconv.Itoa(d.servers)), clock: d.clock}
	for _, dir := range []string{d.dir, s.dir} { // Postgres's user passes through both
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// now is the server that takes writes, or did until it was broken.
func (d *database) now() *databaseServer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.primary
}

func (d *database) url(name string) string { return d.now().url(name) }

// ensure starts what doesn't run. Without its standby the primary would commit nothing.
func (d *database) ensure(ctx context.Context) error {
	err := d.now().ensure(ctx)
	d.mu.Lock()
	standby := d.standby
	d.mu.Unlock()
	if standby != nil {
		err = errors.Join(err, standby.ensure(ctx))
	}
	return err
}

func (d *database) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	d.standbys.end()
	defer d.clock.clean()
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.primary.stop(ctx)
	if d.standby != nil {
		err = errors.Join(err, d.standby.stop(ctx))
	}
	return err
}
