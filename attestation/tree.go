package attestation

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"math/bits"
	"slices"

	"github.com/cbergoon/merkletree"
	"github.com/transparency-dev/merkle/compact"

	"github.com/kapsel-io/kapsel/verify"
)

var (
	// ErrRootMismatch is returned when the edge tiles don't lead to the root that was stored with the tree's size. The
	// log must stop: something else than this package has written to it.
	ErrRootMismatch = errors.New("the edge tiles don't hash to the stored root")
	// ErrHashLength is returned for a leaf hash that isn't 32 bytes long.
	ErrHashLength = errors.New("leaf hash must have 32 bytes")
	// ErrTreeFull is returned when a batch would make the tree larger than verify.MaxTreeSize.
	ErrTreeFull = errors.New("tree would exceed 2^53-1 leaves")
)

var ranges = compact.RangeFactory{Hash: verify.NodeHash}

// Tree is the right edge of an append-only Merkle tree: enough to append to it, whatever its size, and nothing else.
// It isn't safe for concurrent use.
type Tree struct {
	edge  *compact.Range
	tiles map[uint8]Tile // the partial tile of each level, absent where the last one is full
}

// Growth is what a batch does to a tree. All of it is stored in the transaction that stores the leaves.
type Growth struct {
	Size  uint64
	Root  []byte // 32 bytes
	Tiles []Tile // new and changed tiles with their whole contents, by level, then by index
}

// OpenTree restores a tree from its size, its root and its edge tiles (see EdgeTiles), and recomputes the root. The
// tiles must be exactly as wide as the size says: a wider one means that somebody appended past the stored head.
func OpenTree(size uint64, root []byte, edgeTiles map[TileID][]byte) (*Tree, error) {
	if size > verify.MaxTreeSize {
		return nil, fmt.Errorf("open tree of size %d: %w", size, ErrTreeFull)
	}
	tree := &Tree{tiles: make(map[uint8]Tile)}
	for _, id := range EdgeTiles(size) {
		if got, want := len(edgeTiles[id]), TileWidth(id, size)*hashSize; got != want {
			return nil, fmt.Errorf("open tree of size %d: tile %v has %d bytes, not %d: %w", size, id, got, want, ErrTile)
		}
		tree.tiles[id.Level] = Tile{Level: id.Level, Index: id.Index, Hashes: slices.Clone(edgeTiles[id])}
	}
	hashes, err := nodeHashes(compact.RangeNodes(0, size, nil), edgeTiles)
	if err != nil {
		return nil, fmt.Errorf("open tree of size %d: %w", size, err)
	}
	if tree.edge, err = ranges.NewRange(0, size, hashes); err != nil {
		return nil, fmt.Errorf("open tree of size %d: %w", size, err)
	}
	got, err := tree.Root()
	if err != nil {
		return nil, fmt.Errorf("open tree of size %d: %w", size, err)
	}
	if !bytes.Equal(got, root) {
		return nil, fmt.Errorf("open tree of size %d: computed %x, stored %x: %w", size, got, root, ErrRootMismatch)
	}
	return tree, nil
}

// OpenStoredTree reads a tree's edge tiles from where they are stored, and opens it. ID is the storage's own name for a TileID.
func OpenStoredTree[ID ~struct {
	Level uint8
	Index uint64
}](ctx context.Context, size uint64, root []byte, read func(context.Context, []ID) (map[ID][]byte, error)) (*Tree, error) {
	edge := EdgeTiles(size)
	ids := make([]ID, len(edge))
	for i, id := range edge {
		ids[i] = ID(id)
	}
	stored, err := read(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("read edge tiles of size %d: %w", size, err)
	}
	tiles := make(map[TileID][]byte, len(stored))
	for id, hashes := range stored {
		tiles[TileID(id)] = hashes
	}
	return OpenTree(size, root, tiles)
}

// Size is the number of leaves.
func (t *Tree) Size() uint64 { return t.edge.End() }

// Root is the tree's root hash; that of the empty tree is SHA-256("").
func (t *Tree) Root() ([]byte, error) {
	if t.Size() == 0 {
		return verify.EmptyRoot(), nil
	}
	root, err := t.edge.GetRootHash(nil)
	if err != nil {
		return nil, fmt.Errorf("root of size %d: %w", t.Size(), err)
	}
	return slices.Clone(root), nil
}

// Append adds a batch of leaf hashes (32 bytes each) in order. A batch that is refused leaves the tree as it was; a tree
// whose growth couldn't be stored must be opened again.
//
// The batch is cut into the largest runs whose position is a multiple of their length, 2^k leaves, none longer than a
// tile. A run is a perfect subtree, which cbergoon/merkletree hashes; compact ranges (transparency-dev/merkle) join the
// runs to the tree and report the nodes that come to be, those at levels 8, 16, … being the entries of higher tiles.
func (t *Tree) Append(leafHashes [][]byte) (*Growth, error) {
	if uint64(len(leafHashes)) > verify.MaxTreeSize-t.Size() {
		return nil, fmt.Errorf("append %d leaves to %d: %w", len(leafHashes), t.Size(), ErrTreeFull)
	}
	for i, h := range leafHashes {
		if len(h) != hashSize {
			return nil, fmt.Errorf("append leaf %d of the batch, %d bytes: %w", i, len(h), ErrHashLength)
		}
	}
	tiles := tileWriter{open: t.tiles}
	for rest := leafHashes; len(rest) > 0; {
		run := rest[:runLength(t.Size(), len(rest))]
		if err := t.appendRun(run, &tiles); err != nil {
			return nil, fmt.Errorf("append %d leaves at %d: %w", len(run), t.Size(), err)
		}
		rest = rest[len(run):]
	}
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	return &Growth{Size: t.Size(), Root: root, Tiles: tiles.finish()}, nil
}

// runLength is the largest power of two that divides position, fits into n leaves and into one tile.
func runLength(position uint64, n int) int {
	length := 1 << (bits.Len(uint(min(n, tileWidth))) - 1)
	if position == 0 {
		return length
	}
	return int(min(uint64(length), position&-position))
}

// appendRun appends one aligned run of 2^k leaf hashes.
func (t *Tree) appendRun(run [][]byte, tiles *tileWriter) error {
	root, err := perfectRoot(run)
	if err != nil {
		return err
	}
	begin := t.Size()
	end := begin + uint64(len(run))
	level := uint(bits.TrailingZeros(uint(len(run))))
	for i, h := range run {
		tiles.add(compact.NewNodeID(0, begin+uint64(i)), h)
	}
	if level > 0 { // the visitor reports only what the merge creates, not the run itself
		tiles.add(compact.NewNodeID(level, begin>>level), root)
	}
	joined, err := ranges.NewRange(begin, end, [][]byte{root})
	if err != nil {
		return err
	}
	return t.edge.AppendRange(joined, tiles.add)
}

// tileWriter collects the tiles that a batch fills. Hashes of one level arrive from left to right.
type tileWriter struct {
	open    map[uint8]Tile
	full    []Tile
	touched [8]bool
}

// add files the hash of a node, if tiles hold nodes of its level.
func (w *tileWriter) add(node compact.NodeID, h []byte) {
	if node.Level%tileHeight != 0 {
		return
	}
	level := uint8(node.Level / tileHeight)
	tile, ok := w.open[level]
	if !ok {
		tile = Tile{Level: level, Index: node.Index / tileWidth, Hashes: make([]byte, 0, tileWidth*hashSize)}
	}
	tile.Hashes = append(tile.Hashes, h...)
	w.touched[level] = true
	w.open[level] = tile
	if len(tile.Hashes) == tileWidth*hashSize {
		w.full = append(w.full, tile)
		delete(w.open, level)
	}
}

// finish returns the full tiles and copies of the partial ones that the batch touched, for those go on growing.
func (w *tileWriter) finish() []Tile {
	tiles := w.full
	for level, tile := range w.open {
		if w.touched[level] {
			tile.Hashes = slices.Clone(tile.Hashes)
			tiles = append(tiles, tile)
		}
	}
	slices.SortFunc(tiles, func(a, b Tile) int {
		return cmp.Or(cmp.Compare(a.Level, b.Level), cmp.Compare(a.Index, b.Index))
	})
	return tiles
}

// perfectRoot returns the RFC 6962 root over exactly 2^k leaf hashes.
//
// cbergoon/merkletree by itself is not RFC 6962: it repeats odd nodes and separates no domains. Over a power of two there
// are no odd nodes, leaves arrive hashed, and newNodeHash supplies the prefix of inner nodes.
func perfectRoot(leafHashes [][]byte) ([]byte, error) {
	if len(leafHashes) == 1 { // here the library would hash the leaf with itself
		return slices.Clone(leafHashes[0]), nil
	}
	contents := make([]merkletree.Content, len(leafHashes))
	for i, h := range leafHashes {
		contents[i] = leafHash(h)
	}
	tree, err := merkletree.NewTreeWithHashStrategy(contents, newNodeHash)
	if err != nil {
		return nil, fmt.Errorf("hash perfect subtree: %w", err)
	}
	return tree.MerkleRoot(), nil
}

// newNodeHash is SHA-256 that has already taken in 0x01, the prefix of inner nodes (RFC 6962, section 2.1). The tree
// writes and sums each hash once and never resets it.
func newNodeHash() hash.Hash {
	h := sha256.New()
	_, _ = h.Write([]byte{0x01}) // never fails, says hash.Hash
	return h
}

// leafHash is a leaf hash as the content of a merkletree.MerkleTree.
type leafHash []byte

// CalculateHash returns the leaf hash itself, without spare capacity: the tree appends the sibling to what it is given,
// and would else overwrite what follows in a shared buffer.
func (h leafHash) CalculateHash() ([]byte, error) { return h[:hashSize:hashSize], nil }

// Equals reports whether other is the same leaf hash.
func (h leafHash) Equals(other merkletree.Content) (bool, error) {
	o, ok := other.(leafHash)
	return ok && bytes.Equal(h, o), nil
}
