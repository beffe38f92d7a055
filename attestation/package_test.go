package attestation_test

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

const testURL = "https://user:pass@example.com/webhook?token=1"

var (
	testPayload  = []byte(`{"zen":"Keep it logically awesome."}`)
	testResponse = []byte("ok")
	testHeaders  = attestation.CanonicalHeaders(map[string][]string{"X-GitHub-Event": {"ping"}})
	testDelivery = uuid.MustParse("019aab00-0102-7304-8506-0708090a0b0c")
)

func testSalts(t testing.TB) *verify.Salts {
	salts, err := attestation.SaltsOf(bytes.Repeat([]byte{1}, 32),
		attestation.AttemptSecret(bytes.Repeat([]byte{2}, 32), testDelivery, 1))
	require.NoError(t, err)
	return salts
}

func testLeaf(t testing.TB) *verify.Leaf {
	salts := testSalts(t)
	return &verify.Leaf{
		AttemptID:      id.Attempt.Format(id.AttemptOf(testDelivery, 1)),
		AttemptNumber:  1,
		AttemptedAt:    verify.FormatTime(time.UnixMilli(1763999999000)),
		DeliveryID:     id.Delivery.Format(testDelivery),
		DestinationID:  id.Destination.Format(testDelivery),
		DurationMS:     41,
		EndpointID:     id.Endpoint.Format(testDelivery),
		EndpointURL:    "https://example.com/webhook",
		EventID:        id.Event.Format(testDelivery),
		HeadersHash:    attestation.Commit(verify.LabelHeaders, salts.Headers, testHeaders),
		Kind:           verify.KindAttempt,
		Nonce:          attestation.NewNonce(),
		Origin:         testOrigin,
		Outcome:        verify.OutcomeDelivered,
		PayloadHash:    attestation.Commit(verify.LabelPayload, salts.Payload, testPayload),
		PayloadSize:    int64(len(testPayload)),
		ResponseHash:   attestation.Commit(verify.LabelResponse, salts.Response, testResponse),
		ResponseSize:   int64(len(testResponse)),
		ResponseStatus: 200,
		Seq:            1,
		TenantID:       id.Tenant.Format(testDelivery),
		URLHash:        attestation.Commit(verify.LabelURL, salts.URL, []byte(testURL)),
		V:              1,
	}
}

// testEvidence puts a real leaf at place 300 of a log of 500, and signs the head.
func testEvidence(t testing.TB, s *attestation.Signer) attestation.Evidence {
	leaf, err := testLeaf(t).Bytes()
	require.NoError(t, err)
	tree, err := attestation.OpenTree(0, verify.EmptyRoot(), nil)
	require.NoError(t, err)
	hashes := testHashes(0, 500)
	hashes[300] = verify.LeafHash(leaf)
	growth, err := tree.Append(hashes)
	require.NoError(t, err)
	log := memLog{tiles: map[attestation.TileID][]byte{}}
	for _, tile := range growth.Tiles {
		log.tiles[tile.ID()] = tile.Hashes
	}
	path, err := attestation.ProveInclusion(context.Background(), log.read, 300, growth.Size)
	require.NoError(t, err)
	sth, err := s.SignTreeHead(attestation.Head{TreeSize: growth.Size, Timestamp: 1764000000000, RootHash: growth.Root})
	require.NoError(t, err)
	checkpoint, err := s.SignCheckpoint(sth)
	require.NoError(t, err)
	return attestation.Evidence{
		Origin: testOrigin, Key: s.PublicKey(), Leaf: leaf, Salts: testSalts(t),
		Proof: verify.InclusionProof{LeafIndex: 300, TreeSize: growth.Size, Hashes: path},
		Head:  sth, Checkpoint: checkpoint,
	}
}

// A stranger with the key and what was sent and received gets a yes to all of it.
func TestPackageIsAcceptedByTheVerifier(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	evidence := testEvidence(t, s)
	pkg, err := evidence.Package()
	require.NoError(t, err)

	url, attempt := testURL, id.Attempt.Format(id.AttemptOf(testDelivery, 1))
	result, err := verify.Package(pkg, verify.Options{
		PublicKey: s.PublicKey(), Origin: testOrigin, Attempt: &attempt,
		Payload: &testPayload, Response: &testResponse, URL: &url, Headers: &testHeaders,
	})
	require.NoError(t, err)
	require.True(t, result.Delivered())
	require.Empty(t, result.Warnings)
	require.EqualValues(t, 300, result.LeafIndex)
	require.Equal(t, []verify.Check{verify.Matched, verify.Matched, verify.Matched, verify.Matched},
		[]verify.Check{result.Payload, result.Response, result.URL, result.Headers})

	other := append(testPayload[:len(testPayload):len(testPayload)], ' ')
	_, err = verify.Package(pkg, verify.Options{PublicKey: s.PublicKey(), Payload: &other})
	require.ErrorIs(t, err, verify.ErrPayloadMismatch)
	_, err = verify.Package(pkg, verify.Options{PublicKey: testSigner(t, 2).PublicKey()})
	require.ErrorIs(t, err, verify.ErrUntrustedKey)
}

func TestPackageAfterErasure(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	evidence := testEvidence(t, s)
	evidence.Salts = nil
	pkg, err := evidence.Package()
	require.NoError(t, err)
	require.NotContains(t, string(pkg), "salts")
	result, err := verify.Package(pkg, verify.Options{PublicKey: s.PublicKey()})
	require.NoError(t, err)
	require.Equal(t, verify.Erased, result.Payload)
	_, err = verify.Package(pkg, verify.Options{PublicKey: s.PublicKey(), Payload: &testPayload})
	require.ErrorIs(t, err, verify.ErrErased)
}

// Any byte changed, anywhere in the file: either it is rejected, or it reads as the very same package (a changed space
// between members).
func TestPackageWithAnyByteChanged(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	pkg, err := testEvidence(t, s).Package()
	require.NoError(t, err)
	want, err := verify.ParsePackage(pkg)
	require.NoError(t, err)
	want.Salts = nil // opened only by who holds the contents
	for i := range pkg {
		changed := bytes.Clone(pkg)
		changed[i] ^= 1 << (i % 8)
		if _, err := verify.Package(changed, verify.Options{PublicKey: s.PublicKey()}); err != nil {
			continue
		}
		got, err := verify.ParsePackage(changed)
		require.NoError(t, err)
		got.Salts = nil
		require.Equal(t, want, got, "byte %d", i)
	}
}

// What a verifier would reject is never handed out.
func TestPackageRefusesBrokenEvidence(t *testing.T) {
	t.Parallel()
	s := testSigner(t, 1)
	for name, c := range map[string]struct {
		change func(*attestation.Evidence)
		want   error
	}{
		"leaf":             {func(e *attestation.Evidence) { e.Leaf = append(e.Leaf, ' ') }, verify.ErrInclusion},
		"index":            {func(e *attestation.Evidence) { e.Proof.LeafIndex++ }, verify.ErrInclusion},
		"path":             {func(e *attestation.Evidence) { e.Proof.Hashes = e.Proof.Hashes[1:] }, verify.ErrInclusion},
		"size of the path": {func(e *attestation.Evidence) { e.Proof.TreeSize-- }, verify.ErrInclusion},
		"key":              {func(e *attestation.Evidence) { e.Key = testSigner(t, 2).PublicKey() }, verify.ErrSignature},
		"time":             {func(e *attestation.Evidence) { e.Head.Timestamp++ }, verify.ErrSignature},
		"origin":           {func(e *attestation.Evidence) { e.Origin += "x" }, verify.ErrOrigin},
		"no checkpoint":    {func(e *attestation.Evidence) { e.Checkpoint = nil }, verify.ErrNoteFormat},
		"a salt too short": {func(e *attestation.Evidence) { e.Salts.URL = e.Salts.URL[1:] }, verify.ErrPackageFormat},
		"an older head":    {func(e *attestation.Evidence) { e.Head.TreeSize--; e.Proof.TreeSize-- }, verify.ErrSignature},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			evidence := testEvidence(t, s)
			c.change(&evidence)
			_, err := evidence.Package()
			require.ErrorIs(t, err, c.want)
		})
	}
}

func TestPackageIsJSONOfTheDocumentedMembers(t *testing.T) {
	t.Parallel()
	pkg, err := testEvidence(t, testSigner(t, 1)).Package()
	require.NoError(t, err)
	var members map[string]any
	require.NoError(t, json.Unmarshal(pkg, &members))
	for _, name := range []string{
		"format", "origin", "vkey", "log_key_id", "leaf", "salts", "leaf_index", "inclusion_proof", "sth", "checkpoint",
	} {
		require.Contains(t, members, name)
	}
	require.Equal(t, "kapsel.proof/v1", members["format"])
}
