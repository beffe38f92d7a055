package monitor

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strconv"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"

	"github.com/kapsel-io/kapsel/verify"
)

// Tiles hold eight levels of the tree, up to 256 hashes (c2sp.org/tlog-tiles).
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tiles reads nodes of the tree of one size.
type tiles struct {
	client *client
	size   uint64
	read   map[string][]byte // bodies by path, for one question
}

// hashes returns SUBPROOF(m, D[size], false) of RFC 6962, section 2.1.2, for 0 < m < size.
func (t *tiles) hashes(ctx context.Context, m uint64) (verify.Hashes, error) {
	nodes, err := proof.Consistency(m, t.size)
	if err != nil {
		return nil, fmt.Errorf("nodes of the proof from size %d to %d: %w", m, t.size, err)
	}
	list := make([][]byte, len(nodes.IDs))
	for i, id := range nodes.IDs {
		if list[i], err = t.node(ctx, id); err != nil {
			return nil, err
		}
	}
	list, err = nodes.Rehash(list, verify.NodeHash)
	if err != nil {
		return nil, fmt.Errorf("hashes of the proof from size %d to %d: %w", m, t.size, err)
	}
	if m&(m-1) == 0 { // the proof leaves out the root of the first m leaves, which is one node
		root, err := t.node(ctx, compact.NewNodeID(uint(bits.TrailingZeros64(m)), 0))
		if err != nil {
			return nil, err
		}
		list = append([][]byte{root}, list...)
	}
	return list, nil
}

// node computes a perfect subtree's root from the tile that holds it.
func (t *tiles) node(ctx context.Context, id compact.NodeID) ([]byte, error) {
	within := id.Level % tileHeight
	first, count := id.Index<<within, 1<<within
	tile, err := t.tile(ctx, id.Level/tileHeight, first/tileWidth)
	if err != nil {
		return nil, err
	}
	from := int(first % tileWidth)
	if len(tile) < (from+count)*verify.HashSize {
		return nil, fmt.Errorf("%w: a tile without node %d of level %d", ErrResponse, id.Index, id.Level)
	}
	hashes := make([][]byte, count)
	for i := range hashes {
		hashes[i] = tile[(from+i)*verify.HashSize:][:verify.HashSize]
	}
	for ; len(hashes) > 1; hashes = hashes[:len(hashes)/2] {
		for i := range len(hashes) / 2 {
			hashes[i] = verify.NodeHash(hashes[2*i], hashes[2*i+1])
		}
	}
	return hashes[0], nil
}

// tile reads one tile as wide as it is in the tree. A server may drop a partial tile once the full one exists, which
// starts with the same hashes.
func (t *tiles) tile(ctx context.Context, level uint, index uint64) ([]byte, error) {
	width := min(t.size>>(tileHeight*level)-index*tileWidth, tileWidth)
	path := fmt.Sprintf("tile/%d/%s", level, tileIndex(index))
	if width == tileWidth {
		return t.fetch(ctx, path, tileWidth)
	}
	b, err := t.fetch(ctx, fmt.Sprintf("%s.p/%d", path, width), width)
	if errors.Is(err, ErrNotFound) {
		return t.fetch(ctx, path, tileWidth)
	}
	return b, err
}

func (t *tiles) fetch(ctx context.Context, path string, width uint64) ([]byte, error) {
	if b, ok := t.read[path]; ok {
		return b, nil
	}
	size := int64(width) * verify.HashSize
	b, err := t.client.get(ctx, t.client.base.JoinPath(path), size)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != size {
		return nil, fmt.Errorf("%w: %d bytes for %s, want %d", ErrResponse, len(b), path, size)
	}
	t.read[path] = b
	return b, nil
}

// tileIndex writes 1234067 as x001/x234/067.
func tileIndex(n uint64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		s = fmt.Sprintf("x%03s/%s", strconv.FormatUint(n%1000, 10), s)
	}
	return s
}
