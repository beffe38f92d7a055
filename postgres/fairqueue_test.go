package postgres

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func keyOf(n int) (key uuid.UUID) {
	binary.BigEndian.PutUint64(key[:], uint64(n))
	return key
}

// Whatever comes and goes: nothing is lost or doubled, a key's elements keep their order, and while a key waits no other is
// served twice before it.
func TestFairQueue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var q fairQueue[[2]int]
		pushed, popped := map[int]int{}, map[int]int{}
		passed := map[int]map[int]int{} // of each key that waits, how often each other was served since it came to its front
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if q.n == 0 || rapid.Bool().Draw(t, "push") {
				key := rapid.IntRange(0, 4).Draw(t, "key")
				q.push(keyOf(key), [2]int{key, pushed[key]})
				pushed[key]++
				if passed[key] == nil {
					passed[key] = map[int]int{}
				}
				continue
			}
			next := q.peek()
			require.Equal(t, next, q.pop())
			key := next[0]
			require.Equal(t, popped[key], next[1], "in the order in which they came")
			popped[key]++
			for other, by := range passed {
				if by[key]++; other != key {
					require.LessOrEqual(t, by[key], 1, "key %d was served twice while %d waited", key, other)
				}
			}
			delete(passed, key)
			if popped[key] < pushed[key] {
				passed[key] = map[int]int{}
			}
		}
		waiting := 0
		for key := range pushed {
			waiting += pushed[key] - popped[key]
		}
		require.Equal(t, waiting, q.n)
		require.Len(t, q.turns, len(q.lines))
	})
}

// One tenant that floods the group has its share of it and no more, and another's row is in the next commit.
func TestGroupIsSharedFairly(t *testing.T) {
	t.Parallel()
	c := &recordingCommit{hold: make(chan struct{}), entered: make(chan struct{}, 100)}
	g := NewGroup(GroupConfig[int, int]{
		Commit: c.commit, Size: func(int) int { return 10 }, Key: func(n int) uuid.UUID { return keyOf(n / 1000) },
		Committers: 1, MaxRows: 4, MaxWaitingBytes: 400, MaxShareBytes: 200,
	})
	results := make(chan error, 100)
	do := func(n int) { go func() { _, err := g.Do(context.Background(), n); results <- err }() }
	holds := func(bytes int) {
		require.Eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.bytes == bytes }, 5*time.Second, time.Millisecond)
	}
	do(0)
	<-c.entered
	for i := 1; i < 20; i++ {
		do(i)
		holds(10 * (i + 1)) // one after the other
	}
	_, err := g.Do(t.Context(), 20)
	require.ErrorIs(t, err, ErrShare)
	do(1000)
	do(2000)
	holds(220)
	go func() { // each commit is entered and let go
		for range c.entered {
			continue
		}
	}()
	close(c.hold)
	for range 22 {
		require.NoError(t, <-results)
	}
	g.Close()
	close(c.entered)
	require.Len(t, c.commits[1], 4)
	require.True(t, slices.Contains(c.commits[1], 1000) && slices.Contains(c.commits[1], 2000), "%v", c.commits[1])
	require.Empty(t, g.held)
}
