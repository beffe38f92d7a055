package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/verify"
)

// The guide's commands run as they stand, by the three who are in it: a sender, a receiver without an account, and the owner, who
// erases what both have proofs of.
func TestAcceptanceGuide(t *testing.T) {
	t.Parallel()
	s := startTestStack(t)
	dir := t.TempDir()
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "kapsel-verify"),
		"github.com/kapsel-io/kapsel/verify/cmd/kapsel-verify").CombinedOutput()
	require.NoError(t, err, string(output))
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var headers strings.Builder
		for name := range r.Header {
			headers.WriteString(name + ": " + r.Header.Get(name) + "\n")
		}
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "request"), []byte(headers.String()), 0o600)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "request.body"), body, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(receiver.Close)

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", blocks(t, "docs/guides/acceptance.md", "sh"))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "API_URL="+s.apiURL, "API_KEY="+s.made.APIKey, "VKEY="+s.vkey(t),
		"RECEIVER_URL="+receiver.URL+"/in")
	output, err = cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	said := string(output)
	require.Equal(t, 6, strings.Count(said, "Proof verified successfully!"), said)
	require.Equal(t, 4, strings.Count(said, "Webhook accepted as evt_"), "as the sender, after both erasures, and with the package from before: %s", said)
	require.Equal(t, 1, strings.Count(said, "Webhook delivered to "+receiver.URL+"/in"), said)
	require.Equal(t, 1, strings.Count(said, "what it says is not known, because its bytes are erased"), said)
	require.Equal(t, 3, strings.Count(said, "payload: matched"), said)
	require.Equal(t, 2, strings.Count(said, "payload: erased"), said)
	require.Zero(t, s.count(t, "select count(*) from event_payloads"))
	require.Zero(t, s.count(t, "select count(*) from merkle_leaves where leaf is not null or secrets is not null"))
}

// vkey names the stack's log and its key.
func (s *testStack) vkey(t *testing.T) string {
	t.Helper()
	var origin string
	require.NoError(t, s.db.QueryRow(t.Context(), "select origin from logs").Scan(&origin))
	return verify.VKey(origin, decodeKey(t, s.made.PublicKey))
}
