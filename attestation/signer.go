package attestation

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/kapsel-io/kapsel/verify"
)

var (
	// ErrHead is returned for a head that must never be signed: a size or time that isn't in 0 … 2^53-1, or a root that
	// isn't 32 bytes long.
	ErrHead = errors.New("head is out of range")
	// ErrTransition is returned for a key transition that isn't this signer's to sign, or isn't complete.
	ErrTransition = errors.New("unusable key transition")
	// ErrSigner is returned where whatever holds the key didn't sign.
	ErrSigner = errors.New("the log's key can't be used")
)

// Signer holds the Ed25519 key of one log and signs three things with it: tree heads, checkpoints of its own log, and
// transitions from or to its key. There is no way to have it sign anything else.
//
// One key for all three is safe because no message of one kind is a message of another: a tree head below size 2^56
// starts with a zero byte, which no note holds, a checkpoint's text has three lines and starts with the origin, a
// transition's has seven and starts with its own name.
//
// Equal input gives equal bytes (RFC 8032), so repeating a call after a crash does no harm.
type Signer struct {
	origin string
	public ed25519.PublicKey
	sign   func(message []byte) ([]byte, error) // a closure, so that no formatting of the struct prints the key
}

// NewSigner makes the signer of the log named origin from a seed of 32 bytes. Errors wrap ErrSeed, verify.ErrKey or
// verify.ErrOrigin.
func NewSigner(seed []byte, origin string) (*Signer, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("make signer: %d bytes, want %d: %w", len(seed), ed25519.SeedSize, ErrSeed)
	}
	if err := verify.CheckOrigin(origin); err != nil {
		return nil, fmt.Errorf("make signer: %w", err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	if err := verify.CheckPublicKey(public); err != nil {
		return nil, fmt.Errorf("make signer: %w", err)
	}
	sign := func(message []byte) ([]byte, error) { return ed25519.Sign(private, message), nil }
	return &Signer{origin: origin, public: public, sign: sign}, nil
}

// NewRemoteSigner makes the signer of the log named origin whose key is kept elsewhere, in a KMS or an HSM: sign returns that
// key's Ed25519 signature (64 bytes; pure, not Ed25519ph) of a message. It may fail, take long, or answer wrongly: what it
// returns is verified before anybody gets it. Errors wrap verify.ErrKey or verify.ErrOrigin.
func NewRemoteSigner(public ed25519.PublicKey, origin string, sign func(message []byte) ([]byte, error)) (*Signer, error) {
	if err := errors.Join(verify.CheckOrigin(origin), verify.CheckPublicKey(public)); err != nil {
		return nil, fmt.Errorf("make signer: %w", err)
	}
	return &Signer{origin: origin, public: bytes.Clone(public), sign: sign}, nil
}

// signed signs a message, and verifies the signature: one that was computed wrongly is useless to everybody who wants to verify
// it, and can give the key away to others.
func (s *Signer) signed(message []byte) ([]byte, error) {
	signature, err := s.sign(message)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSigner, err)
	}
	if len(signature) != ed25519.SignatureSize || !ed25519.Verify(s.public, message, signature) {
		return nil, fmt.Errorf("%w: it answered with something that isn't the key's signature", ErrSigner)
	}
	return signature, nil
}

// Origin is the name of the log.
func (s *Signer) Origin() string { return s.origin }

// PublicKey is the key that verifies what the signer signs.
func (s *Signer) PublicKey() ed25519.PublicKey { return bytes.Clone(s.public) }

// VKey is the text form of name and key that verifiers are given (c2sp.org/signed-note).
func (s *Signer) VKey() string { return verify.VKey(s.origin, s.public) }

// SignTreeHead signs a head. The caller has recorded it in the high-water record before. The error wraps ErrHead or ErrSigner.
func (s *Signer) SignTreeHead(head Head) (verify.SignedTreeHead, error) {
	if err := head.check(); err != nil {
		return verify.SignedTreeHead{}, fmt.Errorf("sign tree head: %w", err)
	}
	signature, err := s.signed(verify.STHMessage(head.TreeSize, head.Timestamp, head.RootHash))
	if err != nil {
		return verify.SignedTreeHead{}, fmt.Errorf("sign tree head: %w", err)
	}
	return verify.SignedTreeHead{
		TreeSize:  head.TreeSize,
		Timestamp: head.Timestamp,
		RootHash:  bytes.Clone(head.RootHash),
		Signature: signature,
	}, nil
}

// SignTransition returns the signer's line under a key transition. Its key must be the transition's new key, or the old
// one if the reason is a rotation: after a compromise the old key says nothing any more. The error wraps ErrTransition.
func (s *Signer) SignTransition(t verify.Transition) (verify.NoteSignature, error) {
	signs := s.public.Equal(t.NewKey) || (s.public.Equal(t.OldKey) && t.Reason == verify.ReasonRotation)
	if !signs || t.Origin != s.origin {
		return verify.NoteSignature{}, fmt.Errorf("sign %s of %s: not for this key: %w", t.Reason, t.Origin, ErrTransition)
	}
	if err := checkTransition(t); err != nil {
		return verify.NoteSignature{}, fmt.Errorf("sign %s of %s: %w", t.Reason, t.Origin, err)
	}
	signature, err := s.signed([]byte(t.Text()))
	if err != nil {
		return verify.NoteSignature{}, fmt.Errorf("sign %s of %s: %w", t.Reason, t.Origin, err)
	}
	return verify.NoteSignature{
		Name:      s.origin,
		KeyID:     verify.CheckpointKeyID(s.origin, s.public),
		Signature: signature,
	}, nil
}

// checkTransition wants what verify.ParseTransition can't see to be missing before there is a note.
func checkTransition(t verify.Transition) error {
	switch {
	case t.TreeSize > verify.MaxTreeSize || len(t.RootHash) != hashSize:
		return fmt.Errorf("size %d, root hash of %d bytes: %w", t.TreeSize, len(t.RootHash), ErrTransition)
	case t.Reason != verify.ReasonRotation && t.Reason != verify.ReasonCompromise:
		return fmt.Errorf("reason %q: %w", t.Reason, ErrTransition)
	case t.OldKey.Equal(t.NewKey):
		return fmt.Errorf("the new key is the old one: %w", ErrTransition)
	}
	if err := errors.Join(verify.CheckPublicKey(t.OldKey), verify.CheckPublicKey(t.NewKey)); err != nil {
		return fmt.Errorf("%w: %w", ErrTransition, err)
	}
	return nil
}

// TransitionNote joins a transition and the lines of its signers into the note whose exact bytes are leaf t.TreeSize.
// The error wraps ErrTransition if a line that the reason demands is missing or wrong.
func TransitionNote(t verify.Transition, lines ...verify.NoteSignature) ([]byte, error) {
	note := verify.Note{Text: t.Text(), Signatures: lines}
	parsed, err := verify.ParseTransition(note.Bytes())
	if err == nil {
		err = parsed.Verify()
	}
	if err != nil {
		return nil, fmt.Errorf("write key transition of %s: %w: %w", t.Origin, ErrTransition, err)
	}
	return note.Bytes(), nil
}
