package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

const (
	// headerDuplicate says that an event had been accepted before.
	headerDuplicate = "Kapsel-Duplicate"
	// headerLeafHash is the hash of the leaf that attests the acceptance.
	headerLeafHash = "Kapsel-Leaf-Hash"
)

// ingest takes in one webhook. It answers 200 after the commit of the event and all its deliveries and not before:
// invariant 1. A crash anywhere before leaves nothing or all of it, and a sender without an answer sends again.
func (s *Server) ingest(c *gin.Context) {
	if err := s.health.watch.Err(); err != nil && !errors.Is(err, postgres.ErrUnknown) {
		s.fail(c, err) // before the body is read: nothing piles up
		return
	}
	e, err := s.findEndpoint(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	if err := s.admission.enter(e.id); err != nil {
		s.fail(c, err)
		return
	}
	defer s.admission.leave(e.id)
	if hops := webhook.Hops(c.Request.Header); hops > webhook.MaxHops {
		s.fail(c, &problem{kind: kindLoop, detail: fmt.Sprintf("The webhook has gone through %d deliveries of Kapsel already. "+
			"Find the destinations that lead back here.", hops)})
		return
	}
	held := s.bodies.hold(e.id)
	defer held.release()
	body, err := s.readBody(c, held)
	if err != nil {
		s.fail(c, err)
		return
	}
	if s.greet(c, func() (webhook.Reply, bool, error) { return e.source.AnswerPost(c.Request.URL.RawQuery, body) }) {
		return
	}
	now := time.Now()
	if err := e.source.Verify(c.Request.Header, body, e.validSecrets(now), now); err != nil {
		s.refuseSource(c, e, err)
		return
	}
	if s.greet(c, func() (webhook.Reply, bool, error) { return e.source.AnswerVerified(body) }) {
		return
	}
	if err := s.admission.within(e.tenant); err != nil {
		s.fail(c, err)
		return
	}
	accepted, err := s.accept(c, e, body)
	if err != nil {
		s.fail(c, err)
		return
	}
	event := id.Event.Format(accepted.EventID)
	c.Set(keyEvent, event)
	if accepted.Duplicate {
		c.Header(headerDuplicate, "true")
	}
	if accepted.LeafHash != nil {
		c.Header(headerLeafHash, hex.EncodeToString(accepted.LeafHash))
	}
	c.Data(http.StatusOK, "application/json", []byte(`{"event_id":"`+event+`"}`+"\n"))
}

// findEndpoint answers an ID that can't be one like one that isn't, and so an operational endpoint, to which nothing is sent.
func (s *Server) findEndpoint(c *gin.Context) (*endpoint, error) {
	endpointID, err := id.Endpoint.Parse(c.Param("endpoint_id"))
	if err != nil {
		return nil, notFound("endpoint")
	}
	e, err := s.endpoints.get(c.Request.Context(), endpointID)
	if err != nil {
		return nil, err
	}
	if e == nil || e.operational {
		return nil, notFound("endpoint")
	}
	c.Set(keyTenant, id.Tenant.Format(e.tenant))
	c.Set(keyEndpoint, id.Endpoint.Format(e.id))
	return e, nil
}

// accept hands the webhook to the group and waits for its commit.
func (s *Server) accept(c *gin.Context, e *endpoint, body []byte) (postgres.Accepted, error) {
	key, keyed, err := e.duplicates.Key(c.Request.Header, body)
	if err != nil {
		if errors.Is(err, webhook.ErrIdempotencyKey) {
			return postgres.Accepted{}, malformed("The request has an %s. Send one of 1 to %d bytes, or none.", err, webhook.MaxIdempotencyKey)
		}
		return postgres.Accepted{}, fmt.Errorf("find duplicate key: %w", err)
	}
	there, leave := s.health.watch.While(c.Request.Context())
	defer leave()
	ctx, cancel := context.WithTimeout(there, s.config.AcceptTimeout)
	defer cancel()
	row, err := s.newAcceptance(ctx, e, c.Request, body)
	if err != nil {
		return postgres.Accepted{}, err
	}
	if keyed {
		bodyHash := sha256.Sum256(body)
		row.Duplicate = &postgres.DuplicateKey{Hash: key.Hash[:], BodyHash: bodyHash[:], Window: e.duplicates.Window()}
	}
	committed := traceOf(c).commit(row)
	accepted, err := s.group.Do(ctx, row)
	committed(accepted, err)
	if err != nil {
		return postgres.Accepted{}, err
	}
	if !accepted.Duplicate {
		s.metrics.accepted(row)
	}
	if accepted.Duplicate && accepted.BodyDiffers && key.Idempotency {
		return postgres.Accepted{}, &problem{kind: kindKeyConflict, detail: "This Idempotency-Key was used for " +
			id.Event.Format(accepted.EventID) + ", which has another body. Send a new key with a new body."}
	}
	if accepted.Duplicate {
		s.metrics.events.WithLabelValues("duplicate").Inc()
	}
	return accepted, nil
}

// newAcceptance makes the rows of a webhook. Tenant, log and destinations come from the endpoint, never from the request.
func (s *Server) newAcceptance(ctx context.Context, e *endpoint, r *http.Request, body []byte) (*postgres.Acceptance, error) {
	salt := attestation.NewSecret()
	row := &postgres.Acceptance{
		EventID:    id.New(),
		TenantID:   e.tenant,
		EndpointID: e.id,
		LogID:      e.log,
		// The header itself is kept with its bytes; this column is text, and text is UTF-8.
		ContentType: strings.ToValidUTF8(r.Header.Get("Content-Type"), "\uFFFD"),
		Headers:     webhook.EncodeHeaders(keptHeaders(r, e.source.SecretHeader())),
		Body:        body,
		PayloadHash: verify.Commitment(verify.LabelPayload, salt, body),
		Salt:        salt,
		Secret:      attestation.NewSecret(),
	}
	leave, err := s.look(ctx, e, body)
	if err != nil {
		return nil, err
	}
	defer leave()
	if e.ordering != nil {
		if key, ok := e.ordering.Key(r.Header, body); ok {
			row.OrderKey = key[:]
		}
	}
	if e.attestAcceptance {
		if row.Leaf, err = acceptedLeaf(e, row); err != nil {
			return nil, err
		}
	}
	return row, route(ctx, e, row)
}

// acceptedLeaf attests that a webhook was accepted. Its commit is the event's, so it is true as soon as it is there.
func acceptedLeaf(e *endpoint, row *postgres.Acceptance) (*postgres.AcceptedLeaf, error) {
	acceptance := attestation.Acceptance{
		Origin: e.origin, Tenant: row.TenantID, Endpoint: row.EndpointID, Event: row.EventID, At: time.Now(),
		PayloadHash: row.PayloadHash, PayloadSize: len(row.Body), Nonce: attestation.NewNonce(),
	}
	leaf, hash, err := acceptance.Leaf()
	if err != nil {
		return nil, err
	}
	parts, err := acceptance.Parts()
	if err != nil {
		return nil, err
	}
	// Of the secrets only the payload's salt opens anything; the other is there because every leaf has two.
	secrets := slices.Concat(row.Salt, attestation.AttemptSecret(row.Secret, row.EventID, id.Decision))
	return &postgres.AcceptedLeaf{Bytes: leaf, Hash: hash, Parts: parts, Secrets: secrets}, nil
}

// keptHeaders puts Host, which net/http keeps apart, among the others. A header that holds the source's secret is left
// out: whoever may read an event, or receives it, could send others with it.
func keptHeaders(r *http.Request, secret string) http.Header {
	h := r.Header.Clone()
	h["Host"] = []string{r.Host}
	if secret != "" {
		h.Del(secret)
	}
	return h
}

// commit is what the group does with many webhooks at once.
func (s *Server) commit(ctx context.Context, rows []*postgres.Acceptance) ([]postgres.Accepted, error) {
	accepted, err := postgres.Accept(ctx, s.config.Engine, rows)
	if err == nil {
		s.health.watch.Seen()
		s.config.Notify()
	}
	return accepted, err
}

// MaxBody is the size of the largest webhook that is accepted, in bytes: 10 MiB.
const MaxBody = 10 << 20

// readBody reads the whole body, at most MaxBody, within the time that it may take.
func (s *Server) readBody(c *gin.Context, held *holding) ([]byte, error) {
	if c.Request.ContentLength > MaxBody {
		return nil, &http.MaxBytesError{Limit: MaxBody} // before a byte of it is read
	}
	connection := http.NewResponseController(c.Writer)
	if err := connection.SetReadDeadline(time.Now().Add(s.config.BodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, malformed("The connection broke off.")
	}
	limited := http.MaxBytesReader(c.Writer, c.Request.Body, MaxBody)
	body, err := readAll(held.reader(limited), c.Request.ContentLength)
	if err != nil {
		return nil, bodyError(err)
	}
	// net/http goes on reading, to see the client go; past its deadline that would look as if it had.
	_ = connection.SetReadDeadline(time.Time{})
	return body, nil
}

// readAll reads to the end. What the request says of its length is believed only as far as it costs little.
func readAll(r io.Reader, length int64) ([]byte, error) {
	const believed = 64 << 10
	body := make([]byte, 0, min(max(length, 0), believed)+512)
	for {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if errors.Is(err, io.EOF) {
			return body, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// bodyError keeps the errors that have an answer of their own; any other means that the body isn't HTTP or broke off.
func bodyError(err error) error {
	var p *problem
	known := problemOf(err)
	if errors.As(err, &p) || known.kind == kindTooLarge || known.kind == kindTooSlow {
		return err
	}
	broken := malformed("The body broke off or its framing is malformed. Send the request again.")
	broken.cause = err
	return broken
}
