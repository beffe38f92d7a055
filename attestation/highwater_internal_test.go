package attestation

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/verify"
)

// Whatever parses is exactly what would be written for it, and lies in the range that may be signed.
func FuzzParseHighWater(f *testing.F) {
	f.Add(formatHighWater("kapsel.example/log/a", Head{RootHash: verify.EmptyRoot()}))
	f.Add(formatHighWater("a", Head{TreeSize: verify.MaxTreeSize, Timestamp: 1764000000000, RootHash: make([]byte, 32)}))
	f.Add(formatHighWater("a", Head{TreeSize: verify.MaxTreeSize + 1, RootHash: make([]byte, 32)}))
	f.Add([]byte("kapsel.io/high-water/v1\na\n01\n+1\nAA\n\n"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, text []byte) {
		origin, head, err := parseHighWater(text)
		if err != nil {
			require.ErrorIs(t, err, ErrHighWaterCorrupt)
			return
		}
		require.NoError(t, head.check())
		require.True(t, bytes.Equal(text, formatHighWater(origin, head)))
	})
}

// The checksum is what sha256sum prints for the first five lines.
func TestHighWaterText(t *testing.T) {
	t.Parallel()
	text := formatHighWater("kapsel.example/log/a", Head{TreeSize: 7, Timestamp: 9, RootHash: bytes.Repeat([]byte{0xAB}, 32)})
	require.Equal(t, "kapsel.io/high-water/v1\nkapsel.example/log/a\n7\n9\n"+
		"abababababababababababababababababababababababababababababababab\n"+
		"8b2f9512ff41e79777c39a0ba23552752a811ce00f1efc2fe122c8b30550dc11\n", string(text))
	origin, head, err := parseHighWater(text)
	require.NoError(t, err)
	require.Equal(t, "kapsel.example/log/a", origin)
	require.EqualValues(t, 7, head.TreeSize)
}
