package attestation

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrLeafParts is returned for parts that no entry has.
var ErrLeafParts = errors.New("unusable parts of a leaf")

// leafPartsVersion begins the parts: what a later leaf needs besides will have another.
const leafPartsVersion = 1

// Parts returns what a leaf says and no other record of its attempt does, so that the leaf can be made again, to the byte, if it
// is lost on its way into the log:
//
//	version (1) ‖ nonce, 16 bytes ‖ lost starts, 4 bytes big-endian ‖ which of the hashes follow, a bit each (1) ‖
//	url hash ‖ headers hash ‖ response hash, 32 bytes each
//
// The entry has its nonce.
func (e *Entry) Parts() ([]byte, error) {
	nonce, err := hex.DecodeString(e.Nonce)
	if err != nil || len(nonce) != nonceSize {
		return nil, fmt.Errorf("nonce %q: %w", e.Nonce, ErrLeafParts)
	}
	parts := binary.BigEndian.AppendUint32(append([]byte{leafPartsVersion}, nonce...), uint32(e.LostStarts))
	parts = append(parts, 0)
	which := &parts[len(parts)-1]
	var hashes []byte
	for i, text := range []string{e.URLHash, e.HeadersHash, e.ResponseHash} {
		if text == "" {
			continue
		}
		hash, err := hex.DecodeString(text)
		if err != nil || len(hash) != hashSize {
			return nil, fmt.Errorf("hash %q: %w", text, ErrLeafParts)
		}
		*which |= 1 << i
		hashes = append(hashes, hash...)
	}
	return append(parts, hashes...), nil
}

// AddParts fills in what Parts returned. The error wraps ErrLeafParts.
func (e *Entry) AddParts(parts []byte) error {
	const head = 1 + nonceSize + 4 + 1
	if len(parts) < head || parts[0] != leafPartsVersion {
		return fmt.Errorf("%d bytes: %w", len(parts), ErrLeafParts)
	}
	e.Nonce = hex.EncodeToString(parts[1 : 1+nonceSize])
	e.LostStarts = int(binary.BigEndian.Uint32(parts[1+nonceSize:]))
	which, rest := parts[head-1], parts[head:]
	for i, text := range []*string{&e.URLHash, &e.HeadersHash, &e.ResponseHash} {
		*text = ""
		if which&(1<<i) == 0 {
			continue
		}
		if len(rest) < hashSize {
			return fmt.Errorf("a hash is missing: %w", ErrLeafParts)
		}
		*text, rest = hex.EncodeToString(rest[:hashSize]), rest[hashSize:]
	}
	if len(rest) != 0 || which > 7 {
		return fmt.Errorf("%d bytes too many: %w", len(rest), ErrLeafParts)
	}
	return nil
}
