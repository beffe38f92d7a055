package audit

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
)

// maxGuesses bounds the hashes of one tile for which it is found out whether the leaf or the tile was changed: 2^n trees.
const maxGuesses = 10

// parentTile is a stored tile of a level above 0; hashes is nil if the log doesn't have all of it.
type parentTile struct {
	index  uint64
	hashes []byte
}

// leafTile checks the leaves of one tile of level 0, and grows the tree by them.
func (c *checker) leafTile(ctx context.Context, index uint64, width int, leaves []examined, stored []byte) error {
	rows := make([]*examined, width)
	for i := range leaves {
		rows[uint64(leaves[i].Index)-index*tileWidth] = &leaves[i]
	}
	c.count(rows, index)
	if len(stored) < width*hashSize {
		c.shortTile(postgres.TileID{Index: index}, len(stored)/hashSize, width)
		stored = nil
	} else {
		stored = stored[:width*hashSize]
	}
	want, err := c.settle(ctx, index, rows, stored)
	if err != nil {
		return err
	}
	for _, e := range rows {
		if e == nil {
			continue
		}
		place := int(uint64(e.Index)%tileWidth) * hashSize
		for _, f := range e.faults(want[place:place+hashSize], want) {
			c.found(f)
		}
	}
	if stored == nil && slices.Contains(rows, nil) {
		return c.passOver(ctx, index, rows)
	}
	return c.grow(rows, want)
}

// count counts leaves, and notes those that are missing: many in a row are one fault.
func (c *checker) count(rows []*examined, index uint64) {
	for i, e := range rows {
		c.report.Leaves++
		if e == nil {
			if c.missing.Leaves == 0 {
				c.missing = leafFault(LeafMissing, index*tileWidth+uint64(i), "merkle_leaves has no row")
			}
			c.missing.Leaves++
			continue
		}
		c.reportMissing()
		switch {
		case lost(e.StoredLeaf, c.recovered):
			c.report.Lost++
		case e.Bytes == nil:
			c.report.Erased++
		}
	}
}

func (c *checker) reportMissing() {
	if c.missing.Leaves > 0 {
		c.found(c.missing)
		c.missing = Fault{}
	}
}

func (c *checker) shortTile(id postgres.TileID, has, want int) {
	f := Fault{Kind: TileMissing, Tile: attestation.TileID(id).String(), Detail: fmt.Sprintf("it has %d of %d hashes", has, want)}
	if !slices.Contains(c.kept, f) { // a check that goes on reads the tile above again
		c.found(f)
	}
}

// settle decides which leaf hashes a tile of leaves has. Where leaf and tile disagree, it is those that lead to the signed
// root; and what differs from them in the tile is a fault of the tile. What is missing in both is left zero.
func (c *checker) settle(ctx context.Context, index uint64, rows []*examined, stored []byte) ([]byte, error) {
	have := make([]byte, len(rows)*hashSize)
	var differing []int
	for i, e := range rows {
		place := have[i*hashSize : (i+1)*hashSize]
		switch {
		case e != nil:
			copy(place, e.Hash)
			if stored != nil && !bytes.Equal(place, stored[i*hashSize:(i+1)*hashSize]) {
				differing = append(differing, i)
			}
		case stored != nil:
			copy(place, stored[i*hashSize:])
		}
	}
	if len(differing) == 0 || stored == nil {
		return have, nil
	}
	want, err := c.guess(ctx, index, have, stored, differing)
	if err != nil {
		return nil, err
	}
	for _, i := range differing {
		if got, right := stored[i*hashSize:(i+1)*hashSize], want[i*hashSize:(i+1)*hashSize]; !bytes.Equal(got, right) {
			leaf := index*tileWidth + uint64(i)
			c.found(Fault{Kind: TileHash, Tile: attestation.TileID{Index: index}.String(), Entry: &i, LeafIndex: &leaf,
				Detail: fmt.Sprintf("it is %x, the leaf's is %x", got, right)})
		}
	}
	return want, nil
}

// guess tries for each hash in which leaves and tile differ which of both leads to the signed root; if that is never
// reached, then to what the tile above has. If nothing fits, the leaves are taken for wrong.
func (c *checker) guess(ctx context.Context, index uint64, have, stored []byte, differing []int) ([]byte, error) {
	leads := c.leadsTo(ctx, 0, index)
	parent, err := c.parentHash(ctx, attestation.TileID{Index: index})
	if err != nil {
		return nil, err
	}
	full := len(stored) == tileBytes
	var second []byte
	for choice := range choices(len(differing)) {
		candidate := slices.Clone(stored)
		for bit, i := range differing {
			if choice>>min(bit, maxGuesses)&1 == 1 {
				copy(candidate[i*hashSize:], have[i*hashSize:(i+1)*hashSize])
			}
		}
		peaks, err := leafPeaks(candidate)
		if err != nil {
			return nil, err
		}
		if !full {
			root, err := c.tree.rootOver(peaks)
			if err == nil && bytes.Equal(root, c.head.RootHash) {
				return candidate, nil
			}
			continue
		}
		if leads(peaks[0]) {
			return candidate, nil
		}
		if second == nil && bytes.Equal(parent, peaks[0]) {
			second = candidate
		}
	}
	if second != nil {
		return second, nil
	}
	return stored, nil
}

// choices yields what may be right in n places: all combinations if they are few, else all of the tile or all of the leaves.
func choices(n int) func(func(int) bool) {
	return func(yield func(int) bool) {
		if n > maxGuesses {
			_ = yield(0) && yield(1<<(maxGuesses+1)-1)
			return
		}
		for choice := range 1 << n {
			if !yield(choice) {
				return
			}
		}
	}
}

// leadsTo returns a function that says whether a hash, as the root of a full tile, leads to the newest head's root through
// the tiles that are stored beside and above it.
func (c *checker) leadsTo(ctx context.Context, level uint8, index uint64) func(hash []byte) bool {
	height := 8 * (uint(level) + 1)
	size := c.head.TreeSize
	path, err := attestation.ProveInclusion(ctx, c.readTiles, index<<height, size)
	if err != nil || len(path) < int(height) {
		return func([]byte) bool { return false }
	}
	return func(hash []byte) bool {
		root, err := proof.RootFromInclusionProof(rfc6962.DefaultHasher, index, (size-1)>>height+1, hash, path[height:])
		return err == nil && bytes.Equal(root, c.head.RootHash)
	}
}

func (c *checker) readTiles(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
	return readTiles(ctx, c.DB, c.Log.ID, ids)
}

// parentHash is what the tile above has as the root of a full tile; nil if the log doesn't have it.
func (c *checker) parentHash(ctx context.Context, tile attestation.TileID) ([]byte, error) {
	level, index := tile.Level+1, tile.Index/tileWidth
	parent, ok := c.parents[level]
	if !ok || parent.index != index {
		id := postgres.TileID{Level: level, Index: index}
		width := attestation.TileWidth(attestation.TileID(id), c.head.TreeSize)
		stored, err := postgres.ReadTiles(ctx, c.DB, c.Log.ID, []postgres.TileID{id})
		if err != nil {
			return nil, err
		}
		parent = parentTile{index: index, hashes: stored[id]}
		if has := len(parent.hashes) / hashSize; has < width {
			c.shortTile(id, has, width)
			parent.hashes = nil
		}
		c.parents[level] = parent
	}
	place := int(tile.Index%tileWidth) * hashSize
	if len(parent.hashes) < place+hashSize {
		return nil, nil
	}
	return parent.hashes[place : place+hashSize], nil
}

// filled compares the root of a full tile with the hash that stands for it in the tile above. The tree goes on with the one
// that leads to the signed root, so that one fault isn't found again at every size.
func (c *checker) filled(ctx context.Context, tile attestation.Tile, root []byte) ([]byte, error) {
	parent, err := c.parentHash(ctx, tile.ID())
	if err != nil || parent == nil || bytes.Equal(parent, root) {
		return root, err
	}
	above := attestation.TileID{Level: tile.Level + 1, Index: tile.Index / tileWidth}
	entry, first := int(tile.Index%tileWidth), tile.Index<<(8*(uint(tile.Level)+1))
	f := Fault{Kind: TileHash, Tile: above.String(), Entry: &entry, LeafIndex: &first, Leaves: 1 << (8 * (uint(tile.Level) + 1))}
	leads := c.leadsTo(ctx, tile.Level, tile.Index)
	switch {
	case leads(root):
		f.Detail = fmt.Sprintf("it is %x, that of the leaves is %x", parent, root)
	case leads(parent):
		f.Kind = Subtree
		f.Detail = fmt.Sprintf("the signed head covers %x, the leaves hash to %x: at least one of them was replaced, with its hash and its tile", parent, root)
		c.found(f)
		return parent, nil
	default:
		f.Detail = fmt.Sprintf("it is %x, that of the leaves is %x, and neither leads to the signed root", parent, root)
	}
	c.found(f)
	return root, nil
}

// grow appends the leaves of a tile, and checks what is stored about each size.
func (c *checker) grow(rows []*examined, want []byte) error {
	for i, e := range rows {
		hash := want[i*hashSize : (i+1)*hashSize]
		if e != nil && e.transition() && bytes.Equal(e.sum, hash) {
			root, err := c.tree.root()
			if err != nil {
				return err
			}
			c.transition(e, root)
		}
		if err := c.tree.add(hash); err != nil {
			return err
		}
		if err := c.atSize(c.tree.size, true); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) transition(e *examined, root []byte) {
	if _, err := c.keys.transition(e.Bytes, uint64(e.Index), root); err != nil {
		c.found(leafFault(LeafFormat, uint64(e.Index), err.Error()))
	}
}

// passOver goes on after a tile that is gone together with some of its leaves, with the hash that stands for it in the tile
// above. Without that there is nothing to go on from.
func (c *checker) passOver(ctx context.Context, index uint64, rows []*examined) error {
	for _, e := range rows {
		if e != nil && e.transition() {
			c.transition(e, nil)
		}
	}
	parent, err := c.parentHash(ctx, attestation.TileID{Index: index})
	if err != nil {
		return err
	}
	if parent == nil {
		first := index * tileWidth
		c.report.Stopped = &first
		return nil
	}
	if err := c.tree.skip(parent); err != nil {
		return err
	}
	end := c.tree.size
	if err := c.atSize(end-1, false); err != nil {
		return err
	}
	return c.atSize(end, true)
}
