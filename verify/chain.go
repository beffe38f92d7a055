package verify

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
)

// Chain is what the proof packages of one delivery say together.
type Chain struct {
	Delivery string
	Links    []*Result // verified, in the order of seq, each leaf once
	// Missing says, one line each, what keeps the chain from being complete; it is empty if every leaf from seq 1 to the
	// terminal one is there.
	Missing []string
	// Warnings are lines that a reader should see; none of them makes the chain incomplete.
	Warnings []string
}

// Complete reports whether every leaf from the first to the terminal one is there.
func (c *Chain) Complete() bool { return len(c.Missing) == 0 }

// Terminal returns the leaf that ended the delivery, nil if it isn't there.
func (c *Chain) Terminal() *Leaf {
	if last := c.Links[len(c.Links)-1].Leaf; last.terminal() {
		return last
	}
	return nil
}

// terminal reports whether nothing can follow the leaf. A final failure can: the leaf of kind "dead".
func (l *Leaf) terminal() bool {
	return l.Kind != KindAttempt || l.Outcome == OutcomeDelivered
}

// PackageError says which of several packages was rejected. It wraps the package's own error.
type PackageError struct {
	Index int // in the list that was handed over, from 0
	Err   error
}

func (e *PackageError) Error() string { return fmt.Sprintf("package %d: %v", e.Index+1, e.Err) }

// Unwrap returns the package's own error.
func (e *PackageError) Unwrap() error { return e.Err }

// Delivery verifies the proof packages of one delivery, each as Package does, and follows the chain that their leaves
// make: seq counts from 1, and previous_leaf_hash names the leaf before. The order of packages doesn't matter, and a
// leaf may come more than once (under several heads).
//
// What is missing is no error but stands in the result. Errors are for what can't be true: a package that Package
// rejects, or leaves and heads that contradict each other, which wraps ErrChain. opts.Attempt, opts.Response and
// opts.Headers differ between attempts and are refused with ErrOptions.
//
// Where a log was closed, a chain goes on in its successor: see opts.Successors. It never comes back.
func Delivery(packages [][]byte, opts Options) (*Chain, error) {
	if opts.Attempt != nil || opts.Response != nil || opts.Headers != nil {
		return nil, fmt.Errorf("%w: attempt, response and headers belong to one attempt, not to a delivery", ErrOptions)
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("%w: no proof packages", ErrOptions)
	}
	trusted, err := opts.logs()
	if err != nil {
		return nil, err
	}
	var results []*Result
	for i, pkg := range packages {
		r, err := trusted.verify(pkg)
		if err != nil {
			return nil, &PackageError{Index: i, Err: err}
		}
		if r.Leaf.Kind == KindAccepted {
			return nil, &PackageError{Index: i, Err: fmt.Errorf("%w: it is about the acceptance of an event, not about a delivery", ErrChain)}
		}
		results = append(results, r)
	}
	if err := checkHeads(results); err != nil {
		return nil, err
	}
	links, err := order(results)
	if err != nil {
		return nil, err
	}
	if err := trusted.succeed(links); err != nil {
		return nil, err
	}
	c := &Chain{Delivery: links[0].Leaf.DeliveryID, Links: links}
	if err := c.follow(); err != nil {
		return nil, err
	}
	return c, nil
}

// checkHeads compares the packages' heads as far as sizes and times tell, without proofs between them.
func checkHeads(results []*Result) error {
	sorted := slices.Clone(results)
	// By time too, because an idle log signs a size again: the last head of a size meets the first of the next.
	slices.SortFunc(sorted, func(a, b *Result) int {
		return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Head.TreeSize, b.Head.TreeSize),
			cmp.Compare(a.Head.Timestamp, b.Head.Timestamp))
	})
	for i := 1; i < len(sorted); i++ {
		a, b := sorted[i-1], sorted[i]
		switch {
		case a.Origin != b.Origin: // whether the one may follow the other is settled by logs.succeed
		case a.Head.TreeSize == b.Head.TreeSize && !bytes.Equal(a.Head.RootHash, b.Head.RootHash):
			return fmt.Errorf("%w: the log signed two roots for size %d", ErrChain, a.Head.TreeSize)
		case a.Head.TreeSize < b.Head.TreeSize && a.Head.Timestamp >= b.Head.Timestamp:
			return fmt.Errorf("%w: time ran backwards: the head of size %d isn't older than that of size %d",
				ErrChain, a.Head.TreeSize, b.Head.TreeSize)
		}
	}
	return nil
}

// order sorts by seq, keeps each leaf once, and wants all to be about one delivery.
func order(results []*Result) ([]*Result, error) {
	slices.SortStableFunc(results, func(a, b *Result) int { return cmp.Compare(a.Leaf.Seq, b.Leaf.Seq) })
	links := results[:1]
	for _, r := range results[1:] {
		last := links[len(links)-1]
		if err := sameDelivery(last.Leaf, r.Leaf); err != nil {
			return nil, err
		}
		switch {
		case r.Leaf.Seq != last.Leaf.Seq:
			links = append(links, r)
		case !bytes.Equal(r.LeafHash, last.LeafHash):
			return nil, fmt.Errorf("%w: two different leaves are number %d of the delivery", ErrChain, r.Leaf.Seq)
		case r.LeafIndex != last.LeafIndex:
			return nil, fmt.Errorf("%w: leaf %d of the delivery is in the log twice, at %d and %d",
				ErrChain, r.Leaf.Seq, last.LeafIndex, r.LeafIndex)
		}
	}
	return links, nil
}

// sameDelivery wants what can't change between the attempts of one delivery to be the same.
func sameDelivery(a, b *Leaf) error {
	for _, m := range []struct{ name, a, b string }{
		{"delivery_id", a.DeliveryID, b.DeliveryID},
		{"tenant_id", a.TenantID, b.TenantID},
		{"event_id", a.EventID, b.EventID},
		{"endpoint_id", a.EndpointID, b.EndpointID},
		{"destination_id", a.DestinationID, b.DestinationID},
		{"payload_hash", a.PayloadHash, b.PayloadHash},
	} {
		if m.a != m.b {
			return fmt.Errorf("%w: %s is %q in one package and %q in another", ErrChain, m.name, m.a, m.b)
		}
	}
	return nil
}

// follow walks the chain from seq 1.
func (c *Chain) follow() error {
	next := int64(1)
	var before *Result
	for _, r := range c.Links {
		if before != nil && before.Leaf.terminal() {
			return fmt.Errorf("%w: leaf %d follows the terminal leaf %d", ErrChain, r.Leaf.Seq, before.Leaf.Seq)
		}
		if r.Leaf.Seq > next {
			c.missing(next, r.Leaf)
		} else if before != nil {
			if err := c.link(before.Leaf, hex.EncodeToString(before.LeafHash), r.Leaf); err != nil {
				return err
			}
		}
		if err := checkNumber(r.Leaf); err != nil {
			return err
		}
		before, next = r, r.Leaf.Seq+1
	}
	switch last := before.Leaf; {
	case last.terminal():
	case last.Outcome == OutcomeFailed:
		c.Missing = append(c.Missing, fmt.Sprintf("leaf %d, of kind %q: it has to follow the final failure", next, KindDead))
	default:
		c.Missing = append(c.Missing, fmt.Sprintf("what follows leaf %d: the delivery isn't over, or the package of leaf %d is missing", last.Seq, next))
	}
	return nil
}

func (c *Chain) missing(from int64, next *Leaf) {
	text := fmt.Sprintf("leaf %d", from)
	if from < next.Seq-1 {
		text = fmt.Sprintf("leaves %d to %d", from, next.Seq-1)
	}
	c.Missing = append(c.Missing, fmt.Sprintf("%s; the hash of leaf %d is %s", text, next.Seq-1, next.PreviousLeafHash))
}

// link checks that b follows a.
func (c *Chain) link(a *Leaf, hash string, b *Leaf) error {
	if b.PreviousLeafHash != hash {
		return fmt.Errorf("%w: leaf %d names %s as the one before it, which is %s", ErrChain, b.Seq, b.PreviousLeafHash, hash)
	}
	if a.Outcome == OutcomeFailed && a.Kind == KindAttempt && b.Kind != KindDead {
		return fmt.Errorf("%w: the final failure %d is followed by %q, not by %q", ErrChain, a.Seq, b.Kind, KindDead)
	}
	if b.Time().Before(a.Time()) {
		c.Warnings = append(c.Warnings, fmt.Sprintf("leaf %d is dated earlier than leaf %d", b.Seq, a.Seq))
	}
	return nil
}

// checkNumber wants HTTP attempts to be counted like leaves, and a decision to say how many there were before it: every
// leaf before it was one.
func checkNumber(l *Leaf) error {
	want := l.Seq
	if l.Kind != KindAttempt {
		want--
	}
	if l.AttemptNumber != want {
		return fmt.Errorf("%w: leaf %d, of kind %q, has attempt number %d, want %d", ErrChain, l.Seq, l.Kind, l.AttemptNumber, want)
	}
	return nil
}
