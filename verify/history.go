package verify

import (
	"crypto/ed25519"
	"fmt"
)

// checkHistory decides whether the package's head may be signed by headKey, given that trusted is trusted.
//
// Backward (the head is older than the trusted key): each transition on the way is signed by its new key, and the head
// is a prefix of the tree before the transition. So the leaf is in a tree that the trusted key vouches for, whoever
// holds the old key today. Forward (the head is newer): every transition is a rotation, signed by its old key too,
// and the head contains the tree before the transition.
//
// Transitions after the head's key bound it in any case, also where that key is the trusted one: a head that is larger
// than the tree at which its key was given up, or no prefix of it, is a thief's.
//
// It returns warnings for the reader. Errors wrap ErrUntrustedKey or ErrKeyHistory.
func (p *ProofPackage) checkHistory(headKey, trusted ed25519.PublicKey) ([]string, error) {
	if len(p.KeyHistory) == 0 {
		if headKey.Equal(trusted) {
			return nil, nil
		}
		return nil, untrusted(headKey)
	}
	chain, err := p.parseHistory()
	if err != nil {
		return nil, err
	}
	head, trust := positions(chain, headKey, trusted)
	switch {
	case head < 0 && headKey.Equal(trusted):
		return nil, fmt.Errorf("%w: the key that signed the tree head isn't in it", ErrKeyHistory)
	case head < 0 || trust < 0:
		return nil, untrusted(headKey)
	}
	var warnings []string
	for i, t := range chain {
		if i < min(head, trust) {
			continue // before both keys: says nothing about either
		}
		if err := t.Verify(); err != nil {
			return nil, err
		}
		if err := p.checkTransition(t, p.KeyHistory[i].ConsistencyProof, i < head); err != nil {
			return nil, err
		}
		if t.Reason == ReasonCompromise {
			warnings = append(warnings, fmt.Sprintf(
				"the tree head is signed under a key that was given up as compromised at size %d: its time proves nothing", t.TreeSize))
		}
	}
	return warnings, nil
}

func untrusted(headKey ed25519.PublicKey) error {
	return fmt.Errorf("%w: the tree head is under key %x, which the trusted key doesn't vouch for", ErrUntrustedKey, headKey)
}

// positions finds the two keys among those of the chain, counted from the oldest; -1 where a key isn't among them.
func positions(chain []*Transition, headKey, trusted ed25519.PublicKey) (head, trust int) {
	head, trust = -1, -1
	for i, key := range chainKeys(chain) {
		if key.Equal(headKey) {
			head = i
		}
		if key.Equal(trusted) {
			trust = i
		}
	}
	return head, trust
}

// parseHistory wants every transition to be of this log, to start where the one before ended, and no key to come
// twice: otherwise "older" and "newer" would mean nothing.
func (p *ProofPackage) parseHistory() ([]*Transition, error) {
	chain := make([]*Transition, len(p.KeyHistory))
	for i, h := range p.KeyHistory {
		t, err := ParseTransition([]byte(h.Transition))
		if err != nil {
			return nil, err
		}
		if t.Origin != p.Origin {
			return nil, fmt.Errorf("%w: a transition of the log %q", ErrKeyHistory, t.Origin)
		}
		if i > 0 && (!t.OldKey.Equal(chain[i-1].NewKey) || t.TreeSize <= chain[i-1].TreeSize) {
			return nil, fmt.Errorf("%w: transition %d doesn't follow the one before", ErrKeyHistory, i+1)
		}
		chain[i] = t
	}
	seen := map[string]bool{}
	for _, key := range chainKeys(chain) {
		if seen[string(key)] {
			return nil, fmt.Errorf("%w: a key comes twice", ErrKeyHistory)
		}
		seen[string(key)] = true
	}
	return chain, nil
}

// chainKeys lists the keys from oldest to newest, one more than there are transitions.
func chainKeys(chain []*Transition) []ed25519.PublicKey {
	keys := []ed25519.PublicKey{chain[0].OldKey}
	for _, t := range chain {
		keys = append(keys, t.NewKey)
	}
	return keys
}

// checkTransition places the head before or after the transition. The transition itself is leaf number TreeSize, so
// the last head of the old key has at most that size, and the first of the new key is larger.
func (p *ProofPackage) checkTransition(t *Transition, path Hashes, forward bool) error {
	var err error
	switch {
	case forward && t.Reason != ReasonRotation:
		return fmt.Errorf("%w: trust doesn't go forward over a compromise", ErrUntrustedKey)
	case forward && p.STH.TreeSize <= t.TreeSize:
		return fmt.Errorf("%w: a head of size %d under a key that came at size %d", ErrKeyHistory, p.STH.TreeSize, t.TreeSize)
	case !forward && p.STH.TreeSize > t.TreeSize:
		return fmt.Errorf("%w: a head of size %d under a key that ended at size %d", ErrKeyHistory, p.STH.TreeSize, t.TreeSize)
	case forward:
		err = Consistency(t.TreeSize, p.STH.TreeSize, path, t.RootHash, p.STH.RootHash)
	default:
		err = Consistency(p.STH.TreeSize, t.TreeSize, path, p.STH.RootHash, t.RootHash)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKeyHistory, err)
	}
	return nil
}
