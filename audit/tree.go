package audit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"math/bits"
	"slices"

	"github.com/cbergoon/merkletree"
	"github.com/transparency-dev/merkle/compact"

	"github.com/kapsel-io/kapsel/attestation"
)

const (
	hashSize  = sha256.Size
	tileWidth = 256
	tileBytes = tileWidth * hashSize
)

// leafHashOf is SHA-256(0x00 ‖ leaf), computed without the package that sealing uses.
func leafHashOf(leaf []byte) []byte {
	h := sha256.New()
	h.Write([]byte{0x00})
	h.Write(leaf)
	return h.Sum(nil)
}

func nodeHash(left, right []byte) []byte {
	h := sha256.New()
	h.Write([]byte{0x01})
	h.Write(left)
	h.Write(right)
	return h.Sum(nil)
}

var ranges = compact.RangeFactory{Hash: nodeHash}

// tree is a Merkle tree that grows leaf by leaf, hashed the other way round than attestation.Tree: leaves become the root
// of a tile by compact ranges (transparency-dev/merkle), and tiles become the root of the tree by perfect subtrees
// (cbergoon/merkletree). A defect of either library would make the two trees differ.
type tree struct {
	size   uint64
	bottom *compact.Range // of the tile that is being filled
	hashes []byte         // its leaf hashes
	upper  []level        // upper[0] is tile level 1
	// filled is called with each tile as soon as it is full, lower ones first, and its root. The tree goes on with the root
	// that it returns.
	filled func(tile attestation.Tile, root []byte) ([]byte, error)
}

// level is the tile that is being filled in a level above 0.
type level struct {
	tiles  uint64 // full ones before it
	hashes []byte
	peaks  [][]byte // of its perfect subtrees, the largest first
}

func newTree(filled func(attestation.Tile, []byte) ([]byte, error)) *tree {
	return &tree{bottom: ranges.NewEmptyRange(0), filled: filled}
}

// add appends a leaf hash.
func (t *tree) add(leafHash []byte) error {
	if err := t.bottom.Append(leafHash, nil); err != nil {
		return fmt.Errorf("append leaf %d: %w", t.size, err)
	}
	t.hashes = append(t.hashes, leafHash...)
	t.size++
	if len(t.hashes) < tileBytes {
		return nil
	}
	return t.finish(attestation.Tile{Index: t.size/tileWidth - 1, Hashes: t.hashes}, t.bottom.Hashes()[0])
}

// skip appends a whole tile of leaves of which only the root is known. The tree's size must be a multiple of 256.
func (t *tree) skip(root []byte) error {
	t.size += tileWidth
	return t.push(0, root)
}

// finish hands a full tile of leaves out and begins the next.
func (t *tree) finish(tile attestation.Tile, root []byte) error {
	root, err := t.filled(tile, root)
	if err != nil {
		return err
	}
	t.bottom, t.hashes = ranges.NewEmptyRange(0), nil
	return t.push(0, root)
}

// push appends the root of a tile to the level above it, upper[i].
func (t *tree) push(i int, root []byte) error {
	if i == len(t.upper) {
		t.upper = append(t.upper, level{})
	}
	l := &t.upper[i]
	l.hashes = append(l.hashes, root...)
	n := len(l.hashes) / hashSize
	run := n & -n // the largest perfect subtree that ends here
	peak, err := perfectRoot(l.hashes[(n-run)*hashSize:])
	if err != nil {
		return err
	}
	l.peaks = append(l.peaks[:len(l.peaks)-bits.TrailingZeros(uint(n))], peak)
	if n < tileWidth {
		return nil
	}
	tile := attestation.Tile{Level: uint8(i + 1), Index: l.tiles, Hashes: l.hashes}
	*l = level{tiles: l.tiles + 1}
	above, err := t.filled(tile, peak)
	if err != nil {
		return err
	}
	return t.push(i+1, above)
}

// root is the tree's root.
func (t *tree) root() ([]byte, error) { return t.rootOver(t.bottom.Hashes()) }

// rootOver is the root of the full tiles and, after them, perfect subtrees of leaves, the largest first.
func (t *tree) rootOver(bottom [][]byte) ([]byte, error) {
	var peaks [][]byte
	for i := range slices.Backward(t.upper) {
		peaks = append(peaks, t.upper[i].peaks...)
	}
	peaks = append(peaks, bottom...)
	if len(peaks) == 0 {
		empty := sha256.Sum256(nil)
		return empty[:], nil
	}
	root := peaks[len(peaks)-1]
	for _, peak := range slices.Backward(peaks[:len(peaks)-1]) {
		var err error
		if root, err = perfectRoot(slices.Concat(peak, root)); err != nil {
			return nil, err
		}
	}
	return slices.Clone(root), nil
}

// edge returns the tiles that are being filled and hold anything.
func (t *tree) edge() []attestation.Tile {
	var tiles []attestation.Tile
	if len(t.hashes) > 0 {
		tiles = append(tiles, attestation.Tile{Index: t.size / tileWidth, Hashes: t.hashes})
	}
	for i, l := range t.upper {
		if len(l.hashes) > 0 {
			tiles = append(tiles, attestation.Tile{Level: uint8(i + 1), Index: l.tiles, Hashes: l.hashes})
		}
	}
	return tiles
}

// leafPeaks are the perfect subtrees of up to 256 leaf hashes, the largest first.
func leafPeaks(leafHashes []byte) ([][]byte, error) {
	r := ranges.NewEmptyRange(0)
	for h := range slices.Chunk(leafHashes, hashSize) {
		if err := r.Append(h, nil); err != nil {
			return nil, fmt.Errorf("hash %d leaves: %w", len(leafHashes)/hashSize, err)
		}
	}
	return r.Hashes(), nil
}

// perfectRoot returns the RFC 6962 root over exactly 2^k hashes, concatenated. As attestation.Tree says, the library gives
// it for powers of two only.
func perfectRoot(hashes []byte) ([]byte, error) {
	n := len(hashes) / hashSize
	if n == 0 || n&(n-1) != 0 || len(hashes)%hashSize != 0 {
		return nil, fmt.Errorf("a perfect subtree of %d bytes", len(hashes))
	}
	if n == 1 {
		return slices.Clone(hashes), nil
	}
	contents := make([]merkletree.Content, 0, n)
	for h := range slices.Chunk(hashes, hashSize) {
		contents = append(contents, hashed(h))
	}
	perfect, err := merkletree.NewTreeWithHashStrategy(contents, newNodeHash)
	if err != nil {
		return nil, fmt.Errorf("hash perfect subtree: %w", err)
	}
	return perfect.MerkleRoot(), nil
}

// newNodeHash is SHA-256 that has taken in the prefix of inner nodes (RFC 6962, section 2.1).
func newNodeHash() hash.Hash {
	h := sha256.New()
	h.Write([]byte{0x01})
	return h
}

// hashed is a hash as the content of a merkletree.MerkleTree.
type hashed []byte

// CalculateHash returns the hash itself without spare capacity, because the tree appends to it.
func (h hashed) CalculateHash() ([]byte, error) { return h[:hashSize:hashSize], nil }

// Equals reports whether other is the same hash.
func (h hashed) Equals(other merkletree.Content) (bool, error) {
	o, ok := other.(hashed)
	return ok && bytes.Equal(h, o), nil
}
