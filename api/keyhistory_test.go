package api_test

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/verify"
)

func (b *testBundle) rotate(t *testing.T, compromise bool) admin.Rotation {
	t.Helper()
	done, err := admin.RotateKey(t.Context(), b.owner, admin.RotateConfig{Log: b.log.ID, KeyDir: b.keys, HighWaterDir: b.keys, Compromise: compromise})
	require.NoError(t, err)
	return done
}

// sealNow seals as a worker does, with whatever key is the log's.
func (b *testBundle) sealNow(t *testing.T) {
	t.Helper()
	sealing := activities.NewSealing(activities.SealingConfig{DB: b.engine, KeyDir: b.keys, HighWaterDir: b.keys, Log: zap.NewNop()})
	require.NoError(t, sealing.SealNow(t.Context(), b.log.ID))
}

func (b *testBundle) logKeys(t *testing.T) []openapi.Key {
	t.Helper()
	return read[openapi.Keys](t, b.do(t, "GET", "/api/v1/attestation/keys", nil), 200).Keys
}

// Every change of the key is in /keys with its note, and in packages, those from before too: they verify under each key
// that vouches for them.
func TestKeyHistoryIsServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	vkeys := []string{b.log.VKey}
	attempts := []string{b.attempted(t, endpoint, "0")}
	b.sealNow(t)
	before := b.get(t, "/api/v1/attestation/download-proof/"+attempts[0])
	require.NotContains(t, string(before.body), "key_history")

	first := b.rotate(t, false)
	require.Nil(t, b.logKeys(t)[1].Transition, "nothing is told that no published head covers")
	require.Equal(t, string(before.body), string(b.get(t, "/api/v1/attestation/download-proof/"+attempts[0]).body))
	attempts = append(attempts, b.attempted(t, endpoint, "1"))
	b.sealNow(t)
	second := b.rotate(t, true)
	attempts = append(attempts, b.attempted(t, endpoint, "2"))
	b.sealNow(t)
	vkeys = append(vkeys, first.Log.VKey, second.Log.VKey)

	keys := b.logKeys(t)
	require.Len(t, keys, 3)
	for i, key := range keys {
		require.Equal(t, vkeys[i], *key.Vkey)
		require.Equal(t, i < 2, key.NotAfter != nil)
		if i > 0 {
			require.Equal(t, *keys[i-1].NotAfter, key.NotBefore)
		}
	}
	require.Nil(t, keys[0].Transition)
	require.Equal(t, string(first.Note), *keys[1].Transition)
	require.Equal(t, string(second.Note), *keys[2].Transition)
	require.Equal(t, hex.EncodeToString(first.OldKey), keys[0].PublicKey)

	// Key 2 came after a compromise: nobody comes to trust it because of the others.
	for i, attempt := range attempts {
		pkg := b.get(t, "/api/v1/attestation/download-proof/"+attempt).body
		for pinned, vkey := range vkeys {
			_, err := verify.Package(pkg, verify.Options{VKey: vkey})
			if i == 2 && pinned < 2 {
				require.ErrorIs(t, err, verify.ErrUntrustedKey, "attempt %d under key %d", i, pinned)
			} else {
				require.NoError(t, err, "attempt %d under key %d", i, pinned)
			}
		}
		_, err := verify.Package(before.body, verify.Options{VKey: vkeys[0]})
		require.NoError(t, err, "a package that was downloaded before the changes")
	}
}

// The history goes with the head that a package is asked for.
func TestKeyHistoryFitsTheTreeSize(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	attempt := b.attempted(t, endpoint, "0")
	b.sealNow(t)
	b.rotate(t, false)
	b.sealNow(t)
	b.attempted(t, endpoint, "1")
	b.sealNow(t)
	for _, size := range []string{"1", "2", "3"} {
		a := b.get(t, "/api/v1/attestation/download-proof/"+attempt+"?tree_size="+size)
		require.Equal(t, 200, a.status, "%s", a.body)
		for _, key := range b.logKeys(t) {
			_, err := verify.Package(a.body, verify.Options{VKey: *key.Vkey})
			require.NoError(t, err)
		}
	}
}
