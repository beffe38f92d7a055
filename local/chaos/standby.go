package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/postgres/pgserver"
)

// standbyPatience is how long a standby may take until it has all that the primary has.
const standbyPatience = 2 * time.Minute

// standbys makes them in the background, one after the other.
type standbys struct {
	mu    sync.Mutex
	ready chan struct{} // closed once the one that is being made has everything
	err   error         // why it didn't become ready the last time
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// failoverRefused says why there can be no failover here, "" if there can be.
func failoverRefused() string {
	path, err := baseBackup()
	if err == nil {
		_, err = exec.LookPath(path)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// baseBackup is the program that comes with the server's binaries.
func baseBackup() (string, error) {
	bin, err := pgserver.FindBinaries(context.Background())
	return filepath.Join(bin, "pg_basebackup"), err
}

// makeStandby begins to make a standby, and goes on until there is one, whatever happens to the primary meanwhile.
func (d *database) makeStandby() {
	ctx, stop := context.WithCancel(context.Background())
	ready := make(chan struct{})
	d.standbys.mu.Lock()
	defer d.standbys.mu.Unlock()
	d.standbys.ready, d.standbys.stop = ready, stop
	d.standbys.done.Go(func() {
		for ctx.Err() == nil {
			err := d.tryStandby(ctx)
			d.standbys.mu.Lock()
			d.standbys.err = err
			d.standbys.mu.Unlock()
			if err == nil {
				close(ready)
				return
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	})
}

// end stops making one.
func (s *standbys) end() {
	s.mu.Lock()
	if s.stop != nil {
		s.stop()
	}
	s.mu.Unlock()
	s.done.Wait()
}

// awaitStandby waits until the standby has all that was committed, and nothing more is committed without it.
func (d *database) awaitStandby(ctx context.Context) error {
	d.standbys.mu.Lock()
	ready := d.standbys.ready
	d.standbys.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, standbyPatience)
	defer cancel()
	select {
	case <-ready:
		return awaitReplication(ctx, d.now(), "sync")
	case <-ctx.Done():
		d.standbys.mu.Lock()
		defer d.standbys.mu.Unlock()
		return fmt.Errorf("wait for the standby: %w (%w)", ctx.Err(), d.standbys.err)
	}
}

// tryStandby makes a standby from the primary, as an operator would, and has commits wait for it from then on. Until then they
// don't: the setting comes last, so it isn't in the copy either, which will commit alone once it is promoted.
func (d *database) tryStandby(ctx context.Context) error {
	primary := d.now()
	if err := primary.execute(ctx, "alter system reset synchronous_standby_names", "select pg_reload_conf()"); err != nil {
		return err
	}
	s, err := d.place()
	if err != nil {
		return err
	}
	if err := d.copyPrimary(ctx, primary, s); err != nil {
		return errors.Join(err, s.discard())
	}
	err = awaitReplication(ctx, primary, "async")
	if err == nil {
		err = primary.execute(ctx, "alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
	}
	if err == nil {
		err = awaitReplication(ctx, primary, "sync")
	}
	if err != nil {
		return errors.Join(err, s.discard())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.standby = s
	return nil
}

// copyPrimary makes the cluster of s from the primary's and starts it as its standby.
func (d *database) copyPrimary(ctx context.Context, primary, s *databaseServer) error {
	ctx, cancel := context.WithTimeout(ctx, standbyPatience)
	defer cancel()
	password, err := os.ReadFile(filepath.Join(primary.dir, "password"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "password"), password, 0o600); err != nil {
		return err
	}
	config, err := pgx.ParseConfig(primary.url("postgres"))
	if err != nil {
		return err
	}
	program, err := baseBackup()
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	cmd := exec.CommandContext(ctx, program, "--pgdata", data, "--write-recovery-conf", "--checkpoint", "fast", "--no-sync",
		"--host", config.Host, "--port", fmt.Sprint(config.Port), "--username", config.User)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+config.Password, "LC_ALL=C")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, output)
	}
	if err := ownAs(data, primary.server().DataDir()); err != nil {
		return err
	}
	if d.smallWAL {
		if err := s.giveSmallDisk(data); err != nil {
			return err
		}
	}
	return s.start(ctx)
}

// ownAs gives everything in dir to the owner of like, which is who runs the server: root may not.
func ownAs(dir, like string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

// awaitReplication waits until a standby streams in that state.
func awaitReplication(ctx context.Context, primary *databaseServer, state string) error {
	ctx, cancel := context.WithTimeout(ctx, standbyPatience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		streams, err := replicates(ctx, primary, state)
		if streams {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("no standby is %s: %w", state, ctx.Err()), err)
		}
	}
}

func replicates(ctx context.Context, primary *databaseServer, state string) (streams bool, err error) {
	conn, err := pgx.Connect(ctx, primary.url("postgres"))
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, `select exists(select from pg_stat_replication
		where application_name = 'walreceiver' and state = 'streaming' and sync_state = $1)`, state).Scan(&streams)
	return streams, err
}

// discard stops a server for good and removes its data, but not its log.
func (s *databaseServer) discard() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return errors.Join(s.stop(ctx), os.RemoveAll(filepath.Join(s.dir, "data")))
}

// failOver kills the primary, as a machine dies, and returns what makes the standby take its place. A standby that replaces it in
// turn is made after that, in the background.
func (m *machine) failOver(ctx context.Context) (func(context.Context) error, error) {
	d := m.database
	if err := d.awaitStandby(ctx); err != nil {
		return nil, err
	}
	old := d.now()
	return func(ctx context.Context) error {
		d.mu.Lock()
		next := d.standby
		d.primary, d.standby = next, nil
		d.mu.Unlock()
		if err := next.execute(ctx, "select pg_promote(true, 60)"); err != nil {
			return fmt.Errorf("promote the standby: %w", err)
		}
		if err := m.network.lead(old.address(), next.address()); err != nil {
			return err
		}
		if err := old.discard(); err != nil {
			return err
		}
		d.makeStandby()
		return nil
	}, old.crash(syscall.SIGQUIT)
}
