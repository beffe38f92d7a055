package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// runBenchmark runs the command and returns the JSON object that is its last line.
func runBenchmark(t *testing.T, args ...string) map[string]any {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, executable, append([]string{"bench", "--json", "--dir", openDir(t),
		"--api-port", "0", "--temporal-port", "0", "--ui-port", "0"}, args...)...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	var progress strings.Builder
	cmd.Stderr = &progress
	output, err := cmd.Output()
	require.NoError(t, err, progress.String())
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	var result map[string]any
	require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &result), string(output))
	return result
}

// The benchmark says all that it promises, and would say if a webhook was lost, sent twice or not attested once. A part of
// the receivers fails, so that what is carried again is counted too.
func TestBenchmark(t *testing.T) {
	result := runBenchmark(t, "--lane", "batch", "--duration", "4s", "--receiver-fail", "0.3", "--destinations", "3")
	for _, name := range []string{"floor_per_s", "accepted_per_s", "delivered_per_s", "attested_per_s", "ingest_p99_ms", "e2e_p99_ms",
		"cpu_ms_per_event", "peak_rss_mb", "commits_per_event", "wal_bytes_per_event", "temporal_requests_per_event"} {
		require.Positive(t, result[name], name)
	}
	for _, name := range []string{"lost", "duplicated", "unattested", "attested_twice", "refused"} {
		require.Zero(t, result[name], name)
	}
	require.Equal(t, "batch", result["lane"])
	require.Greater(t, result["requests"], result["accepted"], "some failed and were tried again")
}

// An open loop sends at its rate, and real payloads arrive like any other.
func TestBenchmarkOpenLoop(t *testing.T) {
	result := runBenchmark(t, "--rate", "50", "--duration", "4s", "--payload-bytes", "0", "--no-floor")
	require.InDelta(t, 200, result["accepted"], 10)
	require.Equal(t, result["accepted"], result["requests"])
	require.Equal(t, "auto", result["lane"])
}

// Destinations that hang count neither as lost nor in the latencies of the others.
func TestBenchmarkWithDestinationsThatHang(t *testing.T) {
	result := runBenchmark(t, "--rate", "40", "--duration", "4s", "--no-floor", "--destinations", "4", "--hanging", "1")
	require.InDelta(t, 160, result["accepted"], 10)
	require.InDelta(t, 40, result["stuck"], 5)
	require.Zero(t, result["lost"])
	require.Positive(t, result["e2e_p99_ms"])
	require.Less(t, result["e2e_p99_ms"], 30_000.0, "the others didn't wait for it")
}

func TestBenchmarkRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	for flag, args := range map[string][]string{
		"--lane":          {"--lane", "fast"},
		"--receiver-fail": {"--receiver-fail", "2"},
		"--destinations":  {"--destinations", "0"},
		"--hanging":       {"--hanging", "3", "--destinations", "3"},
		"--hang-timeout":  {"--hang-timeout", "3m"},
		"--api-key":       {"--url", "http://127.0.0.1:1"},
		"--duration":      {"--duration", "0s"},
	} {
		cmd := newCommand()
		cmd.SetArgs(append([]string{"bench"}, args...))
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), flag)
	}
}
