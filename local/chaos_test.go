package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/local/chaos"
)

// Two minutes of the fault harness, the production binary with everything around it being broken: every promise holds. What
// the harness finds if one doesn't is tested in package chaos.
func TestNothingIsLostInChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes three minutes")
	}
	executable, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	// A seed whose first two minutes have a failover, two faults at once, and much else: rollout, kill, Postgres, Temporal, network, disk,
	// signer. Not deploy, whose two releases take long to build, and clock, which not every machine can make: they would change the
	// plan. And few webhooks, since the tests of other packages share the machine.
	cmd := exec.CommandContext(ctx, executable, "chaos", "--json", "--duration", "2m", "--pause", "4s", "--seed", "32", "--rate", "8", "--faults",
		"kill,kill-all,pause,postgres,failover,sessions,lock,away,cut,silence,latency,receiver,rollout,signer,disk-full")
	cmd.Env = append(os.Environ(), asCommand+"=1")
	var progress strings.Builder
	cmd.Stderr = &progress
	output, err := cmd.Output()
	require.NoError(t, err, progress.String())

	var report chaos.Report
	require.NoError(t, json.Unmarshal(output, &report), string(output))
	require.Empty(t, report.Violations, progress.String())
	require.GreaterOrEqual(t, len(report.Faults), 6, progress.String())
	if len(report.Left) == 0 { // else there is another plan
		require.True(t, slices.ContainsFunc(report.Faults, func(f chaos.FaultReport) bool { return f.Kind == "failover" }), progress.String())
	}
	require.Greater(t, report.Accepted, 200, "the load was accepted between the faults")
	require.GreaterOrEqual(t, report.Events, report.Accepted)
	require.Equal(t, report.Attempts, report.Leaves)
	require.NotZero(t, report.HeadChecks)
	require.Zero(t, report.Lost)
}

func TestChaosRefusesWhatItCantDo(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"--faults earthquake", "allowed are kill"},
		{"--together 2", "--together is 2"},
		{"--rate 0", "--rate is 0"},
		{"--duration 1s", "--duration"},
	} {
		cmd := newCommand()
		cmd.SetArgs(append([]string{"chaos"}, strings.Fields(c.args)...))
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), c.says)
	}
}
