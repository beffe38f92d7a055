package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"filippo.io/torchwood"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/verify"
)

// logFollower follows the log with tools of other projects: torchwood fetches and keeps tiles, golang.org/x/mod proves. It knows
// the log's URL and its key.
type logFollower struct {
	fetcher *torchwood.TileFetcher
	tiles   torchwood.TileReader
	policy  torchwood.Policy
	last    torchwood.Checkpoint
}

func newLogFollower(t *testing.T, s *site) *logFollower {
	t.Helper()
	verifier, err := note.NewVerifier(s.made.VKey)
	require.NoError(t, err)
	fetcher, err := torchwood.NewTileFetcher(s.base + "/log/" + s.made.LogID)
	require.NoError(t, err)
	kept, err := torchwood.NewPermanentCache(fetcher, t.TempDir())
	require.NoError(t, err)
	policy := torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(s.made.Origin), torchwood.SingleVerifierPolicy(verifier))
	return &logFollower{fetcher: fetcher, tiles: kept, policy: policy}
}

// follow reads the checkpoint and demands that the tree it saw before is the beginning of this one.
func (f *logFollower) follow(ctx context.Context, t *testing.T) {
	t.Helper()
	signed, err := f.fetcher.ReadEndpoint(ctx, "checkpoint")
	require.NoError(t, err)
	now, _, err := torchwood.VerifyCheckpoint(signed, f.policy)
	require.NoError(t, err)
	if f.last.N > 0 && now.N > f.last.N {
		path, err := tlog.ProveTree(now.N, f.last.N, torchwood.TileHashReaderWithContext(ctx, now.Tree, f.tiles))
		require.NoError(t, err)
		require.NoError(t, tlog.CheckTree(path, now.N, now.Hash, f.last.N, f.last.Hash))
	}
	require.GreaterOrEqual(t, now.N, f.last.N)
	f.last = now
}

// A real log is followed while it grows, and then every attempt is found in it: from tiles, and by the text that each
// proof is also downloaded as.
func TestToolsOfOtherProjectsFollowTheLog(t *testing.T) {
	s := startTestStack(t)
	receiver := startReceiver(t, ok)
	endpoint := s.createEndpoint(t, client.NewDestination{URL: receiver.URL})
	auditor := newLogFollower(t, s.site)
	for i := range 10 {
		s.mustIngest(t, endpoint, fmt.Sprint(i))
	}
	s.awaitSealed(t, time.Minute)
	auditor.follow(t.Context(), t)
	require.EqualValues(t, 10, auditor.last.N)

	go func() {
		for i := range 400 {
			_, _ = s.ingest(t.Context(), endpoint, fmt.Sprint("more ", i))
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for auditor.last.N < 410 {
		auditor.follow(ctx, t)
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			require.FailNow(t, "the log doesn't grow", "to 410 leaves, it has %d", auditor.last.N)
		}
	}
	require.EqualValues(t, 410, auditor.last.N)

	reader := torchwood.TileHashReaderWithContext(t.Context(), auditor.last.Tree, auditor.tiles)
	rows, err := s.db.Query(t.Context(), "select leaf_index, leaf_hash from merkle_leaves")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var index int64
		var hash []byte
		require.NoError(t, rows.Scan(&index, &hash))
		path, err := tlog.ProveRecord(auditor.last.N, index, reader)
		require.NoError(t, err)
		require.NoError(t, tlog.CheckRecord(path, auditor.last.N, auditor.last.Hash, index, tlog.Hash(hash)))
	}
	require.NoError(t, rows.Err())
	s.checkTexts(t, auditor.policy)
}

// checkTexts verifies proofs as texts of C2SP, and that what is changed in them doesn't verify.
func (s *site) checkTexts(t *testing.T, policy torchwood.Policy) {
	t.Helper()
	events, err := s.api.ListEventsWithResponse(t.Context(), nil)
	require.NoError(t, err)
	require.NotEmpty(t, events.JSON200.Data)
	for _, listed := range events.JSON200.Data[:20] {
		event, err := s.api.GetEventWithResponse(t.Context(), listed.ID)
		require.NoError(t, err)
		text := s.download(t, event.JSON200.Deliveries[0].Attempts[0].ID, "tlog-proof")
		extra, err := torchwood.ProofExtraData(text)
		require.NoError(t, err)
		var carried struct{ Leaf []byte }
		require.NoError(t, json.Unmarshal(extra, &carried))
		leaf, err := verify.ParseLeaf(carried.Leaf)
		require.NoError(t, err)
		require.Equal(t, listed.ID, leaf.EventID)
		require.NoError(t, torchwood.VerifyProof(policy, tlog.RecordHash(carried.Leaf), text))
		carried.Leaf[len(carried.Leaf)/2] ^= 1
		require.Error(t, torchwood.VerifyProof(policy, tlog.RecordHash(carried.Leaf), text))
	}
}

func (s *site) download(t *testing.T, attempt, format string) []byte {
	t.Helper()
	answer, err := s.api.DownloadProof(t.Context(), attempt, &client.DownloadProofParams{Format: &format})
	require.NoError(t, err)
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, "%s", body)
	return body
}
