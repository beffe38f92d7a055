package main

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// blocks returns the fenced blocks of a document that are in a language, joined.
func blocks(t *testing.T, path, language string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", path))
	require.NoError(t, err)
	var all strings.Builder
	for _, part := range strings.Split(string(text), "```"+language+"\n")[1:] {
		block, _, closed := strings.Cut(part, "```")
		require.True(t, closed)
		all.WriteString(block)
	}
	require.NotEmpty(t, all.String())
	return all.String()
}

// startPrinter runs what `go run ./local receive` runs, and returns its address.
func startPrinter(t *testing.T, status int) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serveReceiver(ctx, listener, &printer{out: &strings.Builder{}, status: status}) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-served)
	})
	return listener.Addr().String()
}

// The guide's commands run as they stand, each pipeline to success, and its queries find something in Temporal.
func TestInspectGuide(t *testing.T) {
	const guide = "docs/guides/inspect.md"
	s := startTestStack(t)
	script := strings.NewReplacer(".kapsel/", s.dir+"/", "127.0.0.1:9000", startPrinter(t, http.StatusOK),
		"127.0.0.1:9001", startPrinter(t, http.StatusServiceUnavailable)).Replace(blocks(t, guide, "sh"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script+"\nset -o posix; set > "+s.dir+"/variables")
	cmd.Dir = ".."
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	require.Contains(t, string(output), `{"order": 4711}`, "the payload")
	require.Contains(t, string(output), `"inclusion_proof"`)

	variables, err := os.ReadFile(filepath.Join(s.dir, "variables"))
	require.NoError(t, err)
	set := map[string]string{}
	for line := range strings.Lines(string(variables)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		set[name] = value
	}
	temporalClient := s.temporalClient(t)
	queries := bufio.NewScanner(strings.NewReader(blocks(t, guide, "text")))
	for queries.Scan() {
		query := os.Expand(queries.Text(), func(name string) string {
			require.NotEmpty(t, set[name], name)
			return set[name]
		})
		require.Eventually(t, func() bool { return countWorkflows(t, temporalClient, query) > 0 }, 30*time.Second, 100*time.Millisecond, query)
	}
}
