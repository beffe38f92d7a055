package api

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
)

// One endpoint can hold a quarter of the memory, all together all of it, and what is given back is there again.
func TestBudget(t *testing.T) {
	t.Parallel()
	b := newBudget(8 * MaxBody)
	read := func(h *holding, n int) error {
		_, err := io.Copy(io.Discard, h.reader(bytes.NewReader(make([]byte, n))))
		return err
	}
	greedy, other := id.New(), id.New()
	first, second, third := b.hold(greedy), b.hold(greedy), b.hold(greedy)
	require.NoError(t, read(first, MaxBody))
	require.NoError(t, read(second, MaxBody))
	require.Equal(t, kindUnavailable, problemOf(read(third, 1)).kind, "its share is used up")
	neighbour := b.hold(other)
	require.NoError(t, read(neighbour, MaxBody), "which is nothing to others")

	third.release()
	first.release()
	again := b.hold(greedy)
	require.NoError(t, read(again, MaxBody))
	for _, h := range []*holding{second, neighbour, again} {
		h.release()
	}
	require.Zero(t, b.used)
	require.Empty(t, b.endpoints, "nothing is remembered of those who hold nothing")

	for range 8 {
		require.NoError(t, read(b.hold(id.New()), MaxBody))
	}
	require.Equal(t, kindUnavailable, problemOf(read(b.hold(id.New()), 1)).kind, "all of it is used up")
	require.GreaterOrEqual(t, newBudget(1).share, int64(MaxBody), "a share is never too small for a body")
}
