package activities

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/activity"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/tracing"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// target is a destination whose settings were read, once for all attempts that go there together.
type target struct {
	*postgres.Destination
	schedule    delivery.Schedule
	extra       http.Header // configured headers
	extraNames  []string
	endpointURL string // as it stands in leaves
	keys        []ed25519.PrivateKey
	transport   webhook.Transport
}

func newTarget(d *postgres.Destination) (*target, error) {
	t := &target{Destination: d}
	if err := json.Unmarshal(d.Schedule, &t.schedule); err != nil {
		return nil, fmt.Errorf("read schedule: %w", err)
	}
	if err := json.Unmarshal(d.ExtraHeaders, &t.extra); err != nil {
		return nil, fmt.Errorf("read configured headers: %w", err)
	}
	t.extraNames = slices.Collect(maps.Keys(t.extra))
	if d.Transport != nil {
		if err := json.Unmarshal(d.Transport, &t.transport); err != nil {
			return nil, errors.New("read transport: not as it should be") // the error could quote it
		}
	}
	for _, stored := range d.PrivateKeys {
		key, err := webhook.ParsePrivateKey(stored)
		if err != nil {
			return nil, err
		}
		t.keys = append(t.keys, key)
	}
	var err error
	t.endpointURL, err = attestation.EndpointURL(d.URL, d.SecretPath)
	return t, err
}

// sending is one attempt that is about to be sent.
type sending struct {
	Delivery uuid.UUID
	Attempt  int
	Payload  *postgres.Payload
	Probe    uuid.UUID // of a half-open circuit; uuid.Nil: it is none
	Carrier  carrier
}

// request sends one attempt, in whichever lane, and says what follows from its answer. ctx is interruptible. An error means
// that no request was made.
func (a *Activities) request(ctx context.Context, to *target, s sending) (Outcome, Response, error) {
	var place tracing.Place
	if a.Tracing.On() {
		place = attemptPlace(s.Payload.EventID, s.Delivery, s.Attempt)
	}
	headers, err := outgoingHeaders(to, s, a.Tracing.Traceparent(place))
	if err != nil {
		return Outcome{}, Response{}, err
	}
	route, err := a.Client.Route(ctx, to.transport)
	if err != nil {
		return Outcome{}, Response{}, err
	}
	result := a.Client.Send(ctx, webhook.Request{URL: to.URL, Header: headers, Body: s.Payload.Body, Timeout: to.Timeout, Route: route})
	a.Latencies.Add(to.ID, result.Duration)

	decision := delivery.Decide(delivery.Attempted{
		Attempt:    s.Attempt,
		Status:     result.Status,
		Class:      delivery.ErrorClass(result.Err),
		RetryAfter: result.Header.Get("Retry-After"),
		Now:        time.Now(),
		Jitter:     rand.Float64(),
		Schedule:   to.schedule,
	})
	secret := attestation.AttemptSecret(s.Payload.Secret, s.Delivery, s.Attempt)
	outcome := Outcome{
		AttemptedAt:        result.Started,
		Duration:           result.Duration,
		EndpointURL:        to.endpointURL,
		URLHash:            commit(verify.LabelURL, secret, []byte(to.URL)),
		HeadersHash:        commit(verify.LabelHeaders, secret, attestation.CanonicalHeaders(headers, to.extraNames...)),
		ResponseStatus:     result.Status,
		Error:              string(result.Err),
		Outcome:            string(decision.Outcome),
		State:              string(decision.State),
		Reason:             string(decision.Reason),
		Delay:              decision.Delay,
		Park:               decision.Park,
		Grace:              to.Timeout + silence,
		DisableDestination: decision.DisableDestination,
	}
	if s.Probe != uuid.Nil {
		outcome.Probe = s.Probe.String()
	}
	a.Metrics.sent(&outcome)
	a.tellSent(ctx, place, to, s, &outcome)
	a.tellAttempt(place, to, s, &outcome)
	var response Response
	if result.Status != 0 {
		outcome.ResponseHash = commit(verify.LabelResponse, secret, result.Body)
		outcome.ResponseSize = int64(len(result.Body))
		outcome.ResponseTruncated = result.Truncated || result.Err != webhook.NoError
		response = Response{Headers: webhook.EncodeHeaders(result.Header), Body: result.Body}
	}
	return outcome, response, nil
}

// tellSent writes the one line of an attempt, in whichever lane. A debug line, because receivers that fail would fill any other.
func (a *Activities) tellSent(ctx context.Context, place tracing.Place, to *target, s sending, o *Outcome) {
	if activity.IsActivity(ctx) {
		activity.GetLogger(ctx).Debug("attempt sent", append(a.Tracing.Pairs(place), "event_id", id.Event.Format(s.Payload.EventID),
			"delivery_id", id.Delivery.Format(s.Delivery), "destination_id", id.Destination.Format(to.ID),
			"attempt_id", id.Attempt.Format(id.AttemptOf(s.Delivery, s.Attempt)), "attempt", s.Attempt, "outcome", o.Outcome,
			"error_class", o.Error, "status", o.ResponseStatus, "took", o.Duration)...)
	}
}

// interruptible returns a context that also ends when the worker has no more time for requests in flight.
func (a *Activities) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-a.Interrupt:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func outgoingHeaders(to *target, s sending, traceparent string) (http.Header, error) {
	original, err := webhook.DecodeHeaders(s.Payload.Headers)
	if err != nil {
		return nil, fmt.Errorf("read headers of event: %w", err)
	}
	deliveryID, token := id.Delivery.Format(s.Delivery), ""
	if to.ProofKey != nil {
		token = attestation.ProofToken(to.ProofKey, deliveryID)
	}
	return webhook.OutgoingHeaders(original, to.extra, webhook.Outgoing{
		EventID:    id.Event.Format(s.Payload.EventID),
		DeliveryID: deliveryID,
		ProofToken: token,
		Attempt:    s.Attempt,
		AcceptedAt: s.Payload.AcceptedAt,
		SentAt:     time.Now(),
		Body:       s.Payload.Body,
		Secrets:    to.SigningKeys,
		Keys:       to.keys,

		Traceparent: traceparent,
	}), nil
}

// commit is the commitment to x with the attempt's own salt for label, in hex.
func commit(label string, secret, x []byte) string {
	return attestation.Commit(label, verify.DeriveSalt(secret, label), x)
}
