package replay

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// comparison gathers what Compare finds.
type comparison struct {
	account       *postgres.Account
	disagreements []Finding
	notes         []Finding
}

// part notes that they part at an attempt.
func (c *comparison) part(attempt int, member, format string, args ...any) {
	c.disagreements = append(c.disagreements, Finding{Attempt: &attempt, Member: member, Text: fmt.Sprintf(format, args...)})
}

// partAll notes that they part in what is said of the delivery.
func (c *comparison) partAll(member, format string, args ...any) {
	c.disagreements = append(c.disagreements, Finding{Member: member, Text: fmt.Sprintf(format, args...)})
}

func (c *comparison) note(attempt int, format string, args ...any) {
	c.notes = append(c.notes, Finding{Attempt: &attempt, Text: fmt.Sprintf(format, args...)})
}

// checkRecord looks at what Postgres and the log say without any workflow: the attempts explain the delivery's state, and
// each has its leaf.
func (c *comparison) checkRecord() {
	c.checkNumbers()
	c.checkState()
	for n := range len(c.account.Successors) + 1 {
		c.checkHead(c.account.Log(n))
	}
	previous, seq := []byte(nil), 0
	for i := range c.account.Attempts {
		a := &c.account.Attempts[i]
		seq++
		c.checkLeaf(a, seq, previous)
		previous = a.LeafHash
	}
	if c.account.Leaves != seq {
		c.partAll("leaves", "the delivery has %d leaves, and %d attempts are recorded", c.account.Leaves, seq)
	}
	if !bytes.Equal(c.account.LastLeafHash, previous) {
		c.partAll("last_leaf_hash", "the delivery's chain of leaves ends in %x, and its last attempt's leaf is %x", c.account.LastLeafHash, previous)
	}
}

// checkNumbers wants the attempts 1, 2, 3 and so on, each once and under its derived ID, in epochs that never go back,
// and at most one decision after them.
func (c *comparison) checkNumbers() {
	next, epoch := 1, 0
	for i := range c.account.Attempts {
		a := &c.account.Attempts[i]
		if a.ID != id.AttemptOf(c.account.ID, a.Number) {
			c.part(a.Number, "attempt_id", "the row %s isn't where this attempt is recorded", id.Attempt.Format(a.ID))
		}
		if a.Epoch < epoch || a.Epoch > c.account.Epoch {
			c.part(a.Number, "epoch", "recorded under epoch %d, after one under epoch %d, of a delivery in epoch %d", a.Epoch, epoch, c.account.Epoch)
		}
		epoch = max(epoch, a.Epoch)
		if a.Number == id.Decision {
			continue
		}
		for ; next < a.Number; next++ {
			c.part(next, "", "is not in Postgres")
		}
		if a.Number >= c.account.NextAttempt {
			c.part(a.Number, "", "is in Postgres, and the delivery's next attempt is %d", c.account.NextAttempt)
		}
		next = a.Number + 1
	}
	for ; next < c.account.NextAttempt; next++ {
		c.part(next, "", "is not in Postgres")
	}
}

// checkState wants the attempts to explain the delivery's state.
func (c *comparison) checkState() {
	var last *postgres.AccountAttempt
	decision := ""
	for i := range c.account.Attempts {
		a := &c.account.Attempts[i]
		if a.Number == id.Decision {
			decision = a.Kind
			continue
		}
		if last != nil && last.Outcome != string(delivery.OutcomeRetry) {
			c.part(last.Number, "outcome", "is %q, and attempt %d follows", last.Outcome, a.Number)
		}
		last = a
	}
	explained := string(delivery.Pending)
	switch {
	case decision != "":
		explained = decision
	case last != nil && last.Outcome == string(delivery.OutcomeDelivered):
		explained = string(delivery.Delivered)
	}
	if c.account.State != explained {
		c.partAll("state", "the delivery is %q, its attempts make it %q", c.account.State, explained)
	}
	if decision != "" && last != nil && last.Outcome == string(delivery.OutcomeDelivered) {
		c.part(id.Decision, "kind", "is %q, and attempt %d was delivered", decision, last.Number)
	} else if decision == string(delivery.KindSkipped) && last != nil {
		c.part(id.Decision, "kind", "is %q, and attempt %d was made", decision, last.Number)
	}
	if decision == string(delivery.KindSkipped) {
		c.note(id.Decision, "a filter left the event out when it was accepted: no workflow carried the delivery, so there is no history of it")
	}
}

// checkHead wants the newest signed head to be signed by the key that the log names.
func (c *comparison) checkHead(log postgres.AccountLog) {
	h := log.Signed
	if h == nil {
		return
	}
	sth := verify.SignedTreeHead{TreeSize: uint64(h.TreeSize), Timestamp: h.Timestamp, RootHash: h.RootHash, Signature: h.Signature}
	if err := verify.TreeHead(sth, h.PublicKey); err != nil {
		c.partAll("signed tree head", "%v", err)
	}
	if h.TreeSize > log.Head.TreeSize {
		c.partAll("signed tree head", "has size %d, and the log has %d", h.TreeSize, log.Head.TreeSize)
	}
}

// checkLeaf looks for an attempt's leaf: its hash, its place, what it says, and where it stands in the delivery's chain.
func (c *comparison) checkLeaf(a *postgres.AccountAttempt, seq int, previous []byte) {
	leaf := &a.Leaf
	switch leaf.Place {
	case "":
		c.part(a.Number, "leaf", "is neither in the log nor on its way there")
		return
	case postgres.LeafAside:
		c.part(a.Number, "leaf", "was set aside: %s", leaf.Reason)
	case postgres.LeafInQueue:
		c.note(a.Number, "its leaf waits for its place in the log")
	case postgres.LeafInLog:
		c.checkInclusion(a)
	}
	if leaf.Owner != a.ID {
		c.part(a.Number, "leaf", "belongs to %s", id.Attempt.Format(leaf.Owner))
	}
	if !bytes.Equal(leaf.Hash, a.LeafHash) {
		c.part(a.Number, "leaf_hash", "the attempt's is %x, the leaf's %x", a.LeafHash, leaf.Hash)
	}
	if leaf.Bytes == nil {
		c.note(a.Number, "the leaf's bytes were erased; only its hash is there to be compared")
		return
	}
	if computed := verify.LeafHash(leaf.Bytes); !bytes.Equal(computed, leaf.Hash) {
		c.part(a.Number, "leaf", "its bytes have the hash %x, the log has %x", computed, leaf.Hash)
	}
	parsed, err := verify.ParseLeaf(leaf.Bytes)
	if err != nil {
		c.part(a.Number, "leaf", "%v", err)
		return
	}
	c.checkMembers(a, parsed, seq, previous)
}

// checkInclusion follows the path from the leaf's hash to the root, which nobody can change without the log's key.
func (c *comparison) checkInclusion(a *postgres.AccountAttempt) {
	head := c.account.Covering(&a.Leaf)
	if a.Leaf.Index >= head.TreeSize {
		c.part(a.Number, "leaf", "has index %d in a log of %d leaves", a.Leaf.Index, head.TreeSize)
		return
	}
	err := verify.Inclusion(a.Leaf.Hash, uint64(a.Leaf.Index), uint64(head.TreeSize), a.Leaf.Path, head.RootHash)
	if err != nil {
		c.part(a.Number, "leaf", "%v", err)
	}
	if head.Signature == nil {
		c.note(a.Number, "its leaf is in the log, and no signed head covers it yet")
	}
}

// checkMembers compares each member of the leaf with the attempt's row.
func (c *comparison) checkMembers(a *postgres.AccountAttempt, l *verify.Leaf, seq int, previous []byte) {
	d := c.account
	number := a.Number
	if number == id.Decision {
		number = seq - 1 // a decision's leaf says how many attempts there were
	}
	for _, m := range []struct{ name, leaf, row string }{
		{"attempt_id", l.AttemptID, id.Attempt.Format(a.ID)},
		{"attempt_number", decimal(l.AttemptNumber), strconv.Itoa(number)},
		{"attempted_at", l.AttemptedAt, verify.FormatTime(a.AttemptedAt)},
		{"delivery_id", l.DeliveryID, id.Delivery.Format(d.ID)},
		{"destination_id", l.DestinationID, id.Destination.Format(d.DestinationID)},
		{"duration_ms", decimal(l.DurationMS), decimal(a.Duration.Milliseconds())},
		{"endpoint_id", l.EndpointID, id.Endpoint.Format(d.EndpointID)},
		{"endpoint_url", l.EndpointURL, a.EndpointURL},
		{"error", l.Error, a.Error},
		{"event_id", l.EventID, id.Event.Format(d.EventID)},
		{"kind", l.Kind, a.Kind},
		{"origin", l.Origin, d.Log(a.Leaf.Log).Origin},
		{"outcome", l.Outcome, a.Outcome},
		{"previous_leaf_hash", l.PreviousLeafHash, hex.EncodeToString(previous)},
		{"response_size", decimal(l.ResponseSize), decimal(a.ResponseSize)},
		{"response_status", decimal(l.ResponseStatus), strconv.Itoa(a.ResponseStatus)},
		{"response_truncated", strconv.FormatBool(l.ResponseTruncated), strconv.FormatBool(a.ResponseTruncated)},
		{"seq", decimal(l.Seq), strconv.Itoa(seq)},
		{"tenant_id", l.TenantID, id.Tenant.Format(d.TenantID)},
	} {
		if m.leaf != m.row {
			c.part(a.Number, m.name, "the leaf has %q, Postgres %q", m.leaf, m.row)
		}
	}
	if d.PayloadHash != nil && (l.PayloadHash != hex.EncodeToString(d.PayloadHash) || l.PayloadSize != int64(d.PayloadSize)) {
		c.part(a.Number, "payload_hash", "the leaf has %s of %d bytes, Postgres %x of %d bytes", l.PayloadHash, l.PayloadSize, d.PayloadHash, d.PayloadSize)
	}
	if l.LostStarts > 0 {
		c.note(a.Number, "its leaf tells of %s whose outcome was lost (lost_starts): the receiver may have seen this attempt more than once",
			count(int(l.LostStarts), "send"))
	}
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }
