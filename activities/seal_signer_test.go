package activities_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
)

// remote is a log's key that is kept elsewhere, and what is wrong with that place.
type remote struct {
	asked  atomic.Int64
	answer atomic.Pointer[func(private ed25519.PrivateKey, message []byte) ([]byte, error)]
}

func (r *remote) set(answer func(private ed25519.PrivateKey, message []byte) ([]byte, error)) {
	r.answer.Store(&answer)
}

func works(private ed25519.PrivateKey, message []byte) ([]byte, error) {
	return ed25519.Sign(private, message), nil
}

// remoteSealing seals with a key that is elsewhere.
func (b *testBundle) remoteSealing(t testing.TB, r *remote) (*activities.Sealing, *prometheus.Registry, *observer.ObservedLogs) {
	t.Helper()
	text, err := os.ReadFile(b.file(b.keyDir, ".seed"))
	require.NoError(t, err)
	seed, err := attestation.ParseSeed(string(text[:64]))
	require.NoError(t, err)
	private := ed25519.NewKeyFromSeed(seed)
	core, lines := observer.New(zap.InfoLevel)
	registry := prometheus.NewRegistry()
	return activities.NewSealing(activities.SealingConfig{
		DB: b.engine, HighWaterDir: b.highWaterDir, Log: zap.New(core), Metrics: registry,
		FindSigner: func(_, origin string, key ed25519.PublicKey) (*attestation.Signer, error) {
			return attestation.NewRemoteSigner(key, origin, func(message []byte) ([]byte, error) {
				r.asked.Add(1)
				return (*r.answer.Load())(private, message)
			})
		},
	}), registry, lines
}

// sealLogWith runs SealLog as a worker does, until stop, which also wants it to have ended without error.
func (b *testBundle) sealLogWith(t testing.TB, sealing *activities.Sealing) (stop func()) {
	t.Helper()
	stopping, ended := make(chan struct{}), make(chan error, 1)
	env := newSuite().NewTestActivityEnvironment()
	env.RegisterActivity(sealing.SealLog)
	env.SetWorkerStopChannel(stopping)
	go func() {
		_, err := env.ExecuteActivity(sealing.SealLog, activities.SealInput{LogID: id.Log.Format(b.log.ID), For: time.Hour})
		ended <- err
	}()
	return sync.OnceFunc(func() {
		close(stopping)
		require.NoError(t, <-ended)
	})
}

// metric reads one sample of a registry, whose label is the one given.
func metric(t testing.TB, registry *prometheus.Registry, name, label, labelValue string) float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, pair := range m.GetLabel() {
				if family.GetName() == name && pair.GetName() == label && pair.GetValue() == labelValue {
					return m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return 0
}

func (b *testBundle) published(t testing.TB, size int) bool {
	return value[bool](t, b, "select exists (select from signed_tree_heads where tree_size = $1 and signature is not null)", size)
}

// Whatever is wrong with the signer, leaves get their places and deliveries are recorded; it isn't hammered, no heads are
// prepared that nobody signs, and once it works again one head for all that waits is published by itself.
func TestSequencingGoesOnWithoutASigner(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wrong func(release <-chan struct{}) func(private ed25519.PrivateKey, message []byte) ([]byte, error)
		cause string
		asked int64 // at most, while it is away
	}{
		"away": {func(<-chan struct{}) func(ed25519.PrivateKey, []byte) ([]byte, error) {
			return func(ed25519.PrivateKey, []byte) ([]byte, error) { return nil, errors.New("no route to the HSM") }
		}, "signer", 10},
		"hangs": {func(release <-chan struct{}) func(ed25519.PrivateKey, []byte) ([]byte, error) {
			return func(ed25519.PrivateKey, []byte) ([]byte, error) { <-release; return nil, errors.New("too late") }
		}, "timeout", 1},
		"garbage": {func(<-chan struct{}) func(ed25519.PrivateKey, []byte) ([]byte, error) {
			return func(ed25519.PrivateKey, []byte) ([]byte, error) { return []byte("garbage"), nil }
		}, "signer", 10},
		"another key's signature": {func(<-chan struct{}) func(ed25519.PrivateKey, []byte) ([]byte, error) {
			other := ed25519.NewKeyFromSeed(random32())
			return func(_ ed25519.PrivateKey, message []byte) ([]byte, error) { return ed25519.Sign(other, message), nil }
		}, "signer", 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.queueLeaves(t, 3)
			b.seal(t)
			r, release := &remote{}, make(chan struct{})
			r.set(test.wrong(release))
			sealing, registry, lines := b.remoteSealing(t, r)
			stop := b.sealLogWith(t, sealing)
			defer stop()
			total := 3
			deadline := time.Now().Add(8 * time.Second)
			for time.Now().Before(deadline) { // as many as make a head due at once, again and again
				b.queueLeaves(t, 100)
				total += 100
				b.waitForLeaves(t, total)
			}
			require.False(t, b.published(t, total))
			require.LessOrEqual(t, r.asked.Load(), test.asked)
			require.LessOrEqual(t, len(b.unsigned(t)), 1, "one head was prepared before it was known, and no other")
			require.Positive(t, metric(t, registry, "kapsel_signer_errors_total", "cause", test.cause))
			if name != "hangs" {
				require.Equal(t, 0.0, metric(t, registry, "kapsel_signer_breaker", "state", "closed"))
			}
			require.NotEmpty(t, lines.FilterMessageSnippet("head not published").All())

			r.set(works)
			close(release)
			before := value[int](t, b, "select count(*) from signed_tree_heads")
			require.Eventually(t, func() bool { return b.published(t, total) }, 90*time.Second, 20*time.Millisecond)
			require.Equal(t, before+1, value[int](t, b, "select count(*) from signed_tree_heads"), "one head for all")
			require.Equal(t, 1.0, metric(t, registry, "kapsel_signer_breaker", "state", "closed"))
			stop()
			require.NotEmpty(t, lines.FilterMessage("heads can be published again").All())
			b.newestHead(t, total)
		})
	}
}

// A seed that is missing is found when it comes back, without a restart. So is a record that is locked by a process that hangs.
func TestPublishingGoesOnByItself(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cause string
		away  func(t *testing.T, b *testBundle) (back func())
	}{
		"seed": {"signer", func(t *testing.T, b *testBundle) func() {
			seed := b.file(b.keyDir, ".seed")
			require.NoError(t, os.Rename(seed, seed+".away"))
			return func() { require.NoError(t, os.Rename(seed+".away", seed)) }
		}},
		"high-water record": {"timeout", func(t *testing.T, b *testBundle) func() {
			lock, err := os.OpenFile(b.file(b.highWaterDir, ".highwater.lock"), os.O_RDWR|os.O_CREATE, 0o600)
			require.NoError(t, err)
			require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
			return func() { require.NoError(t, lock.Close()) }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.queueLeaves(t, 1)
			b.seal(t)
			back := test.away(t, b)
			registry := prometheus.NewRegistry()
			sealing := activities.NewSealing(activities.SealingConfig{
				DB: b.engine, KeyDir: b.keyDir, HighWaterDir: b.highWaterDir, Log: zap.NewNop(), Metrics: registry,
			})
			stop := b.sealLogWith(t, sealing)
			defer stop()
			b.queueLeaves(t, 100)
			b.waitForLeaves(t, 101)
			require.Eventually(t, func() bool { return metric(t, registry, "kapsel_signer_errors_total", "cause", test.cause) > 0 }, 30*time.Second, 10*time.Millisecond)
			b.queueLeaves(t, 100)
			b.waitForLeaves(t, 201)
			back()
			require.Eventually(t, func() bool { return b.published(t, 201) }, 90*time.Second, 20*time.Millisecond)
			stop()
			b.newestHead(t, 201)
		})
	}
}

// The last seal of a worker that stops ends in time, whatever the signer does.
func TestSealNowDoesNotWaitForASignerForEver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, 5)
	r, release := &remote{}, make(chan struct{})
	r.set(func(private ed25519.PrivateKey, message []byte) ([]byte, error) {
		<-release
		return works(private, message)
	})
	sealing, _, _ := b.remoteSealing(t, r)
	for range 2 { // the second finds the first's call still under way
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		require.ErrorIs(t, sealing.SealNow(ctx, b.log.ID), context.DeadlineExceeded)
		cancel()
	}
	require.EqualValues(t, 1, r.asked.Load())
	require.Equal(t, 5, value[int](t, b, "select tree_size from log_heads"), "the leaves are in the log")
	close(release)
	require.NoError(t, sealing.SealNow(t.Context(), b.log.ID))
	b.newestHead(t, 5)
}

// Of two leaves of one attempt the one that the attempt recorded gets the place, in whatever order they come; the other is kept.
func TestSealTellsTheRecordedLeafFromOthers(t *testing.T) {
	t.Parallel()
	forged := rewriteLeaf(`replace(leaf, '"response_status":200', '"response_status":201')`)
	const attempt = "(select attempt_id from leaf_queue order by id limit 1)"
	for name, steps := range map[string][]string{
		"the right one first":        {queueAgain + "leaf_queue where attempt_id = " + attempt, "second"},
		"the wrong one first":        {queueAgain + "leaf_queue where attempt_id = " + attempt, "first"},
		"after the right one's seal": {"seal", queueAgain + "merkle_leaves where leaf_index = 0", "first"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			delivery := b.accept(t, 1, b.destination)
			require.NoError(t, b.deliverAll(t.Context(), delivery))
			one := id.AttemptOf(delivery[0], 1)
			for _, step := range steps {
				switch step {
				case "seal":
					b.seal(t)
				case "first", "second":
					which := map[string]string{"first": "min", "second": "max"}[step]
					b.exec(t, fmt.Sprintf("create view one as select * from leaf_queue where id = (select %s(id) from leaf_queue)", which))
					b.exec(t, `update leaf_queue set leaf = convert_to(replace(convert_from(leaf, 'UTF8'), '"response_status":200', '"response_status":201'), 'UTF8')
						where id = (select id from one)`)
					b.exec(t, `update leaf_queue set leaf_hash = sha256('\x00'::bytea || leaf)`)
				default:
					b.exec(t, step)
				}
			}
			b.seal(t)
			b.newestHead(t, 1)
			require.True(t, value[bool](t, b, "select a.leaf_hash = l.leaf_hash from attempts a join merkle_leaves l on l.attempt_id = a.id where a.id = $1", one))
			require.Equal(t, 1, value[int](t, b, `select count(*) from attestation_dead_letters where attempt_id = $1
				and (reason like 'hash isn%' or reason like 'the attempt has another leaf%')`, one))
			require.Zero(t, b.queued(t))
		})
	}
	b := setup(t)
	delivery := b.accept(t, 1, b.destination)
	require.NoError(t, b.deliverAll(t.Context(), delivery))
	b.exec(t, forged, id.AttemptOf(delivery[0], 1))
	b.seal(t)
	b.newestHead(t, 0)
	require.Equal(t, 1, value[int](t, b, "select count(*) from attestation_dead_letters where reason = 'hash isn''t the one that the attempt recorded'"))
}
