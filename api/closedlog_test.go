package api_test

import (
	"encoding/hex"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// A closed log says so and where it goes on, is read as before, and takes nothing more: what was accepted for it goes into its
// successor, which says what it goes on for.
func TestAClosedLogSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, name := b.endpoint(t), id.Log.Format(b.log.ID)
	b.add(t, `,"signing":["v1a"]`)
	before := b.attempted(t, endpoint, "0")
	waiting := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, "1")))
	b.sealNow(t)
	old := b.get(t, "/log/"+name+"/checkpoint")
	require.Empty(t, old.header.Get("Kapsel-Log-Closed"))
	require.Nil(t, read[openapi.Keys](t, b.get(t, "/api/v1/attestation/keys"), 200).Closed)

	lost := attestation.Head{TreeSize: 7, Timestamp: 4_000_000_000_000, RootHash: verify.EmptyRoot()} // published, and then lost in a restore
	require.NoError(t, attestation.NewHighWater(filepath.Join(b.keys, name+".highwater"), b.log.Origin).Advance(t.Context(), lost))
	done, err := admin.CloseLog(t.Context(), b.owner, admin.CloseConfig{
		Log: postgres.LogRow{ID: b.log.ID, Origin: b.log.Origin}, KeyDir: b.keys, HighWaterDir: b.keys})
	require.NoError(t, err)

	checkpoint := b.get(t, "/log/"+name+"/checkpoint")
	require.Equal(t, 200, checkpoint.status)
	require.Equal(t, old.body, checkpoint.body)
	successor := id.Log.Format(done.Successor.ID)
	require.Equal(t, `</log/`+successor+`/checkpoint>; rel="successor-version"`, checkpoint.header.Get("Link"))
	keys := read[openapi.Keys](t, b.get(t, "/api/v1/attestation/keys?log="+name), 200)
	require.Nil(t, keys.Predecessor)
	require.Len(t, keys.Keys, 2)
	require.Equal(t, "v1a", keys.Keys[1].Purpose, "what deliveries were signed with stays told, for ever")
	require.Equal(t, name, keys.Closed.LogID)
	require.Equal(t, done.Successor.Origin, keys.Closed.SuccessorOrigin)
	require.EqualValues(t, 1, keys.Closed.TreeSize)
	require.EqualValues(t, 7, keys.Closed.PublishedTreeSize)
	require.Equal(t, keys.Closed.ClosedAt.UTC().Format("2006-01-02T15:04:05.999999999Z07:00"), checkpoint.header.Get("Kapsel-Log-Closed"))
	next := read[openapi.Keys](t, b.get(t, "/api/v1/attestation/keys"), 200)
	require.Equal(t, successor, next.LogID)
	require.Equal(t, keys.Closed, next.Predecessor)
	require.Nil(t, next.Closed)

	b.record(t, waiting, "delivered", false)
	after := b.attempted(t, endpoint, "2")
	sealing := activities.NewSealing(activities.SealingConfig{DB: b.engine, KeyDir: b.keys, HighWaterDir: b.keys, Log: zap.NewNop()})
	require.NoError(t, sealing.SealNow(t.Context(), done.Successor.ID))
	for attempt, vkey := range map[string]string{
		before: b.log.VKey, after: done.Successor.VKey, id.Attempt.Format(id.AttemptOf(waiting, 1)): done.Successor.VKey,
	} {
		pkg := b.get(t, "/api/v1/attestation/download-proof/"+attempt)
		require.Equal(t, 200, pkg.status, "%s", pkg.body)
		_, err := verify.Package(pkg.body, verify.Options{VKey: vkey})
		require.NoError(t, err)
	}
}

// An attempt whose leaf was made anew shows the leaf that is in the log.
func TestAMovedLeafIsShownAsItIs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.sealNow(t)
	attempt := b.attempted(t, b.endpoint(t), "0")
	recorded := read[openapi.AttemptDetail](t, b.get(t, "/api/v1/attempts/"+attempt), 200).Attempt
	lost := attestation.Head{TreeSize: 7, Timestamp: 4_000_000_000_000, RootHash: verify.EmptyRoot()}
	require.NoError(t, attestation.NewHighWater(filepath.Join(b.keys, id.Log.Format(b.log.ID)+".highwater"), b.log.Origin).Advance(t.Context(), lost))
	done, err := admin.CloseLog(t.Context(), b.owner, admin.CloseConfig{
		Log: postgres.LogRow{ID: b.log.ID, Origin: b.log.Origin}, KeyDir: b.keys, HighWaterDir: b.keys})
	require.NoError(t, err)
	require.Equal(t, 1, done.Moved)
	sealing := activities.NewSealing(activities.SealingConfig{DB: b.engine, KeyDir: b.keys, HighWaterDir: b.keys, Log: zap.NewNop()})
	require.NoError(t, sealing.SealNow(t.Context(), done.Successor.ID))
	shown := read[openapi.AttemptDetail](t, b.get(t, "/api/v1/attempts/"+attempt), 200).Attempt
	require.NotEqual(t, recorded.LeafHash, shown.LeafHash)
	result, err := verify.Package(b.get(t, "/api/v1/attestation/download-proof/"+attempt).body, verify.Options{VKey: done.Successor.VKey})
	require.NoError(t, err)
	leaf, err := result.Leaf.Bytes()
	require.NoError(t, err)
	require.Equal(t, hex.EncodeToString(verify.LeafHash(leaf)), shown.LeafHash)
}
