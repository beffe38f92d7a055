package activities_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// eraser erases events as the api does, from within a receiver.
type eraser struct {
	run    func(event uuid.UUID) error
	mu     sync.Mutex
	events []uuid.UUID
	err    error
}

func (b *testBundle) eraser(t testing.TB, leaves bool) *eraser {
	t.Helper()
	api := postgrestest.Pool(t, b.url, postgres.API)
	return &eraser{run: func(event uuid.UUID) error {
		return postgres.InTenant(context.Background(), api, b.tenant, func(tx pgx.Tx) error {
			_, err := postgres.Erase(context.Background(), tx, event, leaves)
			return err
		})
	}}
}

// answer is a receiver that has the event of what it is sent erased before it answers.
func (e *eraser) answer(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, request *http.Request) {
		event, err := id.Event.Parse(request.Header.Get("Kapsel-Event-Id"))
		if err == nil {
			err = e.run(event)
		}
		e.mu.Lock()
		e.events, e.err = append(e.events, event), errors.Join(e.err, err)
		e.mu.Unlock()
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "personal data")
	}
}

// requireNothingLeft wants the log to hold hashes of all leaves, and nothing to hold what was erased.
func (b *testBundle) requireNothingLeft(t testing.TB, leaves bool, want int) {
	t.Helper()
	require.Zero(t, value[int](t, b, "select count(*) from event_payloads"))
	require.Zero(t, value[int](t, b, "select count(*) from attempts where response_body is not null or response_headers is not null"))
	require.Zero(t, value[int](t, b, "select count(*) from leaf_queue where secrets <> ''"))
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	require.Equal(t, want, value[int](t, b, "select count(*) from merkle_leaves where secrets is null and (leaf is null) = $1", leaves))
	require.Equal(t, want, value[int](t, b, "select count(*) from merkle_leaves"))
	if !leaves {
		size, _ := checkLog(t, b)
		require.Equal(t, want, size)
	}
}

// The payload is erased while a request with it is under way, in both lanes: it is recorded, and holds nothing that was erased.
// What would be tried again dies of it.
func TestAPayloadIsErasedWhileItIsBeingSent(t *testing.T) {
	t.Parallel()
	for _, lane := range []string{"workflow", "batch"} {
		for _, leaves := range []bool{false, true} {
			b := setup(t)
			e := b.eraser(t, leaves)
			delivered, failing := newReceiver(t, e.answer(200)), newReceiver(t, e.answer(503))
			a := b.sender(t)
			var deliveries []uuid.UUID
			for _, r := range []*receiver{delivered, failing} {
				destination := b.addDestination(t, r.URL)
				delivery := b.accept(t, 1, destination)[0]
				deliveries = append(deliveries, delivery)
				if lane == "batch" {
					mustSendBatch(t, a, b.claimBatch(t, 1, destination), 1, 0)
					continue
				}
				b.claim(t, 1, destination)
				recorded(t, a, first(delivery))
			}
			require.NoError(t, e.err)
			require.Len(t, e.events, 2)

			// The second one is tried again.
			in := first(deliveries[1])
			in.Attempt, in.Counted = 2, false
			if lane == "batch" { // what it didn't deliver has been handed over
				in.Epoch = 1
			}
			result, err := send(t, a, in)
			require.NoError(t, err)
			require.True(t, result.Dead)
			require.Len(t, failing.got(), 1)
			require.Equal(t, "delivered", value[string](t, b, "select state from deliveries where id = $1", deliveries[0]))
			require.Equal(t, "payload_erased", value[string](t, b, "select error from attempts where id = $1", id.AttemptOf(deliveries[1], id.Decision)))
			b.requireNothingLeft(t, leaves, 3)
		}
	}
}

// An outcome that its sender could not record comes from the workflow: it has hashes only, and finds the payload erased.
func TestAnOutcomeRecordedLaterHoldsNothingErased(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.claimed(t, 1)[0]
	e := b.eraser(t, true)
	require.NoError(t, e.run(value[uuid.UUID](t, b, "select event_id from deliveries where id = $1", delivery)))
	a := b.sender(t)
	_, err := environment(a).ExecuteActivity(a.RecordAttempt, activities.RecordInput{
		DeliveryID: id.Delivery.Format(delivery), Attempt: 1, Outcome: delivered(),
	})
	require.NoError(t, err)
	b.requireNothingLeft(t, true, 1)
}

// The leaf that attests an acceptance is sealed like any other, under the event's ID, and can't be mistaken for an attempt's.
func TestLeavesOfAcceptanceAreSealed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row := b.acceptance("{}", "", b.destination)
	row.Leaf = b.acceptedLeaf(t, row.EventID, row)
	other := b.acceptance("{}", "", b.destination)
	other.Leaf = b.acceptedLeaf(t, row.EventID, other) // attests another event
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row, other})
	require.NoError(t, err)
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	size, _ := checkLog(t, b)
	require.Equal(t, 1, size)
	require.Equal(t, row.EventID, value[uuid.UUID](t, b, "select attempt_id from merkle_leaves where leaf_hash = $1", row.Leaf.Hash))
	require.Equal(t, "leaf is of another attempt", value[string](t, b, "select reason from attestation_dead_letters where attempt_id = $1", other.EventID))
	leaf, err := verify.ParseLeaf(value[[]byte](t, b, "select leaf from merkle_leaves"))
	require.NoError(t, err)
	require.Equal(t, verify.KindAccepted, leaf.Kind)
}

func (b *testBundle) acceptedLeaf(t testing.TB, event uuid.UUID, row *postgres.Acceptance) *postgres.AcceptedLeaf {
	t.Helper()
	acceptance := attestation.Acceptance{Origin: b.log.Origin, Tenant: b.tenant, Endpoint: b.endpoint, Event: event, At: time.Now(),
		PayloadHash: row.PayloadHash, PayloadSize: len(row.Body)}
	leaf, hash, err := acceptance.Leaf()
	require.NoError(t, err)
	return &postgres.AcceptedLeaf{Bytes: leaf, Hash: hash, Secrets: append(slices.Clone(row.Salt), random32()...)}
}
