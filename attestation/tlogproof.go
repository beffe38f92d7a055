package attestation

import (
	"fmt"

	"github.com/kapsel-io/kapsel/verify"
)

// TLogProof writes the evidence as a text that tools of other projects verify: see verify.TLogProof. Of a leaf whose bytes are
// erased it proves the hash. Like Package it returns nothing that doesn't hold.
func (e Evidence) TLogProof() ([]byte, error) {
	proof := verify.TLogProof{Leaf: e.Leaf, LeafIndex: e.Proof.LeafIndex, InclusionProof: e.Proof.Hashes, Checkpoint: e.Checkpoint}
	trust := verify.Options{VKey: verify.VKey(e.Origin, e.Key)}
	if e.Leaf == nil {
		trust.LeafHash = &e.LeafHash
	} else {
		proof.Salts = e.Salts
	}
	text := proof.Bytes()
	if _, err := verify.TLog(text, trust); err != nil {
		return nil, fmt.Errorf("write proof of leaf %d: %w", e.Proof.LeafIndex, err)
	}
	return text, nil
}
