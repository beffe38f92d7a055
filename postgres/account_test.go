package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

func (b *testBundle) account(t *testing.T, delivery uuid.UUID) *postgres.Account {
	t.Helper()
	var account *postgres.Account
	err := postgres.InSnapshot(t.Context(), b.engine, func(tx pgx.Tx) (err error) {
		account, err = postgres.ReadAccount(t.Context(), tx, delivery)
		return err
	})
	require.NoError(t, err)
	return account
}

// recordDelivered records one attempt, whose leaf is any bytes.
func (b *testBundle) recordDelivered(t *testing.T, delivery uuid.UUID, leaf string) {
	t.Helper()
	err := postgres.Record(t.Context(), b.engine, []uuid.UUID{delivery}, nil,
		func(locked map[uuid.UUID]*postgres.Delivery) ([]postgres.Change, error) {
			d := locked[delivery]
			d.State, d.NextAttempt, d.LostStarts, d.Leaves, d.LastLeafHash = "delivered", 2, 0, 1, verify.LeafHash([]byte(leaf))
			return []postgres.Change{{Delivery: d, Attempts: []postgres.Attempt{{
				ID: id.AttemptOf(delivery, 1), Number: 1, Kind: "attempt", Outcome: "delivered", AttemptedAt: time.Now(), Duration: 3 * time.Millisecond,
				EndpointURL: "https://example.com/in", ResponseStatus: 200, LeafHash: d.LastLeafHash, Leaf: []byte(leaf), Secrets: make([]byte, 64),
			}}}}, nil
		})
	require.NoError(t, err)
}

// An account finds a leaf wherever it is: waiting, in the log, set aside, or nowhere.
func TestAnAccountFindsEachLeaf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 3)
	waiting, logged, aside := deliveries[0], deliveries[1], deliveries[2]
	for _, delivery := range deliveries {
		b.recordDelivered(t, delivery, "leaf of "+delivery.String())
	}
	b.exec(t, `insert into merkle_leaves (log_id, leaf_index, tenant_id, attempt_id, leaf_hash, leaf, secrets)
		select log_id, 7, tenant_id, attempt_id, leaf_hash, leaf, secrets from leaf_queue where attempt_id = $1`, id.AttemptOf(logged, 1))
	b.exec(t, `insert into leaf_of_attempt (attempt_id, tenant_id, log_id, leaf_index) values ($1, $2, $3, 7)`, id.AttemptOf(logged, 1), b.tenant, b.log.ID)
	b.exec(t, `insert into attestation_dead_letters (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, reason)
		select log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, 'odd' from leaf_queue where attempt_id = $1`, id.AttemptOf(aside, 1))
	b.exec(t, `delete from leaf_queue where attempt_id <> $1`, id.AttemptOf(waiting, 1))

	for delivery, want := range map[uuid.UUID]postgres.AccountLeaf{
		waiting: {Place: postgres.LeafInQueue}, logged: {Place: postgres.LeafInLog, Index: 7}, aside: {Place: postgres.LeafAside, Reason: "odd"},
	} {
		want.Bytes, want.Owner = []byte("leaf of "+delivery.String()), id.AttemptOf(delivery, 1)
		want.Hash = verify.LeafHash(want.Bytes)
		account := b.account(t, delivery)
		require.Len(t, account.Attempts, 1)
		require.Equal(t, want, account.Attempts[0].Leaf)
		require.Equal(t, want.Hash, account.Attempts[0].LeafHash)
		require.Equal(t, 3*time.Millisecond, account.Attempts[0].Duration)
	}
	b.exec(t, "update attestation_dead_letters set resolved_at = now()")
	require.Empty(t, b.account(t, aside).Attempts[0].Leaf.Place)
}

func TestAnAccountHoldsTheDelivery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	accepted := b.acceptance("{}")
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{accepted})
	require.NoError(t, err)
	delivery := accepted.Deliveries[0].ID
	b.worker(t)

	account := b.account(t, delivery)
	require.Empty(t, account.Attempts)
	require.Equal(t, "pending", account.State)
	require.Equal(t, accepted.EventID, account.EventID)
	require.Equal(t, b.tenant, account.TenantID)
	require.Equal(t, b.log.Origin, account.Origin)
	require.Equal(t, accepted.PayloadHash, account.PayloadHash)
	require.Equal(t, 2, account.PayloadSize)
	require.Nil(t, account.Signed)
	require.Nil(t, account.Claim)
	require.Equal(t, &account.Head, account.Covering(&postgres.AccountLeaf{Index: 0}))

	claim := id.New()
	_, err = postgres.Claim(t.Context(), b.engine, postgres.ClaimRequest{
		Worker: b.worker(t), Claim: claim, Destinations: []uuid.UUID{b.destination}, Quotas: []int{1}, Lane: postgres.LaneBatch})
	require.NoError(t, err)
	require.Equal(t, claim, *b.account(t, delivery).Claim, "a batch carries it")

	err = postgres.InSnapshot(t.Context(), b.engine, func(tx pgx.Tx) error {
		_, err := postgres.ReadAccount(t.Context(), tx, id.New())
		return err
	})
	require.ErrorIs(t, err, postgres.ErrNoDelivery)
}

// A row that shouldn't be there is found, though its ID isn't one that Kapsel would look up.
func TestAnAccountHoldsRowsThatShouldntBeThere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 2)
	for _, delivery := range deliveries {
		b.recordDelivered(t, delivery, "leaf")
	}
	extra := id.At(deliveries[0])
	b.exec(t, `insert into attempts select $2, delivery_id, event_id, tenant_id, endpoint_id, destination_id, log_id, 2, epoch, kind, outcome,
		error, attempted_at, duration_ms, endpoint_url, response_status, response_size, response_truncated, response_headers, response_body,
		leaf_hash, recorded_at from attempts where id = $1`, id.AttemptOf(deliveries[0], 1), extra)
	account := b.account(t, deliveries[0])
	require.Len(t, account.Attempts, 2)
	require.Equal(t, extra, account.Attempts[1].ID)
	require.Len(t, b.account(t, deliveries[1]).Attempts, 1)
}

func TestASnapshotCantChangeAnything(t *testing.T) {
	t.Parallel()
	b := setup(t)
	err := postgres.InSnapshot(t.Context(), b.engine, func(tx pgx.Tx) error {
		_, err := tx.Exec(context.Background(), "delete from leaf_queue")
		return err
	})
	require.ErrorContains(t, err, "read-only transaction")
}
