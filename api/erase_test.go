package api_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

func TestErasureTakesThePayloadAndLeavesTheProof(t *testing.T) {
	t.Parallel()
	b := setup(t)
	attempt := b.attempted(t, b.createEndpoint(t, attestedEndpoint).ID, "personal")
	b.seal(t)
	event := read[openapi.AttemptDetail](t, b.get(t, "/api/v1/attempts/"+attempt), 200).EventID
	path := "/api/v1/attestation/download-proof/"
	kept := map[string][]byte{attempt: b.get(t, path+attempt).body, event: b.get(t, path+event).body}
	require.Nil(t, read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Erasure)

	erased := read[openapi.Erased](t, b.post(t, "/api/v1/events/"+event+"/erase", `{}`), 200)
	require.Equal(t, event, erased.EventID)
	require.False(t, erased.Leaves)
	require.EqualValues(t, 2, erased.LeavesErased, "that of the attempt and that of the acceptance")
	require.Equal(t, erased.ErasedAt, read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Erasure.ErasedAt)
	problem(t, b.get(t, "/api/v1/events/"+event+"/payload"), 410, "erased")
	payload := []byte("personal")
	for _, proven := range []string{attempt, event} {
		pkg := b.get(t, path+proven).body
		require.NotContains(t, string(pkg), "salts")
		result, err := verify.Package(pkg, verify.Options{VKey: b.log.VKey})
		require.NoError(t, err, "the leaf is proved as before")
		require.Equal(t, verify.Erased, result.Payload)
		_, err = verify.Package(pkg, verify.Options{VKey: b.log.VKey, Payload: &payload})
		require.ErrorIs(t, err, verify.ErrErased)
	}

	erased = read[openapi.Erased](t, b.post(t, "/api/v1/events/"+event+"/erase", `{"leaves":true}`), 200)
	require.True(t, erased.Leaves)
	for proven, before := range kept {
		problem(t, b.get(t, path+proven), 410, "erased")
		proof := read[openapi.InclusionProof](t, b.get(t, "/api/v1/attestation/proof/"+proven), 200)
		require.Nil(t, proof.Leaf)
		// Whoever has kept the package verifies it as ever; whoever has kept the leaf verifies it with what is given out now.
		result, err := verify.Package(before, verify.Options{VKey: b.log.VKey, Payload: &payload})
		require.NoError(t, err)
		pkg, err := verify.ParsePackage(before)
		require.NoError(t, err)
		leaf := []byte(pkg.Leaf)
		text := b.get(t, path+proven+"?format=tlog-proof")
		again, err := verify.TLog(text.body, verify.Options{VKey: b.log.VKey, Leaf: &leaf})
		require.NoError(t, err)
		require.Equal(t, result.Leaf, again.Leaf)
	}
	again := read[openapi.Erased](t, b.post(t, "/api/v1/events/"+event+"/erase", `{"leaves":true}`), 200)
	require.Zero(t, again.LeavesErased+again.ResponsesErased)
}

func TestErasureIsRefusedToOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	event := acceptedID(t, b.ingest(t, b.endpoint(t), "{}"))
	_, foreign := b.addTenant(t, "another")
	problem(t, b.do(t, "POST", "/api/v1/events/"+event+"/erase", strings.NewReader("{}"), "Authorization", "Bearer "+foreign), 404, "not-found")
	problem(t, b.do(t, "POST", "/api/v1/events/"+event+"/erase", strings.NewReader("{}")), 401, "unauthorized")
	problem(t, b.post(t, "/api/v1/events/"+id.Event.Format(id.New())+"/erase", "{}"), 404, "not-found")
	problem(t, b.post(t, "/api/v1/events/evt_x/erase", "{}"), 404, "not-found")
	require.Equal(t, "leafs", *problem(t, b.post(t, "/api/v1/events/"+event+"/erase", `{"leafs":true}`), 422, "invalid-field").Field)
	require.Equal(t, "leaves", *problem(t, b.post(t, "/api/v1/events/"+event+"/erase", `{"leaves":"yes"}`), 422, "invalid-field").Field)
	require.Equal(t, 1, b.count(t, "event_payloads"))
}
