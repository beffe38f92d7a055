package attestation_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
)

// base64url(HMAC-SHA-256(tenant proof key, delivery ID)), written out.
func TestProofToken(t *testing.T) {
	t.Parallel()
	key, delivery := bytes.Repeat([]byte{7}, 32), "dlv_01h455vb4pex5vsknk084sn02q"
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(delivery))
	token := base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	require.Len(t, token, 43)
	require.Equal(t, token, attestation.ProofToken(key, delivery))
	require.True(t, attestation.IsProofToken(key, delivery, token))
	for _, wrong := range []string{"", token[:42], token + "=", token + "A", base64.StdEncoding.EncodeToString(mac.Sum(nil)) + "x"} {
		require.False(t, attestation.IsProofToken(key, delivery, wrong), wrong)
	}
	require.False(t, attestation.IsProofToken(key, "dlv_01h455vb4pex5vsknk084sn02r", token))
	require.False(t, attestation.IsProofToken(bytes.Repeat([]byte{8}, 32), delivery, token))
}
