package attestation_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

func BenchmarkAppend100(b *testing.B)   { benchmarkAppend(b, 100) }
func BenchmarkAppend10000(b *testing.B) { benchmarkAppend(b, 10000) }

// benchmarkAppend is what sealing a batch computes: open a tree of a million leaves, append, collect tiles.
func benchmarkAppend(b *testing.B, n int) {
	log := millionLeaves(b)
	edge, err := log.read(context.Background(), attestation.EdgeTiles(log.size))
	require.NoError(b, err)
	batch := testHashes(0, n)
	b.ReportAllocs()
	for b.Loop() {
		tree, err := attestation.OpenTree(log.size, log.root, edge)
		require.NoError(b, err)
		_, err = tree.Append(batch)
		require.NoError(b, err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/leaf")
}

func BenchmarkInclusionProof(b *testing.B) {
	log := millionLeaves(b)
	b.ReportAllocs()
	index := uint64(0)
	for b.Loop() {
		_, err := attestation.ProveInclusion(context.Background(), log.read, index%log.size, log.size)
		require.NoError(b, err)
		index += 7919
	}
}

// BenchmarkSign signs a head the two ways in which it is published.
func BenchmarkSign(b *testing.B) {
	s := testSigner(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		sth, err := s.SignTreeHead(testHead(1000))
		require.NoError(b, err)
		_, err = s.SignCheckpoint(sth)
		require.NoError(b, err)
	}
}

func BenchmarkPackage(b *testing.B) {
	evidence := testEvidence(b, testSigner(b, 1))
	b.ReportAllocs()
	for b.Loop() {
		_, err := evidence.Package()
		require.NoError(b, err)
	}
}

// millionLeaves is a log of 1,000,003 leaves.
func millionLeaves(b *testing.B) *memLog {
	log := &memLog{root: verify.EmptyRoot(), tiles: map[attestation.TileID][]byte{}}
	tree, err := attestation.OpenTree(0, log.root, nil)
	require.NoError(b, err)
	growth, err := tree.Append(testHashes(0, 1_000_003))
	require.NoError(b, err)
	for _, tile := range growth.Tiles {
		log.tiles[tile.ID()] = tile.Hashes
	}
	log.size, log.root = growth.Size, growth.Root
	return log
}
