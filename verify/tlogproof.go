package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// tlogProofLine is the first line of a proof in the form of https://c2sp.org/tlog-proof.
const tlogProofLine = "c2sp.org/tlog-proof@v1"

// TLogProof is a proof of one leaf as a text that tools of other projects verify (https://c2sp.org/tlog-proof):
//
//	c2sp.org/tlog-proof@v1
//	extra <base64 of {"leaf":…,"salts":{…}} as RFC 8785 has it, the values as in a proof package>
//	index <leaf index>
//	<inclusion proof, a hash in base64 a line>
//
//	<the checkpoint, verbatim>
//
// What such a tool verifies is the leaf hash, SHA-256(0x00 ‖ leaf). The line extra is missing once the leaf's bytes are
// erased: then the text proves what somebody else has kept, the bytes or their hash. The format has no place for the history of
// the log's key: the key that is trusted must be the one that signed.
type TLogProof struct {
	Leaf           []byte // the exact bytes; nil: erased
	Salts          *Salts // nil after erasure
	LeafIndex      uint64
	InclusionProof Hashes
	Checkpoint     []byte // verbatim
}

// IsTLogProof reports whether b is meant to be such a text.
func IsTLogProof(b []byte) bool { return bytes.HasPrefix(b, []byte(tlogProofLine+"\n")) }

// tlogExtra is what the line extra holds. Its members are in the order of RFC 8785, and nothing in them is escaped by JSON, so
// encoding/json writes it canonically.
type tlogExtra struct {
	Leaf  Base64       `json:"leaf"`
	Salts *sortedSalts `json:"salts,omitempty"`
}

// sortedSalts is Salts with its members in the order of RFC 8785.
type sortedSalts struct {
	Headers  Hex `json:"headers"`
	Payload  Hex `json:"payload"`
	Response Hex `json:"response"`
	URL      Hex `json:"url"`
}

// Bytes writes the text as ParseTLogProof reads it.
func (p *TLogProof) Bytes() []byte {
	var b strings.Builder
	b.WriteString(tlogProofLine + "\n")
	if p.Leaf != nil {
		b.WriteString("extra " + base64.StdEncoding.EncodeToString(p.extra()) + "\n")
	}
	fmt.Fprintf(&b, "index %d\n", p.LeafIndex)
	for _, hash := range p.InclusionProof {
		b.WriteString(base64.StdEncoding.EncodeToString(hash) + "\n")
	}
	b.WriteString("\n")
	b.Write(p.Checkpoint)
	return []byte(b.String())
}

func (p *TLogProof) extra() []byte {
	extra := tlogExtra{Leaf: p.Leaf}
	if s := p.Salts; s != nil {
		extra.Salts = &sortedSalts{Headers: s.Headers, Payload: s.Payload, Response: s.Response, URL: s.URL}
	}
	b, err := json.Marshal(extra)
	if err != nil { // strings can't fail to encode
		panic(err)
	}
	return b
}

// ParseTLogProof reads the text and refuses everything that Bytes would not write, so that no byte of it can change unnoticed;
// it verifies nothing. The checkpoint is read by [ParseCheckpoint]. The error wraps ErrTLogProofFormat.
func ParseTLogProof(b []byte) (*TLogProof, error) {
	if len(b) > MaxPackageSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrTLogProofFormat, len(b), MaxPackageSize)
	}
	head, checkpoint, found := strings.Cut(string(b), "\n\n")
	lines := strings.Split(head, "\n")
	if !found || lines[0] != tlogProofLine {
		return nil, fmt.Errorf("%w: no line %q, or no empty line before the checkpoint", ErrTLogProofFormat, tlogProofLine)
	}
	p := &TLogProof{Checkpoint: []byte(checkpoint)}
	lines = lines[1:]
	if len(lines) > 0 {
		if encoded, ok := strings.CutPrefix(lines[0], "extra "); ok {
			if err := p.parseExtra(encoded); err != nil {
				return nil, fmt.Errorf("%w: line extra: %w", ErrTLogProofFormat, err)
			}
			lines = lines[1:]
		}
	}
	if err := p.parsePath(lines); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTLogProofFormat, err)
	}
	if !bytes.Equal(p.Bytes(), b) {
		return nil, fmt.Errorf("%w: another spelling of what it says", ErrTLogProofFormat)
	}
	return p, nil
}

// parsePath reads the line index and those of the hashes.
func (p *TLogProof) parsePath(lines []string) error {
	if len(lines) == 0 {
		return errors.New("no line index")
	}
	text, ok := strings.CutPrefix(lines[0], "index ")
	index, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil || index >= MaxTreeSize {
		return fmt.Errorf("line %.80q is not the index of a leaf", lines[0])
	}
	p.LeafIndex = index
	if len(lines)-1 > MaxProofHashes {
		return fmt.Errorf("%d hashes, more than %d", len(lines)-1, MaxProofHashes)
	}
	for _, line := range lines[1:] {
		hash, err := decodeBase64(line)
		if err != nil || len(hash) != HashSize {
			return fmt.Errorf("line %.80q is not the base64 of a hash", line)
		}
		p.InclusionProof = append(p.InclusionProof, hash)
	}
	return nil
}

func (p *TLogProof) parseExtra(encoded string) error {
	b, err := decodeBase64(encoded)
	if err != nil {
		return err
	}
	if err := checkJSON(b, reflect.TypeFor[tlogExtra]()); err != nil {
		return err
	}
	var extra tlogExtra
	if err := json.Unmarshal(b, &extra); err != nil {
		return err
	}
	if len(extra.Leaf) > MaxLeafSize {
		return fmt.Errorf("leaf of %d bytes, more than %d", len(extra.Leaf), MaxLeafSize)
	}
	p.Leaf = extra.Leaf
	if s := extra.Salts; s != nil {
		p.Salts = &Salts{Payload: s.Payload, Response: s.Response, URL: s.URL, Headers: s.Headers}
	}
	return p.Salts.check()
}

// TLog verifies a proof in the form of https://c2sp.org/tlog-proof against what opts trusts and holds, as [Package] does a proof
// package. If the text doesn't hold the leaf, because its bytes were erased, opts.Leaf is verified, or else opts.LeafHash alone: then
// Result.Leaf is nil and nothing can be compared with it. Errors wrap those of Package, and ErrTLogProofFormat, ErrLeafMismatch or
// ErrNoLeaf.
func TLog(text []byte, opts Options) (*Result, error) {
	origin, trusted, err := opts.trust()
	if err != nil {
		return nil, err
	}
	p, err := ParseTLogProof(text)
	if err != nil {
		return nil, err
	}
	c, err := ParseCheckpoint(p.Checkpoint)
	if err != nil {
		return nil, err
	}
	if origin != "" && c.Origin != origin {
		return nil, fmt.Errorf("%w: the checkpoint is of the log %q, expected %q", ErrOrigin, c.Origin, origin)
	}
	if c.Note.signature(c.Origin, CheckpointKeyID(c.Origin, trusted)) == nil {
		return nil, fmt.Errorf("%w: the checkpoint has no line of the trusted key, and such a text can't say how the log's key changed; "+
			"a proof package can", ErrUntrustedKey)
	}
	r := &Result{Origin: c.Origin, OriginBound: origin != "", LeafIndex: p.LeafIndex}
	if r.Head, err = c.Verify(trusted); err != nil {
		return nil, err
	}
	leaf, err := r.settleLeaf(p.Leaf, opts)
	if err != nil {
		return nil, err
	}
	if err := Inclusion(r.LeafHash, p.LeafIndex, r.Head.TreeSize, p.InclusionProof, r.Head.RootHash); err != nil {
		return nil, err
	}
	if err := r.readLeaf(leaf, p.Salts, opts); err != nil {
		return nil, err
	}
	if r.Witnesses, err = countWitnesses(c.Note, opts.Witnesses); err != nil {
		return nil, err
	}
	if r.Witnesses < opts.Quorum {
		return nil, fmt.Errorf("%w: %d of the trusted witnesses cosigned, want %d", ErrQuorum, r.Witnesses, opts.Quorum)
	}
	r.warn()
	return r, nil
}

// settleLeaf finds the leaf that is to be proved, in the proof or with the caller, and its hash. They must not contradict each other.
func (r *Result) settleLeaf(leaf []byte, opts Options) ([]byte, error) {
	if leaf == nil && opts.Leaf != nil {
		leaf = *opts.Leaf
	}
	switch {
	case leaf != nil:
		r.LeafHash = LeafHash(leaf)
	case opts.LeafHash != nil:
		r.LeafHash = bytes.Clone(*opts.LeafHash)
	default:
		return nil, fmt.Errorf("%w: hand over its bytes or its hash", ErrNoLeaf)
	}
	if opts.Leaf != nil && !bytes.Equal(leaf, *opts.Leaf) {
		return nil, fmt.Errorf("%w: it hashes to %x, the one that you hold to %x", ErrLeafMismatch, r.LeafHash, LeafHash(*opts.Leaf))
	}
	if opts.LeafHash != nil && !bytes.Equal(r.LeafHash, *opts.LeafHash) {
		return nil, fmt.Errorf("%w: its hash is %x, expected %x", ErrLeafMismatch, r.LeafHash, *opts.LeafHash)
	}
	return leaf, nil
}

// readLeaf reads the leaf and binds it to what the caller holds; of one that is known by its hash only, nothing can be said.
func (r *Result) readLeaf(leaf []byte, salts *Salts, opts Options) (err error) {
	if leaf == nil {
		if opts.binds() {
			return fmt.Errorf("%w: nothing can be compared with a hash", ErrNoLeaf)
		}
		r.Payload, r.Response, r.URL, r.Headers = NotChecked, NotChecked, NotChecked, NotChecked
		return nil
	}
	if r.Leaf, err = ParseLeaf(leaf); err != nil {
		return err
	}
	if r.Leaf.Origin != r.Origin {
		return fmt.Errorf("%w: the leaf is of the log %q, the proof of %q", ErrOrigin, r.Leaf.Origin, r.Origin)
	}
	return r.bind(salts, opts)
}
