package postgres

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// recordingCommit counts commits, and can hold them back.
type recordingCommit struct {
	mu      sync.Mutex
	commits [][]int
	hold    chan struct{}
	entered chan struct{}
}

func (c *recordingCommit) commit(_ context.Context, rows []int) ([]int, error) {
	if c.hold != nil {
		c.entered <- struct{}{}
		<-c.hold
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits = append(c.commits, rows)
	return rows, nil
}

func one(int) int { return 1 }

func TestGroupGathersWhileACommitIsUnderWay(t *testing.T) {
	t.Parallel()
	c := &recordingCommit{hold: make(chan struct{}), entered: make(chan struct{}, 10)}
	g := NewGroup(GroupConfig[int, int]{Commit: c.commit, Size: one, Committers: 1})
	var callers sync.WaitGroup
	call := func(i int) {
		callers.Go(func() {
			result, err := g.Do(t.Context(), i)
			require.NoError(t, err)
			require.Equal(t, i, result)
		})
	}
	call(0)
	<-c.entered // the first is being committed: the rest gather behind it
	for i := 1; i <= 20; i++ {
		call(i)
	}
	require.Eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.waiting.n == 20 }, 5*time.Second, time.Millisecond)
	close(c.hold)
	callers.Wait()
	g.Close()
	require.Len(t, c.commits, 2)
	require.Len(t, c.commits[1], 20)
}

// Under load rows gather for as long as Gather says, even if no commit is under way; and closing waits for them.
func TestGroupGathersForAsLongAsItIsTold(t *testing.T) {
	t.Parallel()
	c := &recordingCommit{}
	asked := make(chan struct{}, 10)
	wait := make(chan time.Duration, 1)
	g := NewGroup(GroupConfig[int, int]{Commit: c.commit, Size: one, Committers: 1, Gather: func() time.Duration {
		asked <- struct{}{}
		return <-wait
	}})
	var callers sync.WaitGroup
	for i := range 20 {
		callers.Go(func() {
			result, err := g.Do(t.Context(), i)
			require.NoError(t, err)
			require.Equal(t, i, result)
		})
	}
	<-asked // there is a row, and nothing is committed before it is told how long others may join
	require.Eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.waiting.n == 20 }, 5*time.Second, time.Millisecond)
	wait <- time.Millisecond
	callers.Wait()
	g.Close()
	require.Len(t, c.commits, 1)
	require.Len(t, c.commits[0], 20)
}

func TestGroupAnswersOnlyAfterTheCommit(t *testing.T) {
	t.Parallel()
	c := &recordingCommit{hold: make(chan struct{}), entered: make(chan struct{}, 10)}
	g := NewGroup(GroupConfig[int, int]{Commit: c.commit, Size: one})
	defer g.Close()
	answered := make(chan struct{})
	go func() {
		_, _ = g.Do(context.Background(), 1)
		close(answered)
	}()
	<-c.entered
	select {
	case <-answered:
		t.Fatal("answered before the commit")
	default:
	}
	close(c.hold)
	<-answered
	require.Equal(t, [][]int{{1}}, c.commits)
}

// Whatever mix of good and bad rows is committed together, exactly the bad ones fail.
func TestGroupFailsBadRowsAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		bad := rapid.SliceOfN(rapid.Bool(), 1, 40).Draw(t, "bad")
		var committed atomic.Int64
		g := NewGroup(GroupConfig[int, int]{
			Size:       one,
			Committers: 1,
			Commit: func(_ context.Context, rows []int) ([]int, error) {
				for _, row := range rows {
					if bad[row] {
						return nil, &pgconn.PgError{Code: "22021"}
					}
				}
				committed.Add(int64(len(rows)))
				return rows, nil
			},
		})
		var callers sync.WaitGroup
		failed := make([]error, len(bad))
		good := 0
		for i, b := range bad {
			if !b {
				good++
			}
			callers.Go(func() { _, failed[i] = g.Do(context.Background(), i) })
		}
		callers.Wait()
		g.Close()
		for i, err := range failed {
			require.Equal(t, bad[i], err != nil)
		}
		require.EqualValues(t, good, committed.Load())
	})
}

func TestGroupTellsEveryCallerOfALostConnection(t *testing.T) {
	t.Parallel()
	lost := errors.New("connection lost at commit")
	var commits atomic.Int64
	g := NewGroup(GroupConfig[int, int]{Size: one, Commit: func(context.Context, []int) ([]int, error) {
		commits.Add(1)
		return nil, lost
	}})
	defer g.Close()
	_, err := g.Do(t.Context(), 1)
	require.ErrorIs(t, err, lost)
	require.EqualValues(t, 1, commits.Load(), "an unknown outcome must not be repeated")
}

func TestGroupIsBounded(t *testing.T) {
	t.Parallel()
	c := &recordingCommit{hold: make(chan struct{}), entered: make(chan struct{}, 10)}
	g := NewGroup(GroupConfig[int, int]{Commit: c.commit, Size: func(n int) int { return n }, MaxWaitingBytes: 100, Committers: 1})
	done := make(chan error, 2)
	go func() { _, err := g.Do(context.Background(), 60); done <- err }()
	<-c.entered
	go func() { _, err := g.Do(context.Background(), 40); done <- err }()
	require.Eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.bytes == 100 }, 5*time.Second, time.Millisecond)
	_, err := g.Do(t.Context(), 1)
	require.ErrorIs(t, err, ErrOverloaded)
	close(c.hold)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	g.Close()
	_, err = g.Do(t.Context(), 1)
	require.ErrorIs(t, err, ErrClosed)
}

func TestGroupCommitsLargeRowsAlone(t *testing.T) {
	t.Parallel()
	c := &recordingCommit{}
	g := NewGroup(GroupConfig[int, int]{Commit: c.commit, Size: func(n int) int { return n }, LargeBytes: 1000})
	var callers sync.WaitGroup
	for i := range 20 {
		callers.Go(func() {
			_, err := g.Do(t.Context(), 990+i)
			require.NoError(t, err)
		})
	}
	callers.Wait()
	g.Close()
	for _, commit := range c.commits {
		for _, row := range commit {
			if row >= 1000 {
				require.Len(t, commit, 1)
			}
		}
	}
}

func TestGroupLeavesOutCallersThatHaveGone(t *testing.T) {
	t.Parallel()
	c := &recordingCommit{hold: make(chan struct{}), entered: make(chan struct{}, 10)}
	g := NewGroup(GroupConfig[int, int]{Commit: c.commit, Size: one, Committers: 1})
	go func() { _, _ = g.Do(context.Background(), 1) }()
	<-c.entered
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { _, err := g.Do(ctx, 2); gone <- err }()
	require.Eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.waiting.n == 1 }, 5*time.Second, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-gone, context.Canceled)
	close(c.hold)
	g.Close()
	require.Equal(t, [][]int{{1}}, c.commits)
}
