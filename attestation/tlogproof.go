package attestation

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kapsel-io/kapsel/verify"
)

// tlogProofExtra is what a tlog-proof carries besides the proof. Its members are in the order of RFC 8785 and hold nothing
// that JSON escapes, so encoding/json writes it canonically; those of the salts are sorted by sortedSalts.
type tlogProofExtra struct {
	Leaf  verify.Base64 `json:"leaf"`
	Salts *sortedSalts  `json:"salts,omitempty"`
}

// sortedSalts is verify.Salts with its members in the order of RFC 8785.
type sortedSalts struct {
	Headers  verify.Hex `json:"headers"`
	Payload  verify.Hex `json:"payload"`
	Response verify.Hex `json:"response"`
	URL      verify.Hex `json:"url"`
}

// TLogProof writes the evidence as a text that tools of other projects verify (https://c2sp.org/tlog-proof):
//
//	c2sp.org/tlog-proof@v1
//	extra <base64 of {"leaf":…,"salts":{…}} as RFC 8785 has it, the values as in a proof package>
//	index <leaf index>
//	<inclusion proof, a hash in base64 a line>
//
//	<the checkpoint, verbatim>
//
// What such a tool verifies is the leaf hash, SHA-256(0x00 ‖ leaf), so take the leaf out of extra first. The format has no
// place for the history of the log's key: the key that is trusted must be the one that signed. Like Package it returns
// nothing that doesn't hold.
func (e Evidence) TLogProof() ([]byte, error) {
	if _, err := e.Package(); err != nil {
		return nil, err
	}
	extra := tlogProofExtra{Leaf: e.Leaf}
	if s := e.Salts; s != nil {
		extra.Salts = &sortedSalts{Headers: s.Headers, Payload: s.Payload, Response: s.Response, URL: s.URL}
	}
	carried, err := json.Marshal(extra)
	if err != nil {
		return nil, fmt.Errorf("write proof of leaf %d: %w", e.Proof.LeafIndex, err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "c2sp.org/tlog-proof@v1\nextra %s\nindex %d\n", base64.StdEncoding.EncodeToString(carried), e.Proof.LeafIndex)
	for _, hash := range e.Proof.Hashes {
		text.WriteString(base64.StdEncoding.EncodeToString(hash) + "\n")
	}
	text.WriteString("\n")
	text.Write(e.Checkpoint)
	return []byte(text.String()), nil
}
