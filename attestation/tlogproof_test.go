package attestation_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/verify"
)

func TestTLogProofIsAsSpecified(t *testing.T) {
	t.Parallel()
	e := testEvidence(t, testSigner(t, 1))
	text, err := e.TLogProof()
	require.NoError(t, err)
	head, checkpoint, found := strings.Cut(string(text), "\n\n")
	require.True(t, found)
	require.Equal(t, string(e.Checkpoint), checkpoint, "verbatim")

	lines := strings.Split(head, "\n")
	require.Equal(t, "c2sp.org/tlog-proof@v1", lines[0])
	require.Equal(t, fmt.Sprint("index ", e.Proof.LeafIndex), lines[2])
	require.Len(t, lines[3:], len(e.Proof.Hashes))
	for i, line := range lines[3:] {
		require.Equal(t, base64.StdEncoding.EncodeToString(e.Proof.Hashes[i]), line)
	}

	encoded, found := strings.CutPrefix(lines[1], "extra ")
	require.True(t, found)
	extra, err := base64.StdEncoding.DecodeString(encoded)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf(`{"leaf":"%s","salts":{"headers":"%x","payload":"%x","response":"%x","url":"%x"}}`,
		base64.StdEncoding.EncodeToString(e.Leaf), []byte(e.Salts.Headers), []byte(e.Salts.Payload), []byte(e.Salts.Response), []byte(e.Salts.URL)),
		string(extra), "sorted and without space: RFC 8785")
}

func TestTLogProofAfterErasureOfTheSalts(t *testing.T) {
	t.Parallel()
	e := testEvidence(t, testSigner(t, 1))
	e.Salts = nil
	text, err := e.TLogProof()
	require.NoError(t, err)
	line := strings.Split(string(text), "\n")[1]
	extra, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(line, "extra "))
	require.NoError(t, err)
	require.Equal(t, `{"leaf":"`+base64.StdEncoding.EncodeToString(e.Leaf)+`"}`, string(extra))
}

// What wouldn't verify isn't written.
func TestTLogProofOfNothingThatDoesNotHold(t *testing.T) {
	t.Parallel()
	e := testEvidence(t, testSigner(t, 1))
	e.Proof.LeafIndex++
	_, err := e.TLogProof()
	require.ErrorIs(t, err, verify.ErrInclusion)
	e = testEvidence(t, testSigner(t, 1))
	e.Checkpoint = bytes.Replace(e.Checkpoint, []byte("500"), []byte("501"), 1)
	_, err = e.TLogProof()
	require.ErrorIs(t, err, verify.ErrSignature)
}
