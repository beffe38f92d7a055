package verify

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

const (
	// HashSize is the length in bytes of every hash here: SHA-256.
	HashSize = sha256.Size
	// MaxTreeSize bounds tree sizes: 2^53 and above are never signed and always rejected, so that a size is an exact
	// integer in every JSON parser.
	MaxTreeSize = 1<<53 - 1
	// MaxProofHashes bounds a proof before anything is computed from it. No tree of up to MaxTreeSize leaves needs more.
	MaxProofHashes = 63
)

// LeafHash returns SHA-256(0x00 ‖ leaf), the hash of a leaf in the tree (RFC 6962, section 2.1).
func LeafHash(leaf []byte) []byte {
	return rfc6962.DefaultHasher.HashLeaf(leaf)
}

// NodeHash returns SHA-256(0x01 ‖ left ‖ right), the hash of an inner node (RFC 6962, section 2.1).
func NodeHash(left, right []byte) []byte {
	return rfc6962.DefaultHasher.HashChildren(left, right)
}

// EmptyRoot returns SHA-256(""), the root of the tree without leaves (RFC 6962, section 2.1).
func EmptyRoot() []byte {
	return rfc6962.DefaultHasher.EmptyRoot()
}

// InclusionProof is the audit path of one leaf (RFC 6962, section 2.1.1), hashes from the leaf's sibling upwards.
type InclusionProof struct {
	LeafIndex, TreeSize uint64
	Hashes              [][]byte
}

// Inclusion checks that the leaf whose hash is leafHash is number index (from 0) of the tree of treeSize leaves that has
// the given root (RFC 9162, section 2.1.3.2). All hashes are 32 bytes and proof has exactly the length that index and
// treeSize call for. The error wraps ErrInclusion.
func Inclusion(leafHash []byte, index, treeSize uint64, hashes [][]byte, root []byte) error {
	if treeSize > MaxTreeSize {
		return fmt.Errorf("%w: tree size %d is 2^53 or more", ErrInclusion, treeSize)
	}
	if err := checkHashes(hashes, leafHash, root); err != nil {
		return fmt.Errorf("%w: %w", ErrInclusion, err)
	}
	got, err := proof.RootFromInclusionProof(rfc6962.DefaultHasher, index, treeSize, leafHash, hashes)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInclusion, err)
	}
	if !bytes.Equal(got, root) {
		return fmt.Errorf("%w: leaf %d isn't in the tree of size %d: the path leads to another root", ErrInclusion, index, treeSize)
	}
	return nil
}

// Consistency checks that the first size1 leaves of the tree (size2, root2) are the tree (size1, root1)
// (RFC 9162, section 2.1.4.2). It is stricter than the library it calls, which lets size 0 with any root be consistent
// with everything and compares roots of any length. The error wraps ErrConsistency.
func Consistency(size1, size2 uint64, hashes [][]byte, root1, root2 []byte) error {
	if size1 > size2 || size2 > MaxTreeSize {
		return fmt.Errorf("%w: sizes %d and %d: want size1 <= size2 < 2^53", ErrConsistency, size1, size2)
	}
	if err := checkHashes(hashes, root1, root2); err != nil {
		return fmt.Errorf("%w: %w", ErrConsistency, err)
	}
	if size1 == 0 && !bytes.Equal(root1, EmptyRoot()) {
		return fmt.Errorf("%w: the root of size 0 isn't that of the empty tree", ErrConsistency)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, size1, size2, hashes, root1, root2); err != nil {
		var mismatch proof.RootMismatchError
		if errors.As(err, &mismatch) { // its text spreads over several lines
			return fmt.Errorf("%w: size %d isn't a prefix of size %d: the path leads to another root", ErrConsistency, size1, size2)
		}
		return fmt.Errorf("%w: %w", ErrConsistency, err)
	}
	return nil
}

// checkHashes wants 32 bytes of every hash. The hashing library doesn't look: with other lengths, different trees could
// have the same preimages.
func checkHashes(path [][]byte, others ...[]byte) error {
	if len(path) > MaxProofHashes {
		return fmt.Errorf("%d hashes, more than %d", len(path), MaxProofHashes)
	}
	for _, list := range [][][]byte{path, others} {
		for _, h := range list {
			if len(h) != HashSize {
				return fmt.Errorf("a hash of %d bytes, want %d", len(h), HashSize)
			}
		}
	}
	return nil
}
