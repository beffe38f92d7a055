package verify

import (
	"bytes"
	"encoding/hex"
	"fmt"
)

// Check says what came of comparing something with the leaf's commitment to it.
type Check string

// The outcomes of a comparison that didn't fail.
const (
	Matched    Check = "matched"
	NotChecked Check = "not checked" // the caller didn't hand it over
	Erased     Check = "erased"      // the salt is gone, so nobody can compare any more
)

// Result is what a verified package says.
type Result struct {
	Leaf        *Leaf // nil from [TLog] if only its hash was known
	LeafHash    []byte
	LeafIndex   uint64
	Head        SignedTreeHead
	Origin      string
	OriginBound bool // the caller named the origin, so the leaf is bound to that log and not only to its key
	// Payload, Response, URL and Headers say what was compared.
	Payload, Response, URL, Headers Check
	// Witnesses counts trusted witnesses that cosigned, Anchors those anchors that were verified. This version verifies
	// no type of anchor, so Anchors is 0 and a package that holds some gives a warning.
	Witnesses, Anchors int
	// Warnings are single lines that a reader should see; none of them invalidates the proof.
	Warnings []string
}

// Delivered reports whether the leaf records that the receiver answered with success.
func (r *Result) Delivered() bool {
	return r.Leaf != nil && r.Leaf.Kind == KindAttempt && r.Leaf.Outcome == OutcomeDelivered
}

// Package verifies a proof package ("kapsel.proof/v1") against what opts trusts and holds. Nothing in the package is
// trusted: its key is only a hint, size and root come from the head whose signature was checked. The first step that
// fails ends it; the error wraps one of this package's error values and says which step it was.
func Package(pkg []byte, opts Options) (*Result, error) {
	origin, trusted, err := opts.trust()
	if err != nil {
		return nil, err
	}
	p, err := ParsePackage(pkg)
	if err != nil {
		return nil, err
	}
	if origin != "" && p.Origin != origin {
		return nil, fmt.Errorf("%w: the package is of the log %q, expected %q", ErrOrigin, p.Origin, origin)
	}
	r := &Result{Origin: p.Origin, OriginBound: origin != "", LeafIndex: p.LeafIndex}
	if _, err := r.settleLeaf(p.Leaf, opts); err != nil {
		return nil, err
	}
	_, headKey, err := ParseVKey(p.VKey)
	if err != nil {
		return nil, fmt.Errorf("%w: vkey: %w", ErrPackageFormat, err)
	}
	if r.Warnings, err = p.checkHistory(headKey, trusted); err != nil {
		return nil, err
	}
	checkpoint, err := p.checkHead(headKey)
	if err != nil {
		return nil, err
	}
	r.Head = p.STH.SignedTreeHead()
	if err := Inclusion(r.LeafHash, p.LeafIndex, r.Head.TreeSize, p.InclusionProof, r.Head.RootHash); err != nil {
		return nil, err
	}
	if err := r.readLeaf(p.Leaf, p.Salts, opts); err != nil {
		return nil, err
	}
	if r.Witnesses, err = countWitnesses(checkpoint.Note, opts.Witnesses); err != nil {
		return nil, err
	}
	if r.Witnesses < opts.Quorum {
		return nil, fmt.Errorf("%w: %d of the trusted witnesses cosigned, want %d", ErrQuorum, r.Witnesses, opts.Quorum)
	}
	r.warn()
	if len(p.Anchors) > 0 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("anchors in the package that were not checked: %d", len(p.Anchors)))
	}
	return r, nil
}

// checkHead checks the signed tree head and the checkpoint, and that they are the same head of the same log.
func (p *ProofPackage) checkHead(key []byte) (*Checkpoint, error) {
	sth := p.STH.SignedTreeHead()
	if err := sth.verify(key); err != nil {
		return nil, err
	}
	c, err := ParseCheckpoint([]byte(p.Checkpoint))
	if err != nil {
		return nil, err
	}
	if c.Origin != p.Origin {
		return nil, fmt.Errorf("%w: the checkpoint is of the log %q, the package of %q", ErrOrigin, c.Origin, p.Origin)
	}
	same, err := c.head(key)
	if err != nil {
		return nil, err
	}
	// Equal to a head whose signature was verified above, the checkpoint's needs no second verification.
	if same.TreeSize != sth.TreeSize || same.Timestamp != sth.Timestamp || !bytes.Equal(same.RootHash, sth.RootHash) ||
		!bytes.Equal(same.Signature, sth.Signature) {
		return nil, fmt.Errorf("%w: sizes %d and %d", ErrHeadMismatch, sth.TreeSize, same.TreeSize)
	}
	return c, nil
}

// bind compares the leaf with everything that the caller holds.
func (r *Result) bind(salts *Salts, opts Options) error {
	for _, m := range []struct {
		want     *string
		got      string
		mismatch error
	}{
		{opts.Attempt, r.Leaf.AttemptID, ErrAttemptMismatch},
		{opts.Delivery, r.Leaf.DeliveryID, ErrDeliveryMismatch},
		{opts.Event, r.Leaf.EventID, ErrEventMismatch},
		{opts.Tenant, r.Leaf.TenantID, ErrTenantMismatch},
	} {
		if m.want != nil && *m.want != m.got {
			return fmt.Errorf("%w: %q, expected %.80q", m.mismatch, m.got, *m.want)
		}
	}
	if salts == nil {
		salts = &Salts{}
	}
	var url *[]byte
	if opts.URL != nil {
		b := []byte(*opts.URL)
		url = &b
	}
	for _, c := range []struct {
		label    string
		salt     Hex
		hash     string
		held     *[]byte
		result   *Check
		mismatch error
	}{
		{LabelPayload, salts.Payload, r.Leaf.PayloadHash, opts.Payload, &r.Payload, ErrPayloadMismatch},
		{LabelResponse, salts.Response, r.Leaf.ResponseHash, r.recordedPart(opts.Response), &r.Response, ErrResponseMismatch},
		{LabelURL, salts.URL, r.Leaf.URLHash, url, &r.URL, ErrURLMismatch},
		{LabelHeaders, salts.Headers, r.Leaf.HeadersHash, opts.Headers, &r.Headers, ErrHeadersMismatch},
	} {
		check, err := compare(c.label, c.salt, c.hash, c.held, c.mismatch)
		if err != nil {
			return err
		}
		*c.result = check
	}
	return r.checkSizes(opts)
}

// checkSizes refuses a leaf that commits to the right bytes but states another size for them.
func (r *Result) checkSizes(opts Options) error {
	if opts.Payload != nil && int64(len(*opts.Payload)) != r.Leaf.PayloadSize {
		return fmt.Errorf("%w: %d bytes, the leaf says %d", ErrPayloadMismatch, len(*opts.Payload), r.Leaf.PayloadSize)
	}
	if part := r.recordedPart(opts.Response); part != nil && int64(len(*part)) != r.Leaf.ResponseSize {
		return fmt.Errorf("%w: %d bytes, the leaf says %d", ErrResponseMismatch, len(*part), r.Leaf.ResponseSize)
	}
	return nil
}

// compare opens one commitment. A commitment of "" stands for nothing at all, which is not the same as something empty.
func compare(label string, salt Hex, hash string, held *[]byte, mismatch error) (Check, error) {
	switch {
	case held == nil && hash != "" && salt == nil:
		return Erased, nil
	case held == nil:
		return NotChecked, nil
	case hash == "":
		return "", fmt.Errorf("%w: none was recorded", mismatch)
	case salt == nil:
		return "", fmt.Errorf("%s: %w", label, ErrErased)
	case hex.EncodeToString(Commitment(label, salt, *held)) != hash:
		return "", fmt.Errorf("%w: %d bytes were compared", mismatch, len(*held))
	}
	return Matched, nil
}

// recordedPart cuts a response to what the log recorded of it, if the log says that it stopped reading.
func (r *Result) recordedPart(response *[]byte) *[]byte {
	if response == nil || !r.Leaf.ResponseTruncated || int64(len(*response)) <= r.Leaf.ResponseSize {
		return response
	}
	part := (*response)[:r.Leaf.ResponseSize]
	return &part
}

// warn adds what a reader should know although the proof holds.
func (r *Result) warn() {
	if r.Leaf == nil {
		return
	}
	if r.Leaf.Time().UnixMilli() > r.Head.Timestamp {
		r.Warnings = append(r.Warnings, "the attempt is dated later than the tree head that covers it")
	}
	if r.Response == Matched && r.Leaf.ResponseTruncated {
		r.Warnings = append(r.Warnings, fmt.Sprintf("only the first %d bytes of the response were recorded", r.Leaf.ResponseSize))
	}
}
