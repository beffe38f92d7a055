package verify

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
)

// countWitnesses counts the trusted witnesses that cosigned the checkpoint (c2sp.org/tlog-cosignature, Ed25519, type
// 0x04): 8 bytes of Unix seconds and a signature over "cosignature/v1\ntime <seconds>\n" and the checkpoint's text.
// Cosignatures of strangers are not evidence and not counted; a bad one of a trusted witness is an error.
func countWitnesses(n *Note, vkeys []string) (int, error) {
	count := 0
	seen := map[string]bool{}
	for _, v := range vkeys {
		name, key, err := parseVKey(v, sigTypeCosignature)
		if err != nil {
			return 0, fmt.Errorf("%w: witness: %w", ErrOptions, err)
		}
		if seen[string(key)] {
			return 0, fmt.Errorf("%w: witness %q is given twice", ErrOptions, name)
		}
		seen[string(key)] = true
		sig := n.signature(name, keyID(name, []byte{sigTypeCosignature}, key))
		if sig == nil {
			continue
		}
		if !verifyCosignature(n.Text, key, sig) {
			return 0, fmt.Errorf("%w: cosignature of witness %q", ErrSignature, name)
		}
		count++
	}
	return count, nil
}

func verifyCosignature(text string, key ed25519.PublicKey, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(sig), text)
	return ed25519.Verify(key, []byte(message), sig[8:])
}
