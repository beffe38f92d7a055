package postgres_test

import (
	"bytes"
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// erase erases an event as the api does.
func (b *testBundle) erase(ctx context.Context, event uuid.UUID, leaves bool) (erased *postgres.Erased, err error) {
	err = postgres.InTenant(ctx, b.api, b.tenant, func(tx pgx.Tx) error {
		erased, err = postgres.Erase(ctx, tx, event, leaves)
		return err
	})
	return erased, err
}

// attempted is a request that failed, with all that a sender knows of it: what may be erased meanwhile, too.
func attempted(d *postgres.Delivery) postgres.Change {
	leaf := []byte("leaf of " + d.ID.String())
	d.NextAttempt, d.LostStarts, d.Leaves, d.LastLeafHash = 2, 0, 1, verify.LeafHash(leaf)
	return postgres.Change{Delivery: d, Delay: time.Hour, Attempts: []postgres.Attempt{{
		ID: id.AttemptOf(d.ID, 1), Number: 1, Kind: "attempt", Outcome: "retry", AttemptedAt: time.Now(), EndpointURL: "https://example.com/in",
		ResponseStatus: 503, ResponseHeaders: []byte("A: b\r\n"), ResponseBody: []byte("personal"), ResponseSize: 8,
		LeafHash: d.LastLeafHash, Leaf: leaf, LeafParts: []byte("parts"), Secrets: bytes.Repeat([]byte{7}, 64),
	}}}
}

// record records the attempt of a sender who has read the commitment before; decided is called under the delivery's lock.
func (b *testBundle) record(ctx context.Context, delivery uuid.UUID, decided func(*postgres.Delivery)) error {
	known := map[uuid.UUID]*postgres.Commitment{delivery: {PayloadSize: 2, PayloadHash: make([]byte, 32), Salt: make([]byte, 32), Secret: make([]byte, 32)}}
	return postgres.Record(ctx, b.engine, []uuid.UUID{delivery}, known, func(locked map[uuid.UUID]*postgres.Delivery) ([]postgres.Change, error) {
		decided(locked[delivery])
		return []postgres.Change{attempted(locked[delivery])}, nil
	})
}

// awaitBlocked returns once a connection of the test's database waits for a lock.
func (b *testBundle) awaitBlocked(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool {
		return b.count(t, `select count(*) from pg_locks l join pg_stat_activity a on a.pid = l.pid
			where a.datname = current_database() and not l.granted`) > 0
	}, 20*time.Second, 5*time.Millisecond, "nobody waits")
}

// grow is a stand-in for the tree: it only gives each leaf its place.
func grow(batch postgres.Batch) postgres.Growth {
	size := batch.TreeSize + uint64(len(batch.Leaves))
	return postgres.Growth{Accepted: batch.Leaves, TreeSize: size, RootHash: verify.LeafHash([]byte{byte(size)})}
}

func (b *testBundle) sequence(t testing.TB) {
	t.Helper()
	_, err := postgres.Sequence(t.Context(), b.engine, b.log.ID, 0, 100, func(_ context.Context, batch postgres.Batch) (postgres.Growth, error) {
		return grow(batch), nil
	})
	require.NoError(t, err)
}

// requireErased wants nothing to be left that is the payload, or a response, or opens a leaf; and of a leaf in the log that was to
// be erased, no bytes.
func (b *testBundle) requireErased(t testing.TB, event uuid.UUID, leaves bool) {
	t.Helper()
	require.Zero(t, b.count(t, "select count(*) from event_payloads where event_id = $1", event))
	require.Zero(t, b.count(t, "select count(*) from attempts where event_id = $1 and (response_body is not null or response_headers is not null)", event))
	subjects := "(select id from attempts where event_id = $1 union select $1)"
	require.Zero(t, b.count(t, "select count(*) from leaf_queue where secrets <> '' and attempt_id in "+subjects, event))
	require.Zero(t, b.count(t, "select count(*) from attestation_dead_letters where secrets <> '' and attempt_id in "+subjects, event))
	require.Zero(t, b.count(t, "select count(*) from merkle_leaves where secrets is not null and attempt_id in "+subjects, event))
	if leaves {
		require.Zero(t, b.count(t, "select count(*) from attempts where event_id = $1 and leaf_parts is not null", event))
		require.Zero(t, b.count(t, "select count(*) from events where id = $1 and leaf_parts is not null", event))
		require.Zero(t, b.count(t, "select count(*) from leaf_queue where not erased and attempt_id in "+subjects, event))
		require.Zero(t, b.count(t, "select count(*) from merkle_leaves where leaf is not null and attempt_id in "+subjects, event))
	}
}

// acceptOne stores a webhook whose acceptance is attested.
func (b *testBundle) acceptOne(t testing.TB) *postgres.Acceptance {
	t.Helper()
	row := b.acceptance("personal")
	row.Leaf = &postgres.AcceptedLeaf{Bytes: []byte("accepted"), Hash: verify.LeafHash([]byte("accepted")), Parts: []byte("parts"), Secrets: make([]byte, 64)}
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	return row
}

// A leaf that was lost, and is made again after its event was erased, brings nothing of it back: neither that of an attempt nor that
// of acceptance.
func TestALeafThatIsQueuedAgainStaysErased(t *testing.T) {
	t.Parallel()
	for _, leaves := range []bool{false, true} {
		b := setup(t)
		row := b.acceptOne(t)
		require.NoError(t, b.record(t.Context(), row.Deliveries[0].ID, func(*postgres.Delivery) {}))
		var lost []postgres.QueuedLeaf
		for _, subject := range []uuid.UUID{row.EventID, id.AttemptOf(row.Deliveries[0].ID, 1)} {
			l := postgres.QueuedLeaf{TenantID: b.tenant, AttemptID: subject}
			require.NoError(t, b.owner.QueryRow(t.Context(), "select leaf_hash, leaf, secrets from leaf_queue where attempt_id = $1", subject).
				Scan(&l.Hash, &l.Bytes, &l.Secrets))
			require.Len(t, l.Secrets, 64)
			lost = append(lost, l)
		}
		b.exec(t, "delete from leaf_queue")
		_, err := b.erase(t.Context(), row.EventID, leaves)
		require.NoError(t, err)
		done, err := postgres.QueueAgain(t.Context(), b.engine, b.log.ID, lost, nil, "test")
		require.NoError(t, err)
		require.Len(t, done, 2)
		require.Equal(t, 2, b.count(t, "select count(*) from leaf_queue"))
		b.requireErased(t, row.EventID, leaves)
		b.sequence(t)
		b.requireErased(t, row.EventID, leaves)
	}
}

func TestEraseReachesLeavesWhereverTheyAre(t *testing.T) {
	t.Parallel()
	for _, leaves := range []bool{false, true} {
		for _, sequenced := range []bool{false, true} {
			b := setup(t)
			row, other := b.acceptOne(t), b.acceptOne(t)
			require.NoError(t, b.record(t.Context(), row.Deliveries[0].ID, func(*postgres.Delivery) {}))
			require.NoError(t, b.record(t.Context(), other.Deliveries[0].ID, func(*postgres.Delivery) {}))
			b.exec(t, `insert into attestation_dead_letters (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, reason)
				select log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, 'test' from leaf_queue`)
			if sequenced {
				b.sequence(t)
			}
			erased, err := b.erase(t.Context(), row.EventID, leaves)
			require.NoError(t, err)
			require.Equal(t, leaves, erased.Leaves)
			require.EqualValues(t, 1, erased.Responses)
			require.EqualValues(t, 4, erased.LeavesErased, "two leaves, each also set aside")
			b.requireErased(t, row.EventID, leaves)
			b.sequence(t)
			b.requireErased(t, row.EventID, leaves)
			require.Equal(t, 4, b.count(t, "select count(*) from merkle_leaves where octet_length(leaf_hash) = 32"), "hashes stay")
			require.Equal(t, 2, b.count(t, `select count(*) from merkle_leaves where leaf is not null and octet_length(secrets) = 64 and attempt_id in
				(select id from attempts where event_id = $1 union select $1)`, other.EventID), "another event keeps all")
			require.Equal(t, 1, b.count(t, "select count(*) from event_payloads where event_id = $1", other.EventID))

			again, err := b.erase(t.Context(), row.EventID, false)
			require.NoError(t, err)
			require.Equal(t, leaves, again.Leaves, "what is erased stays so")
			require.Equal(t, erased.ErasedAt, again.ErasedAt)
			require.Zero(t, again.Responses+again.LeavesErased)
		}
	}
}

// What is set aside keeps its bytes until it is resolved: nobody else may have them. Then they go.
func TestEraseReachesTheBytesOfWhatWasSetAside(t *testing.T) {
	t.Parallel()
	for _, leaves := range []bool{false, true} {
		b := setup(t)
		row := b.acceptOne(t)
		require.NoError(t, b.record(t.Context(), row.Deliveries[0].ID, func(*postgres.Delivery) {}))
		for _, reason := range []string{"resolved", "open"} {
			b.exec(t, `insert into attestation_dead_letters (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, reason)
				select log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, $1 from leaf_queue`, reason)
		}
		const resolve = "update attestation_dead_letters set resolved_at = now(), resolution = 'in_log', resolved_by = 'test' where reason = $1"
		const left = "select count(*) from attestation_dead_letters where leaf <> '' and octet_length(leaf_hash) = 32 and reason = $1"
		b.exec(t, resolve, "resolved")
		want := map[bool]int{false: 2, true: 0}[leaves]
		require.Equal(t, 2, b.count(t, left, "resolved"))
		erased, err := b.erase(t.Context(), row.EventID, leaves)
		require.NoError(t, err)
		require.EqualValues(t, 6, erased.LeavesErased)
		require.Equal(t, want, b.count(t, left, "resolved"))
		require.Equal(t, 2, b.count(t, left, "open"))
		b.exec(t, resolve, "open")
		require.Equal(t, want, b.count(t, left, "open"))
		require.Zero(t, b.count(t, "select count(*) from attestation_dead_letters where secrets <> ''"))
		require.Equal(t, 4, b.count(t, "select count(*) from attestation_dead_letters where octet_length(leaf_hash) = 32"), "they stay a record")

		_, err = postgres.Sequence(t.Context(), b.engine, b.log.ID, 0, 100, func(_ context.Context, batch postgres.Batch) (postgres.Growth, error) {
			growth := postgres.Growth{TreeSize: batch.TreeSize, RootHash: batch.RootHash}
			for _, leaf := range batch.Leaves {
				growth.Rejected = append(growth.Rejected, postgres.RejectedLeaf{QueuedLeaf: leaf, Reason: "later"})
			}
			return growth, nil
		})
		require.NoError(t, err)
		b.exec(t, resolve, "later")
		require.Equal(t, want, b.count(t, left, "later"))
	}
}

func TestEraseIsForTheTenantAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row := b.acceptOne(t)
	require.NoError(t, b.record(t.Context(), row.Deliveries[0].ID, func(*postgres.Delivery) {}))
	b.sequence(t)
	mine := b.tenant
	b.tenant, _, _ = b.addTenant(t, "another")
	_, err := b.erase(t.Context(), row.EventID, true)
	require.ErrorIs(t, err, postgres.ErrNoEvent)
	// Also if the second function is called by itself, with somebody else's attempts.
	require.NoError(t, postgres.InTenant(t.Context(), b.api, b.tenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select erase_leaves($1, true)", []uuid.UUID{row.EventID, id.AttemptOf(row.Deliveries[0].ID, 1)})
		return err
	}))
	require.Equal(t, 2, b.count(t, "select count(*) from merkle_leaves where leaf is not null and secrets is not null"))
	require.Equal(t, 1, b.count(t, "select count(*) from attempts where response_body = 'personal' and tenant_id = $1", mine))
	for _, statement := range []string{"delete from event_payloads", "update attempts set response_body = null", "update merkle_leaves set secrets = null"} {
		err := postgres.InTenant(t.Context(), b.api, mine, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), statement)
			return err
		})
		require.ErrorContains(t, err, "permission denied", "by the functions and not without them")
	}
}

// A sender that loaded the payload before it was erased, and records after it.
func TestWhatIsRecordedAfterAnErasureHoldsNothing(t *testing.T) {
	t.Parallel()
	for _, leaves := range []bool{false, true} {
		b := setup(t)
		row := b.acceptOne(t)
		_, err := b.erase(t.Context(), row.EventID, leaves)
		require.NoError(t, err)
		require.NoError(t, b.record(t.Context(), row.Deliveries[0].ID, func(d *postgres.Delivery) {
			require.True(t, d.Erased(), "nothing can be derived from what the sender knows")
			require.Equal(t, leaves, d.LeavesErased)
		}))
		b.requireErased(t, row.EventID, leaves)
		b.sequence(t)
		b.requireErased(t, row.EventID, leaves)
	}
}

// A sender that holds the delivery while its event is erased: the erasure waits, and finds what was recorded.
func TestAnErasureWaitsForWhoeverIsRecording(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row := b.acceptOne(t)
	done := make(chan error, 1)
	require.NoError(t, b.record(t.Context(), row.Deliveries[0].ID, func(d *postgres.Delivery) {
		go func() {
			_, err := b.erase(context.Background(), row.EventID, true)
			done <- err
		}()
		b.awaitBlocked(t)
		require.False(t, d.Erased())
	}))
	require.NoError(t, <-done)
	require.Equal(t, 1, b.count(t, "select count(*) from attempts where event_id = $1", row.EventID))
	b.requireErased(t, row.EventID, true)
}

// A sender that comes while an erasure is under way waits for it, and sees it, although its statement began before the commit.
func TestWhoeverRecordsWaitsForAnErasure(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row := b.acceptOne(t)
	done := make(chan error, 1)
	require.NoError(t, postgres.InTenant(t.Context(), b.api, b.tenant, func(tx pgx.Tx) error {
		if _, err := postgres.Erase(t.Context(), tx, row.EventID, true); err != nil {
			return err
		}
		go func() {
			done <- b.record(context.Background(), row.Deliveries[0].ID, func(d *postgres.Delivery) {
				if !d.Erased() || !d.LeavesErased {
					t.Error("the erasure wasn't seen under the lock")
				}
			})
		}()
		b.awaitBlocked(t)
		return nil
	}))
	require.NoError(t, <-done)
	b.requireErased(t, row.EventID, true)
}

// Leaves on their way from the queue into the log are in neither for a moment: the erasure waits for the log's head.
func TestAnErasureWaitsForSequencing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row := b.acceptOne(t)
	done := make(chan error, 1)
	_, err := postgres.Sequence(t.Context(), b.engine, b.log.ID, 0, 100, func(_ context.Context, batch postgres.Batch) (postgres.Growth, error) {
		require.Len(t, batch.Leaves, 1)
		go func() {
			_, err := b.erase(context.Background(), row.EventID, true)
			done <- err
		}()
		b.awaitBlocked(t)
		return grow(batch), nil
	})
	require.NoError(t, err)
	require.NoError(t, <-done)
	require.Equal(t, 1, b.count(t, "select count(*) from merkle_leaves"))
	b.requireErased(t, row.EventID, true)
}

// A new delivery of an event that is being erased: whoever comes second sees the first.
func TestRedeliveriesAndErasuresSeeEachOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	finish := func(row *postgres.Acceptance) {
		require.NoError(t, postgres.Record(t.Context(), b.engine, []uuid.UUID{row.Deliveries[0].ID}, nil,
			func(locked map[uuid.UUID]*postgres.Delivery) ([]postgres.Change, error) {
				change := attempted(locked[row.Deliveries[0].ID])
				change.Delivery.State = "delivered"
				return []postgres.Change{change}, nil
			}))
	}
	erasedOf := func(delivery uuid.UUID) (erased *string) {
		require.NoError(t, b.owner.QueryRow(t.Context(), "select erased from deliveries where id = $1", delivery).Scan(&erased))
		return erased
	}

	// The erasure is first: the delivery is born with its mark.
	first := b.acceptOne(t)
	finish(first)
	type answer struct {
		delivery uuid.UUID
		err      error
	}
	redelivered := make(chan answer, 1)
	require.NoError(t, postgres.InTenant(t.Context(), b.api, b.tenant, func(tx pgx.Tx) error {
		if _, err := postgres.Erase(t.Context(), tx, first.EventID, true); err != nil {
			return err
		}
		go func() {
			delivery, err := postgres.Redeliver(context.Background(), b.engine, b.tenant, first.Deliveries[0].ID, nil)
			redelivered <- answer{delivery, err}
		}()
		b.awaitBlocked(t)
		return nil
	}))
	got := <-redelivered
	require.NoError(t, got.err)
	require.Equal(t, "leaves", *erasedOf(got.delivery))
	b.requireErased(t, first.EventID, true)

	// The redelivery is first: the erasure waits for it, and marks what it made.
	second := b.acceptOne(t)
	finish(second)
	made, done := id.At(second.EventID), make(chan error, 1)
	require.NoError(t, pgx.BeginFunc(t.Context(), b.engine, func(tx pgx.Tx) error {
		postgres.InsertRedelivery(t, tx, b.tenant, second.Deliveries[0].ID, second.EventID, b.endpoint, b.destination, made)
		go func() {
			_, err := b.erase(context.Background(), second.EventID, false)
			done <- err
		}()
		b.awaitBlocked(t)
		return nil
	}))
	require.NoError(t, <-done)
	require.Equal(t, "payload", *erasedOf(made))
}

// The key by which a duplicate is found isn't the payload, except where it is a hash of it; the hash of the body always is.
func TestEraseForgetsHashesOfTheBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, c := range map[string]struct {
		policy webhook.DuplicatePolicy
		header http.Header
		known  bool
	}{
		"content": {webhook.DuplicatePolicy{Source: webhook.DuplicatesByContent}, nil, false},
		"key":     {webhook.DuplicatePolicy{Source: webhook.DuplicatesByContent}, http.Header{"Idempotency-Key": {"a"}}, true},
		"header":  {webhook.DuplicatePolicy{Source: webhook.DuplicatesByHeader, Header: "X-Id"}, http.Header{"X-Id": {"b"}}, true},
	} {
		body := "personal data of " + name
		accept := func(body string) postgres.Accepted {
			row := b.keyed(body, "", time.Hour)
			key, ok, err := c.policy.Key(c.header, []byte(body))
			require.NoError(t, err)
			require.True(t, ok)
			row.Duplicate.Hash = key.Hash[:]
			accepted, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
			require.NoError(t, err)
			return accepted[0]
		}
		event := accept(body).EventID
		require.True(t, accept(body).Duplicate)
		_, err := b.erase(t.Context(), event, false)
		require.NoError(t, err)
		require.Zero(t, b.count(t, "select count(*) from events where id = $1 and duplicate_key is not null", event), name)
		require.Zero(t, b.count(t, "select count(*) from dedup where event_id = $1 and body_hash is not null", event), name)
		if c.known {
			require.Equal(t, postgres.Accepted{EventID: event, Duplicate: true}, accept("another body"), "%s: no body that it could differ from", name)
		} else {
			require.False(t, accept(body).Duplicate, name)
		}
	}
}
