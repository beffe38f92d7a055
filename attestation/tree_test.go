package attestation_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/transparency-dev/merkle/compact"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

// wholeSizes are the sizes at which every single leaf is proved: around the smaller powers of two, and some beyond.
func wholeSizes() []int {
	sizes := []int{1, 1000, 10000}
	for n := 2; n <= 512; n *= 2 {
		sizes = append(sizes, n-1, n, n+1)
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// Tree.Append hashes its runs with cbergoon/merkletree; here its roots meet those of compact ranges alone and of the
// definition.
func TestAppendAgreesWithCompactRangesAndDefinition(t *testing.T) {
	t.Parallel()
	factory := compact.RangeFactory{Hash: verify.NodeHash}
	for _, n := range wholeSizes() {
		log := newMemLog()
		log.grow(t, n)
		only := factory.NewEmptyRange(0)
		for _, h := range log.hashes {
			require.NoError(t, only.Append(h, nil))
		}
		want, err := only.GetRootHash(nil)
		require.NoError(t, err)
		require.Equal(t, want, log.root, "size %d", n)
		require.Equal(t, naiveRoot(log.hashes), log.root, "size %d", n)
	}
}

// Trees of 1 to 10,000 leaves, whatever batches they were made of, have the same tiles, and the root at every size on
// the way is that of the definition.
func TestBatchesDoNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.IntRange(1, 10000).Draw(t, "total")
		log, roots := newMemLog(), map[int][]byte{}
		for rest := total; rest > 0; {
			n := min(rest, rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(200, 2000)).Draw(t, "batch"))
			if len(roots) > 12 {
				n = rest
			}
			rest -= n
			log.grow(t, n)
			roots[len(log.hashes)] = log.root
		}
		for size, root := range roots {
			require.Equal(t, naiveRoot(log.hashes[:size]), root, "size %d", size)
			again, err := attestation.RootAt(context.Background(), log.read, uint64(size))
			require.NoError(t, err)
			require.Equal(t, root, again, "size %d", size)
		}
		whole := newMemLog()
		whole.grow(t, total)
		require.Equal(t, whole.tiles, log.tiles)
	})
}

// The Go checksum database's code reads our tiles, checks them against the root and finds every leaf where it was put.
func TestChecksumDatabaseReadsTiles(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	for _, n := range []int{3, 250, 4, 700, 65536, 1} {
		log.grow(t, n)
		reader, _ := log.checksumDB(len(log.hashes))
		root, err := tlog.TreeHash(int64(len(log.hashes)), reader)
		require.NoError(t, err)
		require.Equal(t, log.root, root[:])
		last := int64(len(log.hashes) - 1)
		leaves, err := reader.ReadHashes([]int64{0, tlog.StoredHashIndex(0, last/2), tlog.StoredHashIndex(0, last)})
		require.NoError(t, err)
		for i, at := range []int64{0, last / 2, last} {
			require.Equal(t, log.hashes[at], leaves[i][:])
		}
	}
	require.Len(t, log.tiles[attestation.TileID{Level: 2}], 32, "65,536 leaves fill one entry of level 2")
}

// The hashes of verify, which all of this rests on, are those of the definition too.
func TestHashesAreThoseOfTheDefinition(t *testing.T) {
	t.Parallel()
	left, right := naiveLeaf(nil), naiveLeaf([]byte("leaf"))
	require.Equal(t, left, verify.LeafHash(nil))
	require.Equal(t, right, verify.LeafHash([]byte("leaf")))
	require.Equal(t, naiveNode(left, right), verify.NodeHash(left, right))
	require.Equal(t, naiveRoot(nil), verify.EmptyRoot())
}

func TestAppendOneByOneOnOneTree(t *testing.T) {
	t.Parallel()
	tree, err := attestation.OpenTree(0, verify.EmptyRoot(), nil)
	require.NoError(t, err)
	hashes := testHashes(0, 600)
	tiles := map[attestation.TileID][]byte{}
	for i, h := range hashes {
		growth, err := tree.Append([][]byte{h})
		require.NoError(t, err)
		require.Equal(t, naiveRoot(hashes[:i+1]), growth.Root)
		for _, tile := range growth.Tiles {
			tiles[tile.ID()] = tile.Hashes
		}
	}
	whole := newMemLog()
	whole.grow(t, 600)
	require.Equal(t, whole.tiles, tiles)
}

// What a batch returned belongs to the caller: later batches must not write into it.
func TestGrowthIsNotShared(t *testing.T) {
	t.Parallel()
	tree, err := attestation.OpenTree(0, verify.EmptyRoot(), nil)
	require.NoError(t, err)
	first, err := tree.Append(testHashes(0, 10))
	require.NoError(t, err)
	first.Root[0] ^= 1
	first.Tiles[0].Hashes[0] ^= 1
	second, err := tree.Append(testHashes(10, 10))
	require.NoError(t, err)
	require.Equal(t, naiveRoot(testHashes(0, 20)), second.Root)
	require.Equal(t, slices.Concat(testHashes(0, 20)...), second.Tiles[0].Hashes)
	require.Len(t, first.Tiles[0].Hashes, 320)
}

// The leaf hashes of a batch may be cut from one buffer: hashing must not write past any of them.
func TestAppendLeavesBatchAlone(t *testing.T) {
	t.Parallel()
	buffer := slices.Concat(testHashes(0, 256)...)
	before := slices.Clone(buffer)
	batch := make([][]byte, 256)
	for i := range batch {
		batch[i] = buffer[32*i : 32*i+32]
	}
	tree, err := attestation.OpenTree(0, verify.EmptyRoot(), nil)
	require.NoError(t, err)
	growth, err := tree.Append(batch)
	require.NoError(t, err)
	require.Equal(t, before, buffer)
	require.Equal(t, naiveRoot(testHashes(0, 256)), growth.Root)
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	tree, err := attestation.OpenTree(0, verify.EmptyRoot(), nil)
	require.NoError(t, err)
	for _, n := range []int{0, 16, 31, 33} {
		_, err = tree.Append([][]byte{make([]byte, 32), make([]byte, n)})
		require.ErrorIs(t, err, attestation.ErrHashLength)
	}
	require.Zero(t, tree.Size(), "a refused batch changes nothing")

	growth, err := tree.Append(nil)
	require.NoError(t, err)
	require.Equal(t, &attestation.Growth{Size: 0, Root: verify.EmptyRoot()}, growth)
}

// A tree of the largest size can't be filled, but its edge can be made up: any hashes make some root.
func TestAppendStopsAtLargestSize(t *testing.T) {
	t.Parallel()
	const size = verify.MaxTreeSize - 1
	tiles := map[attestation.TileID][]byte{}
	for _, id := range attestation.EdgeTiles(size) {
		tiles[id] = make([]byte, 32*attestation.TileWidth(id, size))
	}
	read := func(context.Context, []attestation.TileID) (map[attestation.TileID][]byte, error) { return tiles, nil }
	root, err := attestation.RootAt(context.Background(), read, size)
	require.NoError(t, err)
	tree, err := attestation.OpenTree(size, root, tiles)
	require.NoError(t, err)

	_, err = tree.Append(testHashes(0, 2))
	require.ErrorIs(t, err, attestation.ErrTreeFull)
	growth, err := tree.Append(testHashes(0, 1))
	require.NoError(t, err)
	require.EqualValues(t, verify.MaxTreeSize, growth.Size)
	_, err = tree.Append(testHashes(0, 1))
	require.ErrorIs(t, err, attestation.ErrTreeFull)
	_, err = attestation.OpenTree(verify.MaxTreeSize+1, root, tiles)
	require.ErrorIs(t, err, attestation.ErrTreeFull)
}

func TestOpenTreeRefuses(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 255, 257, 1000, 66000} {
		log := newMemLog()
		log.grow(t, size)
		edge := func() map[attestation.TileID][]byte {
			tiles := map[attestation.TileID][]byte{}
			for _, id := range attestation.EdgeTiles(log.size) {
				tiles[id] = slices.Clone(log.tiles[id])
			}
			return tiles
		}
		for _, id := range attestation.EdgeTiles(log.size) {
			t.Run(fmt.Sprintf("%d leaves, tile %v", size, id), func(t *testing.T) {
				t.Parallel()
				for at := range edge()[id] {
					if at%7 != 0 { // every hash is hit four or five times
						continue
					}
					tiles := edge()
					tiles[id][at] ^= 0x10
					_, err := attestation.OpenTree(log.size, log.root, tiles)
					require.ErrorIs(t, err, attestation.ErrRootMismatch)
				}
				tiles := edge()
				delete(tiles, id)
				_, err := attestation.OpenTree(log.size, log.root, tiles)
				require.ErrorIs(t, err, attestation.ErrTile)
				for _, change := range []int{-32, -1, 1, 32} {
					tiles := edge()
					tiles[id] = append(tiles[id], make([]byte, 32)...)[:len(tiles[id])+change]
					_, err := attestation.OpenTree(log.size, log.root, tiles)
					require.ErrorIs(t, err, attestation.ErrTile)
				}
			})
		}
		_, err := attestation.OpenTree(log.size, verify.EmptyRoot(), edge())
		require.ErrorIs(t, err, attestation.ErrRootMismatch)
		_, err = attestation.OpenTree(log.size, log.root[:31], edge())
		require.ErrorIs(t, err, attestation.ErrRootMismatch)
	}
	_, err := attestation.OpenTree(0, nil, nil)
	require.ErrorIs(t, err, attestation.ErrRootMismatch, "the empty tree has a root too")
}

func TestEdgeTiles(t *testing.T) {
	t.Parallel()
	for size, want := range map[uint64][]attestation.TileID{
		0:         nil,
		1:         {{Level: 0, Index: 0}},
		256:       {{Level: 1, Index: 0}},
		257:       {{Level: 0, Index: 1}, {Level: 1, Index: 0}},
		65536:     {{Level: 2, Index: 0}},
		65536 + 5: {{Level: 0, Index: 256}, {Level: 2, Index: 0}},
	} {
		require.Equal(t, want, attestation.EdgeTiles(size), "size %d", size)
	}
	require.Len(t, attestation.EdgeTiles(verify.MaxTreeSize), 7)
}

func TestTileWidth(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		id   attestation.TileID
		size uint64
		want int
	}{
		{attestation.TileID{Level: 0, Index: 0}, 0, 0},
		{attestation.TileID{Level: 0, Index: 0}, 1, 1},
		{attestation.TileID{Level: 0, Index: 0}, 256, 256},
		{attestation.TileID{Level: 0, Index: 0}, 300, 256},
		{attestation.TileID{Level: 0, Index: 1}, 256, 0},
		{attestation.TileID{Level: 0, Index: 1}, 300, 44},
		{attestation.TileID{Level: 1, Index: 0}, 255, 0},
		{attestation.TileID{Level: 1, Index: 0}, 513, 2},
		{attestation.TileID{Level: 0, Index: 1 << 63}, 1 << 40, 0},
		{attestation.TileID{Level: 8, Index: 0}, verify.MaxTreeSize, 0},
		{attestation.TileID{Level: 255, Index: 0}, verify.MaxTreeSize, 0},
	} {
		require.Equal(t, c.want, attestation.TileWidth(c.id, c.size), "%v in %d", c.id, c.size)
	}
}
