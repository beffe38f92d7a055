package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// keychain knows which key signs heads of which sizes: the first until the first transition, and so on. A transition is
// leaf n; a head of up to n leaves is under the key before it, one of more under the key after it.
type keychain struct {
	origin string
	keys   []ed25519.PublicKey // of attestation_keys, oldest first
	chain  []ed25519.PublicKey // those in effect one after the other, up to where the tree has been read
	ends   []uint64            // ends[i] is the size at which chain[i] ended
}

// newKeychain refuses keys that no honest signer has; those are faults of the log.
func newKeychain(origin string, stored []postgres.LogKey) (*keychain, []Fault) {
	k := &keychain{origin: origin}
	var faults []Fault
	for _, key := range stored {
		sum := sha256.Sum256(key.PublicKey)
		if err := verify.CheckPublicKey(key.PublicKey); err != nil {
			faults = append(faults, Fault{Kind: Key, Detail: fmt.Sprintf("key %x of the log: %s", key.PublicKey, err)})
			continue
		}
		if !bytes.Equal(sum[:], key.KeyID) {
			faults = append(faults, Fault{Kind: Key, Detail: fmt.Sprintf("key %x is stored under the ID %x", key.PublicKey, key.KeyID)})
			continue
		}
		k.keys = append(k.keys, key.PublicKey)
	}
	if len(k.keys) > 0 {
		k.chain = k.keys[:1]
	} else {
		faults = append(faults, Fault{Kind: Key, Detail: "the log has no usable key, so no signature can be checked"})
	}
	return k, faults
}

// current is the key in effect where the tree has been read to; nil if the log has none.
func (k *keychain) current() ed25519.PublicKey {
	if len(k.chain) == 0 {
		return nil
	}
	return k.chain[len(k.chain)-1]
}

// knows reports whether key is in attestation_keys.
func (k *keychain) knows(key ed25519.PublicKey) bool {
	for _, known := range k.keys {
		if known.Equal(key) {
			return true
		}
	}
	return false
}

// transition takes leaf n, a key transition, whose root of the leaves before it is root.
func (k *keychain) transition(leaf []byte, n uint64, root []byte) (*verify.Transition, error) {
	t, err := verify.ParseTransition(leaf)
	if err != nil {
		return nil, err
	}
	switch {
	case t.Origin != k.origin:
		return nil, fmt.Errorf("a key transition of the log %s", t.Origin)
	case t.TreeSize != n:
		return nil, fmt.Errorf("a key transition for size %d", t.TreeSize)
	case root != nil && !bytes.Equal(t.RootHash, root):
		return nil, errors.New("a key transition that names another root of the leaves before it")
	case !t.OldKey.Equal(k.current()):
		return nil, fmt.Errorf("a key transition from %x, which isn't the key in effect", []byte(t.OldKey))
	case !k.knows(t.NewKey):
		return nil, fmt.Errorf("a key transition to %x, which isn't in attestation_keys", []byte(t.NewKey))
	}
	if err := t.Verify(); err != nil {
		return nil, err
	}
	k.chain, k.ends = append(k.chain[:len(k.chain):len(k.chain)], t.NewKey), append(k.ends, n)
	return t, nil
}

// checkHead checks a published head whose leaves hash to root; nil if they are not known.
func (k *keychain) checkHead(h *postgres.PublishedHead, root []byte) []Fault {
	var faults []Fault
	fault := func(kind, detail string) {
		f := sizeFault(kind, h.TreeSize, detail)
		f.Timestamp = h.Timestamp
		faults = append(faults, f)
	}
	if root == nil {
		root = h.RootHash
	}
	if !bytes.Equal(root, h.RootHash) {
		fault(HeadRoot, fmt.Sprintf("it names the root %x, the leaves have %x", h.RootHash, root))
	}
	key := k.current()
	if key == nil {
		return faults
	}
	if id := sha256.Sum256(key); !bytes.Equal(id[:], h.KeyID) {
		fault(HeadKey, fmt.Sprintf("it is under key ID %x; at this size the log's was %x", h.KeyID, id))
	}
	// Checked against the leaves' root, so that a changed root and a changed signature are told apart.
	sth := verify.SignedTreeHead{TreeSize: h.TreeSize, Timestamp: h.Timestamp, RootHash: root, Signature: h.Signature}
	if err := verify.TreeHead(sth, key); err != nil {
		fault(Signature, err.Error())
	}
	if err := k.checkCheckpoint(h.Checkpoint, key, sth); err != nil {
		fault(Checkpoint, err.Error())
	}
	return faults
}

// checkCheckpoint wants the note to be of the same head, and every line under the log's name to be of a known key and to
// verify: after a rotation there are lines of several.
func (k *keychain) checkCheckpoint(note []byte, key ed25519.PublicKey, sth verify.SignedTreeHead) error {
	c, err := verify.ParseCheckpoint(note)
	if err != nil {
		return err
	}
	if c.Origin != k.origin || c.TreeSize != sth.TreeSize || !bytes.Equal(c.RootHash, sth.RootHash) {
		return fmt.Errorf("it is of %s, size %d, root %x", c.Origin, c.TreeSize, c.RootHash)
	}
	carried, err := c.Verify(key)
	if err != nil {
		return err
	}
	if carried.Timestamp != sth.Timestamp || !bytes.Equal(carried.Signature, sth.Signature) {
		return errors.New("it carries another signed tree head")
	}
	for _, line := range c.Note.Signatures {
		if line.Name == k.origin && !k.verifies(line, c, sth) {
			return fmt.Errorf("the line under the log's name with key ID %08x doesn't verify with any of the log's keys", line.KeyID)
		}
	}
	return nil
}

// verifies reports whether a line is of a key of the log and signs this head.
func (k *keychain) verifies(line verify.NoteSignature, c *verify.Checkpoint, sth verify.SignedTreeHead) bool {
	for _, key := range k.keys {
		switch line.KeyID {
		case verify.CheckpointKeyID(k.origin, key):
			return ed25519.Verify(key, []byte(c.Note.Text), line.Signature)
		case verify.STHKeyID(k.origin, key):
			return len(line.Signature) == 8+ed25519.SignatureSize &&
				ed25519.Verify(key, verify.STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash), line.Signature[8:])
		}
	}
	return false
}
