package chaos

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// bundle is a run in which everything went well: two events of one order, the first of which was delivered at its second
// attempt; and a fault during which a request was made twice.
type bundle struct {
	*judgement
	first, second       uuid.UUID // events
	delivery, unordered uuid.UUID // of first, of second
	start               time.Time
}

const endpointName = "ep_test"

func (b *bundle) at(s float64) time.Time { return b.start.Add(time.Duration(s * float64(time.Second))) }

func setup() *bundle {
	b := &bundle{start: time.Now(), first: uuid.New(), second: uuid.New(), delivery: uuid.New(), unordered: uuid.New()}
	healthy := uuid.New()
	b.judgement = &judgement{
		ledger: newLedger(), seen: map[int64][]byte{3: {3}},
		record: &record{
			events: map[uuid.UUID]*storedEvent{}, deliveries: map[uuid.UUID]*storedDelivery{}, attempts: map[uuid.UUID]*storedAttempt{},
			roots: map[int64][]byte{3: {3}}, published: map[int64][][]byte{3: {{3}}},
		},
		expected: map[uuid.UUID]string{healthy: pathHealthy}, perEvent: map[string]int{endpointName: 1},
	}
	b.accept(b.first, b.delivery, healthy, 0)
	b.accept(b.second, b.unordered, healthy, 4)
	b.attempt(b.delivery, 1, "retry", 503, 0, 1)
	b.attempt(b.delivery, 2, "delivered", 200, 1, 2, 2.5)
	b.attempt(b.unordered, 1, "delivered", 200, 0, 5)
	b.faults = []happened{{Fault: Fault{Kind: "kill", Target: "worker-1"}, began: b.at(2.2), mended: b.at(2.4)}}
	return b
}

func (b *bundle) accept(event, delivery, destination uuid.UUID, second float64) {
	body := sha256.Sum256(event[:])
	b.ledger.accepted[event] = &accepted{endpoint: endpointName, order: "key", body: body, sent: b.at(second), answer: b.at(second + 0.5)}
	b.record.events[event] = &storedEvent{key: event.String(), body: body, deliveries: []uuid.UUID{delivery}}
	b.record.deliveries[delivery] = &storedDelivery{event: event, destination: destination, state: "delivered"}
}

// attempt records one with a leaf, and the requests that a receiver saw of it.
func (b *bundle) attempt(delivery uuid.UUID, number int, outcome string, status int, lost int64, seen ...float64) {
	d := b.record.deliveries[delivery]
	a := &storedAttempt{id: uuid.New(), delivery: delivery, number: number, kind: "attempt", outcome: outcome, status: status}
	sum := sha256.Sum256(a.id[:])
	a.leafHash = sum[:]
	leaf := storedLeaf{index: int64(len(b.record.attempts)), hash: a.leafHash, attemptHash: a.leafHash, seq: int64(len(d.attempts) + 1), lost: lost}
	if len(d.attempts) > 0 {
		leaf.previous = hex.EncodeToString(d.attempts[len(d.attempts)-1].leafHash)
	}
	a.leaves = []storedLeaf{leaf}
	d.attempts = append(d.attempts, a)
	b.record.attempts[a.id] = a
	for _, second := range seen {
		event := b.record.events[d.event]
		b.ledger.arrive(delivery, request{event: d.event, attempt: number, body: event.body, at: b.at(second)}, true)
	}
}

func TestNothingIsFoundWhereNothingIsWrong(t *testing.T) {
	t.Parallel()
	b := setup()
	b.judge()
	require.Empty(t, b.violations)
	require.Equal(t, 1, b.duplicates)
	require.Equal(t, 1, b.lostStarts)
}

// Every promise is found broken if it is, and no other.
func TestEveryBrokenPromiseIsFound(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		promise string
		spoil   func(b *bundle)
	}{
		"an accepted event is gone": {promiseAccepted, func(b *bundle) {
			b.ledger.accepted[uuid.New()] = &accepted{}
		}},
		"another body is stored": {promiseAccepted, func(b *bundle) {
			b.ledger.accepted[b.first].body[0]++
		}},
		"a delivery is missing": {promiseAccepted, func(b *bundle) { b.perEvent[endpointName] = 2 }},
		"one webhook, two events": {promiseAccepted, func(b *bundle) {
			b.record.events[b.second].key = b.record.events[b.first].key
		}},
		"a delivery is pending": {promiseEnds, func(b *bundle) { b.record.deliveries[b.delivery].state = "pending" }},
		"a delivery ends twice": {promiseEnds, func(b *bundle) {
			b.attempt(b.delivery, 3, "delivered", 200, 0, 3)
		}},
		"a healthy receiver got nothing": {promiseExpected, func(b *bundle) { b.record.deliveries[b.delivery].state = "dead" }},
		"an attempt without leaf": {promiseLeaf, func(b *bundle) {
			b.record.deliveries[b.unordered].attempts[0].leaves = nil
		}},
		"an attempt with two leaves": {promiseLeaf, func(b *bundle) {
			a := b.record.deliveries[b.unordered].attempts[0]
			a.leaves = append(a.leaves, storedLeaf{index: 9, hash: a.leafHash, attemptHash: a.leafHash, seq: 2, previous: hex.EncodeToString(a.leafHash)})
		}},
		"another leaf than was recorded": {promiseLeaf, func(b *bundle) {
			b.record.deliveries[b.unordered].attempts[0].leaves[0].attemptHash = bytes.Repeat([]byte{1}, 32)
		}},
		"a broken chain": {promiseLeaf, func(b *bundle) {
			b.record.deliveries[b.delivery].attempts[1].leaves[0].previous = ""
		}},
		"a leaf of nobody":          {promiseLeaf, func(b *bundle) { b.record.strays = []string{"leaf 7"} }},
		"a dead letter":             {promiseDeadLetter, func(b *bundle) { b.record.deadLetter = []uuid.UUID{uuid.New()} }},
		"an answer that nobody saw": {promiseTrue, func(b *bundle) { delete(b.ledger.requests, b.unordered) }},
		"a request that no attempt tells of": {promiseSeen, func(b *bundle) {
			b.record.deliveries[b.delivery].attempts[1].leaves[0].lost = 0
		}},
		"a request of an unknown delivery": {promiseSeen, func(b *bundle) {
			b.ledger.requests[uuid.New()] = []request{{}}
		}},
		"other bytes arrive": {promiseBytes, func(b *bundle) { b.ledger.requests[b.unordered][0].body[0]++ }},
		"twice without a fault": {promiseExplained, func(b *bundle) {
			b.faults[0].Fault = Fault{Kind: "receiver", Target: "hang"}
		}},
		"out of order": {promiseOrder, func(b *bundle) { b.ledger.arrived[b.second] = b.at(0.9) }},
		"two roots":    {promiseRoots, func(b *bundle) { b.record.published[3] = append(b.record.published[3], []byte{4}) }},
		"a head that was shown is gone": {promiseRoots, func(b *bundle) {
			b.seen[2] = []byte{2}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup()
			c.spoil(b)
			b.judge()
			require.NotEmpty(t, b.violations)
			for _, v := range b.violations {
				require.Equal(t, c.promise, v.Promise, v.What)
			}
		})
	}
}

// A fault excuses what is sent twice as long as there is something to catch up with, and a minute more.
func TestABacklogIsExcusedWithItsFault(t *testing.T) {
	t.Parallel()
	b := setup()
	require.False(t, b.excused(b.at(100)))
	b.faults[0].caughtUp = b.at(90)
	require.True(t, b.excused(b.at(149)))
	require.False(t, b.excused(b.at(151)))
}

// The lost starts of an attempt that was never recorded are in the leaf of the decision.
func TestDecisionsCountWhatWasLost(t *testing.T) {
	t.Parallel()
	b := setup()
	d := b.record.deliveries[b.delivery]
	d.attempts = d.attempts[:1]
	d.attempts = append(d.attempts, &storedAttempt{kind: "canceled", leaves: []storedLeaf{{lost: 2}}})
	require.Equal(t, map[int]int{1: 1, 2: 2}, d.allowed())
}

func TestRecoveryIsMeasuredFromTheFault(t *testing.T) {
	t.Parallel()
	b := setup()
	next, caughtUp := b.ledger.recovery(b.at(0.6))
	require.Equal(t, 4400*time.Millisecond, next, "the second was sent later and arrived at 5 s")
	require.Equal(t, 400*time.Millisecond, caughtUp, "the first arrived at 1 s")
	next, caughtUp = b.ledger.recovery(b.at(10))
	require.Negative(t, next)
	require.Zero(t, caughtUp)
	delete(b.ledger.arrived, b.first)
	_, caughtUp = b.ledger.recovery(b.at(2))
	require.Negative(t, caughtUp)
}
