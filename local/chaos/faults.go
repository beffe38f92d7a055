package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// inject breaks something and returns what mends it.
func (m *machine) inject(ctx context.Context, f Fault) (mend func(context.Context) error, err error) {
	switch f.Kind {
	case "kill", "kill-all":
		if f.Target == postgresName {
			return m.database.ensure, m.database.now().crash(syscall.SIGKILL)
		}
		return m.kill(members(f.Target))
	case "pause":
		return m.pause(m.processes[f.Target])
	case "postgres":
		return m.crashPostgres(ctx, f.Target)
	case "failover":
		return m.failOver(ctx)
	case "sessions":
		return m.terminateSessions(ctx, f.For)
	case "lock":
		return m.lock(ctx, f.Target)
	case "away":
		if f.Target == temporalName { // it is away until it serves again
			return m.temporalServes, m.processes[temporalName].kill()
		}
		return m.crashPostgres(ctx, "immediate")
	case "cut":
		return withoutContext(m.network.cut(f.Target)), nil
	case "silence":
		mend, err := m.network.silence(f.Target)
		return withoutContext(mend), err
	case "latency":
		mend, err := m.network.slow(f.Target)
		return withoutContext(mend), err
	case "receiver":
		return withoutContext(m.receivers.misbehave(f.Target)), nil
	case "rollout":
		return nothing, m.rollOut(members(f.Target))
	case "deploy":
		return m.deploy()
	case "clock":
		return m.jumpClock(ctx, f.Target)
	case "signer":
		return m.hideSigner(f.Target)
	case "disk-full":
		return m.fillDisk(ctx)
	}
	return nil, fmt.Errorf("nobody knows how to make the fault %q", f.Kind)
}

func nothing(context.Context) error { return nil }

func withoutContext(mend func() error) func(context.Context) error {
	return func(context.Context) error { return mend() }
}

// members are the processes that a target stands for.
func members(target string) []string {
	switch target {
	case "workers":
		return workers
	case "apis":
		return apis
	case "kapsel":
		return append(append([]string{}, apis...), workers...)
	}
	return []string{target}
}

func (m *machine) kill(names []string) (func(context.Context) error, error) {
	var errs []error
	for _, name := range names {
		errs = append(errs, m.processes[name].kill())
	}
	return func(context.Context) error {
		var errs []error
		for _, name := range names {
			_, err := m.processes[name].start()
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}, errors.Join(errs...)
}

// temporalServes starts Temporal and waits until it answers, however often it has to be started.
func (m *machine) temporalServes(ctx context.Context) error {
	if _, err := m.processes[temporalName].start(); err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("tcp", m.network.proxies["worker-1:temporal"].Upstream)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for Temporal: %w", err)
		}
	}
}

func (m *machine) pause(p *process) (func(context.Context) error, error) {
	resume := func(context.Context) error { return p.signal(syscall.SIGCONT) }
	return resume, p.signal(syscall.SIGSTOP)
}

func (m *machine) crashPostgres(ctx context.Context, how string) (func(context.Context) error, error) {
	if how == "immediate" {
		return m.database.ensure, m.database.now().crash(syscall.SIGQUIT)
	}
	return m.database.ensure, m.once(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var pid int
		err := conn.QueryRow(ctx, `select pid from pg_stat_activity where backend_type = 'client backend' and datname = 'kapsel'
			and pid <> pg_backend_pid() order by backend_start limit 1`).Scan(&pid)
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	})
}

// once does something on a connection of its own.
func (m *machine) once(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, m.database.url("kapsel"))
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, conn), conn.Close(ctx))
}

// terminateSessions ends all of Kapsel's connections five times a second.
func (m *machine) terminateSessions(ctx context.Context, during time.Duration) (func(context.Context) error, error) {
	return nothing, m.once(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for over := time.After(during); ; {
			if _, err := conn.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity
				where datname = 'kapsel' and application_name like 'kapsel%'`); err != nil {
				return err
			}
			select {
			case <-tick.C:
			case <-over:
				return nil
			}
		}
	})
}

// lock keeps everybody else away from a table.
func (m *machine) lock(ctx context.Context, table string) (func(context.Context) error, error) {
	conn, err := pgx.Connect(ctx, m.database.url("kapsel"))
	if err != nil {
		return nil, err
	}
	release := func(ctx context.Context) error { return conn.Close(ctx) }
	if _, err = conn.Exec(ctx, "begin"); err == nil {
		_, err = conn.Exec(ctx, "lock table "+pgx.Identifier{table}.Sanitize()+" in access exclusive mode")
	}
	return release, err
}

// rollOut replaces one process after the other, as a deploy does.
func (m *machine) rollOut(names []string) error {
	for _, name := range names {
		p := m.processes[name]
		if err := p.terminate(); errors.Is(err, errNotInOrder) {
			m.broken(promiseStops, "%v", err)
		} else if err != nil {
			return err
		}
		if err := p.run(); err != nil {
			return err
		}
	}
	return nil
}

// hideSigner takes away what the workers sign with, and restarts them, since they may have read it already.
func (m *machine) hideSigner(what string) (func(context.Context) error, error) {
	pattern := filepath.Join(m.keyDir(), "*.seed")
	if what == "high-water" {
		pattern = filepath.Join(m.highWaterDir(), "*.highwater")
	}
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("there is no %s to hide (%w)", pattern, err)
	}
	away := filepath.Join(m.config.Dir, "hidden")
	if err := os.MkdirAll(away, 0o700); err != nil {
		return nil, err
	}
	for _, file := range files {
		if err := os.Rename(file, filepath.Join(away, filepath.Base(file))); err != nil {
			return nil, err
		}
	}
	mend := func(context.Context) error {
		for _, file := range files {
			if _, err := os.Lstat(file); err == nil {
				return fmt.Errorf("%s was made anew while it was away", file)
			}
			if err := os.Rename(filepath.Join(away, filepath.Base(file)), file); err != nil {
				return err
			}
		}
		return nil
	}
	restart, err := m.kill(workers)
	return mend, errors.Join(err, restart(context.Background()))
}

// fillDisk fills the disk of the WAL and has Postgres write on.
func (m *machine) fillDisk(ctx context.Context) (func(context.Context) error, error) {
	disk := m.database.now().disk
	mend := func(ctx context.Context) error {
		return errors.Join(disk.free(), m.database.ensure(ctx))
	}
	if err := disk.fill(); err != nil {
		return mend, err
	}
	// Segments that are there already are written first; this uses them up.
	for range 8 {
		err := m.once(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "select pg_switch_wal(), pg_logical_emit_message(true, 'chaos', repeat('x', 1000))")
			return err
		})
		if err != nil { // it is as full as it was meant to be
			return mend, nil //nolint:nilerr // see above
		}
	}
	return mend, nil
}

// aside says whether a fault touches receivers only.
func (f Fault) aside() bool {
	k := kindNamed(f.Kind)
	return k != nil && k.aside || strings.HasSuffix(f.Target, unsteadyLink)
}
