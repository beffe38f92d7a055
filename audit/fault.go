package audit

import (
	"fmt"
	"strings"
)

// Kinds of faults.
const (
	// Leaves.
	LeafMissing  = "leaf_missing"  // no row; Leaves says how many in a row
	LeafBytes    = "leaf_bytes"    // the bytes were changed: they don't hash to the leaf hash, which the tree confirms
	LeafHash     = "leaf_hash"     // the leaf hash was changed: the bytes and the tree agree on another
	LeafReplaced = "leaf_replaced" // another leaf stands here: bytes and leaf hash agree, the tree has another
	LeafFormat   = "leaf_format"   // the bytes are neither a canonical leaf of this log nor a key transition that holds here
	LeafRow      = "leaf_row"      // tenant, attempt or erasure of the row contradict the leaf
	AttemptIndex = "attempt_index" // leaf_of_attempt doesn't lead from the leaf's attempt to the leaf

	// Tiles.
	TileMissing = "tile_missing" // no row, or fewer hashes than the tree's size promises
	TileHash    = "tile_hash"    // one hash isn't that of what lies below it
	TileExtra   = "tile_extra"   // a tile, or hashes in one, beyond the tree

	// Subtree: 256^level leaves don't hash to what the signed head covers, and nothing says which of them.
	Subtree = "subtree"

	// Roots and heads.
	RootHash   = "root_hash"   // the root of a size in tree_roots isn't that of the leaves, or is missing
	HeadRoot   = "head_root"   // a published head names another root than that of the leaves
	HeadTime   = "head_time"   // a published head isn't later than one of fewer leaves
	HeadKey    = "head_key"    // a head is signed under a key that wasn't the log's at that size
	Signature  = "signature"   // the tree head's signature doesn't verify
	Checkpoint = "checkpoint"  // the checkpoint isn't the head's, or doesn't verify
	BeyondTree = "beyond_tree" // a published head, a root or a leaf beyond the log's newest size
	KeyChange  = "key_change"  // key_transitions isn't what the transitions among the leaves say
	Key        = "key"         // a key that can't be one of the log's, or isn't the one that was given
	HighWater  = "high_water"  // the high-water record knows a head that isn't in the log
	Rollback   = "rollback"    // the log is smaller than an earlier run, or a checkpoint from elsewhere, has seen it
)

// Fault is one thing that isn't as it must be. Members that don't apply are absent.
type Fault struct {
	Kind      string  `json:"kind"`
	LeafIndex *uint64 `json:"leaf_index,omitempty"`
	Leaves    uint64  `json:"leaves,omitempty"` // how many, from LeafIndex on, if more than one
	Tile      string  `json:"tile,omitempty"`   // level/index
	Entry     *int    `json:"entry,omitempty"`  // the hash's place in the tile, from 0
	TreeSize  *uint64 `json:"tree_size,omitempty"`
	Timestamp int64   `json:"timestamp,omitempty"` // of the head, Unix ms
	Detail    string  `json:"detail"`
}

// String says where the fault is, and what.
func (f Fault) String() string {
	var where []string
	switch {
	case f.Leaves > 1:
		where = append(where, fmt.Sprintf("leaves %d to %d", *f.LeafIndex, *f.LeafIndex+f.Leaves-1))
	case f.LeafIndex != nil:
		where = append(where, fmt.Sprintf("leaf %d", *f.LeafIndex))
	}
	if f.Tile != "" {
		tile := "tile " + f.Tile
		if f.Entry != nil {
			tile += fmt.Sprintf(", hash %d", *f.Entry)
		}
		where = append(where, tile)
	}
	if f.TreeSize != nil {
		size := fmt.Sprintf("size %d", *f.TreeSize)
		if f.Timestamp != 0 {
			size = fmt.Sprintf("head of size %d and time %d", *f.TreeSize, f.Timestamp)
		}
		where = append(where, size)
	}
	if len(where) == 0 {
		return f.Kind + ": " + f.Detail
	}
	return f.Kind + ": " + strings.Join(where, ", ") + ": " + f.Detail
}

func leafFault(kind string, index uint64, detail string) Fault {
	return Fault{Kind: kind, LeafIndex: &index, Detail: detail}
}

func sizeFault(kind string, size uint64, detail string) Fault {
	return Fault{Kind: kind, TreeSize: &size, Detail: detail}
}
