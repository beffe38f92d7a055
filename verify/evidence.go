package verify

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// EvidenceFormat is the value of the member "format" of evidence.
const EvidenceFormat = "kapsel.evidence/v1"

// Evidence is two signed heads of one log that can't both be honest. A monitor writes it, and anybody who knows the
// log's key can judge it, without the log and without the monitor.
type Evidence struct {
	Format  string       `json:"format"`  // EvidenceFormat
	Verdict Verdict      `json:"verdict"` // split, fork or rollback; a claim that Judge checks
	VKey    string       `json:"vkey"`    // of the key that the monitor trusted; a hint
	URL     string       `json:"url"`     // where the monitor read the log
	Seen    EvidenceHead `json:"seen"`    // what it had seen before
	Now     EvidenceHead `json:"now"`     // what it was shown then
	// ConsistencyProof is what CompareHeads takes; [] where sizes or times say enough.
	ConsistencyProof Hashes `json:"consistency_proof"`
	// Transitions are the notes of key changes that connect the keys of both heads with the trusted one, verbatim.
	Transitions []string `json:"transitions,omitempty"`
}

// EvidenceHead is one of the two heads.
type EvidenceHead struct {
	Checkpoint string `json:"checkpoint"` // the note, verbatim
	FetchedAt  string `json:"fetched_at"` // FormatTime; the monitor's clock, covered by no signature
}

// ParseEvidence reads evidence, as strictly as ParsePackage reads packages; it verifies nothing. The error wraps
// ErrEvidenceFormat.
func ParseEvidence(b []byte) (*Evidence, error) {
	if len(b) > MaxPackageSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrEvidenceFormat, len(b), MaxPackageSize)
	}
	var e Evidence
	if err := checkJSON(b, reflect.TypeFor[Evidence]()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidenceFormat, err)
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidenceFormat, err)
	}
	if e.Format != EvidenceFormat {
		return nil, fmt.Errorf("%w: format %.80q, want %q", ErrEvidenceFormat, e.Format, EvidenceFormat)
	}
	if len(e.Transitions) > MaxKeyHistory {
		return nil, fmt.Errorf("%w: %d key transitions, more than %d", ErrEvidenceFormat, len(e.Transitions), MaxKeyHistory)
	}
	return &e, nil
}

// Judge decides, trusting only vkey, whether the evidence shows what it says. It returns the two heads, the earlier seen
// first. Errors wrap ErrNoEvidence, or say which signature, note or key of a head is not good, which is no evidence
// either.
func (e *Evidence) Judge(vkey string) (seen, now SignedTreeHead, err error) {
	var notes [][]byte
	for _, t := range e.Transitions {
		notes = append(notes, []byte(t))
	}
	ring, err := NewKeyring(vkey, notes...)
	if err != nil {
		return seen, now, err
	}
	if seen, err = e.head(ring, e.Seen); err != nil {
		return seen, now, fmt.Errorf("head seen before: %w", err)
	}
	if now, err = e.head(ring, e.Now); err != nil {
		return seen, now, fmt.Errorf("head shown then: %w", err)
	}
	verdict, err := CompareHeads(seen, now, e.ConsistencyProof)
	if err != nil {
		return seen, now, fmt.Errorf("%w: %w", ErrNoEvidence, err)
	}
	if verdict != e.Verdict || !verdict.Misconduct() {
		return seen, now, fmt.Errorf("%w: it says %.80q, the heads say %q", ErrNoEvidence, e.Verdict, verdict)
	}
	return seen, now, nil
}

func (e *Evidence) head(ring *Keyring, h EvidenceHead) (SignedTreeHead, error) {
	sth, compromised, err := ring.Head([]byte(h.Checkpoint))
	if err == nil && compromised {
		err = fmt.Errorf("%w: a head under a key that was given up as compromised may be a thief's", ErrNoEvidence)
	}
	return sth, err
}
