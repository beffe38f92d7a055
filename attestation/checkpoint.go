package attestation

import (
	"fmt"

	"github.com/kapsel-io/kapsel/verify"
)

// SignCheckpoint returns the head as a note (https://c2sp.org/tlog-checkpoint) that tile clients, witnesses and monitors
// understand:
//
//	<origin>
//	<tree size>
//	<root hash, base64>
//
//	— <origin> <base64(key ID ‖ Ed25519 signature of the lines above)>
//	— <origin> <base64(key ID ‖ timestamp ‖ signature of the tree head)>
//
// The second signature line carries the signed tree head; software that doesn't know its key ID ignores it. A head that
// another key signed is refused, so both lines always speak of the same state under the same key. Errors wrap
// verify.ErrHeadFormat, verify.ErrSignature or ErrSigner.
func (s *Signer) SignCheckpoint(sth verify.SignedTreeHead) ([]byte, error) {
	if err := verify.TreeHead(sth, s.public); err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	signature, err := s.signed([]byte(verify.CheckpointText(s.origin, sth.TreeSize, sth.RootHash)))
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return verify.FormatCheckpoint(s.origin, s.public, sth, signature), nil
}
