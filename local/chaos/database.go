package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/postgres/pgserver"
)

// database is the Postgres server. It keeps its port.
type database struct {
	dir  string
	port int
	disk *smallDisk // for the WAL; nil: none

	mu     sync.Mutex
	server *pgserver.Server
}

func startDatabase(ctx context.Context, dir string, smallWAL bool) (*database, error) {
	d := &database{dir: dir}
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	d.port = d.server.Port()
	if !smallWAL {
		return d, nil
	}
	if err := d.server.Stop(ctx); err != nil {
		return nil, err
	}
	disk, err := moveToSmallDisk(filepath.Join(d.server.DataDir(), "pg_wal"), filepath.Join(dir, "wal"))
	if err != nil {
		return nil, err
	}
	d.disk = disk
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, disk.remove())
	}
	return d, nil
}

// start starts the server, which recovers first if it was killed.
func (d *database) start(ctx context.Context) error {
	server, err := pgserver.Start(ctx, pgserver.Config{Dir: d.dir, Port: d.port, Settings: map[string]string{
		"max_connections": "300",
		// A small disk holds all of it.
		"max_wal_size": "128MB", "min_wal_size": "32MB",
	}})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.server = server
	return nil
}

func (d *database) url(name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.server.URL(name)
}

// crash sends a signal to the server and waits until it is gone: SIGQUIT is an immediate shutdown.
func (d *database) crash(sig syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(d.server.DataDir(), "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return fmt.Errorf("read postmaster.pid: %w", err)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return err
	}
	<-d.server.Done()
	return nil
}

// gone says whether the server has ended.
func (d *database) gone() bool {
	select {
	case <-d.server.Done():
		return true
	default:
		return false
	}
}

// ensure starts the server unless it runs, and waits until it has recovered.
func (d *database) ensure(ctx context.Context) error {
	if d.gone() {
		return d.start(ctx)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, d.url("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if d.gone() { // it gave up on the way
			return d.start(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for Postgres to recover: %w", err)
		}
	}
}

func (d *database) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err := d.server.Stop(ctx)
	if d.disk != nil {
		err = errors.Join(err, d.disk.remove())
	}
	return err
}

// smallDisk is a file system in memory that can be filled up.
type smallDisk struct {
	path, ballast string
}

// diskMB has room for the WAL, which max_wal_size bounds but for some segments.
const diskMB = 512

// smallDiskRefused says why there can be no small disk here, "" if there can be.
func smallDiskRefused(dir string) string {
	if os.Getuid() != 0 {
		return "only root can mount a file system"
	}
	probe := filepath.Join(dir, "probe")
	if err := os.Mkdir(probe, 0o700); err != nil {
		return err.Error()
	}
	defer func() { _ = os.Remove(probe) }()
	disk, err := mountSmallDisk(probe)
	if err != nil {
		return err.Error()
	}
	if err := disk.remove(); err != nil {
		return err.Error()
	}
	return ""
}

func mountSmallDisk(path string) (*smallDisk, error) {
	output, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+strconv.Itoa(diskMB)+"m", "kapsel-chaos", path).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mount a file system: %w: %s", err, output)
	}
	return &smallDisk{path: path, ballast: filepath.Join(path, "ballast")}, nil
}

// moveToSmallDisk moves a directory of a stopped server to a disk of its own and leaves a link.
func moveToSmallDisk(from, to string) (*smallDisk, error) {
	if err := os.Mkdir(to, 0o711); err != nil {
		return nil, err
	}
	disk, err := mountSmallDisk(to)
	if err != nil {
		return nil, err
	}
	moved := filepath.Join(to, filepath.Base(from))
	// cp and not a rename: it is another file system, and owners and modes are to stay.
	output, err := exec.Command("cp", "-a", from, moved).CombinedOutput()
	if err == nil {
		err = errors.Join(os.Chmod(to, 0o711), os.RemoveAll(from), os.Symlink(moved, from))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("move %s: %w: %s", from, err, output), disk.remove())
	}
	return disk, nil
}

// fill leaves no byte.
func (s *smallDisk) fill() error {
	file, err := os.Create(s.ballast)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	chunk := make([]byte, 1<<20)
	for {
		_, err := file.Write(chunk)
		if errors.Is(err, syscall.ENOSPC) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *smallDisk) free() error { return os.Remove(s.ballast) }

// remove unmounts the file system; the server has ended.
func (s *smallDisk) remove() error {
	if output, err := exec.Command("umount", s.path).CombinedOutput(); err != nil {
		return fmt.Errorf("unmount %s: %w: %s", s.path, err, output)
	}
	return nil
}
