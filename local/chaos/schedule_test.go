package chaos

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The same seed makes the same faults, another one others.
func TestPlanFollowsFromTheSeed(t *testing.T) {
	t.Parallel()
	first := plan(7, time.Hour, 5*time.Second, 0.25, kinds)
	require.Equal(t, first, plan(7, time.Hour, 5*time.Second, 0.25, kinds))
	require.NotEqual(t, first, plan(8, time.Hour, 5*time.Second, 0.25, kinds))
	// A longer run begins like a shorter one.
	short := plan(7, 10*time.Minute, 5*time.Second, 0.25, kinds)
	require.Equal(t, short, first[:len(short)])
}

// Faults come one after the other with a pause in between, end before the load does, and a round has every kind once.
func TestPlanLeavesRoomToRecover(t *testing.T) {
	t.Parallel()
	const length, pause = time.Hour, 5 * time.Second
	faults := plan(1, length, pause, 0, kinds)
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

// Faults that come together break different things, and what comes next leaves room to both.
func TestPlanOverlapsDifferentTargets(t *testing.T) {
	t.Parallel()
	const length, pause = 4 * time.Hour, 5 * time.Second
	faults := plan(3, length, pause, 0.5, kinds)
	beside, seen, end := 0, map[string]bool{}, time.Duration(0)
	for i, f := range faults {
		seen[f.Kind] = true
		if f.Beside {
			beside++
			before := faults[i-1]
			require.False(t, before.Beside, "two at once, never three")
			require.GreaterOrEqual(t, f.At, before.At)
			require.Less(t, f.At, before.At+before.For)
			require.True(t, before.apart(f), "%s, %s", before, f)
		} else if i > 0 {
			require.GreaterOrEqual(t, f.At, end+pause/2)
		}
		end = max(end, f.At+f.For)
	}
	require.Greater(t, beside, len(faults)/8)
	require.Len(t, seen, len(kinds))

	for _, c := range []struct {
		a, b  Fault
		apart bool
	}{
		{Fault{Kind: "kill", Target: "worker-1"}, Fault{Kind: "rollout", Target: "kapsel"}, false},
		{Fault{Kind: "signer", Target: "key"}, Fault{Kind: "pause", Target: "worker-2"}, false},
		{Fault{Kind: "failover", Target: "postgres"}, Fault{Kind: "lock", Target: "deliveries"}, false},
		{Fault{Kind: "away", Target: "postgres"}, Fault{Kind: "kill", Target: "postgres"}, false},
		{Fault{Kind: "cut", Target: "all:postgres"}, Fault{Kind: "silence", Target: "api-1:postgres"}, false},
		{Fault{Kind: "receiver", Target: "hang"}, Fault{Kind: "cut", Target: "workers:receiver"}, false},
		{Fault{Kind: "cut", Target: "all:postgres"}, Fault{Kind: "failover", Target: "postgres"}, true},
		{Fault{Kind: "cut", Target: "all:temporal"}, Fault{Kind: "silence", Target: "worker-1:postgres"}, true},
		{Fault{Kind: "kill", Target: "temporal"}, Fault{Kind: "kill-all", Target: "workers"}, true},
		{Fault{Kind: "kill", Target: "temporal"}, Fault{Kind: "away", Target: "postgres"}, true},
	} {
		require.Equal(t, c.apart, c.a.apart(c.b), "%s, %s", c.a, c.b)
		require.Equal(t, c.apart, c.b.apart(c.a), "%s, %s", c.b, c.a)
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
