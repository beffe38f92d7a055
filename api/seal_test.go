package api_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// What workers do, as far as tests of the api need it: recording attempts, sequencing their leaves, publishing heads.

const sentURL, sentResponse = "https://example.com/in", "thank you"

func (b *testBundle) deliveryOf(t testing.TB, event string) uuid.UUID {
	t.Helper()
	eventID, err := id.Event.Parse(event)
	require.NoError(t, err)
	var delivery uuid.UUID
	require.NoError(t, b.engine.QueryRow(t.Context(), "select id from deliveries where event_id = $1", eventID).Scan(&delivery))
	return delivery
}

// attempted accepts an event, records one delivered attempt of it and returns the attempt's ID.
func (b *testBundle) attempted(t testing.TB, endpoint, body string) string {
	t.Helper()
	delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, body)))
	b.record(t, delivery, "delivered", false)
	return id.Attempt.Format(id.AttemptOf(delivery, 1))
}

// record records the next attempt of a delivery, and with dead the decision to send no more.
func (b *testBundle) record(t testing.TB, delivery uuid.UUID, outcome string, dead bool) {
	t.Helper()
	b.recordWith(t, delivery, outcome, dead, func(*postgres.Attempt) {})
}

// recordWith is record of an attempt that is changed before; its leaf isn't.
func (b *testBundle) recordWith(t testing.TB, delivery uuid.UUID, outcome string, dead bool, with func(*postgres.Attempt)) {
	t.Helper()
	err := postgres.Record(t.Context(), b.engine, []uuid.UUID{delivery}, nil, func(locked map[uuid.UUID]*postgres.Delivery) ([]postgres.Change, error) {
		d := locked[delivery]
		status := map[string]int{"delivered": 200, "retry": 503, "failed": 404}[outcome]
		attempt := leafOf(t, d, d.NextAttempt, "attempt", outcome, status)
		with(&attempt)
		change := postgres.Change{Delivery: d, Attempts: []postgres.Attempt{attempt}}
		d.NextAttempt++
		switch {
		case dead:
			change.Attempts = append(change.Attempts, leafOf(t, d, id.Decision, "dead", "rejected", 0))
			d.State = "dead"
		case outcome == "delivered":
			d.State = "delivered"
		}
		return []postgres.Change{change}, nil
	})
	require.NoError(t, err)
}

// leafOf makes an attempt with its leaf and appends it to the delivery's chain.
func leafOf(t testing.TB, d *postgres.Delivery, number int, kind, outcome string, status int) postgres.Attempt {
	t.Helper()
	a := postgres.Attempt{
		ID: id.AttemptOf(d.ID, number), Number: number, Kind: kind, Outcome: outcome, AttemptedAt: time.Now(),
		Duration: 41 * time.Millisecond, EndpointURL: sentURL, ResponseStatus: status,
	}
	secret := attestation.AttemptSecret(d.Secret, d.ID, number)
	commit := func(label, x string) string {
		return attestation.Commit(label, verify.DeriveSalt(secret, label), []byte(x))
	}
	attempts := number
	if number == id.Decision {
		attempts = d.NextAttempt - 1
	}
	leaf := verify.Leaf{
		AttemptID: id.Attempt.Format(a.ID), AttemptNumber: int64(attempts), AttemptedAt: verify.FormatTime(a.AttemptedAt),
		DeliveryID: id.Delivery.Format(d.ID), DestinationID: id.Destination.Format(d.DestinationID), DurationMS: a.Duration.Milliseconds(),
		EndpointID: id.Endpoint.Format(d.EndpointID), EndpointURL: a.EndpointURL, EventID: id.Event.Format(d.EventID), Kind: kind,
		Nonce: attestation.NewNonce(), Origin: d.Origin, Outcome: outcome, PayloadHash: hex.EncodeToString(d.PayloadHash),
		PayloadSize: int64(d.PayloadSize), PreviousLeafHash: hex.EncodeToString(d.LastLeafHash), ResponseStatus: int64(status),
		Seq: int64(d.Leaves + 1), TenantID: id.Tenant.Format(d.TenantID), URLHash: commit(verify.LabelURL, sentURL), V: 1,
	}
	if status != 0 {
		leaf.ResponseHash, leaf.HeadersHash = commit(verify.LabelResponse, sentResponse), commit(verify.LabelHeaders, "")
		leaf.ResponseSize, a.ResponseSize = int64(len(sentResponse)), int64(len(sentResponse))
	}
	var err error
	a.Leaf, err = leaf.Bytes()
	require.NoError(t, err)
	a.LeafHash, a.Secrets = verify.LeafHash(a.Leaf), slices.Concat(d.Salt, secret)
	d.Leaves++
	d.LastLeafHash = a.LeafHash
	return a
}

// sequence gives all queued leaves of a log their place and returns the tree's size.
func (b *testBundle) sequence(t testing.TB, log admin.Log) int64 {
	t.Helper()
	done, err := postgres.Sequence(t.Context(), b.engine, log.ID, 0, 10_000, func(ctx context.Context, batch postgres.Batch) (postgres.Growth, error) {
		tree, err := attestation.OpenStoredTree(ctx, batch.TreeSize, batch.RootHash, batch.Tiles)
		if err != nil {
			return postgres.Growth{}, err
		}
		var hashes [][]byte
		for _, leaf := range batch.Leaves {
			hashes = append(hashes, leaf.Hash)
		}
		grown, err := tree.Append(hashes)
		if err != nil {
			return postgres.Growth{}, err
		}
		growth := postgres.Growth{Accepted: batch.Leaves, TreeSize: grown.Size, RootHash: grown.Root}
		for _, tile := range grown.Tiles {
			growth.Tiles = append(growth.Tiles, postgres.Tile{TileID: postgres.TileID(tile.ID()), Hashes: tile.Hashes})
		}
		return growth, nil
	})
	require.NoError(t, err)
	return int64(done.TreeSize)
}

// prepareHead commits an unsigned head of the log's present size.
func (b *testBundle) prepareHead(t testing.TB, log admin.Log) postgres.Head {
	t.Helper()
	head, err := postgres.NextHead(t.Context(), b.engine, log.ID, sha256.Sum256(log.PublicKey), postgres.Cadence{MaxAhead: time.Hour}, true)
	require.NoError(t, err)
	require.NotNil(t, head)
	return *head
}

// prepareHeadLater commits another head of the same size.
func (b *testBundle) prepareHeadLater(t testing.TB) postgres.Head {
	t.Helper()
	var head *postgres.Head
	require.Eventually(t, func() bool {
		var err error
		head, err = postgres.NextHead(t.Context(), b.engine, b.log.ID, sha256.Sum256(b.log.PublicKey), postgres.Cadence{MaxAhead: time.Hour}, false)
		return err == nil && head != nil
	}, 10*time.Second, time.Millisecond)
	return *head
}

// publish signs a head and makes it visible.
func (b *testBundle) publish(t testing.TB, log admin.Log, head postgres.Head) verify.SignedTreeHead {
	t.Helper()
	signer, err := attestation.LoadSigner(filepath.Join(b.keys, id.Log.Format(log.ID)+".seed"), log.Origin)
	require.NoError(t, err)
	sth, err := signer.SignTreeHead(attestation.Head{TreeSize: head.TreeSize, Timestamp: head.Timestamp, RootHash: head.RootHash})
	require.NoError(t, err)
	checkpoint, err := signer.SignCheckpoint(sth)
	require.NoError(t, err)
	stored, err := postgres.StoreSignatures(t.Context(), b.engine, log.ID, head, sth.Signature, checkpoint)
	require.NoError(t, err)
	require.True(t, stored)
	return sth
}

// seal sequences what is queued and publishes a head for it.
func (b *testBundle) seal(t testing.TB) verify.SignedTreeHead {
	t.Helper()
	b.sequence(t, b.log)
	return b.publish(t, b.log, b.prepareHead(t, b.log))
}
