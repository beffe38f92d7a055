package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/id"
)

// Config says how long to break what.
type Config struct {
	// Dir is an empty directory that Postgres's user can pass through. It gets all data, keys and logs.
	Dir string
	// Duration is how long webhooks are sent and faults made.
	Duration time.Duration
	// Seed decides which faults are made and when.
	Seed uint64
	// Pause is about how long nothing is broken between two faults.
	Pause time.Duration
	// Together is the share of the faults during which a second one is made, 0 to 1.
	Together float64
	// Rate is how many webhooks are sent a second.
	Rate int
	// Settle is how long what is under way may take to end after that. The slowest to notice that something was lost is the sweeper,
	// which looks 5 min after it was due.
	Settle time.Duration
	// Kinds are the names of the faults to make. Default: all that this machine can make.
	Kinds []string
	// Temporal is a command line that runs [ServeTemporal], to which the port is appended; TemporalEnv goes into its environment.
	Temporal, TemporalEnv []string
	// Progress gets a line for each fault and one every 10 s.
	Progress io.Writer
}

// sayEvery is how often a line says how it goes.
const sayEvery = 10 * time.Second

// run is one run.
type run struct {
	config  Config
	machine *machine
	ledger  *ledger
	load    *load
	heads   *heads
	start   time.Time
	faults  []happened
	report  *Report

	mu sync.Mutex // of report.Violations
}

// Run breaks everything as the seed says and returns what it has found. An error means that it could not be found out.
func Run(ctx context.Context, config Config) (*Report, error) {
	r := &run{config: config, ledger: newLedger(), report: &Report{Seed: config.Seed, Dir: config.Dir, Seconds: config.Duration.Seconds(), Violations: []Violation{}}}
	without := map[string]string{}
	if why := smallDiskRefused(config.Dir); why != "" {
		without["disk-full"] = why
	}
	if why := clockRefused(); why != "" {
		without["clock"] = why
	}
	if why := failoverRefused(); why != "" {
		without["failover"] = why
	}
	kinds, err := choose(config.Kinds, without)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(without)) {
		r.report.Left = append(r.report.Left, name+": "+without[name])
	}
	faults := plan(config.Seed, config.Duration-config.Pause, config.Pause, config.Together, kinds)
	r.report.Planned = len(faults)
	return r.report, r.run(ctx, faults)
}

// has says whether a kind of fault is among them.
func has(faults []Fault, kind string) bool {
	return slices.ContainsFunc(faults, func(f Fault) bool { return f.Kind == kind })
}

func (r *run) broken(promise, format string, args ...any) {
	v := Violation{promise, fmt.Sprintf(format, args...)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Violations = append(r.report.Violations, v)
	_, _ = fmt.Fprintf(r.config.Progress, "BROKEN: %s: %s\n", v.Promise, v.What)
}

// run is the whole story: start, break, settle, read back.
func (r *run) run(ctx context.Context, faults []Fault) (err error) {
	r.machine = &machine{config: r.config, network: newNetwork(), processes: map[string]*process{}, broken: r.broken,
		failovers: has(faults, "failover"), smallWAL: has(faults, "disk-full"), deploys: has(faults, "deploy"), jumps: has(faults, "clock")}
	defer func() { err = errors.Join(err, r.machine.stop()) }()
	if r.machine.receivers, err = startReceivers(r.ledger, r.machine.network); err != nil {
		return err
	}
	if err := r.machine.start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	r.load = newLoad(r.machine, r.ledger)
	if err := r.load.prepare(ctx); err != nil {
		return err
	}
	if r.heads, err = newHeads(r.machine); err != nil {
		return err
	}
	stopHeads := inBackground(ctx, r.heads.run)
	defer stopHeads()
	if err := r.breakThings(ctx, faults); err != nil {
		return err
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	stopHeads()
	return r.readBack(ctx)
}

// inBackground runs f until the returned function is called, which waits for it.
func inBackground(ctx context.Context, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { f(ctx) })
	return func() {
		cancel()
		done.Wait()
	}
}

// breakThings makes the faults while the load runs. One that takes longer to mend than it was to last (Postgres recovers, a
// process drains) moves the ones after it, and those that have no room any more are left out.
func (r *run) breakThings(ctx context.Context, faults []Fault) error {
	r.start = time.Now()
	whole, abandon := context.WithCancel(ctx)
	defer abandon()
	loading, cancel := context.WithTimeout(whole, r.config.Duration)
	defer cancel()
	stopLoad := inBackground(loading, func(loading context.Context) { r.load.run(loading, whole, r.config.Rate) })
	defer stopLoad()
	defer inBackground(loading, r.tell)()
	var room time.Duration // when what was mended last has had its pause
	for len(faults) > 0 {
		n := 1
		for n < len(faults) && faults[n].Beside {
			n++
		}
		together := slices.Clone(faults[:n])
		faults = faults[n:]
		late := max(room-together[0].At, 0)
		end := time.Duration(0)
		for i := range together {
			together[i].At += late
			end = max(end, together[i].At+together[i].For)
		}
		if end > r.config.Duration-r.config.Pause {
			break
		}
		if err := r.makeTogether(ctx, together); err != nil {
			abandon() // what is broken stays so, and nobody would be answered
			return err
		}
		room = time.Since(r.start) + r.config.Pause/2
	}
	<-loading.Done()
	return ctx.Err()
}

// makeTogether makes faults that overlap, each at its time, and returns when all are mended.
func (r *run) makeTogether(ctx context.Context, faults []Fault) error {
	made, errs := make([]happened, len(faults)), make([]error, len(faults))
	var making sync.WaitGroup
	for i, f := range faults {
		making.Go(func() {
			select {
			case <-time.After(f.At - time.Since(r.start)):
				made[i], errs[i] = r.make(ctx, f)
			case <-ctx.Done():
				errs[i] = ctx.Err()
			}
			if errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", f, errs[i])
			}
		})
	}
	making.Wait()
	for _, h := range made {
		if !h.began.IsZero() {
			r.faults = append(r.faults, h)
		}
	}
	return errors.Join(errs...)
}

// make makes one fault and mends it, also if the run is stopped meanwhile.
func (r *run) make(ctx context.Context, f Fault) (h happened, err error) {
	h = happened{Fault: f, began: time.Now()}
	with := ""
	if f.Beside {
		with = " beside it"
	}
	r.machine.say("%6.1f s  %s, %.1f s%s", time.Since(r.start).Seconds(), f, f.For.Seconds(), with)
	mend, err := r.machine.inject(ctx, f)
	if err == nil {
		select {
		case <-time.After(time.Until(h.began.Add(f.For))):
		case <-ctx.Done():
		}
	}
	if mend != nil {
		mending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		err = errors.Join(err, mend(mending))
	}
	h.mended = time.Now()
	return h, err
}

// tell says how it goes until ctx ends.
func (r *run) tell(ctx context.Context) {
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			accepted, arrived, refused := r.ledger.figures()
			_, _ = fmt.Fprintf(r.config.Progress, "%6.1f s  accepted %d, arrived %d, given up %d\n", time.Since(r.start).Seconds(), accepted, arrived, refused)
		}
	}
}

func (r *run) settle(ctx context.Context) error {
	began := time.Now()
	r.machine.say("the faults are over; what is under way may take %s to end", r.config.Settle)
	db, err := r.machine.connect(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	left, err := settle(ctx, db, r.config.Settle, r.machine.say)
	if err != nil {
		return fmt.Errorf("wait until all is over: %w", err)
	}
	if left != "" {
		r.broken(promiseSettles, "after %s: %s", r.config.Settle, left)
	}
	r.report.SettledSeconds = seconds(time.Since(began))
	return nil
}

// readBack compares what is stored with what was seen.
func (r *run) readBack(ctx context.Context) error {
	r.machine.say("reading everything back")
	db, err := r.machine.connect(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	stored, err := readRecord(ctx, db)
	if err != nil {
		return err
	}
	for i, h := range r.faults {
		_, caughtUp := r.ledger.recovery(h.mended)
		r.faults[i].caughtUp = h.mended.Add(max(caughtUp, 0))
	}
	j := judgement{
		ledger: r.ledger, record: stored, faults: r.faults, seen: r.heads.seen, expected: map[uuid.UUID]string{}, perEvent: map[string]int{},
	}
	if err := r.expect(&j); err != nil {
		return err
	}
	j.judge()
	for _, v := range j.violations {
		r.broken(v.Promise, "%s", v.What)
	}
	if r.heads.checks == 0 {
		r.broken(promiseMonitor, "it compared no two heads (%d checks found nothing out)", r.heads.failed)
	}
	if err := r.machine.do(ctx, nil, "log", "fsck", "--json", "--vkey", r.machine.made.VKey); err != nil {
		r.broken(promiseFsck, "%v", err)
	}
	if r.report.ChangedWorkflows, err = r.machine.checkWorkflows(ctx); err != nil {
		return fmt.Errorf("look for workflows that are stuck: %w", err)
	}
	r.fill(&j)
	return nil
}

// expect tells what each destination is.
func (r *run) expect(j *judgement) error {
	for _, e := range r.load.endpoints {
		j.perEvent[e.ID] = len(e.Destinations)
		for _, d := range e.Destinations {
			destination, err := id.Destination.Parse(d.ID)
			if err != nil {
				return err
			}
			u, err := url.Parse(d.URL)
			if err != nil {
				return err
			}
			j.expected[destination] = u.Path
		}
	}
	return nil
}

func (r *run) fill(j *judgement) {
	report, l := r.report, r.ledger
	report.addFaults(r.start, r.faults, l)
	report.Accepted, report.Refused, report.Skipped, report.AnsweredAgain, report.Answers = len(l.accepted), l.refused, l.skipped, l.again, l.answers
	report.Events, report.Attempts, report.Heads, report.HeadChecks = len(j.record.events), len(j.record.attempts), len(r.heads.seen), r.heads.checks
	report.LongestWithoutHead = seconds(r.heads.longest)
	report.Duplicates, report.LostStarts = j.duplicates, j.lostStarts
	report.Deliveries = map[string]int{}
	for _, d := range j.record.deliveries {
		report.Deliveries[d.state]++
	}
	for _, a := range j.record.attempts {
		report.Leaves += len(a.leaves)
	}
	for event := range l.accepted {
		if j.record.events[event] == nil {
			report.Lost++
		}
	}
}

// NewDir makes a directory for a run that Postgres's user can pass through.
func NewDir() (string, error) {
	dir, err := os.MkdirTemp("", "kapsel-chaos-*")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}
