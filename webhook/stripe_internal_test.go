package webhook

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
)

// The vector of Stripe's own library for .NET (stripe/stripe-dotnet, EventUtilityTest.cs and event_test_signature.json).
// Its secret is shorter than Kapsel takes, so the MAC itself is tested here.
func TestStripeVector(t *testing.T) {
	t.Parallel()
	body := []byte(`{
  "id": "evt_123",
  "object": "event",
  "account": "acct_123",
  "api_version": "2017-05-25",
  "created": 1533204620,
  "data": {
    "object": {
      "id": "cus_123",
      "object": "customer",
      "created": 123456789,
      "email": "test@stripe.com",
      "livemode": false,
      "metadata": {}
    }
  },
  "livemode": false,
  "pending_webhooks": 1,
  "request": {
    "id": "req_123",
    "idempotency_key": "idempotency-key-123"
  },
  "type": "customer.created"
}
`)
	timestamp, signatures, err := parseStripe("t=1533204620,v1=2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7," +
		"v0=63f3a72374a733066c4be69ed7f8e5ac85c22c9f0a6a612ab9a025a9e4ee7eef")
	require.NoError(t, err)
	require.Len(t, signatures, 1, "v0 is none")
	require.Equal(t, hex.EncodeToString(signatures[0]), hex.EncodeToString(stripe.mac([]byte("webhook_secret"), stripe.before("", timestamp), body)))
}

// The header that Stripe's documentation shows (https://docs.stripe.com/webhooks/signature).
func TestStripeDocumentedHeader(t *testing.T) {
	t.Parallel()
	timestamp, signatures, err := parseStripe("t=1492774577,v1=5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd," +
		"v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39")
	require.NoError(t, err)
	require.Equal(t, "1492774577", timestamp)
	require.Equal(t, "5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd", hex.EncodeToString(signatures[0]))
}
