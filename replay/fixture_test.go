package replay_test

import (
	"crypto/ed25519"
	"encoding/hex"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/converter"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/replay"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/workflows"
)

// saved loads one of the histories of real runs that package workflows replays.
func saved(t *testing.T, name string) *replay.History {
	t.Helper()
	loaded, err := replay.Load([]string{filepath.Join("..", "workflows", "testdata", "histories", name+".json")})
	require.NoError(t, err)
	require.Len(t, loaded, 1)
	return loaded[0]
}

// attempt is an attempt as the test has it recorded, in Postgres and in the log.
type attempt struct {
	number  int
	epoch   int
	kind    string // "" is attempt
	outcome string
	status  int
	lost    int
	at      time.Time
	known   *activities.Outcome // of a recorded-late one: all of it
}

// times are when a history's attempts were answered, by the events that say so, one after the other.
func times(h *replay.History) (at []time.Time) {
	sends := map[int64]bool{}
	for _, e := range h.Events {
		switch e.GetEventType() {
		case enums.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
			sends[e.GetEventId()] = e.GetActivityTaskScheduledEventAttributes().GetActivityType().GetName() == "SendAttempt"
		case enums.EVENT_TYPE_MARKER_RECORDED:
			at = append(at, e.GetEventTime().AsTime())
		case enums.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
			if sends[e.GetActivityTaskCompletedEventAttributes().GetScheduledEventId()] {
				at = append(at, e.GetEventTime().AsTime())
			}
		}
	}
	return at
}

// input is what a DeliverWebhook was started with.
func input(t *testing.T, h *replay.History) (in workflows.DeliverInput) {
	t.Helper()
	decode(t, h.Events[0].GetWorkflowExecutionStartedEventAttributes().GetInput(), &in)
	return in
}

func parse(t *testing.T, kind id.Kind, s string) uuid.UUID {
	t.Helper()
	u, err := kind.Parse(s)
	require.NoError(t, err)
	return u
}

// delivery makes the account of the delivery that a DeliverWebhook carried, without attempts.
func delivery(t *testing.T, h *replay.History) *postgres.Account {
	t.Helper()
	in := input(t, h)
	log := id.New()
	return &postgres.Account{
		ID: parse(t, id.Delivery, in.DeliveryID), EventID: parse(t, id.Event, in.EventID), TenantID: parse(t, id.Tenant, in.TenantID),
		EndpointID: parse(t, id.Endpoint, in.EndpointID), DestinationID: parse(t, id.Destination, in.DestinationID),
		LogID: log, Origin: "kapsel.example/log/" + id.Log.Format(log), Lane: "workflow",
		PayloadHash: make([]byte, 32), PayloadSize: 7,
	}
}

// record completes an account by attempts and their leaves, in the state that they make, all under a signed head.
func record(t *testing.T, a *postgres.Account, attempts ...attempt) *postgres.Account {
	t.Helper()
	a.State, a.NextAttempt, a.Attempts, a.LastLeafHash = "pending", 1, nil, nil
	for i, made := range attempts {
		row := made.row(a)
		leaf := leafOf(a, &row, made, i+1, attempts)
		bytes, err := leaf.Bytes()
		require.NoError(t, err)
		row.LeafHash = verify.LeafHash(bytes)
		row.Leaf = postgres.AccountLeaf{Place: postgres.LeafInLog, Index: int64(i + 2), Owner: row.ID, Hash: row.LeafHash, Bytes: bytes}
		a.Attempts, a.LastLeafHash, a.Leaves = append(a.Attempts, row), row.LeafHash, i+1
		a.Epoch = max(a.Epoch, made.epoch)
		switch {
		case made.kind != "":
			a.State = made.kind
		case made.outcome == "delivered":
			a.State = "delivered"
		}
		if made.kind == "" {
			a.NextAttempt = max(a.NextAttempt, made.number+1)
		}
	}
	seal(a)
	return a
}

func (made attempt) row(a *postgres.Account) postgres.AccountAttempt {
	row := postgres.AccountAttempt{Attempt: postgres.Attempt{
		ID: id.AttemptOf(a.ID, made.number), Number: made.number, Epoch: made.epoch, Kind: made.kind, Outcome: made.outcome,
		AttemptedAt: made.at.Truncate(time.Microsecond), EndpointURL: "https://example.com/in", ResponseStatus: made.status,
	}}
	if made.kind == "" {
		row.Kind, row.Duration = "attempt", 12*time.Millisecond
	}
	if o := made.known; o != nil {
		row.AttemptedAt, row.Duration = o.AttemptedAt.Truncate(time.Microsecond), o.Duration.Truncate(time.Millisecond)
		row.EndpointURL, row.Error, row.Outcome = o.EndpointURL, o.Error, o.Outcome
		row.ResponseStatus, row.ResponseSize, row.ResponseTruncated = o.ResponseStatus, o.ResponseSize, o.ResponseTruncated
	}
	return row
}

// leafOf is the leaf as package activities makes it.
func leafOf(a *postgres.Account, row *postgres.AccountAttempt, made attempt, seq int, all []attempt) verify.Leaf {
	someHash := strings.Repeat("ab", 32)
	leaf := verify.Leaf{
		AttemptID: id.Attempt.Format(row.ID), AttemptNumber: int64(row.Number), AttemptedAt: verify.FormatTime(row.AttemptedAt),
		DeliveryID: id.Delivery.Format(a.ID), DestinationID: id.Destination.Format(a.DestinationID), DurationMS: row.Duration.Milliseconds(),
		EndpointID: id.Endpoint.Format(a.EndpointID), EndpointURL: row.EndpointURL, Error: row.Error, EventID: id.Event.Format(a.EventID),
		Kind: row.Kind, LostStarts: int64(made.lost), Nonce: strings.Repeat("00", 16), Origin: a.Origin, Outcome: row.Outcome,
		PayloadHash: hex.EncodeToString(a.PayloadHash), PayloadSize: int64(a.PayloadSize), PreviousLeafHash: hex.EncodeToString(a.LastLeafHash),
		ResponseSize: row.ResponseSize, ResponseStatus: int64(row.ResponseStatus), ResponseTruncated: row.ResponseTruncated,
		Seq: int64(seq), TenantID: id.Tenant.Format(a.TenantID), V: 1,
	}
	if row.Number == id.Decision {
		leaf.AttemptNumber = int64(len(slices.DeleteFunc(slices.Clone(all), func(m attempt) bool { return m.kind != "" })))
		return leaf
	}
	leaf.URLHash, leaf.HeadersHash = someHash, someHash
	if leaf.ResponseStatus != 0 {
		leaf.ResponseHash = someHash
	}
	if made.known != nil {
		leaf.URLHash, leaf.HeadersHash, leaf.ResponseHash = made.known.URLHash, made.known.HeadersHash, made.known.ResponseHash
	}
	return leaf
}

// logKey signs the heads of these tests.
var logKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// seal puts the leaves into a log, after two others, and signs its head.
func seal(a *postgres.Account) {
	hashes := [][]byte{verify.LeafHash([]byte("one")), verify.LeafHash([]byte("two"))}
	for _, row := range a.Attempts {
		hashes = append(hashes, row.Leaf.Hash)
	}
	head := postgres.AccountHead{TreeSize: int64(len(hashes)), RootHash: root(hashes)}
	a.Head = head
	head.Timestamp, head.PublicKey = 1_700_000_000_000, logKey.Public().(ed25519.PublicKey)
	head.Signature = ed25519.Sign(logKey, verify.STHMessage(uint64(head.TreeSize), head.Timestamp, head.RootHash))
	a.Signed = &head
	for i := range a.Attempts {
		a.Attempts[i].Leaf.Path = path(i+2, hashes)
	}
}

// root and path are MTH and PATH of RFC 6962, sections 2.1 and 2.1.1, as they are written there.
func root(hashes [][]byte) []byte {
	if len(hashes) == 1 {
		return hashes[0]
	}
	k := split(len(hashes))
	return verify.NodeHash(root(hashes[:k]), root(hashes[k:]))
}

func path(m int, hashes [][]byte) [][]byte {
	if len(hashes) == 1 {
		return nil
	}
	k := split(len(hashes))
	if m < k {
		return append(path(m, hashes[:k]), root(hashes[k:]))
	}
	return append(path(m-k, hashes[k:]), root(hashes[:k]))
}

func split(n int) int {
	k := 1
	for 2*k < n {
		k *= 2
	}
	return k
}

// event returns an event of a history, to be changed in place.
func event(h *replay.History, number int64) *historypb.HistoryEvent {
	return h.Events[number-1]
}

// completed changes what an activity of a history answered.
func completed(t *testing.T, h *replay.History, number int64, result any) {
	t.Helper()
	payloads, err := converter.GetDefaultDataConverter().ToPayloads(result)
	require.NoError(t, err)
	event(h, number).GetActivityTaskCompletedEventAttributes().Result = payloads
}

// late is the outcome that a history's marker or batch holds because its sender couldn't record it.
func late(t *testing.T, h *replay.History) activities.Outcome {
	t.Helper()
	for _, e := range h.Events {
		if result := e.GetMarkerRecordedEventAttributes().GetDetails()["result"]; result != nil {
			var sent activities.SendResult
			decode(t, result, &sent)
			return *sent.Unrecorded
		}
	}
	t.Fatal("no outcome went through this history")
	return activities.Outcome{}
}
