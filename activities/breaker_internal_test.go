package activities

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
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
