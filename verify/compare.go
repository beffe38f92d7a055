package verify

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Verdict is what two signed tree heads of one log say about the log.
type Verdict string

const (
	// Consistent: the smaller tree is a prefix of the larger, and time went forward.
	Consistent Verdict = "consistent"
	// Stale: the second head is older than the first. A cache or a lagging replica does that; it is no evidence.
	Stale Verdict = "stale"
	// Split: one size, two roots. No log that only appends can sign both.
	Split Verdict = "split"
	// Fork: the smaller tree isn't a prefix of the larger.
	Fork Verdict = "fork"
	// Rollback: the smaller tree is the later one (or of the same time): the log took leaves back.
	Rollback Verdict = "rollback"
)

// Misconduct reports whether the verdict, of two heads with valid signatures, convicts the log.
func (v Verdict) Misconduct() bool { return v == Split || v == Fork || v == Rollback }

// CompareHeads compares a head with the one that was seen before it. Both must come from TreeHead or Checkpoint.Verify:
// it doesn't look at signatures. hashes is SUBPROOF(m, D[n], false) of RFC 6962, section 2.1.2, with m the smaller size
// and n the larger: the consistency proof, preceded by the root of the first m leaves if m is a power of two (which the
// proof leaves out, but which shows a fork). It isn't needed where sizes or times say enough; if it is nil and the later
// head is smaller and earlier, the verdict is Stale.
//
// The error wraps ErrConsistency if hashes is needed and proves nothing, neither that the trees are consistent nor that
// they aren't: then it is just a bad answer.
func CompareHeads(seen, now SignedTreeHead, hashes [][]byte) (Verdict, error) {
	small, large := seen, now
	if small.TreeSize > large.TreeSize {
		small, large = large, small
	}
	older := now.Timestamp < seen.Timestamp
	switch {
	case seen.TreeSize == now.TreeSize && !bytes.Equal(seen.RootHash, now.RootHash):
		return Split, nil
	case seen.TreeSize == now.TreeSize:
		return staleIf(older), nil
	case large.Timestamp <= small.Timestamp:
		return Rollback, nil
	case older && hashes == nil:
		return Stale, nil
	}
	root, err := prefixRoot(small, large, hashes)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(root, small.RootHash) {
		return Fork, nil
	}
	return staleIf(older), nil
}

func staleIf(older bool) Verdict {
	if older {
		return Stale
	}
	return Consistent
}

// prefixRoot returns the root of the first small.TreeSize leaves of the large tree, as proved by hashes: they lead to
// the large root, which is signed, so each of them is a node of that tree.
func prefixRoot(small, large SignedTreeHead, hashes [][]byte) ([]byte, error) {
	m := small.TreeSize
	root := EmptyRoot()
	switch {
	case m == 0:
	case m&(m-1) == 0:
		if len(hashes) == 0 {
			return nil, fmt.Errorf("%w: no hashes", ErrConsistency)
		}
		root, hashes = hashes[0], hashes[1:]
	default:
		root = small.RootHash
		if err := checkHashes(hashes, root, large.RootHash); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConsistency, err)
		}
		// The library checks the small root first and says which one it found instead.
		var mismatch proof.RootMismatchError
		err := proof.VerifyConsistency(rfc6962.DefaultHasher, m, large.TreeSize, hashes, root, large.RootHash)
		if errors.As(err, &mismatch) && bytes.Equal(mismatch.ExpectedRoot, root) {
			root = mismatch.CalculatedRoot
		}
	}
	return root, Consistency(m, large.TreeSize, hashes, root, large.RootHash)
}
