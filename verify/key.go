package verify

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"filippo.io/edwards25519"
)

// Signature types of note lines. The first is C2SP signed-note's Ed25519, the last its escape for types that are named
// by a string instead of a number.
const (
	sigTypeEd25519     = 0x01
	sigTypeCosignature = 0x04
	sigTypeNamed       = 0xFF
)

// maxOrigin is the longest origin in bytes.
const maxOrigin = 255

// CheckPublicKey refuses keys that no honest signer has: of another length than 32 bytes, not a point of the curve, not
// the canonical encoding of its point (so that one key has one key ID), or of low order (under such a key one signature
// verifies for many messages). The error wraps ErrKey.
func CheckPublicKey(key []byte) error {
	if len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: %d bytes, want %d", ErrKey, len(key), ed25519.PublicKeySize)
	}
	point, err := new(edwards25519.Point).SetBytes(key)
	if err != nil {
		return fmt.Errorf("%w: not a point of edwards25519", ErrKey)
	}
	if !bytes.Equal(point.Bytes(), key) {
		return fmt.Errorf("%w: not the canonical encoding of its point", ErrKey)
	}
	if new(edwards25519.Point).MultByCofactor(point).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return fmt.Errorf("%w: a point of low order", ErrKey)
	}
	return nil
}

// CheckOrigin wants the name of a log to be 1 to 255 printable ASCII characters without space and '+', which separate
// things in notes and vkeys. The error wraps ErrOrigin.
func CheckOrigin(origin string) error {
	if origin == "" || len(origin) > maxOrigin || !printableASCII(origin) || strings.ContainsAny(origin, " +") {
		return fmt.Errorf("%w: %q is not the name of a log", ErrOrigin, origin)
	}
	return nil
}

// CheckpointKeyID returns the key ID of a checkpoint's C2SP Ed25519 line (c2sp.org/signed-note):
// the first four bytes of SHA-256(origin ‖ 0x0A ‖ 0x01 ‖ key), big-endian.
func CheckpointKeyID(origin string, key ed25519.PublicKey) uint32 {
	return keyID(origin, []byte{sigTypeEd25519}, key)
}

// STHKeyID returns the key ID of a checkpoint's line that carries the signed tree head:
// the first four bytes of SHA-256(origin ‖ 0x0A ‖ 0xFF ‖ "kapsel.io/sth/v1" ‖ key), big-endian.
func STHKeyID(origin string, key ed25519.PublicKey) uint32 {
	return keyID(origin, append([]byte{sigTypeNamed}, "kapsel.io/sth/v1"...), key)
}

func keyID(name string, sigType, key []byte) uint32 {
	h := sha256.New()
	h.Write([]byte(name))
	h.Write([]byte{'\n'})
	h.Write(sigType)
	h.Write(key)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// VKey returns the text form of a log's name and key (c2sp.org/signed-note): origin+8 hex digits of the key
// ID+base64(0x01 ‖ key).
func VKey(origin string, key ed25519.PublicKey) string {
	return vkey(origin, sigTypeEd25519, key)
}

func vkey(name string, sigType byte, key ed25519.PublicKey) string {
	typed := append([]byte{sigType}, key...)
	return fmt.Sprintf("%s+%08x+%s", name, keyID(name, typed[:1], key), base64.StdEncoding.EncodeToString(typed))
}

// ParseVKey is the inverse of VKey. Errors wrap ErrKey or ErrOrigin.
func ParseVKey(s string) (origin string, key ed25519.PublicKey, err error) {
	return parseVKey(s, sigTypeEd25519)
}

func parseVKey(s string, sigType byte) (name string, key ed25519.PublicKey, err error) {
	parts := strings.Split(s, "+")
	if len(parts) < 3 {
		return "", nil, fmt.Errorf("%w: %q is not a vkey (name+keyid+base64)", ErrKey, s)
	}
	name = parts[0]
	// Base64 has '+' in its alphabet: everything after the second '+' belongs to it.
	typed, err := decodeBase64(strings.Join(parts[2:], "+"))
	if err != nil || len(typed) != 1+ed25519.PublicKeySize || typed[0] != sigType {
		return "", nil, fmt.Errorf("%w: %q doesn't hold an Ed25519 key of type %d", ErrKey, s, sigType)
	}
	key = typed[1:]
	if err := CheckOrigin(name); err != nil {
		return "", nil, err
	}
	if err := CheckPublicKey(key); err != nil {
		return "", nil, err
	}
	if vkey(name, sigType, key) != s { // the key ID is wrong or not eight lowercase digits
		return "", nil, fmt.Errorf("%w: %q has another key ID than its name and key", ErrKey, s)
	}
	return name, key, nil
}
