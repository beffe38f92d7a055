package replay

import (
	"fmt"
	"time"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// compareUnrecorded sets an outcome that went through a history, and so is known in full, against the row and the leaf.
func (c *comparison) compareUnrecorded(event int64, number int, o *activities.Outcome, r *postgres.AccountAttempt) {
	var leaf *verify.Leaf
	if l, err := verify.ParseLeaf(r.Leaf.Bytes); err == nil {
		leaf = l
	}
	if !o.AttemptedAt.Truncate(time.Microsecond).Equal(r.AttemptedAt) && leaf != nil && leaf.LostStarts > 0 {
		c.note(number, "it was sent more than once, and another send than the one of event %d was recorded (lost_starts)", event)
		return
	}
	members := []struct{ name, history, row string }{
		{"attempted_at", stamp(o.AttemptedAt), stamp(r.AttemptedAt)},
		{"duration_ms", decimal(o.Duration.Milliseconds()), decimal(r.Duration.Milliseconds())},
		{"endpoint_url", o.EndpointURL, r.EndpointURL},
		{"error", o.Error, r.Error},
		{"outcome", o.Outcome, r.Outcome},
		{"response_size", decimal(o.ResponseSize), decimal(r.ResponseSize)},
		{"response_status", decimal(int64(o.ResponseStatus)), decimal(int64(r.ResponseStatus))},
		{"response_truncated", fmt.Sprint(o.ResponseTruncated), fmt.Sprint(r.ResponseTruncated)},
	}
	for _, m := range members {
		if m.history != m.row {
			c.partAt(event, number, m.name, "the history has %q, Postgres %q", m.history, m.row)
		}
	}
	if o.State == string(delivery.Dead) {
		if end := c.row(id.Decision); end == nil || end.Kind != string(delivery.KindDead) || end.Outcome != o.Reason {
			c.partAt(event, id.Decision, "outcome", "the history has the decision to give up because of %q, Postgres hasn't", o.Reason)
		}
	}
	if leaf == nil {
		return
	}
	for _, m := range []struct{ name, history, leaf string }{
		{"url_hash", o.URLHash, leaf.URLHash},
		{"headers_hash", o.HeadersHash, leaf.HeadersHash},
		{"response_hash", o.ResponseHash, leaf.ResponseHash},
	} {
		if m.history != m.leaf {
			c.partAt(event, number, m.name, "the history has %q, the leaf %q", m.history, m.leaf)
		}
	}
	c.note(number, "its outcome was recorded by way of the workflow, event %d, because its sender couldn't: the response itself is lost, its hash isn't", event)
}

// compareBatch looks for the delivery in a batch's history, which names only those whose outcome it had to record.
func (c *comparison) compareBatch(s *story, told map[int]telling) {
	if s.sent != nil && s.sent.Sent > s.batch.Deliveries {
		c.partAll("sent", "the batch sent %d of %d deliveries", s.sent.Sent, s.batch.Deliveries)
	}
	named := false
	for _, one := range s.late {
		if one.DeliveryID != id.Delivery.Format(c.account.ID) {
			continue
		}
		named = true
		r := c.row(one.Attempt)
		switch {
		case r != nil && r.Epoch == one.Epoch:
			told[one.Attempt] = telling{s.WorkflowID, one.event}
			c.compareUnrecorded(one.event, one.Attempt, &one.Outcome, r)
		case !s.Closed() || s.status() != "completed" || c.movedOn(one.Epoch, one.Attempt):
			c.note(one.Attempt, "a request of it was sent by a batch (history %s, event %d) and its outcome not recorded", s.WorkflowID, one.event)
		default:
			c.partAt(one.event, one.Attempt, "", "the batch's history has it (%s), Postgres doesn't", one.Outcome.Outcome)
		}
	}
	if !named {
		c.notes = append(c.notes, Finding{History: s.WorkflowID,
			Text: "a batch's history holds counts, and names only deliveries whose outcome was recorded late: it doesn't name this one"})
	}
}
