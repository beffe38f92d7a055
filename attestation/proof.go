package attestation

import (
	"context"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"

	"github.com/kapsel-io/kapsel/verify"
)

// ErrOutOfRange is returned for an index or a size for which there is no proof.
var ErrOutOfRange = errors.New("index or tree size out of range")

// TileReader reads tiles, all in one call. A tile may be wider than the proof needs, because the log has grown since;
// one that doesn't exist is left out of the map.
type TileReader func(ctx context.Context, ids []TileID) (map[TileID][]byte, error)

// ProveInclusion returns the audit path (RFC 6962, section 2.1.1) of the leaf at index in the tree of the given size:
// hashes of 32 bytes, the leaf's sibling first. It needs 0 ≤ index < size; else the error is ErrOutOfRange.
func ProveInclusion(ctx context.Context, read TileReader, index, size uint64) ([][]byte, error) {
	paths, err := ProveInclusions(ctx, read, []Place{{index, size}})
	if err != nil {
		return nil, err
	}
	return paths[0], nil
}

// Place is a leaf's index in a tree of the given size.
type Place struct{ Index, Size uint64 }

// ProveInclusions is ProveInclusion for many leaves. It reads the tiles that all of them need in one call, each once.
func ProveInclusions(ctx context.Context, read TileReader, places []Place) ([][][]byte, error) {
	proofs := make([]proof.Nodes, len(places))
	var all []compact.NodeID
	for i, p := range places {
		if p.Index >= p.Size || p.Size > verify.MaxTreeSize {
			return nil, fmt.Errorf("prove inclusion of %d in %d: %w", p.Index, p.Size, ErrOutOfRange)
		}
		var err error
		if proofs[i], err = proof.Inclusion(p.Index, p.Size); err != nil {
			return nil, fmt.Errorf("prove inclusion of %d in %d: %w", p.Index, p.Size, err)
		}
		all = append(all, proofs[i].IDs...)
	}
	tiles, err := readTiles(ctx, read, all)
	if err != nil {
		return nil, fmt.Errorf("prove inclusion: %w", err)
	}
	paths := make([][][]byte, len(places))
	for i, p := range places {
		if paths[i], err = foldProof(proofs[i], tiles); err != nil {
			return nil, fmt.Errorf("prove inclusion of %d in %d: %w", p.Index, p.Size, err)
		}
	}
	return paths, nil
}

// ProveConsistency returns the hashes (RFC 6962, section 2.1.2) which show that the tree of size1 leaves is a prefix of
// the one of size2. It needs 0 < size1 ≤ size2, since anything is consistent with nothing; else the error is
// ErrOutOfRange. Between equal sizes the proof is empty.
func ProveConsistency(ctx context.Context, read TileReader, size1, size2 uint64) ([][]byte, error) {
	if size1 == 0 || size1 > size2 || size2 > verify.MaxTreeSize {
		return nil, fmt.Errorf("prove consistency of %d with %d: %w", size1, size2, ErrOutOfRange)
	}
	nodes, err := proof.Consistency(size1, size2)
	if err != nil {
		return nil, fmt.Errorf("prove consistency of %d with %d: %w", size1, size2, err)
	}
	hashes, err := readProof(ctx, read, nodes)
	if err != nil {
		return nil, fmt.Errorf("prove consistency of %d with %d: %w", size1, size2, err)
	}
	return hashes, nil
}

// RootAt computes the root that the tree had at the given size.
func RootAt(ctx context.Context, read TileReader, size uint64) ([]byte, error) {
	if size == 0 {
		return verify.EmptyRoot(), nil
	}
	if size > verify.MaxTreeSize {
		return nil, fmt.Errorf("root of size %d: %w", size, ErrOutOfRange)
	}
	hashes, err := readNodes(ctx, read, compact.RangeNodes(0, size, nil))
	if err != nil {
		return nil, fmt.Errorf("root of size %d: %w", size, err)
	}
	edge, err := ranges.NewRange(0, size, hashes)
	if err != nil {
		return nil, fmt.Errorf("root of size %d: %w", size, err)
	}
	return edge.GetRootHash(nil)
}

// readProof reads the nodes of a proof and folds them.
func readProof(ctx context.Context, read TileReader, nodes proof.Nodes) ([][]byte, error) {
	tiles, err := readTiles(ctx, read, nodes.IDs)
	if err != nil {
		return nil, err
	}
	return foldProof(nodes, tiles)
}

// foldProof computes the hashes of a proof, those that stand for the incomplete subtree at the right edge as one.
func foldProof(nodes proof.Nodes, tiles map[TileID][]byte) ([][]byte, error) {
	hashes, err := nodeHashes(nodes.IDs, tiles)
	if err != nil {
		return nil, err
	}
	return nodes.Rehash(hashes, verify.NodeHash)
}

func readNodes(ctx context.Context, read TileReader, nodes []compact.NodeID) ([][]byte, error) {
	tiles, err := readTiles(ctx, read, nodes)
	if err != nil {
		return nil, err
	}
	return nodeHashes(nodes, tiles)
}

// readTiles reads the tiles of the nodes, if there are any.
func readTiles(ctx context.Context, read TileReader, nodes []compact.NodeID) (map[TileID][]byte, error) {
	if len(nodes) == 0 {
		return nil, nil
	}
	tiles, err := read(ctx, tilesOf(nodes))
	if err != nil {
		return nil, fmt.Errorf("read tiles: %w", err)
	}
	return tiles, nil
}
