package attestation_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

func skippedEntry() attestation.Entry {
	event := id.New()
	delivery := id.At(event)
	return attestation.Entry{
		Origin: "kapsel.example/log/log_01h455vb4pex5vsknk084sn02q", Tenant: id.New(), Endpoint: id.New(), Event: event, Destination: id.New(),
		Delivery: delivery, Attempt: id.AttemptOf(delivery, id.Decision), Kind: verify.KindSkipped, Outcome: "filter", At: time.Now(),
		EndpointURL: "https://example.com/in", PayloadHash: make([]byte, 32), PayloadSize: 2, Seq: 1,
	}
}

func TestAnEntryIsALeafOfTheLog(t *testing.T) {
	t.Parallel()
	entry := skippedEntry()
	leaf, hash, err := entry.Leaf()
	require.NoError(t, err)
	require.Equal(t, verify.LeafHash(leaf), hash)
	read, err := verify.ParseLeaf(leaf)
	require.NoError(t, err)
	require.Equal(t, id.Attempt.Format(entry.Attempt), read.AttemptID)
	require.Equal(t, int64(1), read.Seq)
	require.Empty(t, read.PreviousLeafHash)
	require.Empty(t, read.URLHash)
	again, _, err := entry.Leaf()
	require.NoError(t, err)
	require.NotEqual(t, leaf, again, "each leaf has a nonce of its own")
}

func TestAnEntryThatNoLeafCanSayIsRefused(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*attestation.Entry){
		"free text":      func(e *attestation.Entry) { e.Outcome = "because I said so" },
		"a query":        func(e *attestation.Entry) { e.EndpointURL += "?token=1" },
		"a first parent": func(e *attestation.Entry) { e.PreviousLeafHash = bytes.Repeat([]byte{1}, 32) },
		"no parent":      func(e *attestation.Entry) { e.Seq = 2 },
	} {
		entry := skippedEntry()
		spoil(&entry)
		_, _, err := entry.Leaf()
		require.ErrorIs(t, err, verify.ErrLeafFormat, name)
	}
}
