package api_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

const tokenEndpoint = `{"name":"in","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/in","proof_token":true}]}`

// token is the proof token that a worker sends with a delivery.
func (b *testBundle) token(t testing.TB, delivery string) string {
	t.Helper()
	var key []byte
	require.NoError(t, b.owner.QueryRow(t.Context(), "select proof_key from tenants where id = $1", b.tenant).Scan(&key))
	return attestation.ProofToken(key, delivery)
}

// receipt asks for one with a token.
func (b *testBundle) receipt(t testing.TB, delivery, number, token string) answer {
	t.Helper()
	return b.do(t, "GET", "/api/v1/attestation/receipts/"+delivery+"/"+number, nil, "Authorization", "Bearer "+token)
}

// deliveryOfAttempt is the delivery of an attempt.
func (b *testBundle) deliveryOfAttempt(t testing.TB, attempt string) string {
	t.Helper()
	return read[openapi.AttemptDetail](t, b.get(t, "/api/v1/attempts/"+attempt), 200).DeliveryID
}

// A receiver who has nothing but what came with the request verifies what it was sent.
func TestAReceiverDownloadsTheProofOfWhatItGot(t *testing.T) {
	t.Parallel()
	lines, logged := observer.New(zap.DebugLevel)
	b := setup(t, func(c *api.Config) { c.Log = zap.New(lines) })
	attempt := b.attempted(t, b.createEndpoint(t, tokenEndpoint).ID, `{"amount":1}`)
	delivery := b.deliveryOfAttempt(t, attempt)
	token := b.token(t, delivery)
	require.Equal(t, 202, b.receipt(t, delivery, "1", token).status)
	b.seal(t)
	a := b.receipt(t, delivery, "1", token)
	require.Equal(t, 200, a.status, "%s", a.body)
	require.Equal(t, verify.MediaType, a.header.Get("Content-Type"))
	require.Equal(t, "private, no-cache", a.header.Get("Cache-Control"))
	payload := []byte(`{"amount":1}`)
	_, err := verify.Package(a.body, verify.Options{VKey: b.log.VKey, Attempt: &attempt, Delivery: &delivery, Payload: &payload})
	require.NoError(t, err)
	same := b.get(t, "/api/v1/attestation/download-proof/"+attempt)
	require.Equal(t, same.body, a.body, "the tenant's package and no other")
	unchanged := b.do(t, "GET", "/api/v1/attestation/receipts/"+delivery+"/1", nil, "Authorization", "Bearer "+token, "If-None-Match", a.header.Get("ETag"))
	require.Equal(t, 304, unchanged.status)
	text := b.do(t, "GET", "/api/v1/attestation/receipts/"+delivery+"/1?format=tlog-proof", nil, "Authorization", "Bearer "+token)
	require.True(t, verify.IsTLogProof(text.body))
	for _, line := range logged.All() {
		require.NotContains(t, fmt.Sprint(line.Message, line.ContextMap()), token)
	}
}

// Whatever is wrong is answered alike, so that nobody learns which deliveries there are.
func TestAWrongProofTokenIsNotFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, tokenEndpoint)
	delivery := b.deliveryOfAttempt(t, b.attempted(t, endpoint.ID, "{}"))
	other := b.deliveryOfAttempt(t, b.attempted(t, endpoint.ID, "{}"))
	without := b.deliveryOfAttempt(t, b.attempted(t, b.endpoint(t), "{}")) // a destination that has no tokens
	b.seal(t)
	token := b.token(t, delivery)
	require.Equal(t, 200, b.receipt(t, delivery, "1", token).status)
	mine := b.tenant
	b.tenant, _ = b.addTenant(t, "another")
	foreign := b.token(t, delivery)
	b.tenant = mine
	var first []byte
	for name, a := range map[string]answer{
		"of another delivery":            b.receipt(t, other, "1", token),
		"cut short":                      b.receipt(t, delivery, "1", token[:42]),
		"longer":                         b.receipt(t, delivery, "1", token+"A"),
		"none":                           b.receipt(t, delivery, "1", ""),
		"with another tenant's key":      b.receipt(t, delivery, "1", foreign),
		"an API key":                     b.receipt(t, delivery, "1", b.key),
		"of a destination without":       b.receipt(t, without, "1", b.token(t, without)),
		"of no delivery":                 b.receipt(t, id.Delivery.Format(id.New()), "1", token),
		"of what is none":                b.receipt(t, "dlv_x", "1", token),
		"of another kind of ID":          b.receipt(t, strings.Replace(delivery, "dlv_", "evt_", 1), "1", token),
		"by a key of zeros":              b.receipt(t, id.Delivery.Format(id.New()), "1", attestation.ProofToken(make([]byte, 32), delivery)),
		"of an attempt that wasn't made": b.receipt(t, delivery, "2", token),
		"of a decision that wasn't made": b.receipt(t, delivery, "0", token),
		"of no number":                   b.receipt(t, delivery, "x", token),
		"of another spelling":            b.receipt(t, delivery, "01", token),
		"of a huge number":               b.receipt(t, delivery, "99999999999999999999", token),
		"without the scheme":             b.do(t, "GET", "/api/v1/attestation/receipts/"+delivery+"/1", nil, "Authorization", token),
		"twice":                          b.do(t, "GET", "/api/v1/attestation/receipts/"+delivery+"/1", nil, "Authorization", "Bearer "+token, "Authorization", "Bearer "+token),
		"without Authorization":          b.do(t, "GET", "/api/v1/attestation/receipts/"+delivery+"/1", nil),
	} {
		problem(t, a, 404, "not-found")
		detail := bytes.ReplaceAll(a.body, []byte(a.header.Get("Kapsel-Request-Id")), nil)
		if first == nil {
			first = detail
		}
		require.Equal(t, string(first), string(detail), name)
	}
	// In a URL it would end up in logs.
	problem(t, b.do(t, "GET", "/api/v1/attestation/receipts/"+delivery+"/1?token="+token, nil, "Authorization", "Bearer "+token), 400, "invalid-parameter")
	// It opens nothing else.
	for _, path := range []string{"/api/v1/attestation/download-proof/" + id.Attempt.Format(id.New()), "/api/v1/events", "/api/v1/deliveries"} {
		problem(t, b.do(t, "GET", path, nil, "Authorization", "Bearer "+token), 401, "unauthorized")
	}
}

func TestProofTokensAreRevoked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, tokenEndpoint)
	require.True(t, endpoint.Destinations[0].ProofToken)
	delivery := b.deliveryOfAttempt(t, b.attempted(t, endpoint.ID, "{}"))
	b.seal(t)
	old := b.token(t, delivery)

	// All of them, and those of no other tenant.
	_, other := b.addTenant(t, "another")
	require.Equal(t, 204, b.do(t, "POST", "/api/v1/attestation/revoke-proof-tokens", nil, "Authorization", "Bearer "+other).status)
	require.Equal(t, 200, b.receipt(t, delivery, "1", old).status)
	require.Equal(t, 204, b.do(t, "POST", "/api/v1/attestation/revoke-proof-tokens", nil, "Authorization", "Bearer "+b.key).status)
	problem(t, b.receipt(t, delivery, "1", old), 404, "not-found")
	fresh := b.token(t, delivery)
	require.Equal(t, 200, b.receipt(t, delivery, "1", fresh).status)

	// Those of one destination. Deleting it takes nothing back: what it was sent stays provable.
	change := func(body string) {
		a := b.do(t, "PATCH", "/api/v1/destinations/"+endpoint.Destinations[0].ID, strings.NewReader(body), "Authorization", "Bearer "+b.key)
		require.Equal(t, 200, a.status, "%s", a.body)
	}
	change(`{"proof_token":false}`)
	problem(t, b.receipt(t, delivery, "1", fresh), 404, "not-found")
	change(`{"proof_token":true}`)
	_, err := b.owner.Exec(t.Context(), "update destinations set deleted_at = now()")
	require.NoError(t, err)
	require.Equal(t, 200, b.receipt(t, delivery, "1", fresh).status)
}

// The api's role can exchange the key and never sees it.
func TestTheAPICannotReadProofKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.config.API.Exec(t.Context(), "select proof_key from tenants")
	require.ErrorContains(t, err, "permission denied")
}
