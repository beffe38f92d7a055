package attestation_test

import (
	"crypto/sha256"
	"math/bits"
)

// The definitions of RFC 6962, section 2.1, written down as they stand there: a third opinion beside the two libraries
// that the package uses. d is the list of leaf hashes.

func naiveNode(left, right []byte) []byte {
	h := sha256.New()
	h.Write([]byte{1})
	h.Write(left)
	h.Write(right)
	return h.Sum(nil)
}

func naiveLeaf(leaf []byte) []byte {
	h := sha256.Sum256(append([]byte{0}, leaf...))
	return h[:]
}

// naiveSplit is the largest power of two smaller than n.
func naiveSplit(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) }

// naiveRoot is MTH(D[n]).
func naiveRoot(d [][]byte) []byte {
	switch len(d) {
	case 0:
		h := sha256.Sum256(nil)
		return h[:]
	case 1:
		return d[0]
	}
	k := naiveSplit(len(d))
	return naiveNode(naiveRoot(d[:k]), naiveRoot(d[k:]))
}

// naivePath is PATH(m, D[n]), section 2.1.1.
func naivePath(m int, d [][]byte) [][]byte {
	if len(d) == 1 {
		return nil
	}
	k := naiveSplit(len(d))
	if m < k {
		return append(naivePath(m, d[:k]), naiveRoot(d[k:]))
	}
	return append(naivePath(m-k, d[k:]), naiveRoot(d[:k]))
}

// naiveProof is PROOF(m, D[n]) = SUBPROOF(m, D[n], true), section 2.1.2.
func naiveProof(m int, d [][]byte) [][]byte { return naiveSubproof(m, d, true) }

func naiveSubproof(m int, d [][]byte, complete bool) [][]byte {
	if m == len(d) {
		if complete {
			return nil
		}
		return [][]byte{naiveRoot(d)}
	}
	k := naiveSplit(len(d))
	if m <= k {
		return append(naiveSubproof(m, d[:k], complete), naiveRoot(d[k:]))
	}
	return append(naiveSubproof(m-k, d[k:], false), naiveRoot(d[:k]))
}
