package audit_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// testBundle is a database with one log that the worker's own sealing grows.
type testBundle struct {
	url                  string
	owner, engine        *pgxpool.Pool
	log                  admin.Log
	row                  postgres.LogRow
	keyDir, highWaterDir string
	tenant               uuid.UUID
}

func setup(t testing.TB) *testBundle {
	t.Helper()
	b := &testBundle{url: postgrestest.New(t), keyDir: t.TempDir(), highWaterDir: t.TempDir()}
	b.owner = postgrestest.Pool(t, b.url, postgres.Owner)
	b.engine = postgrestest.Pool(t, b.url, postgres.Engine)
	var err error
	b.log, err = admin.CreateLog(t.Context(), b.owner, admin.LogConfig{Host: "kapsel.example", KeyDir: b.keyDir, HighWaterDir: b.highWaterDir})
	require.NoError(t, err)
	b.row = postgres.LogRow{ID: b.log.ID, Origin: b.log.Origin}
	b.tenant, err = admin.CreateTenant(t.Context(), b.owner, "Example Bank", b.log.ID)
	require.NoError(t, err)
	return b
}

// sealed is a log to which batches of leaves were added, a head published after each.
func sealed(t testing.TB, batches ...int) *testBundle {
	t.Helper()
	b := setup(t)
	for _, n := range batches {
		b.queue(t, b.tenant, n)
		b.seal(t)
	}
	return b
}

// queue puts n new leaves of a tenant into the queue.
func (b *testBundle) queue(t testing.TB, tenant uuid.UUID, n int) {
	t.Helper()
	require.NoError(t, b.enqueue(t.Context(), tenant, n))
}

func (b *testBundle) enqueue(ctx context.Context, tenant uuid.UUID, n int) error {
	var rows [][]any
	for range n {
		attempt, leaf := newLeaf(b.log.Origin, tenant)
		secrets := make([]byte, 64)
		_, _ = rand.Read(secrets)
		rows = append(rows, []any{b.log.ID, tenant, attempt, verify.LeafHash(leaf), leaf, secrets})
	}
	_, err := b.engine.CopyFrom(ctx, pgx.Identifier{"leaf_queue"},
		[]string{"log_id", "tenant_id", "attempt_id", "leaf_hash", "leaf", "secrets"}, pgx.CopyFromRows(rows))
	return err
}

func newLeaf(origin string, tenant uuid.UUID) (attempt uuid.UUID, leaf []byte) {
	someHash := strings.Repeat("ab", 32)
	attempt = id.New()
	l := verify.Leaf{
		AttemptID: id.Attempt.Format(attempt), AttemptNumber: 1, AttemptedAt: verify.FormatTime(time.Now()), DeliveryID: id.Delivery.Format(id.New()),
		DestinationID: id.Destination.Format(id.New()), DurationMS: 41, EndpointID: id.Endpoint.Format(id.New()), EndpointURL: "https://example.com/in",
		EventID: id.Event.Format(id.New()), HeadersHash: someHash, Kind: verify.KindAttempt, Nonce: attestation.NewNonce(), Origin: origin,
		Outcome: verify.OutcomeDelivered, PayloadHash: someHash, PayloadSize: 2, ResponseHash: someHash, ResponseSize: 2, ResponseStatus: 200,
		Seq: 1, TenantID: id.Tenant.Format(tenant), URLHash: someHash, V: 1,
	}
	leaf, err := l.Bytes()
	if err != nil {
		panic(err) // the leaf above is right
	}
	return attempt, leaf
}

func (b *testBundle) sealing() *activities.Sealing {
	return activities.NewSealing(activities.SealingConfig{DB: b.engine, KeyDir: b.keyDir, HighWaterDir: b.highWaterDir, Log: zap.NewNop()})
}

func (b *testBundle) seal(t testing.TB) {
	t.Helper()
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
}

func (b *testBundle) highWater(t testing.TB) *attestation.Head {
	t.Helper()
	head, err := attestation.NewHighWater(b.highWaterDir+"/"+id.Log.Format(b.log.ID)+".highwater", b.log.Origin).Read()
	require.NoError(t, err)
	return &head
}

func (b *testBundle) signer(t testing.TB) *attestation.Signer {
	t.Helper()
	signer, err := attestation.LoadSigner(b.keyDir+"/"+id.Log.Format(b.log.ID)+".seed", b.log.Origin)
	require.NoError(t, err)
	return signer
}

// tamper runs statements as a superuser for whom no trigger and no foreign key counts.
func (b *testBundle) tamper(t testing.TB, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), "set session_replication_role = replica")
	require.NoError(t, err)
	tag, err := conn.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
	require.NotZero(t, tag.RowsAffected(), "something was changed")
}

func value[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, pool.QueryRow(context.Background(), sql, args...).Scan(&v))
	return v
}

// fsck checks the log and returns the report and the faults.
func (b *testBundle) fsck(t testing.TB, change ...func(*audit.FsckConfig)) (*audit.Report, []audit.Fault) {
	t.Helper()
	var faults []audit.Fault
	config := audit.FsckConfig{DB: b.engine, Log: b.row, HighWater: b.highWater(t), Found: func(f audit.Fault) { faults = append(faults, f) }}
	for _, c := range change {
		c(&config)
	}
	report, err := audit.Fsck(t.Context(), config)
	require.NoError(t, err)
	require.EqualValues(t, len(faults), report.Faults)
	require.Equal(t, len(faults) == 0, report.Sound)
	return report, faults
}

// where is each fault without its detail.
func where(faults []audit.Fault) []string {
	list := []string{}
	for _, f := range faults {
		f.Detail = ""
		list = append(list, strings.TrimSuffix(f.String(), ": "))
	}
	return list
}

func (b *testBundle) requireSound(t testing.TB, leaves int) {
	t.Helper()
	report, faults := b.fsck(t)
	require.Empty(t, where(faults))
	require.EqualValues(t, leaves, report.Leaves)
}

// rotate changes the log's key by a transition that is a leaf, signed as its reason demands; the next head is under the new key.
// change alters the statement before it is signed.
func (b *testBundle) rotate(t testing.TB, reason string, change func(*verify.Transition)) {
	t.Helper()
	old := b.signer(t)
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed)
	signer, err := attestation.NewSigner(seed, b.log.Origin)
	require.NoError(t, err)
	size := uint64(value[int64](t, b.owner, "select tree_size from log_heads"))
	root := value[[]byte](t, b.owner, "select root_hash from log_heads")
	transition := verify.Transition{Origin: b.log.Origin, TreeSize: size, RootHash: root, OldKey: old.PublicKey(), NewKey: signer.PublicKey(), Reason: reason}
	if change != nil {
		change(&transition)
	}
	lines := []verify.NoteSignature{}
	for _, s := range []*attestation.Signer{signer, old} {
		if s == signer || reason == verify.ReasonRotation {
			line, err := s.SignTransition(transition)
			require.NoError(t, err)
			lines = append(lines, line)
		}
	}
	note, err := attestation.TransitionNote(transition, lines...)
	require.NoError(t, err)
	b.exec(t, "update attestation_keys set not_after = now() where not_after is null")
	b.exec(t, "insert into attestation_keys (log_id, key_id, public_key, purpose) values ($1, $2, $3, 'log')",
		b.log.ID, verify.LogKeyID(signer.PublicKey()), []byte(signer.PublicKey()))
	b.exec(t, `insert into key_transitions (log_id, tree_size, old_key_id, new_key_id, reason, note, changed_at)
		select log_id, $1, $2, key_id, $3, $4, not_before from attestation_keys where not_after is null`,
		int64(size), verify.LogKeyID(old.PublicKey()), reason, note)
	b.appendLeaf(t, note)
	require.NoError(t, os.WriteFile(b.keyDir+"/"+id.Log.Format(b.log.ID)+".seed", []byte(hex.EncodeToString(seed)+"\n"), 0o600))
	b.seal(t)
}

// appendLeaf sequences one leaf without an attempt.
func (b *testBundle) appendLeaf(t testing.TB, leaf []byte) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), "insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets) values ($1, $1, $1, $2, $3, $4)",
		b.log.ID, verify.LeafHash(leaf), leaf, make([]byte, 64))
	require.NoError(t, err)
	b.sequence(t)
	b.tamper(t, "update merkle_leaves set attempt_id = null, tenant_id = null, secrets = null where attempt_id = log_id")
	b.tamper(t, "delete from leaf_of_attempt where attempt_id = log_id")
}

// sequence gives what is queued its place in the log, and publishes nothing.
func (b *testBundle) sequence(t testing.TB) {
	t.Helper()
	_, err := postgres.Sequence(t.Context(), b.engine, b.log.ID, 0, 2000, func(ctx context.Context, batch postgres.Batch) (postgres.Growth, error) {
		edge := attestation.EdgeTiles(batch.TreeSize)
		ids := make([]postgres.TileID, len(edge))
		for i, tile := range edge {
			ids[i] = postgres.TileID(tile)
		}
		stored, err := batch.Tiles(ctx, ids)
		require.NoError(t, err)
		tiles := map[attestation.TileID][]byte{}
		for tile, hashes := range stored {
			tiles[attestation.TileID(tile)] = hashes
		}
		tree, err := attestation.OpenTree(batch.TreeSize, batch.RootHash, tiles)
		require.NoError(t, err)
		var hashes [][]byte
		for _, l := range batch.Leaves {
			hashes = append(hashes, l.Hash)
		}
		grown, err := tree.Append(hashes)
		require.NoError(t, err)
		growth := postgres.Growth{Accepted: batch.Leaves, TreeSize: grown.Size, RootHash: grown.Root}
		for _, tile := range grown.Tiles {
			growth.Tiles = append(growth.Tiles, postgres.Tile{TileID: postgres.TileID(tile.ID()), Hashes: tile.Hashes})
		}
		return growth, nil
	})
	require.NoError(t, err)
}

func (b *testBundle) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}
