package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/kapsel-io/kapsel/attestation"
)

// storedHashes are the hashes of a tree as golang.org/x/mod/sumdb/tlog stores them: a third implementation.
type storedHashes []tlog.Hash

func (s storedHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		hashes[i] = s[n]
	}
	return hashes, nil
}

// Three implementations have the same root at every size, and the two of this repository the same tiles.
func TestTheTwoTreesAndAThirdAgree(t *testing.T) {
	t.Parallel()
	const leaves = 66_000 // fills tiles of level 1
	full := map[attestation.TileID][]byte{}
	mine := newTree(func(tile attestation.Tile, root []byte) ([]byte, error) {
		require.NotContains(t, full, tile.ID())
		full[tile.ID()] = tile.Hashes
		return root, nil
	})
	sealed, err := attestation.OpenTree(0, emptyRoot(), nil)
	require.NoError(t, err)
	sealedTiles := map[attestation.TileID][]byte{}
	var third storedHashes
	for i := range leaves {
		leaf := binary.BigEndian.AppendUint64([]byte("leaf"), uint64(i))
		require.NoError(t, mine.add(leafHashOf(leaf)))
		hashes, err := tlog.StoredHashes(int64(i), leaf, third)
		require.NoError(t, err)
		third = append(third, hashes...)
		growth, err := sealed.Append([][]byte{leafHashOf(leaf)})
		require.NoError(t, err)
		for _, tile := range growth.Tiles {
			sealedTiles[tile.ID()] = tile.Hashes
		}
		if i > 1100 && i%97 != 0 && i < 65_000 {
			continue // every size up to there, and around the end of the first tile of level 1
		}
		root, err := mine.root()
		require.NoError(t, err)
		want, err := tlog.TreeHash(int64(i+1), third)
		require.NoError(t, err)
		require.Equal(t, want[:], root, "size %d", i+1)
		require.Equal(t, growth.Root, root, "size %d", i+1)
	}
	for _, tile := range mine.edge() {
		require.NotContains(t, full, tile.ID())
		full[tile.ID()] = tile.Hashes
	}
	require.Equal(t, sealedTiles, full)
}

func emptyRoot() []byte {
	empty := sha256.Sum256(nil)
	return empty[:]
}

// cbergoon/merkletree is right for powers of two only, so nothing else gets there.
func TestAPerfectSubtreeHasAPowerOfTwoHashes(t *testing.T) {
	t.Parallel()
	h := leafHashOf(nil)
	for _, n := range []int{0, 3, 5, 6, 7, 255} {
		_, err := perfectRoot(slices.Repeat(h, n))
		require.Error(t, err, n)
	}
	_, err := perfectRoot(h[:31])
	require.Error(t, err)
	root, err := perfectRoot(slices.Repeat(h, 2))
	require.NoError(t, err)
	require.Equal(t, nodeHash(h, h), root)
}
