package verify

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
)

// SignedTreeHead is the state of a log at one moment, signed by the log's key.
type SignedTreeHead struct {
	TreeSize  uint64
	Timestamp int64  // Unix ms
	RootHash  []byte // 32 bytes
	Signature []byte // 64 bytes, Ed25519 over STHMessage
}

// STHMessage returns the exactly 48 bytes that a signed tree head signs: tree size (8 bytes, big-endian), timestamp
// (8 bytes, big-endian, Unix ms) and root hash. It panics if rootHash isn't 32 bytes, for a message of another length
// must never be signed.
func STHMessage(treeSize uint64, timestamp int64, rootHash []byte) []byte {
	if len(rootHash) != HashSize {
		panic(fmt.Sprintf("verify: root hash of %d bytes", len(rootHash)))
	}
	m := make([]byte, 0, 16+HashSize)
	m = binary.BigEndian.AppendUint64(m, treeSize)
	m = binary.BigEndian.AppendUint64(m, uint64(timestamp))
	return append(m, rootHash...)
}

// TreeHead checks the signature of sth under key. Errors wrap ErrKey, ErrHeadFormat or ErrSignature.
func TreeHead(sth SignedTreeHead, key ed25519.PublicKey) error {
	if err := CheckPublicKey(key); err != nil {
		return err
	}
	return sth.verify(key)
}

// verify is for a key that CheckPublicKey lets through.
func (sth SignedTreeHead) verify(key ed25519.PublicKey) error {
	if err := sth.check(); err != nil {
		return err
	}
	if !ed25519.Verify(key, STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash), sth.Signature) {
		return fmt.Errorf("%w: the tree head of size %d isn't signed by the key", ErrSignature, sth.TreeSize)
	}
	return nil
}

// check wants every field in its range. crypto/ed25519 reports a short signature as merely wrong; saying what is odd
// about it helps more.
func (s SignedTreeHead) check() error {
	switch {
	case s.TreeSize > MaxTreeSize:
		return fmt.Errorf("%w: tree size %d is 2^53 or more", ErrHeadFormat, s.TreeSize)
	case s.Timestamp < 0 || s.Timestamp > MaxTreeSize:
		return fmt.Errorf("%w: timestamp %d is out of range", ErrHeadFormat, s.Timestamp)
	case len(s.RootHash) != HashSize:
		return fmt.Errorf("%w: root hash of %d bytes, want %d", ErrHeadFormat, len(s.RootHash), HashSize)
	case len(s.Signature) != ed25519.SignatureSize:
		return fmt.Errorf("%w: signature of %d bytes, want %d", ErrHeadFormat, len(s.Signature), ed25519.SignatureSize)
	}
	return nil
}

// Proof checks that leaf is in the tree whose head sth is signed by key: the head's signature, that the proof is for
// the head's size, and the path from the leaf to the head's root.
//
// It can't check the origin: neither a leaf hash nor a tree head names its log, so a key that two logs share would
// make their proofs interchangeable (Kapsel never shares one). It doesn't look into the leaf either: ParseLeaf does.
// Package does all of it. Errors wrap ErrKey, ErrHeadFormat, ErrSignature or ErrInclusion.
func Proof(leaf []byte, proof InclusionProof, sth SignedTreeHead, key ed25519.PublicKey) error {
	if err := TreeHead(sth, key); err != nil {
		return err
	}
	if proof.TreeSize != sth.TreeSize {
		return fmt.Errorf("%w: it is for size %d, the head has size %d", ErrInclusion, proof.TreeSize, sth.TreeSize)
	}
	return Inclusion(LeafHash(leaf), proof.LeafIndex, sth.TreeSize, proof.Hashes, sth.RootHash)
}
