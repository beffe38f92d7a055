package verify

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"reflect"
)

const (
	// Format is the value of a proof package's member "format".
	Format = "kapsel.proof/v1"
	// MediaType is the media type of proof packages.
	MediaType = "application/vnd.kapsel.proof+json"
	// MaxPackageSize is the largest proof package in bytes.
	MaxPackageSize = 1 << 20
	// MaxKeyHistory is how often a log can change its key; with maxAnchors it bounds the work that a package can ask for.
	MaxKeyHistory = 64
	maxAnchors    = 64
)

// ProofPackage is one self-contained file that proves one leaf. Its JSON is the format: what writes packages marshals
// this struct, and [Package] reads nothing that doesn't fit it. Members without omitempty are required.
type ProofPackage struct {
	Format         string              `json:"format"` // Format
	Origin         string              `json:"origin"` // the log's name
	VKey           string              `json:"vkey"`   // of the key that signed the head; to the verifier only a hint
	LogKeyID       Hex                 `json:"log_key_id"`
	Leaf           Base64              `json:"leaf"`            // the exact bytes
	Salts          *Salts              `json:"salts,omitempty"` // absent after erasure
	LeafIndex      uint64              `json:"leaf_index"`
	InclusionProof Hashes              `json:"inclusion_proof"` // for the size of STH
	STH            PackageHead         `json:"sth"`
	Checkpoint     string              `json:"checkpoint"` // the note of the same head, verbatim
	KeyHistory     []PackageTransition `json:"key_history,omitempty"`
	Anchors        []PackageAnchor     `json:"anchors,omitempty"`
}

// Salts open the leaf's commitments, 32 bytes each. All of them are erased together, with the payload: a package has all
// or none. No proof covers them; a salt is found right or wrong only by comparing the content that it opens.
type Salts struct {
	Payload  Hex `json:"payload"`
	Response Hex `json:"response"`
	URL      Hex `json:"url"`
	Headers  Hex `json:"headers"`
}

// PackageHead is a SignedTreeHead in JSON.
type PackageHead struct {
	TreeSize  uint64 `json:"tree_size"`
	Timestamp int64  `json:"timestamp"` // Unix ms
	RootHash  Hex    `json:"root_hash"`
	Signature Hex    `json:"signature"`
}

// PackageTransition is one change of the log's key. The list is in order of time and without gaps.
type PackageTransition struct {
	Transition string `json:"transition"` // the note, verbatim
	// ConsistencyProof connects the package's head with the tree before the transition, the smaller with the larger.
	ConsistencyProof Hashes `json:"consistency_proof"`
}

// PackageAnchor is one anchor: outside evidence of when a checkpoint, of this head or of a later one, existed.
type PackageAnchor struct {
	Type             string `json:"type"`
	Checkpoint       string `json:"checkpoint"`        // the anchored checkpoint, verbatim
	ConsistencyProof Hashes `json:"consistency_proof"` // from the package's head to the anchored one
	Proof            string `json:"proof"`             // what Type says
}

// LogKeyID returns the full name of a key in proof packages: its SHA-256.
func LogKeyID(key ed25519.PublicKey) []byte {
	sum := sha256.Sum256(key)
	return sum[:]
}

// NewPackageHead writes a head for a package.
func NewPackageHead(sth SignedTreeHead) PackageHead {
	return PackageHead{TreeSize: sth.TreeSize, Timestamp: sth.Timestamp, RootHash: sth.RootHash, Signature: sth.Signature}
}

// SignedTreeHead is the inverse of NewPackageHead.
func (h PackageHead) SignedTreeHead() SignedTreeHead {
	return SignedTreeHead{TreeSize: h.TreeSize, Timestamp: h.Timestamp, RootHash: h.RootHash, Signature: h.Signature}
}

// ParsePackage reads the JSON of a proof package and checks its shape, lengths and that its hints agree with each other;
// it verifies nothing. Refused: unknown, repeated and missing members, members in another case (encoding/json would take
// "ſth" for "sth"), null, trailing data, invalid UTF-8, more than MaxPackageSize bytes. The error wraps
// ErrPackageFormat.
func ParsePackage(b []byte) (*ProofPackage, error) {
	if len(b) > MaxPackageSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrPackageFormat, len(b), MaxPackageSize)
	}
	var p ProofPackage
	if err := checkJSON(b, reflect.TypeFor[ProofPackage]()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPackageFormat, err)
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPackageFormat, err)
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPackageFormat, err)
	}
	return &p, nil
}

func (p *ProofPackage) check() error {
	if p.Format != Format {
		return fmt.Errorf("format %.80q, want %q", p.Format, Format)
	}
	origin, key, err := ParseVKey(p.VKey)
	if err != nil {
		return fmt.Errorf("vkey: %w", err)
	}
	if origin != p.Origin {
		return fmt.Errorf("the vkey names the log %q, the package %.80q", origin, p.Origin)
	}
	if string(p.LogKeyID) != string(LogKeyID(key)) {
		return fmt.Errorf("log_key_id isn't the SHA-256 of the vkey's key")
	}
	if len(p.Leaf) > MaxLeafSize {
		return fmt.Errorf("leaf of %d bytes, more than %d", len(p.Leaf), MaxLeafSize)
	}
	if len(p.KeyHistory) > MaxKeyHistory || len(p.Anchors) > maxAnchors {
		return fmt.Errorf("%d key transitions and %d anchors, more than %d or %d",
			len(p.KeyHistory), len(p.Anchors), MaxKeyHistory, maxAnchors)
	}
	return p.Salts.check()
}

// check wants every salt, and whole: with shorter ones, the boundary between salt and content could be moved.
func (s *Salts) check() error {
	if s == nil {
		return nil
	}
	for _, salt := range []Hex{s.Payload, s.Response, s.URL, s.Headers} {
		if len(salt) != SaltSize {
			return fmt.Errorf("a salt of %d bytes, want %d", len(salt), SaltSize)
		}
	}
	return nil
}
