package main

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
)

// onlyAttempt is the ID of the one attempt there is.
func (s *site) onlyAttempt(t *testing.T) string {
	t.Helper()
	var attempt uuid.UUID
	require.NoError(t, s.db.QueryRow(t.Context(), "select attempt_id from leaf_of_attempt").Scan(&attempt))
	return id.Attempt.Format(attempt)
}

// The guide's commands run as they stand, while a worker seals, and what auditors do in it ends with a verified proof: of a
// package from before both changes, under the first, the second and the third key.
func TestLogKeysGuide(t *testing.T) {
	s := startTestStack(t)
	a := newAuditor(t, s)
	output, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(a.dir, "kapsel-verify"),
		"github.com/kapsel-io/kapsel/verify/cmd/kapsel-verify").CombinedOutput()
	require.NoError(t, err, string(output))
	endpoint := s.createEndpoint(t, client.NewDestination{URL: "http://" + startPrinter(t, http.StatusOK) + "/"})
	s.mustIngest(t, endpoint, "before the change")
	s.awaitZero(t, time.Minute, "select 1 - (select count(*) from leaf_of_attempt)")

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", blocks(t, "docs/guides/log-keys.md", "sh"))
	cmd.Dir = a.dir
	cmd.Env = append(os.Environ(), "PATH="+a.dir+":"+os.Getenv("PATH"), "DATABASE_URL="+s.dbURL,
		"LOG_KEY_DIR="+keyDir(s.dir), "LOG_HIGH_WATER_DIR="+highWaterDir(s.dir),
		"API_URL="+s.apiURL, "API_KEY="+s.made.APIKey, "PUBLIC_KEY="+s.made.PublicKey, "ATTEMPT="+s.onlyAttempt(t))
	output, err = cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	require.Equal(t, 3, strings.Count(string(output), "Webhook delivered to http://"), string(output))
	require.Contains(t, string(output), "given up as compromised")
	seeds, err := os.ReadDir(filepath.Join(a.dir, "backup"))
	require.NoError(t, err)
	require.Len(t, seeds, 3)

	// The worker of the stack goes on by itself.
	s.mustIngest(t, endpoint, "after the changes")
	s.awaitZero(t, time.Minute, `select case when exists (select from signed_tree_heads h join attestation_keys k using (log_id, key_id)
		where h.tree_size = 4 and h.signature is not null and k.not_after is null) then 0 else 1 end`)
}
