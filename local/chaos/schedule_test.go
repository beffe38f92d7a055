package chaos

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The same seed makes the same faults, another one others.
func TestPlanFollowsFromTheSeed(t *testing.T) {
	t.Parallel()
	first := plan(7, time.Hour, 5*time.Second, kinds)
	require.Equal(t, first, plan(7, time.Hour, 5*time.Second, kinds))
	require.NotEqual(t, first, plan(8, time.Hour, 5*time.Second, kinds))
	// A longer run begins like a shorter one.
	short := plan(7, 10*time.Minute, 5*time.Second, kinds)
	require.Equal(t, short, first[:len(short)])
}

// Faults come one after the other with a pause in between, end before the load does, and a round has every kind once.
func TestPlanLeavesRoomToRecover(t *testing.T) {
	t.Parallel()
	const length, pause = time.Hour, 5 * time.Second
	faults := plan(1, length, pause, kinds)
	for round := 0; round+len(kinds) <= len(faults); round += len(kinds) {
		seen := map[string]bool{}
		for _, f := range faults[round : round+len(kinds)] {
			seen[f.Kind] = true
		}
		require.Len(t, seen, len(kinds))
	}
	targets := map[string]bool{}
	for i, f := range faults {
		k := kindNamed(f.Kind)
		require.Contains(t, k.targets, f.Target)
		require.GreaterOrEqual(t, f.For, k.least)
		require.LessOrEqual(t, f.For, k.most)
		require.LessOrEqual(t, f.At+f.For, length)
		if i > 0 {
			require.GreaterOrEqual(t, f.At, faults[i-1].At+faults[i-1].For+pause/2)
		}
		targets[f.String()] = true
	}
	for _, target := range kindNamed("kill").targets {
		require.True(t, targets["kill "+target], target)
	}
}

func TestChooseFaults(t *testing.T) {
	t.Parallel()
	all, err := choose(nil, nil)
	require.NoError(t, err)
	require.Len(t, all, len(kinds))
	some, err := choose([]string{"kill", "disk-full"}, map[string]string{"disk-full": "no"})
	require.NoError(t, err)
	require.Equal(t, "kill", some[0].name)
	require.Len(t, some, 1)
	_, err = choose([]string{"earthquake"}, nil)
	require.ErrorContains(t, err, "earthquake")
	require.ErrorContains(t, err, "disk-full")
	_, err = choose([]string{"disk-full"}, map[string]string{"disk-full": "no"})
	require.Error(t, err)
}
