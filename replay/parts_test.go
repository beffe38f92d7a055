package replay_test

import (
	"crypto/ed25519"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/replay"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/workflows"
)

// part is one way in which history, Postgres and log part, and the place that the report must name.
type part struct {
	// attempts changes what was recorded, in Postgres as in the log, as one who holds the log's key could.
	attempts func(recorded []attempt) []attempt
	// account changes what is in Postgres and the log afterwards.
	account func(a *postgres.Account)
	history func(t *testing.T, h *replay.History)
	number  int
	event   int64
	member  string
}

var parts = map[string]part{
	"another outcome":  {account: func(a *postgres.Account) { a.Attempts[1].Outcome = "failed" }, number: 2, member: "outcome"},
	"another state":    {account: func(a *postgres.Account) { a.State = "dead" }, number: -1, member: "state"},
	"a later epoch":    {account: func(a *postgres.Account) { a.Attempts[1].Epoch = 4 }, number: 2, member: "epoch"},
	"a missing row":    {account: func(a *postgres.Account) { a.Attempts = slices.Delete(a.Attempts, 1, 2) }, number: 2},
	"the last missing": {account: func(a *postgres.Account) { a.Attempts = a.Attempts[:2] }, number: 3},
	"an extra row": {account: func(a *postgres.Account) {
		extra := a.Attempts[2]
		extra.ID, extra.Number = id.AttemptOf(a.ID, 4), 4
		a.Attempts = append(a.Attempts, extra)
	}, number: 4},
	"a row elsewhere": {account: func(a *postgres.Account) { a.Attempts[0].ID = id.At(a.ID) }, number: 1, member: "attempt_id"},
	"a chain that ends elsewhere": {account: func(a *postgres.Account) { a.LastLeafHash = make([]byte, 32) }, number: -1,
		member: "last_leaf_hash"},
	"a leaf more": {account: func(a *postgres.Account) { a.Leaves++ }, number: -1, member: "leaves"},
	"wrong order": {account: func(a *postgres.Account) {
		a.Attempts[0].Leaf, a.Attempts[1].Leaf = a.Attempts[1].Leaf, a.Attempts[0].Leaf
	}, number: 1, member: "seq"},
	"a broken chain": {account: func(a *postgres.Account) { a.Attempts[1].LeafHash[0] ^= 1 }, number: 3, member: "previous_leaf_hash"},
	"no leaf": {account: func(a *postgres.Account) { a.Attempts[1].Leaf = postgres.AccountLeaf{} }, number: 2,
		member: "leaf"},
	"a leaf set aside": {account: func(a *postgres.Account) { a.Attempts[1].Leaf.Place = postgres.LeafAside }, number: 2,
		member: "leaf"},
	"a leaf beyond the log": {account: func(a *postgres.Account) { a.Attempts[1].Leaf.Index = 99 }, number: 2, member: "leaf"},
	"a leaf of another":     {account: func(a *postgres.Account) { a.Attempts[1].Leaf.Owner = id.New() }, number: 2, member: "leaf"},
	"another leaf hash": {account: func(a *postgres.Account) { a.Attempts[1].LeafHash = make([]byte, 32) }, number: 2,
		member: "leaf_hash"},
	"one byte of a leaf": {account: func(a *postgres.Account) { a.Attempts[1].Leaf.Bytes[30] ^= 1 }, number: 2, member: "leaf"},
	"a leaf and its hash": {account: func(a *postgres.Account) { // whoever changes all that Postgres holds, but not the tree
		changeLeaf(a, 1, func(l *verify.Leaf) { l.ResponseStatus = 200 })
		a.Attempts[1].ResponseStatus = 200
	}, number: 2, member: "leaf"},
	"another root": {account: func(a *postgres.Account) { a.Signed.RootHash = make([]byte, 32) }, number: -1,
		member: "signed tree head"},
	"a head that somebody else signed": {account: func(a *postgres.Account) {
		_, other, _ := ed25519.GenerateKey(nil)
		a.Signed.Signature = ed25519.Sign(other, verify.STHMessage(uint64(a.Signed.TreeSize), a.Signed.Timestamp, a.Signed.RootHash))
	}, number: -1, member: "signed tree head"},
	"another payload": {account: func(a *postgres.Account) { a.PayloadHash = append([]byte{1}, a.PayloadHash[1:]...) }, number: 1,
		member: "payload_hash"},

	// What is changed in Postgres and in the log alike shows only against the history.
	"recorded as dead": {attempts: func(r []attempt) []attempt {
		r[2].outcome, r[2].status = "failed", 400
		return append(r, attempt{number: 0, kind: "dead", outcome: "rejected", at: r[2].at})
	}, number: 3, event: 24, member: "outcome"},
	"recorded as delivered before": {attempts: func(r []attempt) []attempt {
		r[1].outcome, r[1].status = "delivered", 200
		return r[:2]
	}, number: 2, event: 13, member: "outcome"},
	"one attempt less": {attempts: func(r []attempt) []attempt { return r[:2] }, number: 3, event: 24},
	"one attempt more": {attempts: func(r []attempt) []attempt {
		more := r[2]
		r[2].outcome, r[2].status, more.number = "retry", 503, 4
		return append(r, more)
	}, number: 4},
	"recorded under another epoch": {attempts: func(r []attempt) []attempt {
		r[2].epoch = 1
		return r
	}, number: 3, event: 24, member: "epoch"},
	"a head that is larger than the log": {account: func(a *postgres.Account) { a.Head.TreeSize = 4 }, number: -1,
		member: "signed tree head"},
	"another end after it was delivered": {attempts: func(r []attempt) []attempt {
		return append(r, attempt{number: 0, kind: "canceled", outcome: "requested", at: r[2].at})
	}, number: 0, member: "kind"},
	"an attempt after the last": {attempts: func(r []attempt) []attempt {
		r[1].outcome, r[1].status = "failed", 404
		return r
	}, number: 2, member: "outcome"},
	"attempted later": {attempts: func(r []attempt) []attempt {
		r[1].at = r[1].at.Add(time.Hour)
		return r
	}, number: 2, event: 13, member: "attempted_at"},
	"attempted at another time": {attempts: func(r []attempt) []attempt {
		r[1].at = r[1].at.Add(-time.Hour)
		return r
	}, number: 2, event: 13, member: "attempted_at"},

	// What is changed in the history.
	"another wait": {history: func(_ *testing.T, h *replay.History) {
		event(h, 6).GetTimerStartedEventAttributes().StartToFireTimeout = durationpb.New(time.Hour)
	}, number: 1, event: 6, member: "delay"},
	"another wait than today's": {history: func(_ *testing.T, h *replay.History) {
		event(h, 17).GetTimerStartedEventAttributes().StartToFireTimeout = durationpb.New(time.Hour)
	}, number: -1, event: 17, member: "code"},
	"a wait that nobody waited": {history: func(t *testing.T, h *replay.History) {
		completed(t, h, 13, activities.SendResult{Progress: &activities.Progress{State: "pending", Delay: 10 * time.Minute}})
		event(h, 17).GetTimerStartedEventAttributes().StartToFireTimeout = durationpb.New(10 * time.Minute)
	}, number: 3, event: 17, member: "attempted_at"},
	"a carrier from another epoch": {history: func(t *testing.T, h *replay.History) {
		in := input(t, h)
		in.Epoch, h.WorkflowID = 3, workflows.DeliveryWorkflowID(in.DeliveryID, 3)
		setStart(t, h, in)
	}, number: -1, event: 1, member: "epoch"},
	"a carrier that begins too early": {attempts: func(r []attempt) []attempt {
		r[1].epoch, r[2].epoch = 1, 1
		return r
	}, history: func(t *testing.T, h *replay.History) {
		in := input(t, h)
		in.Epoch, h.WorkflowID = 1, workflows.DeliveryWorkflowID(in.DeliveryID, 1)
		setStart(t, h, in)
	}, number: 1, event: 1, member: "epoch"},
	"a carrier that begins too late": {history: func(t *testing.T, h *replay.History) {
		in := input(t, h)
		in.Attempt = 2
		setStart(t, h, in)
	}, number: 1, event: 1, member: "epoch"},
	"an answer that nobody asked for": {history: func(_ *testing.T, h *replay.History) {
		event(h, 13).GetActivityTaskCompletedEventAttributes().ScheduledEventId = 99
	}, number: -1, event: 13},
	"another answer of an activity": {history: func(t *testing.T, h *replay.History) {
		completed(t, h, 13, activities.SendResult{Progress: &activities.Progress{State: "delivered"}})
	}, number: 2, event: 13, member: "outcome"},
	"an answer that no code explains": {history: func(t *testing.T, h *replay.History) {
		completed(t, h, 13, activities.SendResult{Progress: &activities.Progress{State: "delivered"}})
	}, number: -1, member: "code"},
	"nothing was sent": {history: func(t *testing.T, h *replay.History) {
		completed(t, h, 24, activities.SendResult{Held: true})
	}, number: 3, event: 24},
	"it had ended otherwise": {history: func(t *testing.T, h *replay.History) {
		setResult(t, h, workflows.DeliverResult{Outcome: "dead", Attempts: 3})
	}, number: -1, event: 29, member: "state"},
	"it counted otherwise": {history: func(t *testing.T, h *replay.History) {
		setResult(t, h, workflows.DeliverResult{Outcome: "delivered", Attempts: 2})
	}, number: -1, event: 29, member: "attempts"},
	"it returned something else": {history: func(t *testing.T, h *replay.History) {
		setResult(t, h, workflows.DeliverResult{Outcome: "delivered", Attempts: 2})
	}, number: -1, event: 29, member: "code"},
	"it asked for another attempt": {history: func(t *testing.T, h *replay.History) {
		setInput(t, h, 22, activities.SendInput{DeliveryID: input(t, h).DeliveryID, Attempt: 7})
	}, number: -1, event: 22},
	"it asked otherwise than today's code": {history: func(t *testing.T, h *replay.History) {
		setInput(t, h, 22, activities.SendInput{DeliveryID: input(t, h).DeliveryID, Attempt: 7})
	}, number: -1, event: 22, member: "code"},
	"it was another delivery's": {history: func(t *testing.T, h *replay.History) {
		in := input(t, h)
		in.DeliveryID = id.Delivery.Format(id.New())
		setStart(t, h, in)
	}, number: -1, event: 1, member: "delivery_id"},
	"events are missing": {history: func(_ *testing.T, h *replay.History) {
		h.Events = slices.Delete(h.Events, 5, 7) // the timer
	}, number: -1, member: "code"},
}

func setStart(t *testing.T, h *replay.History, in workflows.DeliverInput) {
	t.Helper()
	payloads, err := converter.GetDefaultDataConverter().ToPayloads(in)
	require.NoError(t, err)
	event(h, 1).GetWorkflowExecutionStartedEventAttributes().Input = payloads
}

func setResult(t *testing.T, h *replay.History, result workflows.DeliverResult) {
	t.Helper()
	payloads, err := converter.GetDefaultDataConverter().ToPayloads(result)
	require.NoError(t, err)
	h.Events[len(h.Events)-1].GetWorkflowExecutionCompletedEventAttributes().Result = payloads
}

func setInput(t *testing.T, h *replay.History, number int64, in any) {
	t.Helper()
	payloads, err := converter.GetDefaultDataConverter().ToPayloads(in)
	require.NoError(t, err)
	event(h, number).GetActivityTaskScheduledEventAttributes().Input = payloads
}

// changeLeaf rewrites a leaf with its hash, wherever Postgres holds them, but not the tree.
func changeLeaf(a *postgres.Account, i int, change func(*verify.Leaf)) {
	leaf, err := verify.ParseLeaf(a.Attempts[i].Leaf.Bytes)
	if err != nil {
		panic(err)
	}
	change(leaf)
	bytes, err := leaf.Bytes()
	if err != nil {
		panic(err)
	}
	row := &a.Attempts[i]
	row.Leaf.Bytes, row.Leaf.Hash, row.LeafHash = bytes, verify.LeafHash(bytes), verify.LeafHash(bytes)
}
