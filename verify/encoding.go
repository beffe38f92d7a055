package verify

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Hex is a byte string that is written in JSON as lowercase hexadecimal, and read from nothing else.
type Hex []byte

// MarshalText writes lowercase hexadecimal.
func (h Hex) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, h), nil
}

// UnmarshalText reads lowercase hexadecimal. Empty text makes an empty Hex that isn't nil.
func (h *Hex) UnmarshalText(text []byte) error {
	b, err := decodeHex(string(text))
	*h = b
	return err
}

// Base64 is a byte string that is written in JSON as padded standard base64 (RFC 4648, section 4), and read from
// nothing else: no line breaks, no stray trailing bits.
type Base64 []byte

// MarshalText writes padded standard base64.
func (b Base64) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText reads padded standard base64.
func (b *Base64) UnmarshalText(text []byte) error {
	raw, err := decodeBase64(string(text))
	*b = raw
	return err
}

// Hashes is the path of a Merkle proof, in JSON an array (never null) of lowercase hexadecimal strings of 64 digits.
type Hashes [][]byte

// MarshalJSON writes an array, [] for an empty path.
func (h Hashes) MarshalJSON() ([]byte, error) {
	list := make([]Hex, len(h))
	for i := range h {
		list[i] = h[i]
	}
	return json.Marshal(list)
}

// UnmarshalJSON reads an array of at most MaxProofHashes hashes.
func (h *Hashes) UnmarshalJSON(b []byte) error {
	var list []Hex
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*h = make(Hashes, len(list))
	for i := range list {
		(*h)[i] = list[i]
	}
	return checkHashes(*h)
}

// decodeHex accepts lowercase digits only, so that one byte string has one spelling.
func decodeHex(s string) ([]byte, error) {
	if strings.Trim(s, "0123456789abcdef") != "" { // Trim stops at the first foreign character from either side
		return nil, errors.New("not lowercase hexadecimal")
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, errors.New("hexadecimal of odd length")
	}
	return b, nil
}

// decodeBase64 accepts only what encoding again would give; the package base64 skips line breaks even when strict.
func decodeBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("not padded base64: %w", err)
	}
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("not padded base64: a line break")
	}
	return b, nil
}

// printableASCII reports whether s holds nothing outside 0x20 to 0x7E.
func printableASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
