package audit

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
)

// finish checks what lies at the tree's edge and beyond, and what was recorded elsewhere.
func (c *checker) finish(ctx context.Context) error {
	c.reportMissing()
	if err := c.checkTransitions(ctx); err != nil {
		return err
	}
	edge, err := postgres.Edge(ctx, c.DB, c.Log.ID)
	if err != nil {
		return err
	}
	c.report.Unpublished = edge.TreeSize - c.head.TreeSize
	if !bytes.Equal(edge.Root, edge.RootHash) {
		c.found(sizeFault(RootHash, edge.TreeSize, fmt.Sprintf("log_heads has the root %x, tree_roots has %x", edge.RootHash, edge.Root)))
	}
	c.checkEdgeTiles(edge)
	if err := c.checkBeyond(ctx, edge); err != nil {
		return err
	}
	if err := c.checkExpected(ctx, edge); err != nil {
		return err
	}
	if c.Key != nil && !c.chained() {
		c.found(Fault{Kind: Key, Detail: fmt.Sprintf("no head of the log is under the key that was given, %x", []byte(c.Key))})
	}
	c.report.Keys = len(c.keys.chain)
	c.report.Sound = c.report.Faults == 0
	if c.StateFile == "" {
		return nil
	}
	return os.RemoveAll(c.StateFile)
}

func (c *checker) chained() bool {
	for _, key := range c.keys.chain {
		if key.Equal(c.Key) {
			return true
		}
	}
	return false
}

// checkEdgeTiles wants the last tile of each level to be as wide as the tree's newest size says, and none after it. What the
// newest published head needs was looked at before.
func (c *checker) checkEdgeTiles(edge *postgres.LogEdge) {
	for level := range uint8(8) {
		last := attestation.TileID{Level: level}
		if level < 7 {
			last.Index = edge.TreeSize >> (8 * (uint(level) + 1))
		}
		want, published := attestation.TileWidth(last, edge.TreeSize), attestation.TileWidth(last, c.head.TreeSize)
		if has := edge.Widths[postgres.TileID(last)]; has < want && (has >= published) {
			c.shortTile(postgres.TileID(last), has, want)
		}
	}
	for id, has := range edge.Widths {
		if want := attestation.TileWidth(attestation.TileID(id), edge.TreeSize); has > want {
			c.found(Fault{Kind: TileExtra, Tile: attestation.TileID(id).String(),
				Detail: fmt.Sprintf("it has %d hashes, a tree of %d leaves has %d there", has, edge.TreeSize, want)})
		}
	}
}

func (c *checker) checkBeyond(ctx context.Context, edge *postgres.LogEdge) error {
	detail := fmt.Sprintf("the log has only %d leaves", edge.TreeSize)
	if edge.LeafBeyond >= 0 {
		c.found(leafFault(BeyondTree, uint64(edge.LeafBeyond), detail))
	}
	if edge.RootBeyond >= 0 {
		c.found(sizeFault(BeyondTree, uint64(edge.RootBeyond), "a root of this size is in tree_roots; "+detail))
	}
	if edge.HeadBeyond < 0 {
		return nil
	}
	heads, err := postgres.PublishedHeads(ctx, c.DB, c.Log.ID, int64(edge.TreeSize), math.MaxInt64, math.MaxInt64, pageSize)
	if err != nil {
		return err
	}
	for _, h := range heads {
		f := sizeFault(BeyondTree, h.TreeSize, detail)
		f.Timestamp = h.Timestamp
		c.found(f)
	}
	return nil
}

// checkExpected looks at what was recorded elsewhere of sizes that this run didn't come by: of a run before it, or beyond the
// newest published head.
func (c *checker) checkExpected(ctx context.Context, edge *postgres.LogEdge) error {
	for _, e := range c.expected {
		if e.size > edge.TreeSize {
			c.found(sizeFault(e.kind, e.size, fmt.Sprintf("%s is of this size, the log has only %d leaves", e.what, edge.TreeSize)))
			continue
		}
		if e.met {
			continue
		}
		root, err := postgres.RootOf(ctx, c.DB, c.Log.ID, e.size)
		if err != nil {
			return err
		}
		if !bytes.Equal(root, e.root) {
			c.found(sizeFault(e.kind, e.size, fmt.Sprintf("%s has the root %x, tree_roots has %x", e.what, e.root, root)))
		}
	}
	return nil
}
