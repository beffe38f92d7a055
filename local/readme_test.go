package main

import (
	"context"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// readmeBlock returns the first fenced block of the README after a text.
func readmeBlock(t *testing.T, after string) string {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join("..", "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(readme), after)
	require.True(t, found, after)
	_, rest, found = strings.Cut(rest, "```")
	require.True(t, found)
	_, rest, _ = strings.Cut(rest, "\n") // the block's language
	block, _, closed := strings.Cut(rest, "```")
	require.True(t, closed)
	return block
}

// varying is what differs from one run of the demo to the next.
var varying = regexp.MustCompile(`127\.0\.0\.1:\d+|\b(ep|da)_[0-9a-z]{26}|[0-9a-f]{64}|root [0-9a-f]{16}|[\d-]+T[\d:]+Z|(leaf|size) \d+|` +
	` *\d+\.\d s|in \d+ s|in \S+demo`)

func shape(line string) string { return varying.ReplaceAllString(strings.TrimRight(line, " \n"), "<>") }

// The README's first command ends with 0, and every line that the README shows of its output is one that it prints.
func TestREADMEDemo(t *testing.T) {
	executable, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, executable, "demo", "--exit", "--dir", openDir(t), "--api-port", "0", "--temporal-port", "0", "--ui-port", "0")
	cmd.Env = append(os.Environ(), asCommand+"=1")
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	printed := strings.Split(string(output), "\n")
	for line := range strings.Lines(readmeBlock(t, "What it prints:")) {
		if shape(line) == "  …" { // what the README leaves out
			continue
		}
		for len(printed) > 0 && shape(printed[0]) != shape(line) {
			printed = printed[1:]
		}
		require.NotEmpty(t, printed, "the README shows what the demo doesn't print: %q in\n%s", line, output)
	}
}

// The README's commands to try by hand do what it says, and the receiver prints what it gets.
func TestREADMEByHand(t *testing.T) {
	s := startTestStack(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var received strings.Builder
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serveReceiver(ctx, listener, &printer{out: &received, status: 200}) }()

	script := strings.NewReplacer(".kapsel/", s.stack.dir+"/", "127.0.0.1:9000", listener.Addr().String()).
		Replace(readmeBlock(t, "## Try it by hand"))
	within, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(within, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = ".."
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	require.Contains(t, string(output), "Webhook delivered to http://"+listener.Addr().String()+"/\n")
	require.Contains(t, string(output), "payload: matched\n")
	stop()
	require.NoError(t, <-served)
	require.Contains(t, received.String(), "POST /\n")
	require.Contains(t, received.String(), "Webhook-Signature: \"v1,")
	require.Contains(t, received.String(), `5 bytes: "hello"`)
}

// named finds what documents name in backquotes as a file or folder of the repository.
var named = regexp.MustCompile("`([a-z][a-z0-9_./-]*(?:/|\\.(?:go|md|ya?ml|sql)))`")

// What the documents name is there.
func TestDocumentsNameWhatExists(t *testing.T) {
	t.Parallel()
	root := os.DirFS("..")
	documents, err := fs.Glob(root, "*.md")
	require.NoError(t, err)
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md", "verify/*.md"} {
		more, err := fs.Glob(root, pattern)
		require.NoError(t, err)
		documents = append(documents, more...)
	}
	require.NotEmpty(t, documents)
	for _, document := range documents {
		text, err := fs.ReadFile(root, document)
		require.NoError(t, err)
		for _, found := range named.FindAllStringSubmatch(string(text), -1) {
			_, err := fs.Stat(root, strings.TrimSuffix(found[1], "/"))
			if err != nil && path.Dir(document) != "." { // or beside the document
				_, err = fs.Stat(root, path.Join(path.Dir(document), strings.TrimSuffix(found[1], "/")))
			}
			require.NoError(t, err, "%s names %s", document, found[1])
		}
	}
}
