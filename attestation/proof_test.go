package attestation_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

// Every leaf of trees of up to 10,000 leaves is provable to verify. The tiles come from a log that is larger than the
// tree, as they do once time has passed.
func TestEveryLeafIsProvable(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.grow(t, 10100)
	sizes := wholeSizes()
	for n := 1; n <= 130; n++ {
		sizes = append(sizes, n)
	}
	for _, size := range sizes {
		root := naiveRoot(log.hashes[:size])
		for index := range size {
			path, err := attestation.ProveInclusion(context.Background(), log.read, uint64(index), uint64(size))
			require.NoError(t, err)
			err = verify.Inclusion(log.hashes[index], uint64(index), uint64(size), path, root)
			if err != nil { // require would cost more than the proof
				t.Fatalf("leaf %d of %d: %v", index, size, err)
			}
		}
	}
}

func TestProofsAreThoseOfTheDefinitionAndTheChecksumDatabase(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.grow(t, 10000)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 10000).Draw(t, "size")
		index := rapid.IntRange(0, size-1).Draw(t, "index")
		reader, _ := log.checksumDB(size)

		path, err := attestation.ProveInclusion(context.Background(), log.read, uint64(index), uint64(size))
		require.NoError(t, err)
		require.Equal(t, concat(naivePath(index, log.hashes[:size])), concat(path))
		record, err := tlog.ProveRecord(int64(size), int64(index), reader)
		require.NoError(t, err)
		require.Equal(t, concatHashes(record), concat(path))

		older := index + 1
		hashes, err := attestation.ProveConsistency(context.Background(), log.read, uint64(older), uint64(size))
		require.NoError(t, err)
		require.Equal(t, concat(naiveProof(older, log.hashes[:size])), concat(hashes))
		tree, err := tlog.ProveTree(int64(size), int64(older), reader)
		require.NoError(t, err)
		require.Equal(t, concatHashes(tree), concat(hashes))
	})
}

func TestConsistencyBetweenSmallSizes(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.grow(t, 300)
	roots := make([][]byte, 301)
	for n := range roots {
		roots[n] = naiveRoot(log.hashes[:n])
	}
	for size2 := 1; size2 <= 300; size2++ {
		if size2 > 70 && size2 < 255 || size2 > 258 && size2 < 300 { // the first tile is full at 256
			continue
		}
		for size1 := 1; size1 <= size2; size1++ {
			hashes, err := attestation.ProveConsistency(context.Background(), log.read, uint64(size1), uint64(size2))
			require.NoError(t, err)
			err = verify.Consistency(uint64(size1), uint64(size2), hashes, roots[size1], roots[size2])
			if err != nil {
				t.Fatalf("sizes %d and %d: %v", size1, size2, err)
			}
		}
	}
}

// One flipped bit in leaf hash, path or root, another index or size, a hash more or less: verification fails.
func TestTamperedInclusionIsCaught(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.grow(t, 5000)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(2, 5000).Draw(t, "size")
		index := rapid.IntRange(0, size-1).Draw(t, "index")
		path, err := attestation.ProveInclusion(context.Background(), log.read, uint64(index), uint64(size))
		require.NoError(t, err)
		leaf, root := append([]byte(nil), log.hashes[index]...), naiveRoot(log.hashes[:size])
		check := func() error { return verify.Inclusion(leaf, uint64(index), uint64(size), path, root) }
		require.NoError(t, check())

		for _, part := range append([][]byte{leaf, root}, path...) {
			bit := rapid.IntRange(0, 255).Draw(t, "bit")
			part[bit/8] ^= 1 << (bit % 8)
			require.ErrorIs(t, check(), verify.ErrInclusion)
			part[bit/8] ^= 1 << (bit % 8)
		}
		other := rapid.IntRange(0, size-1).Filter(func(i int) bool { return i != index }).Draw(t, "other index")
		require.ErrorIs(t, verify.Inclusion(leaf, uint64(other), uint64(size), path, root), verify.ErrInclusion)
		require.ErrorIs(t, verify.Inclusion(leaf, uint64(index), uint64(size), path[1:], root), verify.ErrInclusion)
		require.ErrorIs(t, verify.Inclusion(leaf, uint64(index), uint64(size), append(path, root), root), verify.ErrInclusion)
		require.NoError(t, check())
	})
}

func TestTamperedConsistencyIsCaught(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.grow(t, 5000)
	rapid.Check(t, func(t *rapid.T) {
		size2 := rapid.IntRange(2, 5000).Draw(t, "size2")
		size1 := rapid.IntRange(1, size2-1).Draw(t, "size1")
		hashes, err := attestation.ProveConsistency(context.Background(), log.read, uint64(size1), uint64(size2))
		require.NoError(t, err)
		root1 := append([]byte(nil), naiveRoot(log.hashes[:size1])...) // of size 1 it is the leaf hash itself
		root2 := naiveRoot(log.hashes[:size2])
		check := func() error { return verify.Consistency(uint64(size1), uint64(size2), hashes, root1, root2) }
		require.NoError(t, check())

		for _, part := range append([][]byte{root1, root2}, hashes...) {
			bit := rapid.IntRange(0, 255).Draw(t, "bit")
			part[bit/8] ^= 1 << (bit % 8)
			require.ErrorIs(t, check(), verify.ErrConsistency)
			part[bit/8] ^= 1 << (bit % 8)
		}
		require.NoError(t, check())
	})
}

func TestProofsRefuseSizesAndIndexes(t *testing.T) {
	t.Parallel()
	ctx, log := context.Background(), newMemLog()
	log.grow(t, 10)
	for _, c := range [][2]uint64{{0, 0}, {10, 10}, {11, 10}, {0, verify.MaxTreeSize + 1}, {1 << 63, 1 << 63}} {
		_, err := attestation.ProveInclusion(ctx, log.read, c[0], c[1])
		require.ErrorIs(t, err, attestation.ErrOutOfRange, "inclusion of %d in %d", c[0], c[1])
	}
	for _, c := range [][2]uint64{{0, 0}, {0, 10}, {11, 10}, {1, verify.MaxTreeSize + 1}} {
		_, err := attestation.ProveConsistency(ctx, log.read, c[0], c[1])
		require.ErrorIs(t, err, attestation.ErrOutOfRange, "consistency of %d with %d", c[0], c[1])
	}
	_, err := attestation.RootAt(ctx, log.read, verify.MaxTreeSize+1)
	require.ErrorIs(t, err, attestation.ErrOutOfRange)
	root, err := attestation.RootAt(ctx, log.read, 0)
	require.NoError(t, err)
	require.Equal(t, verify.EmptyRoot(), root)
	same, err := attestation.ProveConsistency(ctx, log.read, 10, 10)
	require.NoError(t, err)
	require.Empty(t, same)
}

// A size that the tiles don't reach, a tile cut in the middle of a hash, an overlong tile, a failing store.
func TestProofsRefuseTiles(t *testing.T) {
	t.Parallel()
	ctx, log := context.Background(), newMemLog()
	log.grow(t, 300)
	_, err := attestation.ProveInclusion(ctx, log.read, 3, 301)
	require.ErrorIs(t, err, attestation.ErrTile)
	_, err = attestation.RootAt(ctx, log.read, 600)
	require.ErrorIs(t, err, attestation.ErrTile)

	id := attestation.TileID{Level: 0, Index: 1}
	whole := log.tiles[id]
	log.tiles[id] = append(whole[:len(whole):len(whole)], 0)
	_, err = attestation.ProveInclusion(ctx, log.read, 3, 300)
	require.ErrorIs(t, err, attestation.ErrTile)
	log.tiles[id] = make([]byte, 257*32)
	_, err = attestation.ProveInclusion(ctx, log.read, 3, 300)
	require.ErrorIs(t, err, attestation.ErrTile)

	broken := errors.New("store is away")
	_, err = attestation.ProveConsistency(ctx, func(context.Context, []attestation.TileID) (map[attestation.TileID][]byte, error) {
		return nil, broken
	}, 3, 300)
	require.ErrorIs(t, err, broken)
}

// A proof reads all its tiles in one call, each once.
func TestProofReadsTilesOnce(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.grow(t, 70000)
	calls := 0
	count := func(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
		calls++
		seen := map[attestation.TileID]bool{}
		for _, id := range ids {
			require.False(t, seen[id], "tile %v twice", id)
			seen[id] = true
		}
		return log.read(ctx, ids)
	}
	_, err := attestation.ProveInclusion(context.Background(), count, 12345, 69999)
	require.NoError(t, err)
	_, err = attestation.ProveConsistency(context.Background(), count, 12345, 69999)
	require.NoError(t, err)
	require.Equal(t, 2, calls)
}

// Proofs of many leaves, in trees of several sizes, are those of each alone, and also read each tile once.
func TestManyProofsAtOnce(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.grow(t, 70000)
	var places []attestation.Place
	for i := range uint64(300) {
		places = append(places, attestation.Place{Index: i * i * 7 % 60000, Size: 60000 + i%3*5000})
	}
	calls := 0
	paths, err := attestation.ProveInclusions(context.Background(), func(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
		calls++
		seen := map[attestation.TileID]bool{}
		for _, id := range ids {
			require.False(t, seen[id], "tile %v twice", id)
			seen[id] = true
		}
		return log.read(ctx, ids)
	}, places)
	require.NoError(t, err)
	require.Equal(t, 1, calls)
	for i, p := range places {
		alone, err := attestation.ProveInclusion(context.Background(), log.read, p.Index, p.Size)
		require.NoError(t, err)
		require.Equal(t, alone, paths[i])
		require.NoError(t, verify.Inclusion(log.hashes[p.Index], p.Index, p.Size, paths[i], rootAt(t, log, p.Size)))
	}

	none, err := attestation.ProveInclusions(context.Background(), log.read, nil)
	require.NoError(t, err)
	require.Empty(t, none)
	places[299].Index = places[299].Size
	_, err = attestation.ProveInclusions(context.Background(), log.read, places)
	require.ErrorIs(t, err, attestation.ErrOutOfRange)
}

func rootAt(t *testing.T, log *memLog, size uint64) []byte {
	t.Helper()
	root, err := attestation.RootAt(context.Background(), log.read, size)
	require.NoError(t, err)
	return root
}

func concat(hashes [][]byte) []byte {
	var all []byte
	for _, h := range hashes {
		all = append(all, h...)
	}
	return all
}

func concatHashes(hashes []tlog.Hash) []byte {
	var all []byte
	for _, h := range hashes {
		all = append(all, h[:]...)
	}
	return all
}
