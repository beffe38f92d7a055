package verify

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// MaxNoteSize is the largest signed note in bytes.
	MaxNoteSize = 256 << 10
	// maxNoteSignatures keeps a hostile note from costing much; log, witnesses and rotations need a handful.
	maxNoteSignatures = 100

	signatureLinePrefix = "— "
)

// Note is a C2SP signed note (c2sp.org/signed-note): a text and the signatures under it, not yet verified.
type Note struct {
	Text       string // ends with a newline; what Ed25519 lines sign
	Signatures []NoteSignature
}

// NoteSignature is one signature line.
type NoteSignature struct {
	Name      string // the signer, for a log its origin
	KeyID     uint32
	Signature []byte // what follows the key ID; for type Ed25519 64 bytes
}

// ParseNote reads a signed note. It is stricter than golang.org/x/mod/sumdb/note: base64 must be canonical, and no
// name and key ID may sign twice, so that no byte of a signature line can change unnoticed. The error wraps
// ErrNoteFormat.
func ParseNote(b []byte) (*Note, error) {
	if len(b) > MaxNoteSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrNoteFormat, len(b), MaxNoteSize)
	}
	s := string(b)
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' }) {
		return nil, fmt.Errorf("%w: not UTF-8 without control characters", ErrNoteFormat)
	}
	split := strings.LastIndex(s, "\n\n")
	if split < 0 || !strings.HasSuffix(s, "\n") || split+2 == len(s) {
		return nil, fmt.Errorf("%w: no signature lines after a blank line", ErrNoteFormat)
	}
	lines := strings.Split(strings.TrimSuffix(s[split+2:], "\n"), "\n")
	if len(lines) > maxNoteSignatures {
		return nil, fmt.Errorf("%w: %d signature lines, more than %d", ErrNoteFormat, len(lines), maxNoteSignatures)
	}
	n := &Note{Text: s[:split+1]}
	for _, line := range lines {
		sig, err := parseSignatureLine(line)
		if err != nil {
			return nil, err
		}
		if n.signature(sig.Name, sig.KeyID) != nil {
			return nil, fmt.Errorf("%w: %q signed twice with key %08x", ErrNoteFormat, sig.Name, sig.KeyID)
		}
		n.Signatures = append(n.Signatures, sig)
	}
	return n, nil
}

func parseSignatureLine(line string) (NoteSignature, error) {
	rest, ok := strings.CutPrefix(line, signatureLinePrefix)
	name, b64, _ := strings.Cut(rest, " ")
	raw, err := decodeBase64(b64)
	if !ok || err != nil || CheckOrigin(name) != nil || len(raw) < 5 {
		return NoteSignature{}, fmt.Errorf("%w: signature line %.80q", ErrNoteFormat, line)
	}
	return NoteSignature{Name: name, KeyID: binary.BigEndian.Uint32(raw), Signature: raw[4:]}, nil
}

// Bytes writes the note as ParseNote reads it.
func (n *Note) Bytes() []byte {
	var b strings.Builder
	b.WriteString(n.Text)
	b.WriteByte('\n')
	for _, s := range n.Signatures {
		raw := binary.BigEndian.AppendUint32(nil, s.KeyID)
		raw = append(raw, s.Signature...)
		b.WriteString(signatureLinePrefix + s.Name + " " + base64.StdEncoding.EncodeToString(raw) + "\n")
	}
	return []byte(b.String())
}

// signature returns what name's key of that ID signed, or nil.
func (n *Note) signature(name string, keyID uint32) []byte {
	for _, s := range n.Signatures {
		if s.Name == name && s.KeyID == keyID {
			return s.Signature
		}
	}
	return nil
}

// verifyEd25519 checks the C2SP Ed25519 line of origin's key. The error wraps ErrSignature.
func (n *Note) verifyEd25519(origin string, key ed25519.PublicKey) error {
	sig := n.signature(origin, CheckpointKeyID(origin, key))
	if sig == nil {
		return fmt.Errorf("%w: the note has no line of the key", ErrSignature)
	}
	if len(sig) != ed25519.SignatureSize || !ed25519.Verify(key, []byte(n.Text), sig) {
		return fmt.Errorf("%w: the note isn't signed by the key", ErrSignature)
	}
	return nil
}
