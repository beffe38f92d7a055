package verify

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Checkpoint is a tree head in the form that witnesses, monitors and tile clients understand (c2sp.org/tlog-checkpoint).
// Its note has two lines of the log's key: the C2SP Ed25519 signature of the text, and the signed tree head's timestamp
// and signature (see STHKeyID), which other software ignores.
type Checkpoint struct {
	Origin   string
	TreeSize uint64
	RootHash []byte // 32 bytes
	Note     *Note
}

// CheckpointText returns the three lines that a checkpoint's Ed25519 line signs: origin, size in decimal, root in base64.
func CheckpointText(origin string, treeSize uint64, rootHash []byte) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, treeSize, base64.StdEncoding.EncodeToString(rootHash))
}

// FormatCheckpoint writes the checkpoint of a signed tree head; textSignature is the key's Ed25519 signature of
// CheckpointText.
func FormatCheckpoint(origin string, key ed25519.PublicKey, sth SignedTreeHead, textSignature []byte) []byte {
	stamped := binary.BigEndian.AppendUint64(nil, uint64(sth.Timestamp))
	stamped = append(stamped, sth.Signature...)
	n := Note{Text: CheckpointText(origin, sth.TreeSize, sth.RootHash), Signatures: []NoteSignature{
		{Name: origin, KeyID: CheckpointKeyID(origin, key), Signature: textSignature},
		{Name: origin, KeyID: STHKeyID(origin, key), Signature: stamped},
	}}
	return n.Bytes()
}

// ParseCheckpoint reads a checkpoint note without verifying it. Extension lines are refused: Kapsel writes none, and
// this package couldn't say what they mean. Errors wrap ErrNoteFormat or ErrCheckpointFormat.
func ParseCheckpoint(b []byte) (*Checkpoint, error) {
	n, err := ParseNote(b)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 { // three lines, and nothing after the last newline
		return nil, fmt.Errorf("%w: %d lines of text, want 3", ErrCheckpointFormat, len(lines)-1)
	}
	size, err := parseSize(lines[1])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCheckpointFormat, err)
	}
	root, err := decodeBase64(lines[2])
	if err != nil || len(root) != HashSize {
		return nil, fmt.Errorf("%w: root hash %.80q", ErrCheckpointFormat, lines[2])
	}
	if err := CheckOrigin(lines[0]); err != nil {
		return nil, fmt.Errorf("%w: its origin isn't a log's name", ErrCheckpointFormat)
	}
	return &Checkpoint{Origin: lines[0], TreeSize: size, RootHash: root, Note: n}, nil
}

// Verify checks both lines of the log's key and returns the tree head that the second one carries. The origin is the
// checkpoint's own: compare it with the expected one. Errors wrap ErrKey, ErrHeadFormat or ErrSignature.
func (c *Checkpoint) Verify(key ed25519.PublicKey) (SignedTreeHead, error) {
	if err := CheckPublicKey(key); err != nil {
		return SignedTreeHead{}, err
	}
	sth, err := c.head(key)
	if err != nil {
		return SignedTreeHead{}, err
	}
	if err := TreeHead(sth, key); err != nil {
		return SignedTreeHead{}, fmt.Errorf("checkpoint: %w", err)
	}
	return sth, nil
}

// head checks the Ed25519 line of a key that CheckPublicKey lets through, and returns the tree head of the other line
// without having verified its signature.
func (c *Checkpoint) head(key ed25519.PublicKey) (SignedTreeHead, error) {
	if err := c.Note.verifyEd25519(c.Origin, key); err != nil {
		return SignedTreeHead{}, fmt.Errorf("checkpoint: %w", err)
	}
	stamped := c.Note.signature(c.Origin, STHKeyID(c.Origin, key))
	if len(stamped) != 8+ed25519.SignatureSize {
		return SignedTreeHead{}, fmt.Errorf("checkpoint: %w: no line carries the signed tree head", ErrSignature)
	}
	return SignedTreeHead{
		TreeSize:  c.TreeSize,
		Timestamp: int64(binary.BigEndian.Uint64(stamped)),
		RootHash:  c.RootHash,
		Signature: stamped[8:],
	}, nil
}

// parseSize reads a tree size: decimal, below 2^53, without sign or leading zero.
func parseSize(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > MaxTreeSize || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.80q is not a tree size", s)
	}
	return n, nil
}
