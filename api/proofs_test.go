package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// askProofs asks for many proofs at once. treeSize 0 leaves it out.
func (b *testBundle) askProofs(t testing.TB, treeSize int64, attempts ...string) answer {
	t.Helper()
	request := map[string]any{"attempt_ids": attempts}
	if treeSize != 0 {
		request["tree_size"] = treeSize
	}
	body, err := json.Marshal(request)
	require.NoError(t, err)
	return b.post(t, "/api/v1/attestation/proofs", string(body))
}

// requireProven checks a proof of many by itself, and that it says what the proof of one says.
func (b *testBundle) requireProven(t testing.TB, all openapi.Proofs, p openapi.ProofOfMany, query string) {
	t.Helper()
	require.Equal(t, openapi.ProofOfManyStatusProven, p.Status, "%+v", p)
	alone := read[openapi.InclusionProof](t, b.get(t, "/api/v1/attestation/proof/"+p.AttemptID+query), 200)
	require.Equal(t, alone, openapi.InclusionProof{
		AttemptID: p.AttemptID, LeafIndex: *p.LeafIndex, LeafHash: *p.LeafHash, Leaf: p.Leaf, InclusionProof: *p.InclusionProof, Sth: all.Heads[*p.Head],
	})
	require.Nil(t, p.RetryAfterSeconds)
}

func TestManyProofsAreThoseOfEach(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	var attempts []string
	var sizes []uint64
	for i := range 40 {
		attempts = append(attempts, b.attempted(t, endpoint, fmt.Sprint(i)))
		if i%13 == 5 {
			b.queueLeaves(t, b.log, 150) // of others
			sizes = append(sizes, b.seal(t).TreeSize)
		}
	}
	b.sequence(t, b.log)
	attempts = append(attempts, b.attempted(t, endpoint, "not sequenced"))
	waiting := slices.Clone(attempts[32:]) // under no head, and the last not even in the tree
	slices.Reverse(attempts)               // in whatever order

	all := read[openapi.Proofs](t, b.askProofs(t, 0, attempts...), 200)
	require.Len(t, all.Proofs, len(attempts))
	var heads []uint64
	for i, p := range all.Proofs {
		require.Equal(t, attempts[i], p.AttemptID, "in the order asked for")
		if slices.Contains(waiting, p.AttemptID) {
			wait := *p.RetryAfterSeconds
			require.True(t, wait >= 1 && wait <= 10)
			require.Equal(t, openapi.ProofOfMany{AttemptID: p.AttemptID, Status: openapi.ProofOfManyStatusPending, RetryAfterSeconds: &wait}, p)
			continue
		}
		b.requireProven(t, all, p, "")
		leaf, err := base64.StdEncoding.DecodeString(*p.Leaf)
		require.NoError(t, err)
		head := headOf(t, all.Heads[*p.Head])
		require.NoError(t, verify.Proof(leaf, verify.InclusionProof{
			LeafIndex: uint64(*p.LeafIndex), TreeSize: head.TreeSize, Hashes: decodeAll(t, *p.InclusionProof),
		}, head, b.log.PublicKey))
	}
	for _, head := range all.Heads {
		heads = append(heads, uint64(head.TreeSize))
	}
	slices.Sort(heads)
	require.Equal(t, sizes, heads, "each head once, and no other")

	first := read[openapi.Proofs](t, b.askProofs(t, int64(sizes[2]), attempts[9:]...), 200)
	require.Len(t, first.Heads, 1)
	require.EqualValues(t, sizes[2], first.Heads[0].TreeSize)
	for _, p := range first.Proofs {
		b.requireProven(t, first, p, fmt.Sprint("?tree_size=", sizes[2]))
	}
}

// A tenant whose log was closed has leaves in two logs. Each is proved in its own.
func TestManyProofsOfSeveralLogs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	old := b.attempted(t, endpoint, "0")
	b.seal(t)
	other := b.addLog(t)
	_, err := b.owner.Exec(t.Context(), "update tenants set log_id = $1 where id = $2", other.ID, b.tenant)
	require.NoError(t, err)
	var young string
	require.Eventually(t, func() bool { // the api remembers an endpoint's log for 2 s
		young = b.attempted(t, endpoint, "1")
		return b.sequence(t, other) > 0
	}, 10*time.Second, 100*time.Millisecond)
	b.publish(t, other, b.prepareHead(t, other))
	all := read[openapi.Proofs](t, b.askProofs(t, 0, young, old), 200)
	require.Len(t, all.Heads, 2)
	for i, origin := range []string{other.Origin, b.log.Origin} {
		b.requireProven(t, all, all.Proofs[i], "")
		require.Equal(t, origin, all.Heads[*all.Proofs[i].Head].Origin)
	}
}

func TestManyProofsAfterErasure(t *testing.T) {
	t.Parallel()
	b := setup(t)
	attempt := b.attempted(t, b.endpoint(t), "0")
	head := b.seal(t)
	_, err := b.owner.Exec(t.Context(), "update merkle_leaves set leaf = null, secrets = null")
	require.NoError(t, err)
	all := read[openapi.Proofs](t, b.askProofs(t, 0, attempt), 200)
	p := all.Proofs[0]
	require.Nil(t, p.Leaf)
	b.requireProven(t, all, p, "")
	require.NoError(t, verify.Inclusion(decodeAll(t, []string{*p.LeafHash})[0], 0, 1, decodeAll(t, *p.InclusionProof), head.RootHash))
}

// What can't be answered as a whole isn't answered in part, and the problem says which attempt it was.
func TestManyProofsAreRefusedByName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	attempts := []string{b.attempted(t, endpoint, "0")}
	b.seal(t)
	attempts = append(attempts, b.attempted(t, endpoint, "1"))
	b.seal(t)
	unknown := id.Attempt.Format(id.New())
	refused := func(a answer, status int, kind, field string) openapi.Problem {
		t.Helper()
		p := problem(t, a, status, kind)
		require.Equal(t, field, *p.Field)
		return p
	}
	refused(b.askProofs(t, 0, []string{}...), 422, "invalid-field", "attempt_ids")
	refused(b.askProofs(t, 0, slices.Repeat([]string{unknown}, 1001)...), 422, "invalid-field", "attempt_ids")
	refused(b.askProofs(t, 0, attempts[0], attempts[1], attempts[0]), 422, "invalid-field", "attempt_ids[2]")
	for _, wrong := range []string{"", "da_", attempts[0] + "0", "dlv" + attempts[0][2:], strings.ToUpper(attempts[0]), "'; drop table attempts; --"} {
		refused(b.askProofs(t, 0, attempts[0], wrong), 422, "invalid-field", "attempt_ids[1]")
	}
	refused(b.askProofs(t, -1, attempts...), 422, "invalid-field", "tree_size")
	refused(b.askProofs(t, 1, attempts...), 422, "invalid-field", "tree_size") // doesn't cover the second
	refused(b.askProofs(t, 3, attempts...), 404, "not-found", "tree_size")
	refused(b.askProofs(t, 1<<62, attempts...), 404, "not-found", "tree_size")
	refused(b.askProofs(t, 0, attempts[0], unknown), 404, "not-found", "attempt_ids[1]")
	for body, status := range map[string]int{`{}`: 422, `{"attempt_ids":null}`: 422, `{"attempt_ids":"x"}`: 422, `{"attempt_ids":[1]}`: 422, `[]`: 400, ``: 400,
		`{"attempt_ids":["` + attempts[0] + `"],"tree_size":1.5}`: 422, `{"attempt_ids":["` + attempts[0] + `"],"tree_size":9223372036854775808}`: 422, `{"attempt_ids":["` + attempts[0] + `"],"x":1}`: 422} {
		require.Equal(t, status, b.post(t, "/api/v1/attestation/proofs", body).status, body)
	}
	problem(t, b.do(t, "POST", "/api/v1/attestation/proofs", strings.NewReader(`{"attempt_ids":["`+attempts[0]+`"]}`)), 401, "unauthorized")

	thousand := make([]string, 1000)
	for i := range thousand {
		thousand[i] = id.Attempt.Format(id.New())
	}
	refused(b.askProofs(t, 0, append(attempts, thousand[2:]...)...), 404, "not-found", "attempt_ids[2]") // so many are allowed

	_, b.key = b.addTenant(t, "Another Bank")
	theirs := refused(b.askProofs(t, 0, attempts[0]), 404, "not-found", "attempt_ids[0]")
	nobodys := refused(b.askProofs(t, 0, unknown), 404, "not-found", "attempt_ids[0]")
	theirs.RequestID, nobodys.RequestID = "", ""
	require.Equal(t, nobodys, theirs, "another tenant's can't be told from none")
}

func TestConsistencyIsAskedForWithSizesThatExist(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queueLeaves(t, b.log, 300)
	head := b.seal(t)
	path := "/api/v1/attestation/consistency-proof?"
	for query, field := range map[string]string{
		"old_size=-1&new_size=300": "old_size", "old_size=0&new_size=300": "old_size", "old_size=x&new_size=300": "old_size",
		"new_size=300": "old_size", "old_size=1": "new_size", "old_size=1&new_size=-300": "new_size", "old_size=1&new_size=0": "new_size",
		"old_size=300&new_size=299": "new_size", "old_size=1&new_size=1e2": "new_size", "old_size=1.0&new_size=300": "old_size",
		"old_size=9223372036854775808&new_size=300": "old_size", "old_size=1&new_size=99999999999999999999": "new_size",
		"old_size=1&old_size=2&new_size=300": "old_size", "old_size=1&new_size=300&tree_size=300": "tree_size",
	} {
		p := problem(t, b.do(t, "GET", path+query, nil), 400, "invalid-parameter")
		require.Equal(t, field, *p.Field, query)
	}
	for _, query := range []string{"old_size=1&new_size=301", "old_size=301&new_size=302", "old_size=1&new_size=9223372036854775807"} {
		p := problem(t, b.do(t, "GET", path+query, nil), 404, "not-found")
		require.Equal(t, "new_size", *p.Field)
		require.Contains(t, p.Detail, "300")
	}
	same := read[openapi.ConsistencyProof](t, b.do(t, "GET", path+"old_size=300&new_size=300", nil), 200)
	require.Empty(t, same.ConsistencyProof)

	// A size that no head of this database has, as after a restore: its holder gets an answer.
	p := read[openapi.ConsistencyProof](t, b.do(t, "GET", path+"old_size=123&new_size=300", nil), 200)
	client := tileClient{t, b, b.log}
	tile := client.get("tile/0/000")
	require.Equal(t, 200, tile.status)
	var leaves [][]byte
	for hash := range slices.Chunk(tile.body[:123*32], 32) {
		leaves = append(leaves, hash)
	}
	require.NoError(t, verify.Consistency(123, 300, decodeAll(t, p.ConsistencyProof), rootOf(leaves), head.RootHash))
}

// rootOf is the definition of RFC 6962, section 2.1, over leaf hashes.
func rootOf(leaves [][]byte) []byte {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	return verify.NodeHash(rootOf(leaves[:k]), rootOf(leaves[k:]))
}

// Who asks again with the ETag is told that nothing has changed, until something has.
func TestAnswersAreAskedForAgainByETag(t *testing.T) {
	t.Parallel()
	b := setup(t)
	attempt := b.attempted(t, b.endpoint(t), "0")
	b.seal(t)
	type route struct {
		path, cache string
		changes     bool // with the next head
	}
	check := func(r route) string {
		t.Helper()
		a := b.get(t, r.path)
		require.Equal(t, 200, a.status, "%s: %s", r.path, a.body)
		require.Equal(t, r.cache, a.header.Get("Cache-Control"), r.path)
		etag := a.header.Get("ETag")
		require.Regexp(t, `^"[0-9a-f]{32}"$`, etag)
		for _, match := range []string{etag, "W/" + etag, `"x",` + etag, "*"} {
			again := b.do(t, "GET", r.path, nil, "Authorization", "Bearer "+b.key, "If-None-Match", match)
			require.Equal(t, 304, again.status, match)
			require.Empty(t, again.body)
			require.Equal(t, etag, again.header.Get("ETag"))
			require.Equal(t, r.cache, again.header.Get("Cache-Control"))
		}
		other := b.do(t, "GET", r.path, nil, "Authorization", "Bearer "+b.key, "If-None-Match", `"`+strings.Repeat("0", 32)+`"`)
		require.Equal(t, 200, other.status)
		require.Equal(t, a.body, other.body)
		return etag
	}
	routes := []route{
		{"/api/v1/attestation/sth", "no-cache", true},
		{"/api/v1/attestation/consistency-proof?old_size=1&new_size=1", "no-cache", false},
		{"/api/v1/attestation/proof/" + attempt, "private, no-cache", false},
		{"/api/v1/attestation/download-proof/" + attempt, "private, no-cache", false},
		{"/api/v1/attestation/download-proof/" + attempt + "?format=json", "private, no-cache", false},
		{"/api/v1/attestation/download-proof/" + attempt + "?format=tlog-proof", "private, no-cache", false},
	}
	before := map[string]string{}
	for _, r := range routes {
		before[r.path] = check(r)
	}
	b.queueLeaves(t, b.log, 1)
	b.seal(t)
	for _, r := range routes {
		require.Equal(t, r.changes, before[r.path] != check(r), r.path)
	}
}

// The text carries the same evidence as the package. That tools of other projects verify it is tested in local.
func TestProofsAreAlsoTextsOfC2SP(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	attempts := []string{b.attempted(t, endpoint, "0"), b.attempted(t, endpoint, "1"), b.attempted(t, endpoint, "2")}
	b.seal(t)
	path := "/api/v1/attestation/download-proof/" + attempts[1]
	pkg, err := verify.ParsePackage(b.get(t, path).body)
	require.NoError(t, err)
	a := b.get(t, path+"?format=tlog-proof")
	require.Equal(t, 200, a.status, "%s", a.body)
	require.Equal(t, "text/plain; charset=utf-8", a.header.Get("Content-Type"))
	require.Equal(t, `attachment; filename="`+attempts[1]+`.tlog-proof"`, a.header.Get("Content-Disposition"))
	lines := []string{"c2sp.org/tlog-proof@v1", "", "index 1"}
	extra, err := json.Marshal(map[string]any{"leaf": pkg.Leaf, "salts": map[string]verify.Hex{
		"payload": pkg.Salts.Payload, "response": pkg.Salts.Response, "url": pkg.Salts.URL, "headers": pkg.Salts.Headers}})
	require.NoError(t, err)
	lines[1] = "extra " + base64.StdEncoding.EncodeToString(extra)
	for _, hash := range pkg.InclusionProof {
		lines = append(lines, base64.StdEncoding.EncodeToString(hash))
	}
	require.Equal(t, strings.Join(lines, "\n")+"\n\n"+pkg.Checkpoint, string(a.body))

	for _, format := range []string{"", "JSON", "xml", "tlog-proof%20"} {
		p := problem(t, b.get(t, path+"?format="+format), 400, "invalid-parameter")
		require.Equal(t, "format", *p.Field)
	}
	_, err = b.owner.Exec(t.Context(), "update merkle_leaves set leaf = null, secrets = null")
	require.NoError(t, err)
	problem(t, b.get(t, path), 410, "erased")
	text := b.get(t, path+"?format=tlog-proof")
	require.Equal(t, 200, text.status)
	require.NotContains(t, string(text.body), "extra", "no leaf any more, only its proof,")
	leaf := []byte(pkg.Leaf)
	for _, held := range []verify.Options{{VKey: pkg.VKey, Leaf: &leaf}, {VKey: pkg.VKey, LeafHash: new(verify.LeafHash(leaf))}} {
		_, err = verify.TLog(text.body, held)
		require.NoError(t, err, "for whoever has kept the leaf or its hash")
	}
	_, err = verify.TLog(text.body, verify.Options{VKey: pkg.VKey})
	require.ErrorIs(t, err, verify.ErrNoLeaf)
}
