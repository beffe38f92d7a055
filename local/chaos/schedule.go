package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Fault is one thing that is broken, and when. Times are since the load began.
type Fault struct {
	At     time.Duration
	For    time.Duration // until it is mended again
	Kind   string
	Target string
	// Beside: it begins while the one before it lasts, and breaks something else.
	Beside bool
}

func (f Fault) String() string { return f.Kind + " " + f.Target }

// kind is a way to break something: what it can happen to, and how long it may last.
type kind struct {
	name        string
	targets     []string
	least, most time.Duration
	about       string
	// aside: it touches receivers only, so it is no excuse for an attempt that was made twice.
	aside bool
}

// The processes and what they are connected to.
var (
	apis      = []string{"api-1", "api-2"}
	workers   = []string{"worker-1", "worker-2"}
	processes = slices.Concat(apis, workers, []string{temporalName})
	links     = []string{
		"api-1:postgres", "api-2:postgres", "worker-1:postgres", "worker-2:postgres", "worker-1:temporal", "worker-2:temporal",
	}
)

const (
	temporalName  = "temporal"
	postgresName  = "postgres"
	unsteadyLink  = "workers:receiver"
	everyLink     = "all:postgres"
	everyTemporal = "all:temporal"
	// temporalDatabaseLink is no target: Temporal isn't what is tested. It is there to be led to another server.
	temporalDatabaseLink = "temporal:database"
)

// kinds are all faults.
var kinds = []kind{
	{name: "kill", targets: append(slices.Clone(processes), postgresName), least: time.Second, most: 4 * time.Second,
		about: "kill -9; the process starts again when the fault is over"},
	{name: "kill-all", targets: []string{"workers", "apis", "kapsel"}, least: time.Second, most: 4 * time.Second,
		about: "kill -9 of several processes at once"},
	{name: "pause", targets: processes, least: 2 * time.Second, most: 15 * time.Second,
		about: "SIGSTOP, then SIGCONT; a worker that is stopped for more than 10 s loses its lease"},
	{name: "postgres", targets: []string{"immediate", "backend"}, least: time.Second, most: 6 * time.Second,
		about: "an immediate shutdown, or kill -9 of one backend, which makes the server start over"},
	{name: "failover", targets: []string{postgresName}, least: time.Second, most: 4 * time.Second,
		about: "the primary is killed; when the fault is over its synchronous standby is promoted, and all are led there"},
	{name: "clock", targets: []string{"forward", "back"}, least: 3 * time.Second, most: 10 * time.Second,
		about: "the clock of Postgres jumps by 2 min, and back; needs libfaketime"},
	{name: "sessions", targets: []string{"kapsel"}, least: 2 * time.Second, most: 5 * time.Second,
		about: "pg_terminate_backend of all connections, again and again"},
	{name: "lock", targets: []string{"delivery_queue", "deliveries", "log_heads"}, least: 3 * time.Second, most: 30 * time.Second,
		about: "a lock on a table, so that statements wait; after 25 s they are cancelled by their timeout"},
	{name: "away", targets: []string{temporalName, postgresName}, least: 15 * time.Second, most: 40 * time.Second,
		about: "gone for longer"},
	{name: "cut", targets: slices.Concat(links, []string{everyLink, everyTemporal, unsteadyLink}), least: 2 * time.Second, most: 12 * time.Second,
		about: "connections are closed and new ones refused"},
	{name: "silence", targets: slices.Concat(links, []string{everyLink, everyTemporal, unsteadyLink}), least: 3 * time.Second, most: 15 * time.Second,
		about: "what is sent is swallowed and nothing answered; nobody is told"},
	{name: "latency", targets: slices.Concat(links, []string{everyLink}), least: 3 * time.Second, most: 12 * time.Second,
		about: "50 to 350 ms each way"},
	{name: "receiver", targets: receiverModes, least: 3 * time.Second, most: 10 * time.Second, aside: true,
		about: "one receiver hangs, resets, trickles, answers garbage, after the timeout, cut off, or 500"},
	{name: "rollout", targets: []string{"workers", "apis", "kapsel"}, least: time.Second, most: time.Second,
		about: "SIGTERM, wait for status 0, start: one process after the other"},
	{name: "deploy", targets: []string{"workers"}, least: 8 * time.Second, most: 12 * time.Second,
		about: "the workers are replaced one by one by a release whose workflows decide otherwise, and then back"},
	{name: "signer", targets: []string{"key", "high-water"}, least: 5 * time.Second, most: 15 * time.Second,
		about: "the workers restart and find no signing key, or no high-water record"},
	{name: "disk-full", targets: []string{"wal"}, least: 4 * time.Second, most: 8 * time.Second,
		about: "no space is left for Postgres's WAL; the server stops, and starts again when there is"},
}

// Kinds lists the faults with what they do, for the command's help.
func Kinds() string {
	var b strings.Builder
	for _, k := range kinds {
		_, _ = fmt.Fprintf(&b, "  %-10s %s\n", k.name, k.about)
	}
	return b.String()
}

func kindNamed(name string) *kind {
	for i := range kinds {
		if kinds[i].name == name {
			return &kinds[i]
		}
	}
	return nil
}

// choose returns the kinds with these names, all for none, without those that can't be had here.
func choose(names []string, without map[string]string) ([]kind, error) {
	for _, name := range names {
		if kindNamed(name) == nil {
			return nil, fmt.Errorf("there is no fault %q; allowed are %s", name, strings.Join(kindNames(), ", "))
		}
	}
	var chosen []kind
	for _, k := range kinds {
		if _, missing := without[k.name]; !missing && (len(names) == 0 || slices.Contains(names, k.name)) {
			chosen = append(chosen, k)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("none of the faults %s can be had on this machine", strings.Join(names, ", "))
	}
	return chosen, nil
}

func kindNames() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// plan lays out faults one after the other, about pause apart, so that each recovery can be told from the next fault; of a share of
// them (together) two at once, where they break different things. Kinds come in rounds, each in another order, and so do the targets of
// a kind: a short run has as many kinds as it has room for. The same seed, length, pause, share and kinds give the same plan.
func plan(seed uint64, length, pause time.Duration, together float64, kinds []kind) []Fault {
	random := rand.New(rand.NewPCG(seed, 0))
	rounds := newBag(random, len(kinds))
	targets := make([]*bag, len(kinds))
	for i, k := range kinds {
		targets[i] = newBag(random, len(k.targets))
	}
	draw := func(at time.Duration) Fault {
		i := rounds.next()
		k := kinds[i]
		return Fault{At: at, Kind: k.name, Target: k.targets[targets[i].next()], For: between(random, k.least, k.most)}
	}
	var faults []Fault
	at := pause
	for {
		f := draw(at)
		end := f.At + f.For
		if end > length {
			return faults
		}
		faults = append(faults, f)
		if random.Float64() < together {
			next := draw(f.At + between(random, 0, f.For/2))
			if next.Beside = f.apart(next); !next.Beside { // then it comes after it
				next.At = end + between(random, pause/2, pause+pause/2)
			}
			if next.At+next.For > length {
				return faults
			}
			faults, end = append(faults, next), max(end, next.At+next.For)
		}
		at = end + between(random, pause/2, pause+pause/2)
	}
}

// apart says whether two faults break different things, so that each can be made and mended whatever the other does.
func (f Fault) apart(other Fault) bool {
	touched := f.touches()
	return f.Kind != other.Kind && !slices.ContainsFunc(other.touches(), func(part string) bool { return slices.Contains(touched, part) })
}

// touches lists the parts that a fault breaks.
func (f Fault) touches() []string {
	switch f.Kind {
	case "signer":
		return workers
	case "postgres", "clock", "sessions", "lock", "disk-full":
		return []string{postgresName}
	case "receiver":
		return []string{unsteadyLink}
	case "cut", "silence", "latency":
		if end, all := strings.CutPrefix(f.Target, "all"); all {
			return slices.DeleteFunc(slices.Clone(links), func(link string) bool { return !strings.HasSuffix(link, end) })
		}
	}
	return members(f.Target)
}

func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return (least + time.Duration(random.Int64N(int64(most-least)+1))).Round(time.Millisecond)
}

// bag gives out 0 to n-1 in rounds, each of them once a round.
type bag struct {
	random *rand.Rand
	n      int
	left   []int
}

func newBag(random *rand.Rand, n int) *bag { return &bag{random: random, n: n} }

func (b *bag) next() int {
	if len(b.left) == 0 {
		b.left = b.random.Perm(b.n)
	}
	i := b.left[0]
	b.left = b.left[1:]
	return i
}
