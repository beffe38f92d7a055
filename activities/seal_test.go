package activities_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// queueLeaves records n deliveries as delivered, each of which queues one leaf.
func (b *testBundle) queueLeaves(t testing.TB, n int) {
	t.Helper()
	for chunk := range slices.Chunk(b.accept(t, n, b.destination), 500) {
		require.NoError(t, b.deliverAll(t.Context(), chunk))
	}
}

// deliverAll records deliveries as delivered, in one transaction.
func (b *testBundle) deliverAll(ctx context.Context, deliveries []uuid.UUID) error {
	var rows []activities.Recording
	for _, delivery := range deliveries {
		rows = append(rows, activities.Recording{Delivery: delivery, Attempt: 1, Outcome: delivered()})
	}
	results, err := activities.CommitRecordings(ctx, b.engine, rows)
	for _, r := range results {
		err = errors.Join(err, r.Err)
	}
	return err
}

func (b *testBundle) seal(t testing.TB) {
	t.Helper()
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
}

func (b *testBundle) queued(t testing.TB) int {
	t.Helper()
	return value[int](t, b, "select count(*) from leaf_queue")
}

// newestHead checks the log, and wants its newest signed head to cover all of its leaves, so many.
func (b *testBundle) newestHead(t testing.TB, leaves int) storedHead {
	t.Helper()
	n, heads := checkLog(t, b)
	require.Equal(t, leaves, n)
	require.NotEmpty(t, heads)
	newest := heads[len(heads)-1]
	require.EqualValues(t, leaves, newest.TreeSize)
	return newest
}

func (b *testBundle) file(dir, ending string) string {
	return filepath.Join(dir, id.Log.Format(b.log.ID)+ending)
}

func (b *testBundle) highWater() *attestation.HighWater {
	return attestation.NewHighWater(b.file(b.highWaterDir, ".highwater"), b.log.Origin)
}

func TestSealNow(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 99, 256, 257, 5000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.queueLeaves(t, n)
			b.seal(t)
			newest := b.newestHead(t, n)
			require.Zero(t, b.queued(t))
			recorded, err := b.highWater().Read()
			require.NoError(t, err)
			require.Equal(t, attestation.Head{TreeSize: uint64(n), Timestamp: newest.Timestamp, RootHash: newest.RootHash}, recorded)
			b.seal(t)
			require.Equal(t, newest, b.newestHead(t, n), "nothing is new, so there is no new head")
		})
	}
}

// Every published head is a prefix of every later one.
func TestSealGrowsConsistently(t *testing.T) {
	t.Parallel()
	b := setup(t)
	total := 0
	for _, n := range []int{1, 2, 7, 100, 1, 145, 256, 300, 3} {
		b.queueLeaves(t, n)
		b.seal(t)
		total += n
		b.newestHead(t, total)
	}
	_, heads := checkLog(t, b)
	require.Len(t, heads, 9)
	for i, older := range heads {
		for _, newer := range heads[i:] {
			proof, err := attestation.ProveConsistency(t.Context(), b.readTiles, uint64(older.TreeSize), uint64(newer.TreeSize))
			require.NoError(t, err)
			require.NoError(t, verify.Consistency(uint64(older.TreeSize), uint64(newer.TreeSize), proof, older.RootHash, newer.RootHash))
		}
	}
}

// Two workers may seal one log at once, while others record: no leaf gets two places, none is left out. The slower one may
// hold a head that the other has overtaken; refusing to sign that one is all that may go wrong.
func TestSealByTwoAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	deliveries := b.accept(t, 600, b.destination)
	done := make(chan struct{})
	var sealers sync.WaitGroup
	for range 2 {
		sealing := b.sealing()
		sealers.Go(func() {
			for {
				if err := sealing.SealNow(t.Context(), b.log.ID); err != nil && !errors.Is(err, attestation.ErrHighWaterConflict) {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for chunk := range slices.Chunk(deliveries, 7) {
		require.NoError(t, b.deliverAll(t.Context(), chunk))
	}
	close(done)
	sealers.Wait()
	b.seal(t)
	b.newestHead(t, 600)
	require.Zero(t, b.queued(t))
	require.Zero(t, value[int](t, b, "select count(*) from attestation_dead_letters"))
}

// poisons are what must not get an index, by the reason for which it is set aside.
var poisons = map[string]string{
	"hash doesn't fit the bytes":  "update leaf_queue set leaf_hash = sha256('other') where attempt_id = $1",
	"leaf is of another attempt":  "update leaf_queue set attempt_id = gen_random_uuid() where attempt_id = $1",
	"leaf is of another tenant":   "update leaf_queue set tenant_id = gen_random_uuid() where attempt_id = $1",
	"leaf is of another log":      rewriteLeaf(`replace(leaf, '"origin":"kapsel.example/', '"origin":"other.example/')`),
	"invalid character":           rewriteLeaf(`'no JSON'`),
	"not the canonical JSON":      rewriteLeaf(`replace(leaf, ',"outcome"', ', "outcome"')`),
	"more than 4096":              rewriteLeaf(`leaf || repeat(' ', 4096)`),
	"member \"error\" is \"\\x00": rewriteLeaf(`replace(leaf, '"error":""', '"error":"\u0000"')`),
	"unknown kind":                rewriteLeaf(`replace(leaf, '"kind":"attempt"', '"kind":"guess"')`),
}

// rewriteLeaf is a statement that replaces a queued leaf's text, with the hash that fits it.
func rewriteLeaf(expression string) string {
	return `update leaf_queue q set leaf = convert_to(new.leaf, 'UTF8'), leaf_hash = sha256('\x00'::bytea || convert_to(new.leaf, 'UTF8'))
		from (select id, ` + expression + ` as leaf from (select id, convert_from(leaf, 'UTF8') as leaf from leaf_queue where attempt_id = $1) old) new
		where q.id = new.id`
}

// What is wrong is set aside alone, with its reason and its bytes, and the rest goes on.
func TestSealSetsPoisonedLeavesAside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 2)
	var bad []uuid.UUID
	for _, statement := range poisons {
		delivery := b.accept(t, 1, b.destination)
		require.NoError(t, b.deliverAll(t.Context(), delivery))
		bad = append(bad, id.AttemptOf(delivery[0], 1))
		b.exec(t, statement, bad[len(bad)-1])
		b.queueLeaves(t, 1)
	}
	type row struct {
		Hash, Leaf, Secrets []byte
	}
	all := collect[row](t, b, "select leaf_hash, leaf, secrets from leaf_queue")
	b.seal(t)
	b.newestHead(t, 2+len(poisons))
	require.Zero(t, b.queued(t))
	reasons := collect[struct{ Reason string }](t, b, "select reason from attestation_dead_letters where log_id = $1 and resolved_at is null", b.log.ID)
	require.Len(t, reasons, len(poisons))
	for want := range poisons {
		require.True(t, slices.ContainsFunc(reasons, func(r struct{ Reason string }) bool { return strings.Contains(r.Reason, want) }), "%s in %q", want, reasons)
	}
	require.Subset(t, all, collect[row](t, b, "select leaf_hash, leaf, secrets from attestation_dead_letters"))
	require.Zero(t, value[int](t, b, "select count(*) from leaf_of_attempt where attempt_id = any($1)", bad))
}

// A poisoned row must not stop the log, whatever is wrong with it.
func TestSealSetsALeafWithUnusableSecretsAside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.exec(t, "update leaf_queue set secrets = 'too short' where id = (select min(id) + 1 from leaf_queue)")
	b.seal(t)
	b.newestHead(t, 2)
	require.Equal(t, 1, value[int](t, b, "select count(*) from attestation_dead_letters where secrets = 'too short'"))
}

const queueAgain = `insert into leaf_queue (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets)
	select log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets from `

func TestSealIndexesALeafThatIsQueuedAgainOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.seal(t)
	b.exec(t, queueAgain+"merkle_leaves where leaf_index = 1")
	b.queueLeaves(t, 1)
	b.seal(t)
	b.newestHead(t, 4)
	require.Zero(t, b.queued(t))
}

func TestSealIndexesALeafThatIsQueuedTwiceAtOnceOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 3)
	b.exec(t, queueAgain+"leaf_queue where id = (select min(id) + 1 from leaf_queue)")
	b.seal(t)
	b.newestHead(t, 3)
	require.Zero(t, b.queued(t))
}

// commitLate begins to record a delivery, whose leaves get their queue IDs now, and commits only when it is let go.
func (b *testBundle) commitLate(t testing.TB) (letGo func()) {
	t.Helper()
	destination := b.addDestination(t, "https://example.com/late")
	delivery := b.accept(t, 1, destination)[0]
	blocker, err := b.owner.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = blocker.Rollback(context.Background()) })
	_, err = blocker.Exec(t.Context(), "select from destinations where id = $1 for update", destination)
	require.NoError(t, err)
	committed := make(chan error, 1)
	go func() { // disabling the destination is the last thing that a recording does
		_, err := activities.CommitRecordings(t.Context(), b.engine, []activities.Recording{{Delivery: delivery, Attempt: 1, Outcome: gone()}})
		committed <- err
	}()
	b.waitForBlocked(t, 1)
	return func() {
		require.NoError(t, blocker.Rollback(t.Context()))
		require.NoError(t, <-committed)
	}
}

// skipQueueIDs makes later leaves' queue IDs larger by n.
func (b *testBundle) skipQueueIDs(t testing.TB, n int) {
	t.Helper()
	b.tamper(t, "select setval(s, nextval(s) + $1) from pg_get_serial_sequence('leaf_queue', 'id') s", n)
}

// Leaves become visible by commit, not by ID: one whose transaction commits late lies before others that were taken.
func TestSealFindsALeafThatWasCommittedLate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	letGo := b.commitLate(t)
	b.skipQueueIDs(t, 1_000_000)
	b.queueLeaves(t, 5)
	b.seal(t)
	b.newestHead(t, 5)
	letGo()
	b.seal(t)
	b.newestHead(t, 7) // the attempt and the end of the delivery
}

// The loop of SealLog remembers how far it has read, and still finds what appears before that.
func TestSealLogFindsALeafThatWasCommittedLate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.skipQueueIDs(t, 1_000_000)
	stop := b.sealLog(t)
	letGo := b.commitLate(t)
	b.queueLeaves(t, 100) // as many as make a head due at once
	b.waitForLeaves(t, 100)
	letGo()
	b.waitForLeaves(t, 102)
	stop()
	b.seal(t)
	b.newestHead(t, 102)
}

// sealLog runs SealLog as a worker does, until stop, which also wants it to have ended without error.
func (b *testBundle) sealLog(t testing.TB) (stop func()) {
	t.Helper()
	sealing, stopping, ended := b.sealing(), make(chan struct{}), make(chan error, 1)
	env := newSuite().NewTestActivityEnvironment()
	env.RegisterActivity(sealing.SealLog)
	env.SetWorkerStopChannel(stopping)
	go func() {
		_, err := env.ExecuteActivity(sealing.SealLog, activities.SealInput{LogID: id.Log.Format(b.log.ID), For: time.Hour})
		ended <- err
	}()
	return func() {
		close(stopping)
		require.NoError(t, <-ended)
	}
}

// waitForLeaves polls until the log has n leaves.
func (b *testBundle) waitForLeaves(t testing.TB, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return value[int](t, b, "select tree_size from log_heads where log_id = $1", b.log.ID) == n
	}, 30*time.Second, 10*time.Millisecond)
}

// SealLog publishes by the cadence, without being told.
func TestSealLogPublishesWhatIsDue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stop := b.sealLog(t)
	for total := 100; total <= 300; total += 100 {
		b.queueLeaves(t, 100)
		require.Eventually(t, func() bool {
			return value[bool](t, b, "select exists (select from signed_tree_heads where tree_size = $1 and signature is not null)", total)
		}, 30*time.Second, 10*time.Millisecond)
	}
	stop()
	b.newestHead(t, 300)
}

// Invariant 6: delivery goes on whatever becomes of sealing, and what it recorded is in the log once that works again.
func TestDeliveryDoesNotWaitForSealing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 5)
	b.seal(t)
	key := b.file(b.keyDir, ".seed")
	require.NoError(t, os.Rename(key, key+".away"))
	r := newReceiver(t, says(200, ""))
	delivery, _ := b.claimedFor(t, r.URL)
	require.ErrorIs(t, b.sealing().SealNow(t.Context(), b.log.ID), fs.ErrNotExist)
	require.Equal(t, "delivered", recorded(t, b.sender(t), first(delivery)).State)
	b.explained(t, delivery)
	require.NoError(t, os.Rename(key+".away", key))

	// And while a sealer is stuck in the middle, under the log's lock.
	blocker, err := b.owner.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = blocker.Rollback(context.Background()) })
	_, err = blocker.Exec(t.Context(), "select from log_heads where log_id = $1 for update", b.log.ID)
	require.NoError(t, err)
	sealed := make(chan error, 1)
	go func() { sealed <- b.sealing().SealNow(t.Context(), b.log.ID) }()
	b.waitForBlocked(t, 1)
	delivery, _ = b.claimedFor(t, r.URL)
	require.Equal(t, "delivered", recorded(t, b.sender(t), first(delivery)).State)
	b.explained(t, delivery)
	require.NoError(t, blocker.Rollback(t.Context()))
	require.NoError(t, <-sealed)
	b.seal(t)
	b.newestHead(t, 7)
}
