package verify

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

const transitionHeader = "kapsel.io/key-transition/v1"

// Reasons of a key transition.
const (
	// ReasonRotation: the old key is sound and signs too, so who trusts the old key may trust the new one.
	ReasonRotation = "rotation"
	// ReasonCompromise: the old key may be in other hands. Only the new key signs, and nobody comes to trust it because
	// of this statement.
	ReasonCompromise = "compromise"
)

// Transition is the statement that a log's key changed after its first TreeSize leaves. Its note's exact bytes are the
// leaf with index TreeSize.
type Transition struct {
	Origin   string
	TreeSize uint64
	RootHash []byte // of the first TreeSize leaves, 32 bytes
	OldKey   ed25519.PublicKey
	NewKey   ed25519.PublicKey
	Reason   string
	Note     *Note // nil unless parsed
}

// Text returns the seven lines that the keys sign.
func (t *Transition) Text() string {
	return strings.Join([]string{
		transitionHeader,
		t.Origin,
		strconv.FormatUint(t.TreeSize, 10),
		base64.StdEncoding.EncodeToString(t.RootHash),
		VKey(t.Origin, t.OldKey),
		VKey(t.Origin, t.NewKey),
		t.Reason,
		"",
	}, "\n")
}

// ParseTransition reads a transition note without verifying its signatures. The error wraps ErrKeyHistory.
func ParseTransition(b []byte) (*Transition, error) {
	n, err := ParseNote(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyHistory, err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 8 || lines[0] != transitionHeader {
		return nil, fmt.Errorf("%w: not a key transition of seven lines", ErrKeyHistory)
	}
	t := &Transition{Origin: lines[1], Reason: lines[6], Note: n}
	if t.TreeSize, err = parseSize(lines[2]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyHistory, err)
	}
	if t.RootHash, err = decodeBase64(lines[3]); err != nil || len(t.RootHash) != HashSize {
		return nil, fmt.Errorf("%w: root hash %.80q", ErrKeyHistory, lines[3])
	}
	if t.OldKey, err = t.parseKey(lines[4]); err != nil {
		return nil, err
	}
	if t.NewKey, err = t.parseKey(lines[5]); err != nil {
		return nil, err
	}
	if t.Reason != ReasonRotation && t.Reason != ReasonCompromise {
		return nil, fmt.Errorf("%w: reason %.80q", ErrKeyHistory, t.Reason)
	}
	return t, nil
}

func (t *Transition) parseKey(vkey string) (ed25519.PublicKey, error) {
	origin, key, err := ParseVKey(vkey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyHistory, err)
	}
	if origin != t.Origin {
		return nil, fmt.Errorf("%w: a key of %q in a transition of %q", ErrKeyHistory, origin, t.Origin)
	}
	return key, nil
}

// Verify checks the signatures that the reason demands: the new key's, and for a rotation the old key's. It says
// nothing about whether either key is trusted. The error wraps ErrKeyHistory.
func (t *Transition) Verify() error {
	if err := t.Note.verifyEd25519(t.Origin, t.NewKey); err != nil {
		return fmt.Errorf("%w: new key: %w", ErrKeyHistory, err)
	}
	if t.Reason == ReasonCompromise {
		return nil
	}
	if err := t.Note.verifyEd25519(t.Origin, t.OldKey); err != nil {
		return fmt.Errorf("%w: old key: %w", ErrKeyHistory, err)
	}
	return nil
}
