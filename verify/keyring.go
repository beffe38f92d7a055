package verify

import (
	"crypto/ed25519"
	"fmt"
)

// Keyring is the keys of one log that a trusted key vouches for, each for the sizes at which it signed.
type Keyring struct {
	Origin string
	keys   []ringKey
}

// ringKey signs heads of sizes above after, up to upTo.
type ringKey struct {
	key         ed25519.PublicKey
	after, upTo uint64
	compromised bool
}

// NewKeyring trusts one key of a log, and the keys that it is connected with by transitions: notes of key changes, in
// order of time. Trust goes forward, to a newer key, only over a rotation. It goes backward over both, but a key that was
// given up as compromised can convict nobody. Errors wrap ErrKey, ErrOrigin or ErrKeyHistory.
func NewKeyring(vkey string, transitions ...[]byte) (*Keyring, error) {
	origin, key, err := ParseVKey(vkey)
	if err != nil {
		return nil, err
	}
	r := &Keyring{Origin: origin, keys: []ringKey{{key: key, upTo: MaxTreeSize}}}
	var chain []*Transition
	for _, note := range transitions {
		t, err := ParseTransition(note)
		if err != nil {
			return nil, err
		}
		if err := t.Verify(); err != nil {
			return nil, err
		}
		if t.Origin != origin {
			return nil, fmt.Errorf("%w: a transition of the log %q", ErrKeyHistory, t.Origin)
		}
		chain = append(chain, t)
	}
	for _, t := range chain {
		r.forward(t)
	}
	for i := len(chain) - 1; i >= 0; i-- {
		r.backward(chain[i])
	}
	return r, nil
}

// forward ends the key that t ends, and for a rotation adds the one that begins.
func (r *Keyring) forward(t *Transition) {
	old := r.find(t.OldKey)
	if old == nil {
		return
	}
	old.upTo = t.TreeSize
	old.compromised = t.Reason == ReasonCompromise
	if t.Reason == ReasonRotation && r.find(t.NewKey) == nil {
		r.keys = append(r.keys, ringKey{key: t.NewKey, after: t.TreeSize, upTo: MaxTreeSize})
	}
}

// backward adds the key before a trusted one.
func (r *Keyring) backward(t *Transition) {
	next := r.find(t.NewKey)
	if next == nil || r.find(t.OldKey) != nil {
		return
	}
	next.after = t.TreeSize
	r.keys = append(r.keys, ringKey{key: t.OldKey, upTo: t.TreeSize, compromised: t.Reason == ReasonCompromise})
}

func (r *Keyring) find(key ed25519.PublicKey) *ringKey {
	for i := range r.keys {
		if r.keys[i].key.Equal(key) {
			return &r.keys[i]
		}
	}
	return nil
}

// Head verifies a checkpoint under one of the keys and returns its tree head, and whether it is signed only by a key
// that was given up as compromised: such a head may be a thief's. Errors wrap ErrNoteFormat, ErrCheckpointFormat,
// ErrOrigin, ErrUntrustedKey, ErrHeadFormat or ErrSignature.
func (r *Keyring) Head(checkpoint []byte) (sth SignedTreeHead, compromised bool, err error) {
	c, err := ParseCheckpoint(checkpoint)
	if err != nil {
		return sth, false, err
	}
	if c.Origin != r.Origin {
		return sth, false, fmt.Errorf("%w: the checkpoint is of the log %q, expected %q", ErrOrigin, c.Origin, r.Origin)
	}
	err = fmt.Errorf("%w: no key that is trusted at size %d signed the checkpoint", ErrUntrustedKey, c.TreeSize)
	for _, k := range r.keys {
		inRange := c.TreeSize > k.after && c.TreeSize <= k.upTo || c.TreeSize == 0 && k.after == 0
		if !inRange || c.Note.signature(c.Origin, CheckpointKeyID(c.Origin, k.key)) == nil {
			continue
		}
		if sth, err = c.Verify(k.key); err == nil {
			return sth, k.compromised, nil
		}
	}
	return SignedTreeHead{}, false, err
}
