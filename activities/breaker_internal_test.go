package activities

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/attestation"
)

func TestBreaker(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var b breaker
	for range breakerFailures {
		require.Equal(t, breakerClosed, b.state())
		require.True(t, b.allows(now))
		b.failed(now)
	}
	require.Equal(t, breakerOpen, b.state())
	require.False(t, b.allows(now))
	require.False(t, b.allows(now.Add(breakerFirstWait*3/4-1)))
	now = now.Add(breakerFirstWait * 5 / 4)
	require.True(t, b.allows(now))
	require.Equal(t, breakerHalfOpen, b.state())
	require.False(t, b.allows(now.Add(time.Hour)), "one probe at a time")
	b.failed(now)
	require.Equal(t, breakerOpen, b.state())
	require.False(t, b.allows(now.Add(2*breakerFirstWait*3/4-1)), "the second wait is longer")
	now = now.Add(2 * breakerFirstWait * 5 / 4)
	require.True(t, b.allows(now))
	b.succeeded()
	require.Equal(t, breakerClosed, b.state())
	require.True(t, b.allows(now))
}

// However often it fails: waits double, with jitter, up to the last; and a success makes it as it was.
func TestBreakerWaits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		var b breaker
		for n := range rapid.IntRange(breakerFailures, 200).Draw(t, "failures") {
			require.True(t, b.allows(now))
			b.failed(now)
			if n+1 < breakerFailures {
				continue
			}
			want := breakerLastWait
			if over := n + 1 - breakerFailures; over < 6 {
				want = breakerFirstWait << over
			}
			wait := b.probeAt.Sub(now)
			require.GreaterOrEqual(t, wait, want*3/4)
			require.LessOrEqual(t, wait, want*5/4)
			now = b.probeAt
		}
		b.succeeded()
		require.Equal(t, breaker{}, b)
	})
}

// A call that hangs for ever is one failure to the breaker, and goes on being counted, so that it is seen however long it lasts.
func TestWhatHangsIsCountedAgain(t *testing.T) {
	t.Parallel()
	p := newPublisher(newSealMetrics(nil), zap.NewNop())
	now := time.Now()
	p.begin(now)
	for range 301 {
		now = now.Add(time.Second)
		p.hangs(now)
	}
	require.Equal(t, 5.0, testutil.ToFloat64(p.metrics.errors.WithLabelValues("timeout")), "after 6 s, and each minute after that")
	require.Equal(t, 1, p.breaker.failures)
}

// However many logs there are, the series are as many.
func TestSealMetricsDoNotGrowWithLogs(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	m := newSealMetrics(registry)
	series := func() int {
		n, err := testutil.GatherAndCount(registry)
		require.NoError(t, err)
		return n
	}
	before := series()
	for i := range 20 {
		p := newPublisher(m, zap.NewNop())
		for range i % 4 {
			p.fail(time.Now(), attestation.ErrSigner)
		}
	}
	m.aside.Inc()
	require.Equal(t, before, series())
	require.Equal(t, 15.0, testutil.ToFloat64(m.breakers.WithLabelValues("closed")))
	require.Equal(t, 5.0, testutil.ToFloat64(m.breakers.WithLabelValues("open")), "three failures in a row")
	require.Equal(t, 30.0, testutil.ToFloat64(m.errors.WithLabelValues("signer")))
}
