package audit

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// examined is a stored leaf and what its row says by itself.
type examined struct {
	postgres.StoredLeaf
	sum    []byte // leaf hash of the bytes; nil if erased
	format string // what is wrong with the bytes, if anything is
	row    string // what is wrong with the row beside its bytes
}

// transition reports whether the leaf is a key transition: one that doesn't start with '{'.
func (e *examined) transition() bool { return len(e.Bytes) > 0 && e.Bytes[0] != '{' }

// examineAll looks at leaves one by one, on all CPUs: most of the time of a check is spent here.
func examineAll(origin string, recovered []postgres.Recovery, leaves []postgres.StoredLeaf) []examined {
	all := make([]examined, len(leaves))
	var workers sync.WaitGroup
	share := max(len(leaves)/runtime.GOMAXPROCS(0), 1)
	for first := 0; first < len(leaves); first += share {
		workers.Go(func() {
			for i := first; i < min(first+share, len(leaves)); i++ {
				all[i] = examine(origin, recovered, leaves[i])
			}
		})
	}
	workers.Wait()
	return all
}

// lost reports whether all that is left of a leaf is its hash, which came back from a mirror.
func lost(leaf postgres.StoredLeaf, recovered []postgres.Recovery) bool {
	return leaf.Bytes == nil && leaf.AttemptID == nil && slices.ContainsFunc(recovered, func(r postgres.Recovery) bool {
		return leaf.Index >= r.OldSize && leaf.Index < r.NewSize
	})
}

func examine(origin string, recovered []postgres.Recovery, leaf postgres.StoredLeaf) examined {
	e := examined{StoredLeaf: leaf}
	if leaf.Bytes == nil {
		switch {
		case lost(leaf, recovered):
		case leaf.AttemptID == nil:
			e.row = "the bytes are erased, but a leaf without an attempt is a key transition, which is never erased"
		case leaf.Secrets != nil:
			e.row = "the bytes are erased, the secrets aren't"
		}
		return e
	}
	e.sum = leafHashOf(leaf.Bytes)
	if e.transition() {
		if leaf.AttemptID != nil {
			e.row = "the row names an attempt, the leaf is a key transition"
		}
		return e
	}
	parsed, err := verify.ParseLeaf(leaf.Bytes)
	switch {
	case err != nil:
		e.format = err.Error()
	case parsed.Origin != origin:
		e.format = "it is a leaf of the log " + parsed.Origin
	case leaf.TenantID == nil || leaf.AttemptID == nil:
		e.row = "the row names no attempt"
	case id.Tenant.Format(*leaf.TenantID) != parsed.TenantID:
		e.row = fmt.Sprintf("the row belongs to %s, the leaf to %s", id.Tenant.Format(*leaf.TenantID), parsed.TenantID)
	case parsed.Kind == verify.KindAccepted:
		if parsed.AttemptID != "" || id.Event.Format(*leaf.AttemptID) != parsed.EventID {
			e.row = fmt.Sprintf("the row is of %s, the leaf of the acceptance of %s", id.Event.Format(*leaf.AttemptID), parsed.EventID)
		}
	case id.Attempt.Format(*leaf.AttemptID) != parsed.AttemptID:
		e.row = fmt.Sprintf("the row is of %s, the leaf of %s", id.Attempt.Format(*leaf.AttemptID), parsed.AttemptID)
	}
	return e
}

// faults compares one leaf with the hash that the tree has at its index. tile is that of the tile's leaves, to find
// out where a leaf that doesn't belong here comes from.
func (e *examined) faults(want []byte, tile []byte) []Fault {
	index := uint64(e.Index)
	var faults []Fault
	switch hashFits, bytesFit := bytes.Equal(e.Hash, want), e.sum == nil || bytes.Equal(e.sum, want); {
	case hashFits && !bytesFit:
		return []Fault{leafFault(LeafBytes, index, fmt.Sprintf("the bytes hash to %x, the leaf hash is %x", e.sum, e.Hash))}
	case !hashFits && e.sum != nil && bytesFit:
		faults = append(faults, leafFault(LeafHash, index, fmt.Sprintf("the leaf hash is %x, the bytes hash to %x", e.Hash, e.sum)))
	case !hashFits:
		detail := fmt.Sprintf("the leaf hash is %x, the tree has %x", e.Hash, want)
		for j, h := range slices.Collect(slices.Chunk(tile, hashSize)) {
			if bytes.Equal(h, e.Hash) {
				detail += fmt.Sprintf("; it belongs at index %d", index-index%tileWidth+uint64(j))
			}
		}
		return []Fault{leafFault(LeafReplaced, index, detail)}
	}
	if e.format != "" {
		faults = append(faults, leafFault(LeafFormat, index, e.format))
	}
	if e.row != "" {
		faults = append(faults, leafFault(LeafRow, index, e.row))
	}
	if e.AttemptID != nil && (e.AttemptIndex == nil || *e.AttemptIndex != e.Index) {
		detail := "leaf_of_attempt has no row for its attempt"
		if e.AttemptIndex != nil {
			detail = fmt.Sprintf("leaf_of_attempt leads to leaf %d for its attempt", *e.AttemptIndex)
		}
		faults = append(faults, leafFault(AttemptIndex, index, detail))
	}
	return faults
}
