package chaos

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/id"
)

// What must be true, whatever breaks.
const (
	promiseAccepted   = "Every webhook that got its 200 is stored once, byte for byte, with all its deliveries"
	promiseEnds       = "Every delivery ends once, with one terminal leaf"
	promiseExpected   = "A receiver that works gets everything"
	promiseSeen       = "Every request that a receiver saw is an attempt, or counted by its leaf (lost_starts)"
	promiseTrue       = "Every answer that was recorded was given"
	promiseBytes      = "Every request has the bytes that were accepted"
	promiseLeaf       = "Every attempt is in the log once, in the chain of its delivery"
	promiseOrder      = "What is to be in order is delivered in order"
	promiseExplained  = "Nothing is sent twice without a fault"
	promiseRoots      = "No size has two roots"
	promiseMonitor    = "A monitor sees one log that only grows"
	promiseFsck       = "kapsel log fsck finds no fault"
	promiseSettles    = "When the faults are over, everything ends by itself"
	promiseStays      = "No process ends by itself"
	promiseStops      = "SIGTERM ends every process in order"
	promiseRefusal    = "What can't be accepted now is refused with 503 or 429, and with Retry-After"
	promiseReplay     = "No workflow is stuck, and none is replayed to other decisions"
	promiseHarness    = "The harness works"
	promiseDeadLetter = "No leaf is set aside"
)

// Violation is a promise that was broken, and where.
type Violation struct {
	Promise string `json:"promise"`
	What    string `json:"what"`
}

// happened is a fault that was made, with its real times.
type happened struct {
	Fault
	began, mended time.Time
	// caughtUp is when all that had been accepted before it was over had arrived. A machine that is busy with that lets tasks time out.
	caughtUp time.Time
}

// explains says how long after a fault its effects may still be seen: claims and leases of 10 s, a heartbeat of 8 s, timeouts of
// 25 s, and what they were in the middle of.
const explains = time.Minute

// judgement holds what is stored against what was seen.
type judgement struct {
	ledger     *ledger
	record     *record
	faults     []happened
	seen       map[int64][]byte     // roots that the log showed
	expected   map[uuid.UUID]string // path by destination
	perEvent   map[string]int       // destinations by endpoint
	violations []Violation

	lostStarts, duplicates int
}

func (j *judgement) broken(promise, format string, args ...any) {
	j.violations = append(j.violations, Violation{promise, fmt.Sprintf(format, args...)})
}

// judge checks everything that can be checked without the processes.
func (j *judgement) judge() {
	j.ledger.mu.Lock()
	defer j.ledger.mu.Unlock()
	j.checkAccepted()
	j.checkDeliveries()
	j.checkAttempts()
	j.checkRequests()
	j.checkOrder()
	j.checkRoots()
}

func (j *judgement) checkAccepted() {
	keys := map[string]uuid.UUID{}
	for event, stored := range j.record.events {
		if other, twice := keys[stored.key]; twice && stored.key != "" {
			j.broken(promiseAccepted, "%s and %s are the same webhook", id.Event.Format(event), id.Event.Format(other))
		}
		keys[stored.key] = event
	}
	for event, a := range j.ledger.accepted {
		stored := j.record.events[event]
		switch {
		case stored == nil:
			j.broken(promiseAccepted, "%s was accepted at %s and is not there", id.Event.Format(event), a.answer.Format(time.RFC3339Nano))
		case stored.body != a.body:
			j.broken(promiseAccepted, "%s has another body than the one that was accepted", id.Event.Format(event))
		case len(stored.deliveries) != j.perEvent[a.endpoint]:
			j.broken(promiseAccepted, "%s has %d deliveries, its endpoint %d destinations", id.Event.Format(event), len(stored.deliveries), j.perEvent[a.endpoint])
		}
	}
}

// wanted are the states that deliveries to a path may end in; the unsteady receiver's may end in any.
var wanted = map[string]string{pathHealthy: "delivered", pathFlaky: "delivered", pathRefusing: "dead"}

func (j *judgement) checkDeliveries() {
	for delivery, d := range j.record.deliveries {
		name := id.Delivery.Format(delivery)
		if d.state == "pending" {
			j.broken(promiseEnds, "%s is still pending", name)
			continue
		}
		terminal := 0
		for _, a := range d.attempts {
			if a.terminal() {
				terminal++
			}
		}
		if terminal != 1 {
			j.broken(promiseEnds, "%s is %s and has %d terminal leaves", name, d.state, terminal)
		}
		if want := wanted[j.expected[d.destination]]; want != "" && d.state != want {
			j.broken(promiseExpected, "%s to %s is %s", name, j.expected[d.destination], d.state)
		}
		j.checkChain(name, d)
	}
}

// checkChain follows the leaves of a delivery by their numbers.
func (j *judgement) checkChain(name string, d *storedDelivery) {
	var chain []storedLeaf
	for _, a := range d.attempts {
		chain = append(chain, a.leaves...)
	}
	slices.SortFunc(chain, func(a, b storedLeaf) int { return cmp.Compare(a.seq, b.seq) })
	previous := ""
	for i, leaf := range chain {
		if leaf.seq != int64(i+1) || leaf.previous != previous {
			j.broken(promiseLeaf, "the chain of %s breaks at leaf %d (number %d)", name, leaf.index, leaf.seq)
			return
		}
		previous = hex.EncodeToString(leaf.hash)
	}
}

func (j *judgement) checkAttempts() {
	for attempt, a := range j.record.attempts {
		name := id.Attempt.Format(attempt)
		switch {
		case j.record.deliveries[a.delivery] == nil:
			j.broken(promiseLeaf, "%s belongs to no delivery", name)
		case len(a.leaves) != 1:
			j.broken(promiseLeaf, "%s of %s is in the log %d times", name, id.Delivery.Format(a.delivery), len(a.leaves))
		case !bytes.Equal(a.leaves[0].hash, a.leafHash) || !bytes.Equal(a.leaves[0].attemptHash, a.leafHash):
			j.broken(promiseLeaf, "leaf %d is not the one that %s was recorded with", a.leaves[0].index, name)
		default:
			j.lostStarts += int(a.leaves[0].lost)
		}
		if a.kind == "attempt" && a.status != 0 && !j.sawAttempt(a) {
			j.broken(promiseTrue, "%s of %s has status %d, and its receiver never saw it", name, id.Delivery.Format(a.delivery), a.status)
		}
	}
	for _, stray := range j.record.strays {
		j.broken(promiseLeaf, "%s", stray)
	}
	for _, attempt := range j.record.deadLetter {
		j.broken(promiseDeadLetter, "%s", id.Attempt.Format(attempt))
	}
}

func (j *judgement) sawAttempt(a *storedAttempt) bool {
	return slices.ContainsFunc(j.ledger.requests[a.delivery], func(r request) bool { return r.attempt == a.number })
}

// allowed is how many requests of each attempt of a delivery its leaves admit: one for an attempt that was recorded, and those whose
// outcome was lost. A decision that ends a delivery counts the lost ones of the attempt that never was recorded.
func (d *storedDelivery) allowed() map[int]int {
	allowed := map[int]int{}
	last := 0
	for _, a := range d.attempts {
		if a.kind == "attempt" {
			allowed[a.number]++
			last = max(last, a.number)
			for _, leaf := range a.leaves {
				allowed[a.number] += int(leaf.lost)
			}
		}
	}
	for _, a := range d.attempts {
		if a.kind != "attempt" {
			for _, leaf := range a.leaves {
				allowed[last+1] += int(leaf.lost)
			}
		}
	}
	return allowed
}

func (j *judgement) checkRequests() {
	for delivery, requests := range j.ledger.requests {
		name := id.Delivery.Format(delivery)
		d := j.record.deliveries[delivery]
		if d == nil {
			j.broken(promiseSeen, "a receiver saw %s, which is not there", name)
			continue
		}
		event := j.record.events[d.event]
		byAttempt := map[int][]request{}
		for _, r := range requests {
			byAttempt[r.attempt] = append(byAttempt[r.attempt], r)
			if event == nil || r.event != d.event || r.body != event.body {
				j.broken(promiseBytes, "attempt %d of %s", r.attempt, name)
			}
		}
		allowed := d.allowed()
		for attempt, seen := range byAttempt {
			if len(seen) > allowed[attempt] {
				j.broken(promiseSeen, "%s: attempt %d was seen %d times, its leaves admit %d", name, attempt, len(seen), allowed[attempt])
			}
			for _, again := range seen[1:] {
				j.duplicates++
				if !j.excused(again.at) {
					j.broken(promiseExplained, "%s: attempt %d came again at %s", name, attempt, again.at.Format(time.RFC3339Nano))
				}
			}
		}
	}
}

// excused says whether a fault, or what had to be caught up with after it, explains that something was cut off around then.
func (j *judgement) excused(at time.Time) bool {
	return slices.ContainsFunc(j.faults, func(h happened) bool {
		after := explains
		if h.Kind == "clock" { // by which leases and waits are longer, if it jumps back
			after += jump
		}
		return !h.aside() && at.After(h.began) && at.Before(later(h.mended, h.caughtUp).Add(after))
	})
}

// checkOrder holds first arrivals against the promise: in order among requests whose predecessor was answered.
func (j *judgement) checkOrder() {
	byKey := map[string][]uuid.UUID{}
	for event, a := range j.ledger.accepted {
		if _, there := j.ledger.arrived[event]; there && a.order != "" {
			byKey[a.order] = append(byKey[a.order], event)
		}
	}
	for key, events := range byKey {
		answered := slices.Clone(events)
		at := j.ledger.accepted
		slices.SortFunc(events, func(a, b uuid.UUID) int { return at[a].sent.Compare(at[b].sent) })
		slices.SortFunc(answered, func(a, b uuid.UUID) int { return at[a].answer.Compare(at[b].answer) })
		var latest uuid.UUID // of those answered before: the one that arrived last
		for _, event := range events {
			for len(answered) > 0 && at[answered[0]].answer.Before(at[event].sent) {
				if latest == uuid.Nil || j.ledger.arrived[answered[0]].After(j.ledger.arrived[latest]) {
					latest = answered[0]
				}
				answered = answered[1:]
			}
			if latest != uuid.Nil && j.ledger.arrived[event].Before(j.ledger.arrived[latest]) {
				j.broken(promiseOrder, "%s: %s arrived before %s", key, id.Event.Format(event), id.Event.Format(latest))
			}
		}
	}
}

func (j *judgement) checkRoots() {
	for size, roots := range j.record.published {
		for _, root := range roots {
			if !bytes.Equal(root, j.record.roots[size]) {
				j.broken(promiseRoots, "size %d: a signed head says %x, the tree %x", size, root, j.record.roots[size])
			}
		}
	}
	for size, root := range j.seen {
		if !slices.ContainsFunc(j.record.published[size], func(r []byte) bool { return bytes.Equal(r, root) }) {
			j.broken(promiseRoots, "the log showed %x for size %d and doesn't any more", root, size)
		}
	}
}
