package attestation

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"

	"github.com/kapsel-io/kapsel/verify"
)

// Evidence is everything that proves one leaf.
type Evidence struct {
	Origin     string            // the log's name
	Key        ed25519.PublicKey // signed Head and Checkpoint
	Leaf       []byte            // the exact bytes; nil: erased, and only TLogProof can be written
	LeafHash   []byte            // needed if Leaf is nil
	Salts      *verify.Salts     // nil after erasure
	Proof      verify.InclusionProof
	Head       verify.SignedTreeHead // the earliest published head that covers the leaf, unless another was asked for
	Checkpoint []byte                // the note of the same head, verbatim
	History    []verify.PackageTransition
}

// Package writes the evidence as a proof package ("kapsel.proof/v1"). It verifies what it wrote, as a stranger with the
// log's key would, and returns nothing that doesn't hold: the error wraps that of verify.Package.
func (e Evidence) Package() ([]byte, error) {
	pkg, err := json.MarshalIndent(verify.ProofPackage{
		Format:         verify.Format,
		Origin:         e.Origin,
		VKey:           verify.VKey(e.Origin, e.Key),
		LogKeyID:       verify.LogKeyID(e.Key),
		Leaf:           e.Leaf,
		Salts:          e.Salts,
		LeafIndex:      e.Proof.LeafIndex,
		InclusionProof: e.Proof.Hashes,
		STH:            verify.NewPackageHead(e.Head),
		Checkpoint:     string(e.Checkpoint),
		KeyHistory:     e.History,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write proof package of leaf %d: %w", e.Proof.LeafIndex, err)
	}
	if e.Proof.TreeSize != e.Head.TreeSize {
		return nil, fmt.Errorf("write proof package of leaf %d: path for size %d, head of size %d: %w",
			e.Proof.LeafIndex, e.Proof.TreeSize, e.Head.TreeSize, verify.ErrInclusion)
	}
	if _, err := verify.Package(pkg, verify.Options{VKey: verify.VKey(e.Origin, e.Key)}); err != nil {
		return nil, fmt.Errorf("write proof package of leaf %d: %w", e.Proof.LeafIndex, err)
	}
	return pkg, nil
}
