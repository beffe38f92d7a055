package activities

import (
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/verify"
)

// sealLinks bounds how many of its leaves a span "seal" names. Each leaf's own span names it, so nothing is lost by that.
const sealLinks = 32

// tracedLeaf is a leaf that got an index, and whose event is sampled.
type tracedLeaf struct {
	parent tracing.Place
	kind   string
	index  uint64
}

// traceLeaf finds the span that a leaf is about: its attempt's; of the decision to send no more, its delivery's; of an event
// that was accepted, or was skipped for a destination, the event's.
func (s *sealer) traceLeaf(leaf *verify.Leaf, index uint64) (tracedLeaf, bool) {
	if !s.sealing.config.Tracing.On() {
		return tracedLeaf{}, false
	}
	event, err := id.Event.Parse(leaf.EventID)
	if err != nil {
		return tracedLeaf{}, false // it is about the log itself
	}
	place := tracing.Root(event)
	if !s.sealing.config.Tracing.Sampled(place) {
		return tracedLeaf{}, false
	}
	var subject uuid.UUID
	switch leaf.Kind {
	case verify.KindAttempt:
		subject, err = id.Attempt.Parse(leaf.AttemptID)
	case verify.KindDead, verify.KindCanceled:
		subject, err = id.Delivery.Parse(leaf.DeliveryID)
	default:
		subject = event
	}
	return tracedLeaf{parent: place.At(subject), kind: leaf.Kind, index: index}, err == nil
}

// tellSealed tells of the leaves of one sequencing, after its commit: a span for each whose event is sampled, below what it is
// about, and one for them all, in a trace of its own.
func (s *sealer) tellSealed(began time.Time, size uint64, leaves int) {
	if len(s.traced) == 0 {
		return
	}
	end, seal := time.Now(), tracing.Root(id.New())
	batch := tracing.Span{
		Name: "seal", Place: seal, Start: began, End: end,
		Attributes: []attribute.KeyValue{
			attribute.String("kapsel.log_id", s.name), attribute.Int("kapsel.leaves", leaves), attribute.Int64("kapsel.tree_size", int64(size)),
		},
	}
	for i, leaf := range s.traced {
		if i < sealLinks {
			batch.Links = append(batch.Links, leaf.parent.Link())
		}
		s.sealing.config.Tracing.Tell(tracing.Span{
			Name: "leaf", Place: leaf.parent.Fresh(), Parent: leaf.parent.Span, Start: began, End: end, Links: []trace.Link{seal.Link()},
			Attributes: []attribute.KeyValue{
				attribute.String("kapsel.log_id", s.name), attribute.String("kapsel.kind", leaf.kind), attribute.Int64("kapsel.leaf_index", int64(leaf.index)),
			},
		})
	}
	s.sealing.config.Tracing.Tell(batch)
	s.traced = nil
}
