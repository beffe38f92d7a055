package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/local/freeport"
	"github.com/kapsel-io/kapsel/local/temporal"
)

// machine is everything that runs and can be broken.
type machine struct {
	config    Config
	network   *network
	database  *database
	receivers *receivers
	processes map[string]*process
	binary    string // kapsel
	environ   []string
	urls      []string // of the apis
	made      made
	// What the faults that are to come need: a standby, a small disk for the WAL, two more releases, a clock for Postgres.
	failovers, smallWAL, deploys, jumps bool
	// broken is told of what must not happen, while it happens.
	broken func(promise, format string, args ...any)
}

// made is what an operator's first steps print.
type made struct {
	LogID     string `json:"log_id"`
	Origin    string `json:"origin"`
	PublicKey string `json:"public_key"`
	VKey      string `json:"vkey"`
	TenantID  string `json:"tenant_id"`
	APIKey    string `json:"api_key"`
}

func (m *machine) keyDir() string       { return filepath.Join(m.config.Dir, "keys") }
func (m *machine) highWaterDir() string { return filepath.Join(m.config.Dir, "high-water") }

// start brings everything up in the order in which an operator would.
func (m *machine) start(ctx context.Context) error {
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"kapsel is built", m.build},
		{"Postgres", m.startPostgres},
		{"Temporal", m.startTemporal},
		{"schema, log, tenant", m.prepare},
		{"workers and apis", m.startKapsel},
	} {
		began := time.Now()
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		m.say("%-20s %5.1f s", step.name, time.Since(began).Seconds())
	}
	return nil
}

func (m *machine) say(format string, args ...any) {
	_, _ = fmt.Fprintf(m.config.Progress, format+"\n", args...)
}

func (m *machine) build(ctx context.Context) error {
	m.binary = filepath.Join(m.config.Dir, "kapsel")
	if m.deploys {
		if err := m.buildReleases(ctx); err != nil {
			return err
		}
	}
	return build(ctx, m.binary)
}

func build(ctx context.Context, binary string, flags ...string) error {
	args := slices.Concat([]string{"build", "-o", binary}, flags, []string{"github.com/kapsel-io/kapsel/cmd/kapsel"})
	output, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}

func (m *machine) startPostgres(ctx context.Context) error {
	var clock *clock
	var err error
	if m.jumps {
		if clock, err = newClock(m.config.Dir); err != nil {
			return err
		}
	}
	if m.database, err = startDatabase(ctx, filepath.Join(m.config.Dir, "postgres"), m.smallWAL, clock); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, m.database.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err = conn.Exec(ctx, "create database kapsel"); err != nil {
		return err
	}
	if m.failovers {
		m.database.makeStandby()
	}
	return nil
}

func (m *machine) startTemporal(context.Context) error {
	port, err := freeport.Find()
	if err != nil {
		return err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	database, err := m.databaseThrough(temporalDatabaseLink)
	if err != nil {
		return err
	}
	p, err := newProcess(m.config.Dir, temporalName, temporalStarted, append(m.config.Temporal, strconv.Itoa(port)),
		append(m.config.TemporalEnv, temporalDatabase+"="+database), m.ended)
	if err != nil {
		return err
	}
	m.processes[temporalName] = p
	for _, worker := range workers {
		if _, err := m.network.link(worker+":temporal", address); err != nil {
			return err
		}
	}
	return p.run()
}

// databaseThrough makes a proxy to Postgres and returns the URL that leads through it, also after a failover.
func (m *machine) databaseThrough(link string) (string, error) {
	address := m.database.now().address()
	through, err := m.network.link(link, address)
	return strings.Replace(m.database.url("kapsel"), address, through, 1), err
}

// prepare takes an operator's first steps with the production binary.
func (m *machine) prepare(ctx context.Context) error {
	m.environ = []string{
		"TEMPORAL_NAMESPACE=" + temporal.Namespace, "ALLOW_NETWORKS=127.0.0.0/8",
		"LOG_KEY_DIR=" + m.keyDir(), "LOG_HIGH_WATER_DIR=" + m.highWaterDir(),
	}
	if err := m.do(ctx, nil, "migrate", "--json"); err != nil {
		return err
	}
	if err := m.do(ctx, &m.made, "log", "init", "--host", "localhost", "--json"); err != nil {
		return err
	}
	return m.do(ctx, &m.made, "tenant", "create", "--name", "Chaos", "--json")
}

// do runs a command of kapsel to its end and reads the JSON that it prints.
func (m *machine) do(ctx context.Context, into any, args ...string) error {
	cmd := exec.CommandContext(ctx, m.binary, args...)
	cmd.Env = slices.Concat(os.Environ(), m.environ, []string{"DATABASE_URL=" + m.database.url("kapsel")})
	output, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("kapsel %s: %w", strings.Join(args, " "), err)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(output, into)
}

func (m *machine) startKapsel(context.Context) error {
	for _, name := range slices.Concat(workers, apis) {
		database, err := m.databaseThrough(name + ":postgres")
		if err != nil {
			return err
		}
		command, _, _ := strings.Cut(name, "-")
		env := append(slices.Clone(m.environ), "DATABASE_URL="+database)
		if command == "worker" {
			env = append(env, "TEMPORAL_ADDRESS="+m.network.proxies[name+":temporal"].Listen)
		} else {
			port, err := freeport.Find()
			if err != nil {
				return err
			}
			address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
			env = append(env, "LISTEN_ADDR="+address)
			m.urls = append(m.urls, "http://"+address)
		}
		p, err := newProcess(m.config.Dir, name, `"`+command+` started"`, []string{m.binary, command}, env, m.ended)
		if err != nil {
			return err
		}
		m.processes[name] = p
		if err := p.run(); err != nil {
			return err
		}
	}
	return nil
}

// ended is called when a process ends although nobody asked it to. Nothing that Kapsel depends on may do that to it; to go on
// with the run it is started again, as a supervisor would. Temporal may end if Postgres is away while it starts: it isn't what is tested.
func (m *machine) ended(p *process, err error) {
	if p.name == temporalName {
		m.say("%s ended: %v; it is started again", p.name, err)
	} else {
		m.broken(promiseStays, "%s ended: %v; see %s", p.name, err, p.output.Name())
	}
	<-time.After(time.Second)
	if _, err := p.start(); err != nil {
		m.broken(promiseStays, "%s could not be started again: %v", p.name, err)
	}
}

// connect opens a pool that goes past all proxies, as the superuser.
func (m *machine) connect(ctx context.Context) (*pgxpool.Pool, error) {
	return pgxpool.New(ctx, m.database.url("kapsel"))
}

// stop ends everything, whatever state it is in.
func (m *machine) stop() error {
	var errs []error
	for _, name := range append(append([]string{}, apis...), append(workers, temporalName)...) {
		if p := m.processes[name]; p != nil {
			errs = append(errs, p.kill(), p.output.Close())
		}
	}
	m.network.stop()
	if m.receivers != nil {
		m.receivers.stop()
	}
	if m.database != nil {
		errs = append(errs, m.database.stop())
	}
	return errors.Join(errs...)
}
