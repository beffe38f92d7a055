package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

const (
	// filterTime is how long the filters of one event may take together. What they may cost is bounded apart; this only
	// keeps a hundred of them from adding up.
	filterTime = time.Second
	// smallBody is a body that is looked into without waiting for a place. A larger one as JSON takes up to some twenty
	// times its size, so only as many are looked into at once as there are processors to do it.
	smallBody = 64 << 10
)

// recipient is a destination as the way in sees it.
type recipient struct {
	id          uuid.UUID
	endpointURL string                   // as it stands in leaves
	filter      *delivery.CompiledFilter // nil: it wants every event
}

// newRecipient takes a filter that it can't read for one that can't say no. So it is for a URL that no leaf can name: then a
// worker says what is wrong with it.
func (c *endpointCache) newRecipient(row db.DestinationsForIngestRow) recipient {
	to := recipient{id: row.ID}
	if row.Filter == nil {
		return to
	}
	var err error
	if to.endpointURL, err = attestation.EndpointURL(row.Url, row.SecretPath); err != nil {
		to.filter = delivery.Unusable()
		return to
	}
	to.filter = c.compiled(row.Filter)
	return to
}

// compiled remembers filters by their text, because an endpoint is read again every endpointTTL.
func (c *endpointCache) compiled(stored json.RawMessage) *delivery.CompiledFilter {
	if filter, ok := c.filters.GetIfPresent(string(stored)); ok {
		return filter
	}
	var filter delivery.Filter
	if json.Unmarshal(stored, &filter) != nil {
		return delivery.Unusable()
	}
	compiled, err := filter.Compile()
	if err != nil {
		compiled = delivery.Unusable()
	}
	c.filters.Set(string(stored), compiled)
	return compiled
}

// judges reports whether an event has a type, or a filter has to be asked.
func (e *endpoint) judges() bool {
	return e.eventType.Source == webhook.EventTypeByPath || e.eventType.Source == webhook.EventTypeByHeader || e.filters()
}

// filters reports whether a destination has a filter.
func (e *endpoint) filters() bool {
	return slices.ContainsFunc(e.recipients, func(to recipient) bool { return to.filter != nil })
}

// looksInto reports whether bodies may have to be read.
func (e *endpoint) looksInto() bool {
	return e.eventType.Source == webhook.EventTypeByPath || e.ordering != nil && e.ordering.Source == webhook.OrderByJSONPath || e.filters()
}

// look waits until a large body may be looked into, if that is needed at all, and returns how to make way for the next one.
func (s *Server) look(ctx context.Context, e *endpoint, body []byte) (leave func(), err error) {
	if len(body) <= smallBody || !e.looksInto() {
		return func() {}, nil
	}
	select {
	case s.looking <- struct{}{}:
		return func() { <-s.looking }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// route finds the event's type, and makes a delivery for each destination: to be sent, or skipped with its leaf.
func route(ctx context.Context, e *endpoint, row *postgres.Acceptance) error {
	if !e.judges() {
		for _, to := range e.recipients {
			row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: to.id})
		}
		return nil
	}
	headers, err := webhook.DecodeHeaders(row.Headers) // those that are kept: filters see nothing else
	if err != nil {
		return fmt.Errorf("read headers: %w", err)
	}
	document := webhook.NewDocument(row.Body)
	if eventType := e.eventType.Of(headers, document); delivery.ValidEventType(eventType) {
		row.EventType = eventType
	}
	return choose(ctx, e, row, delivery.Message{
		EventType: row.EventType, ContentType: row.ContentType, Headers: filterHeaders(headers), Body: document.Value,
	})
}

// choose asks the filter of each destination. The leaf of what is skipped is made here and not in the commit, because nothing
// in it depends on what is stored.
func choose(ctx context.Context, e *endpoint, row *postgres.Acceptance, message delivery.Message) error {
	// A client that goes away mustn't turn into a filter that fails.
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), filterTime)
	defer cancel()
	for _, to := range e.recipients {
		verdict := to.filter.Evaluate(within, message)
		d := postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: to.id, FilterError: string(verdict.Error)}
		if !verdict.Matches {
			if !e.recordSkipped {
				continue
			}
			var err error
			if d.Skipped, err = skip(e, to, row, d.ID); err != nil {
				return fmt.Errorf("skip delivery: %w", err)
			}
		}
		row.Deliveries = append(row.Deliveries, d)
	}
	return nil
}

// filterHeaders is what filters see of the headers: all but the sender's credentials for Kapsel.
func filterHeaders(h http.Header) map[string]string {
	seen := make(map[string]string, len(h))
	for name, values := range h {
		if !webhook.IsCredential(name) {
			seen[strings.ToLower(name)] = strings.ToValidUTF8(strings.Join(values, ", "), "\uFFFD")
		}
	}
	return seen
}

// skip makes the one attempt of a delivery that is skipped: the decision to send nothing (docs/adr/0002), and its leaf, the
// first and last of its chain.
func skip(e *endpoint, to recipient, row *postgres.Acceptance, deliveryID uuid.UUID) (*postgres.Attempt, error) {
	attempt := &postgres.Attempt{
		ID:          id.AttemptOf(deliveryID, id.Decision),
		Number:      id.Decision,
		Kind:        string(delivery.KindSkipped),
		Outcome:     string(delivery.ReasonFilter),
		AttemptedAt: time.Now(),
		EndpointURL: to.endpointURL,
		Secrets:     slices.Concat(row.Salt, attestation.AttemptSecret(row.Secret, deliveryID, id.Decision)),
	}
	entry := attestation.Entry{
		Origin: e.origin, Tenant: row.TenantID, Endpoint: row.EndpointID, Event: row.EventID, Destination: to.id,
		Delivery: deliveryID, Attempt: attempt.ID, Kind: attempt.Kind, Outcome: attempt.Outcome, At: attempt.AttemptedAt,
		EndpointURL: attempt.EndpointURL, PayloadHash: row.PayloadHash, PayloadSize: len(row.Body), Seq: 1,
		Nonce: attestation.NewNonce(),
	}
	var err error
	if attempt.Leaf, attempt.LeafHash, err = entry.Leaf(); err != nil {
		return nil, err
	}
	attempt.LeafParts, err = entry.Parts()
	return attempt, err
}
