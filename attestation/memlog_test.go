package attestation_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

// memLog stores a log as a database would: size, root and tiles, each batch on a tree that was opened anew.
type memLog struct {
	hashes [][]byte
	size   uint64
	root   []byte
	tiles  map[attestation.TileID][]byte
}

func newMemLog() *memLog {
	return &memLog{root: verify.EmptyRoot(), tiles: map[attestation.TileID][]byte{}}
}

// testHashes are the leaf hashes of n different leaves, starting with number from.
func testHashes(from, n int) [][]byte {
	hashes := make([][]byte, n)
	for i := range hashes {
		hashes[i] = verify.LeafHash(binary.BigEndian.AppendUint64([]byte("leaf"), uint64(from+i)))
	}
	return hashes
}

// grow appends n leaves, and holds what comes back against what a tree may do to its tiles: a full tile never changes,
// a partial one stays a prefix, nothing else is written than the Go checksum database's algorithm lists.
func (l *memLog) grow(t require.TestingT, n int) *attestation.Growth {
	edge := map[attestation.TileID][]byte{}
	for _, id := range attestation.EdgeTiles(l.size) {
		edge[id] = l.tiles[id]
	}
	tree, err := attestation.OpenTree(l.size, l.root, edge)
	require.NoError(t, err)
	batch := testHashes(len(l.hashes), n)
	growth, err := tree.Append(batch)
	require.NoError(t, err)
	require.Equal(t, l.size+uint64(n), growth.Size)

	var want []attestation.TileID
	for _, tile := range tlog.NewTiles(8, int64(l.size), int64(growth.Size)) {
		want = append(want, attestation.TileID{Level: uint8(tile.L), Index: uint64(tile.N)})
	}
	var got []attestation.TileID
	for _, tile := range growth.Tiles {
		got = append(got, tile.ID())
		old := l.tiles[tile.ID()]
		require.Less(t, len(old), len(tile.Hashes), "tile %v", tile.ID())
		require.True(t, bytes.HasPrefix(tile.Hashes, old), "tile %v", tile.ID())
		require.Len(t, tile.Hashes, 32*attestation.TileWidth(tile.ID(), growth.Size))
		l.tiles[tile.ID()] = tile.Hashes
	}
	require.Equal(t, want, got)
	l.hashes = append(l.hashes, batch...)
	l.size, l.root = growth.Size, growth.Root
	return growth
}

func (l *memLog) read(_ context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
	found := map[attestation.TileID][]byte{}
	for _, id := range ids {
		if tile, ok := l.tiles[id]; ok {
			found[id] = tile
		}
	}
	return found, nil
}

// Height, ReadTiles and SaveTiles make a memLog a tlog.TileReader.
func (l *memLog) Height() int { return 8 }

func (l *memLog) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		stored := l.tiles[attestation.TileID{Level: uint8(tile.L), Index: uint64(tile.N)}]
		if len(stored) < 32*tile.W {
			return nil, errors.New("tile too short")
		}
		data[i] = stored[:32*tile.W]
	}
	return data, nil
}

func (l *memLog) SaveTiles([]tlog.Tile, [][]byte) {}

// checksumDB returns the log as the Go checksum database sees it at the given size; its reader checks every tile
// against the root.
func (l *memLog) checksumDB(size int) (tlog.HashReader, tlog.Hash) {
	root := tlog.Hash(naiveRoot(l.hashes[:size]))
	return tlog.TileHashReader(tlog.Tree{N: int64(size), Hash: root}, l), root
}
