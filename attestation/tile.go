package attestation

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"

	"github.com/kapsel-io/kapsel/verify"
)

const (
	hashSize = verify.HashSize

	// Tiles have the geometry of https://c2sp.org/tlog-tiles: eight levels of the tree, so up to 256 hashes.
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	// FullTile is the length of a full tile in bytes.
	FullTile = tileWidth * hashSize
)

// ErrTile is returned when a tile that the tree's size promises is missing or has the wrong length.
var ErrTile = errors.New("tile is missing or has the wrong length")

// TileID names a tile. Level counts in tiles: the hashes of level L stand at level 8·L of the tree, level 0 holds leaf
// hashes. Index is the tile's place within its level, from the left.
type TileID struct {
	Level uint8
	Index uint64
}

func (id TileID) String() string { return fmt.Sprintf("%d/%d", id.Level, id.Index) }

// Tile holds 1 to 256 hashes of 32 bytes. A full tile never changes; a shorter one is a prefix of what it will become.
type Tile struct {
	Level  uint8
	Index  uint64
	Hashes []byte
}

// ID returns the tile's name.
func (t Tile) ID() TileID { return TileID{Level: t.Level, Index: t.Index} }

// EdgeTiles lists the partial tiles at the right edge of a tree of the given size, lowest level first. They hold every
// hash that is needed to compute the root of the tree and to append to it. Full tiles aren't among them: their hash
// stands in the level above.
func EdgeTiles(size uint64) []TileID {
	var ids []TileID
	for level := uint8(0); size > 0; level, size = level+1, size>>tileHeight {
		if size%tileWidth != 0 {
			ids = append(ids, TileID{Level: level, Index: size / tileWidth})
		}
	}
	return ids
}

// TileWidth is the number of hashes that tile id holds in a tree of the given size: 0 to 256.
func TileWidth(id TileID, size uint64) int {
	if id.Level > 7 {
		return 0
	}
	hashes := size >> (tileHeight * uint(id.Level))
	first := id.Index * tileWidth
	if id.Index > hashes/tileWidth || first >= hashes {
		return 0
	}
	return int(min(hashes-first, tileWidth))
}

// tileOf returns the tile from which a node of the tree can be computed, and the bytes [from, to) of it that hold the
// node's perfect subtree.
func tileOf(node compact.NodeID) (id TileID, from, to int) {
	within := node.Level % tileHeight
	first := node.Index << within
	from = int(first%tileWidth) * hashSize
	return TileID{Level: uint8(node.Level / tileHeight), Index: first / tileWidth}, from, from + hashSize<<within
}

// tilesOf lists the tiles of the nodes, each once.
func tilesOf(nodes []compact.NodeID) []TileID {
	var ids []TileID
	seen := make(map[TileID]bool)
	for _, node := range nodes {
		if id, _, _ := tileOf(node); !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// nodeHashes computes the hashes of perfect subtrees from tiles. A tile may be wider than the tree at hand needs.
func nodeHashes(nodes []compact.NodeID, tiles map[TileID][]byte) ([][]byte, error) {
	hashes := make([][]byte, len(nodes))
	for i, node := range nodes {
		id, from, to := tileOf(node)
		tile := tiles[id]
		if len(tile) < to || len(tile)%hashSize != 0 || len(tile) > tileWidth*hashSize {
			return nil, fmt.Errorf("tile %v has %d bytes where at least %d are needed: %w", id, len(tile), to, ErrTile)
		}
		hashes[i] = subtreeRoot(tile[from:to])
	}
	return hashes, nil
}

// subtreeRoot hashes 2^k concatenated hashes up to their root. The result never aliases the tile. A proof hashes some 250
// nodes of each tile, so this is verify.NodeHash without its allocations.
func subtreeRoot(hashes []byte) []byte {
	level := hashes
	var node [1 + 2*hashSize]byte
	node[0] = 0x01
	for len(level) > hashSize {
		above := level[:0:len(level)] // each pair is read before its hash is written
		if &level[0] == &hashes[0] {
			above = make([]byte, 0, len(hashes)/2)
		}
		for pair := range slices.Chunk(level, 2*hashSize) {
			copy(node[1:], pair)
			hash := sha256.Sum256(node[:])
			above = append(above, hash[:]...)
		}
		level = above
	}
	return bytes.Clone(level)
}
