package api_test

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

const attestedEndpoint = `{"name":"in","attest_acceptance":true,"verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/in"}]}`

// leafHash is what an answer says of the leaf that attests the acceptance.
func leafHash(t testing.TB, a answer) []byte {
	t.Helper()
	require.Equal(t, 200, a.status, "%s", a.body)
	hash, err := hex.DecodeString(a.header.Get("Kapsel-Leaf-Hash"))
	require.NoError(t, err)
	require.Len(t, hash, verify.HashSize)
	return hash
}

// requireRestorable makes the leaf of an acceptance again, from what is kept of the event.
func (b *testBundle) requireRestorable(t testing.TB, event string, hash []byte) {
	t.Helper()
	eventID, err := id.Event.Parse(event)
	require.NoError(t, err)
	recorded, err := postgres.ReadAcceptances(t.Context(), b.engine, []uuid.UUID{eventID})
	require.NoError(t, err)
	r := recorded[eventID]
	require.NotNil(t, r)
	acceptance := attestation.Acceptance{
		Origin: r.Origin, Tenant: r.TenantID, Endpoint: r.EndpointID, Event: r.EventID, PayloadHash: r.PayloadHash, PayloadSize: r.PayloadSize,
	}
	require.NoError(t, acceptance.AddParts(r.LeafParts))
	_, again, err := acceptance.Leaf()
	require.NoError(t, err)
	require.Equal(t, hash, again)
}

// A sender who kept the answer holds Kapsel to it: the package proves the very leaf that it was told, about what it sent.
func TestAcceptanceIsAttested(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, attestedEndpoint)
	require.True(t, endpoint.AttestAcceptance)
	body := `{"amount":1}`
	a := b.ingest(t, endpoint.ID, body)
	hash, event := leafHash(t, a), acceptedID(t, a)
	other := leafHash(t, b.ingest(t, endpoint.ID, body))
	require.NotEqual(t, hash, other, "each event has a leaf of its own")

	acceptance := read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Acceptance
	require.Equal(t, hex.EncodeToString(hash), acceptance.LeafHash)
	require.Equal(t, "/api/v1/attestation/download-proof/"+event, acceptance.PackageURL)
	pending := read[openapi.Pending](t, b.get(t, acceptance.PackageURL), 202)
	require.Equal(t, event, pending.AttemptID)
	many := `{"attempt_ids":["` + event + `"]}`
	require.Equal(t, openapi.ProofOfManyStatusPending, read[openapi.Proofs](t, b.post(t, "/api/v1/attestation/proofs", many), 200).Proofs[0].Status)

	b.requireRestorable(t, event, hash)
	b.seal(t)
	payload := []byte(body)
	held := verify.Options{VKey: b.log.VKey, Payload: &payload, Event: &event, LeafHash: &hash}
	pkg := b.get(t, acceptance.PackageURL)
	require.Equal(t, 200, pkg.status, "%s", pkg.body)
	result, err := verify.Package(pkg.body, held)
	require.NoError(t, err)
	require.Equal(t, verify.KindAccepted, result.Leaf.Kind)
	require.Equal(t, verify.Matched, result.Payload)
	require.False(t, result.Delivered())
	text := b.get(t, acceptance.PackageURL+"?format=tlog-proof")
	_, err = verify.TLog(text.body, held)
	require.NoError(t, err)
	held.LeafHash = &other
	_, err = verify.Package(pkg.body, held)
	require.ErrorIs(t, err, verify.ErrLeafMismatch)

	proof := read[openapi.InclusionProof](t, b.get(t, acceptance.ProofURL), 200)
	require.Equal(t, acceptance.LeafHash, proof.LeafHash)
	require.Equal(t, acceptance.LeafHash, *read[openapi.Proofs](t, b.post(t, "/api/v1/attestation/proofs", many), 200).Proofs[0].LeafHash)
}

// A duplicate is told what the first was told, in one group of commits or in several, whatever the endpoint says by then.
func TestADuplicateIsToldTheFirstLeafHash(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, attestedEndpoint).ID
	var hashes []string
	for _, a := range b.flood(t, 8, func(int) string { return endpoint }, "Idempotency-Key", "k") {
		leafHash(t, a)
		hashes = append(hashes, a.header.Get("Kapsel-Leaf-Hash"))
	}
	for _, hash := range hashes {
		require.Equal(t, hashes[0], hash)
	}
	require.Equal(t, 1, b.count(t, "leaf_queue"))
	patched := b.do(t, "PATCH", "/api/v1/endpoints/"+endpoint, strings.NewReader(`{"attest_acceptance":false}`), "Authorization", "Bearer "+b.key)
	require.False(t, read[openapi.Endpoint](t, patched, 200).AttestAcceptance)
	require.Equal(t, hashes[0], b.ingest(t, endpoint, "{}", "Idempotency-Key", "k").header.Get("Kapsel-Leaf-Hash"))
	fresh := b.ingest(t, endpoint, "{}")
	require.NotContains(t, fresh.header, "Kapsel-Leaf-Hash", "what is accepted from then on has none")
	event := acceptedID(t, fresh)
	require.Nil(t, read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Acceptance)
	problem(t, b.get(t, "/api/v1/attestation/proof/"+event), 404, "not-found")
}

// What isn't committed isn't attested.
func TestARefusedWebhookLeavesNoLeaf(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, attestedEndpoint).ID
	b.ingest(t, endpoint, "a", "Idempotency-Key", "k")
	conflict := b.ingest(t, endpoint, "b", "Idempotency-Key", "k")
	problem(t, conflict, 409, "idempotency-conflict")
	require.NotContains(t, conflict.header, "Kapsel-Leaf-Hash")
	require.Equal(t, 1, b.count(t, "leaf_queue"))
}

func TestAcceptanceIsItsTenantsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	event := acceptedID(t, b.ingest(t, b.createEndpoint(t, attestedEndpoint).ID, "{}"))
	b.seal(t)
	_, foreign := b.addTenant(t, "another")
	for _, path := range []string{"proof/", "download-proof/"} {
		problem(t, b.do(t, "GET", "/api/v1/attestation/"+path+event, nil, "Authorization", "Bearer "+foreign), 404, "not-found")
	}
	answer := b.do(t, "POST", "/api/v1/attestation/proofs", strings.NewReader(`{"attempt_ids":["`+event+`"]}`), "Authorization", "Bearer "+foreign)
	require.Equal(t, "attempt_ids[0]", *problem(t, answer, 404, "not-found").Field)
}

// Nobody sends to an operational endpoint, so there is nobody to answer.
func TestAnOperationalEndpointAttestsNoAcceptance(t *testing.T) {
	t.Parallel()
	b := setup(t)
	operational := `{"name":"ops","operational":true,"verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/in"}]`
	p := problem(t, b.post(t, "/api/v1/endpoints", operational+`,"attest_acceptance":true}`), http.StatusUnprocessableEntity, "invalid-field")
	require.Equal(t, "attest_acceptance", *p.Field)
	endpoint := b.createEndpoint(t, operational+"}").ID
	patched := b.do(t, "PATCH", "/api/v1/endpoints/"+endpoint, strings.NewReader(`{"attest_acceptance":true}`), "Authorization", "Bearer "+b.key)
	require.Equal(t, "attest_acceptance", *problem(t, patched, 422, "invalid-field").Field)
}
