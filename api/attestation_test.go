package api_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

func decodeAll(t testing.TB, hashes []string) [][]byte {
	t.Helper()
	all := make([][]byte, len(hashes))
	for i, h := range hashes {
		var err error
		all[i], err = hex.DecodeString(h)
		require.NoError(t, err)
	}
	return all
}

func TestAProofPackageVerifiesOffline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	payloads := map[string]string{}
	for i := range 300 { // more than one tile
		body := fmt.Sprintf(`{"n":%d}`, i)
		payloads[b.attempted(t, endpoint, body)] = body
		if i == 100 {
			b.seal(t)
		}
	}
	b.seal(t)
	for attempt, body := range payloads {
		a := b.get(t, "/api/v1/attestation/download-proof/"+attempt)
		require.Equal(t, 200, a.status, "%s", a.body)
		payload, response, url := []byte(body), []byte(sentResponse), sentURL
		result, err := verify.Package(a.body, verify.Options{VKey: b.log.VKey, Payload: &payload, Response: &response, URL: &url})
		require.NoError(t, err)
		require.True(t, result.Delivered())
		require.Equal(t, attempt, result.Leaf.AttemptID)
		require.Equal(t, verify.Matched, result.Payload)
		require.Equal(t, verify.MediaType, a.header.Get("Content-Type"))
		require.Equal(t, `attachment; filename="`+attempt+`.proof.json"`, a.header.Get("Content-Disposition"))
		require.Equal(t, "private, no-cache", a.header.Get("Cache-Control"))

		again := b.do(t, "GET", "/api/v1/attestation/download-proof/"+attempt, nil, "Authorization", "Bearer "+b.key, "If-None-Match", a.header.Get("ETag"))
		require.Equal(t, 304, again.status)
		require.Empty(t, again.body)
	}
}

func TestProofsAreAgainstTheEarliestHead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	attempts := []string{b.attempted(t, endpoint, "0"), b.attempted(t, endpoint, "1")}
	first := b.seal(t)
	again := b.publish(t, b.log, b.prepareHeadLater(t)) // the same size, later
	attempts = append(attempts, b.attempted(t, endpoint, "2"))
	second := b.seal(t)
	require.Equal(t, first.TreeSize, again.TreeSize)

	check := func(path string, head verify.SignedTreeHead, index int64) {
		t.Helper()
		p := read[openapi.InclusionProof](t, b.get(t, path), 200)
		require.Equal(t, index, p.LeafIndex)
		require.EqualValues(t, head.TreeSize, p.Sth.TreeSize)
		require.Equal(t, head.Timestamp, p.Sth.Timestamp)
		require.Equal(t, b.log.Origin, p.Sth.Origin)
		leaf, err := base64.StdEncoding.DecodeString(*p.Leaf)
		require.NoError(t, err)
		require.Equal(t, hex.EncodeToString(verify.LeafHash(leaf)), p.LeafHash)
		require.NoError(t, verify.Proof(leaf, verify.InclusionProof{
			LeafIndex: uint64(p.LeafIndex), TreeSize: uint64(p.Sth.TreeSize), Hashes: decodeAll(t, p.InclusionProof),
		}, headOf(t, p.Sth), b.log.PublicKey))
	}
	path := "/api/v1/attestation/proof/"
	check(path+attempts[0], first, 0)
	check(path+attempts[1], first, 1)
	check(path+attempts[2], second, 2)
	check(path+attempts[0]+"?tree_size=2", first, 0)
	check(path+attempts[0]+"?tree_size=3", second, 0)

	for _, route := range []string{path, "/api/v1/attestation/download-proof/"} {
		p := problem(t, b.get(t, route+attempts[2]+"?tree_size=2"), 400, "invalid-parameter")
		require.Equal(t, "tree_size", *p.Field)
		problem(t, b.get(t, route+attempts[0]+"?tree_size=0"), 400, "invalid-parameter")
		problem(t, b.get(t, route+attempts[0]+"?tree_size=1"), 404, "not-found") // a size that no head has
		problem(t, b.get(t, route+attempts[0]+"?tree_size=4"), 404, "not-found") // not reached yet
	}
}

func headOf(t *testing.T, h openapi.SignedTreeHead) verify.SignedTreeHead {
	t.Helper()
	bytes := decodeAll(t, []string{h.RootHash, h.Signature})
	return verify.SignedTreeHead{TreeSize: uint64(h.TreeSize), Timestamp: h.Timestamp, RootHash: bytes[0], Signature: bytes[1]}
}

// Until both signatures are stored, an attempt's proof, the head and the growth of the log stay unseen.
func TestNothingBeyondTheNewestSignedHeadIsServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/api/v1/attestation/sth", "/log/" + id.Log.Format(b.log.ID) + "/checkpoint", "/api/v1/attestation/consistency-proof?old_size=1&new_size=1"} {
		a := b.do(t, "GET", path, nil)
		problem(t, a, 404, "not-found")
		require.NotEmpty(t, a.header.Get("Retry-After"))
	}
	endpoint := b.endpoint(t)
	b.attempted(t, endpoint, "0")
	first := b.seal(t)
	attempt := b.attempted(t, endpoint, "1")

	unseen := func() {
		t.Helper()
		for _, route := range []string{"proof", "download-proof"} {
			for _, size := range []string{"", "?tree_size=1", "?tree_size=2"} {
				a := b.get(t, "/api/v1/attestation/"+route+"/"+attempt+size)
				p := read[openapi.Pending](t, a, 202)
				require.Equal(t, attempt, p.AttemptID)
				require.Equal(t, fmt.Sprint(p.RetryAfterSeconds), a.header.Get("Retry-After"))
				require.True(t, p.RetryAfterSeconds >= 1 && p.RetryAfterSeconds <= 10, "%d", p.RetryAfterSeconds)
			}
		}
		require.Equal(t, first, headOf(t, read[openapi.SignedTreeHead](t, b.do(t, "GET", "/api/v1/attestation/sth", nil), 200)))
		problem(t, b.do(t, "GET", "/api/v1/attestation/consistency-proof?old_size=1&new_size=2", nil), 404, "not-found")
	}
	unseen() // recorded
	require.EqualValues(t, 2, b.sequence(t, b.log))
	unseen() // in the tree
	head := b.prepareHead(t, b.log)
	unseen() // its head is committed, but not signed
	b.publish(t, b.log, head)
	require.Equal(t, 200, b.get(t, "/api/v1/attestation/download-proof/"+attempt).status)
}

func TestHeadsKeysAndConsistency(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	var heads []verify.SignedTreeHead
	for size := range 9 {
		b.attempted(t, endpoint, fmt.Sprint(size))
		heads = append(heads, b.seal(t))
	}
	for i, old := range heads {
		for _, new := range heads[i:] {
			p := read[openapi.ConsistencyProof](t, b.do(t, "GET", fmt.Sprintf("/api/v1/attestation/consistency-proof?old_size=%d&new_size=%d", old.TreeSize, new.TreeSize), nil), 200)
			require.NoError(t, verify.Consistency(old.TreeSize, new.TreeSize, decodeAll(t, p.ConsistencyProof), old.RootHash, new.RootHash))
		}
	}
	sth := read[openapi.SignedTreeHead](t, b.do(t, "GET", "/api/v1/attestation/sth", nil), 200)
	require.Equal(t, heads[8], headOf(t, sth))
	require.NoError(t, verify.TreeHead(headOf(t, sth), b.log.PublicKey))
	require.Equal(t, id.Log.Format(b.log.ID), sth.LogID)
	require.Equal(t, hex.EncodeToString(verify.LogKeyID(b.log.PublicKey)), sth.LogKeyID)

	note := b.do(t, "GET", "/log/"+sth.LogID+"/checkpoint", nil)
	require.Equal(t, 200, note.status)
	require.Equal(t, sth.Checkpoint, string(note.body))
	require.Equal(t, "text/plain; charset=utf-8", note.header.Get("Content-Type"))
	checkpoint, err := verify.ParseCheckpoint(note.body)
	require.NoError(t, err)
	carried, err := checkpoint.Verify(b.log.PublicKey)
	require.NoError(t, err)
	require.Equal(t, heads[8], carried)

	keys := read[openapi.Keys](t, b.do(t, "GET", "/api/v1/attestation/keys", nil), 200)
	require.Equal(t, b.log.Origin, keys.Origin)
	require.Len(t, keys.Keys, 1)
	require.Equal(t, hex.EncodeToString(b.log.PublicKey), keys.Keys[0].PublicKey)
	require.Equal(t, b.log.VKey, *keys.Keys[0].Vkey)
	require.Equal(t, sth.LogKeyID, keys.Keys[0].LogKeyID)
	require.Nil(t, keys.Keys[0].NotAfter)
}

func TestOneOfSeveralLogsMustBeNamed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.addLog(t)
	b.publish(t, other, b.prepareHead(t, other)) // the empty tree
	for _, path := range []string{"/api/v1/attestation/sth?", "/api/v1/attestation/keys?", "/api/v1/attestation/consistency-proof?old_size=1&new_size=1&"} {
		a := b.do(t, "GET", path, nil)
		p := problem(t, a, 400, "invalid-parameter")
		require.Equal(t, "log", *p.Field)
		require.NotContains(t, string(a.body), "log_", "which logs there are isn't told")
		problem(t, b.do(t, "GET", path+"log="+id.Log.Format(id.New()), nil), 404, "not-found")
	}
	name := id.Log.Format(other.ID)
	require.Equal(t, name, read[openapi.SignedTreeHead](t, b.do(t, "GET", "/api/v1/attestation/sth?log="+name, nil), 200).LogID)
	require.Equal(t, other.VKey, *read[openapi.Keys](t, b.do(t, "GET", "/api/v1/attestation/keys?log="+name, nil), 200).Keys[0].Vkey)
	require.Equal(t, 200, b.do(t, "GET", "/log/"+name+"/checkpoint", nil).status)
}

func TestAnErasedLeafKeepsItsProof(t *testing.T) {
	t.Parallel()
	b := setup(t)
	attempt := b.attempted(t, b.endpoint(t), "0")
	head := b.seal(t)
	_, err := b.owner.Exec(t.Context(), "update merkle_leaves set leaf = null, secrets = null")
	require.NoError(t, err)
	problem(t, b.get(t, "/api/v1/attestation/download-proof/"+attempt), 410, "erased")
	p := read[openapi.InclusionProof](t, b.get(t, "/api/v1/attestation/proof/"+attempt), 200)
	require.Nil(t, p.Leaf)
	require.NoError(t, verify.Inclusion(decodeAll(t, []string{p.LeafHash})[0], 0, 1, decodeAll(t, p.InclusionProof), head.RootHash))
}
