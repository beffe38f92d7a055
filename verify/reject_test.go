package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// TestItMustReject is the list of what a verifier of this log has to refuse, one subtest an item, so that a reader finds
// all of it in one place. Each starts from something that verifies and changes one thing. Other tests go deeper.
func TestItMustReject(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"a key taken from the package":                  rejectsKeyOfPackage,
		"a root taken from the package":                 rejectsRootOfPackage,
		"a valid proof for another event":               rejectsAnother(func(o *verify.Options, id *string) { o.Event = id }, verify.ErrEventMismatch),
		"a valid proof for another tenant":              rejectsAnother(func(o *verify.Options, id *string) { o.Tenant = id }, verify.ErrTenantMismatch),
		"a valid proof for another delivery":            rejectsAnother(func(o *verify.Options, id *string) { o.Delivery = id }, verify.ErrDeliveryMismatch),
		"a valid proof for another attempt":             rejectsAnother(func(o *verify.Options, id *string) { o.Attempt = id }, verify.ErrAttemptMismatch),
		"a valid proof for another payload":             rejectsAnotherPayload,
		"a size outside the signed head":                rejectsSizeOutsideHead,
		"a root outside the signed head":                rejectsRootOutsideHead,
		"an index not below the size":                   rejectsIndexAtSize,
		"a proof that is too long":                      rejectsLongProof,
		"a proof that is too short":                     rejectsShortProof,
		"hashes not of 32 bytes":                        rejectsOddHashes,
		"a node as a leaf":                              rejectsNodeAsLeaf,
		"a leaf as a node":                              rejectsLeafAsNode,
		"CVE-2012-2459 at sizes 3, 5, 6, 7":             rejectsDuplicatedLeaves,
		"consistency from size 0 with a proof":          rejectsProofFromNothing,
		"consistency from size 0 with another root":     rejectsAnotherNothing,
		"a head signed by another log's key":            rejectsKeyOfAnotherLog,
		"a head of another log under the same key":      rejectsOriginOfAnotherLog,
		"an Ed25519ph signature":                        rejectsEd25519ph,
		"an Ed25519ctx signature":                       rejectsEd25519ctx,
		"a malleated signature":                         rejectsMalleatedSignature,
		"a malleated signature of the checkpoint":       rejectsMalleatedCheckpoint,
		"a checkpoint's signature for the head's":       rejectsCheckpointSignatureForHead,
		"a leaf that isn't canonical JSON":              rejectsUncanonicalLeaf,
		"a leaf with a repeated member":                 rejectsRepeatedMember,
		"a leaf with invalid UTF-8":                     rejectsInvalidUTF8,
		"numbers beyond 2^53":                           rejectsHugeNumbers,
		"an unknown format":                             rejectsUnknownFormat,
		"an unknown algorithm":                          rejectsUnknownAlgorithm,
		"a checkpoint that disagrees with the head":     rejectsAnotherCheckpoint,
		"time running backwards":                        rejectsTimeRunningBackwards,
		"files beyond a bound":                          rejectsHugeFiles,
		"a stripped anchor shown as confirmed":          rejectsStrippedAnchor,
		"a forged anchor shown as confirmed":            rejectsForgedAnchor,
		"a stripped salt taken for a match":             rejectsStrippedSalt,
		"a stripped or forged cosignature as a witness": rejectsForgedWitness,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// six is a log of six leaves, and what its holder of leaf 4 hands over.
func six() (*testlog.Log, *verify.ProofPackage) {
	l := testlog.New(1).Fill(6)
	return l, l.Package(4, 6)
}

// rejects wants the package as it was made to verify, and as edit left it to fail with want.
func rejects(t *testing.T, edit func(*testlog.Log, *verify.ProofPackage), want error) {
	t.Helper()
	l, p := six()
	_, err := verify.Package(marshal(t, p), holdsAll(l, 4))
	must(t, err)
	edit(l, p)
	_, err = verify.Package(marshal(t, p), holdsAll(l, 4))
	wantError(t, err, want)
}

func rejectsKeyOfPackage(t *testing.T) {
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { *p = *foreignKey(p, testlog.New(2)) }, verify.ErrUntrustedKey)
	// Without anything that is trusted, there is no verdict at all.
	_, p := six()
	_, err := verify.Package(marshal(t, p), verify.Options{Origin: p.Origin})
	wantError(t, err, verify.ErrOptions)
}

func rejectsRootOfPackage(t *testing.T) {
	rejects(t, func(l *testlog.Log, p *verify.ProofPackage) {
		forged := *l
		forged.Leaves = append([][]byte{}, l.Leaves...)
		forged.Leaves[4], _ = forged.Leaf(99).Bytes()
		signature := p.STH.Signature
		*p = *forged.Package(4, 6) // proof and root fit each other
		p.STH.Signature = signature
	}, verify.ErrSignature)
}

func rejectsAnother(set func(*verify.Options, *string), want error) func(*testing.T) {
	return func(t *testing.T) {
		l, p := six()
		other, opts := testlog.ID("evt", 77), holdsAll(l, 4)
		set(&opts, &other)
		_, err := verify.Package(marshal(t, p), opts)
		wantError(t, err, want)
	}
}

func rejectsAnotherPayload(t *testing.T) {
	l, p := six()
	for _, payload := range [][]byte{nil, {}, []byte("{}"), append(bytes.Clone(testlog.Payload), '\n')} {
		_, err := verify.Package(marshal(t, p), verify.Options{VKey: l.VKey(), Payload: &payload})
		wantError(t, err, verify.ErrPayloadMismatch)
	}
}

func rejectsSizeOutsideHead(t *testing.T) {
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.STH.TreeSize = 5 }, verify.ErrSignature)
	l, _ := six()
	proof := verify.InclusionProof{LeafIndex: 4, TreeSize: 5, Hashes: testlog.Path(4, l.Leaves[:5])}
	wantError(t, verify.Proof(l.Leaves[4], proof, l.Head(6), l.Public()), verify.ErrInclusion)
}

func rejectsRootOutsideHead(t *testing.T) {
	rejects(t, func(l *testlog.Log, p *verify.ProofPackage) { p.STH.RootHash = testlog.Root(l.Leaves[:5]) }, verify.ErrSignature)
}

func rejectsIndexAtSize(t *testing.T) {
	for _, index := range []uint64{5, 6, 7, 1 << 52} {
		rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.LeafIndex = index }, verify.ErrInclusion)
	}
}

func rejectsLongProof(t *testing.T) {
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) {
		p.InclusionProof = append(p.InclusionProof, verify.EmptyRoot())
	}, verify.ErrInclusion)
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) {
		p.InclusionProof = append(verify.Hashes{verify.EmptyRoot()}, p.InclusionProof...)
	}, verify.ErrInclusion)
}

func rejectsShortProof(t *testing.T) {
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.InclusionProof = p.InclusionProof[1:] }, verify.ErrInclusion)
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.InclusionProof = nil }, verify.ErrInclusion)
}

func rejectsOddHashes(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33, 64} {
		rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.InclusionProof[0] = make([]byte, n) }, verify.ErrPackageFormat)
	}
}

// The tree of 6 has a node over leaves 4 and 5. Its preimage is 65 bytes; as "leaf" it would need the prefix 0x00.
func rejectsNodeAsLeaf(t *testing.T) {
	l, _ := six()
	left, right := verify.LeafHash(l.Leaves[4]), verify.LeafHash(l.Leaves[5])
	top := testlog.Path(4, l.Leaves)[1:]
	root := testlog.Root(l.Leaves)
	must(t, verify.Inclusion(verify.NodeHash(left, right), 2, 3, top, root)) // as a hash it fits the shape of size 3
	for _, preimage := range [][]byte{append(bytes.Clone(left), right...), append(append([]byte{1}, left...), right...)} {
		wantError(t, verify.Inclusion(verify.LeafHash(preimage), 2, 3, top, root), verify.ErrInclusion)
		// And Proof takes bytes, under a head that says 6.
		proof := verify.InclusionProof{LeafIndex: 2, TreeSize: 3, Hashes: top}
		wantError(t, verify.Proof(preimage, proof, l.Head(6), l.Public()), verify.ErrInclusion)
	}
}

func rejectsLeafAsNode(t *testing.T) {
	left, right := testlog.Numbered(2)[0], testlog.Numbered(2)[1]
	l, r := verify.LeafHash(left), verify.LeafHash(right)
	node := append(append([]byte{1}, l...), r...) // a leaf that looks like what a node hashes
	if bytes.Equal(verify.LeafHash(node), verify.NodeHash(l, r)) || bytes.Equal(verify.LeafHash(node[1:]), verify.NodeHash(l, r)) {
		t.Fatal("a leaf has the hash of a node")
	}
	wantError(t, verify.Inclusion(l, 0, 2, [][]byte{r}, verify.LeafHash(node)), verify.ErrInclusion)
}

func rejectsDuplicatedLeaves(t *testing.T) {
	for _, n := range []int{3, 5, 6, 7} {
		leaves := testlog.Numbered(n)
		root, last := testlog.Root(leaves), verify.LeafHash(leaves[n-1])
		flawed, path := duplicatingTree(leaves)
		wantError(t, verify.Inclusion(last, uint64(n-1), uint64(n), path, flawed), verify.ErrInclusion)
		wantError(t, verify.Inclusion(last, uint64(n), uint64(n+1), path, root), verify.ErrInclusion)
		// The tree with the last leaf (or the last pair) once more has another root, and isn't this tree.
		for _, again := range [][][]byte{append(cloned(leaves), leaves[n-1]), append(cloned(leaves), leaves[max(0, n-2):]...)} {
			if bytes.Equal(testlog.Root(again), root) {
				t.Fatalf("sizes %d and %d share a root", n, len(again))
			}
			size := uint64(len(again))
			proof := testlog.ConsistencyPath(n, again)
			must(t, verify.Consistency(uint64(n), size, proof, root, testlog.Root(again)))
			wantError(t, verify.Consistency(uint64(n), size, proof, root, root), verify.ErrConsistency)
			wantError(t, verify.Inclusion(last, size-1, size, testlog.Path(len(again)-1, again), root), verify.ErrInclusion)
		}
	}
}

func cloned(list [][]byte) [][]byte { return append([][]byte{}, list...) }

func rejectsProofFromNothing(t *testing.T) {
	l, _ := six()
	root := testlog.Root(l.Leaves)
	must(t, verify.Consistency(0, 6, nil, verify.EmptyRoot(), root))
	wantError(t, verify.Consistency(0, 6, [][]byte{root}, verify.EmptyRoot(), root), verify.ErrConsistency)
	wantError(t, verify.Consistency(0, 0, [][]byte{root}, verify.EmptyRoot(), verify.EmptyRoot()), verify.ErrConsistency)
}

func rejectsAnotherNothing(t *testing.T) {
	l, _ := six()
	root := testlog.Root(l.Leaves)
	for _, nothing := range [][]byte{root, make([]byte, 32), nil, {}} {
		wantError(t, verify.Consistency(0, 6, nil, nothing, root), verify.ErrConsistency)
	}
}

func rejectsKeyOfAnotherLog(t *testing.T) {
	l, p := six()
	other := testlog.New(2).Fill(6)
	_, err := verify.Package(marshal(t, p), verify.Options{PublicKey: other.Public()})
	wantError(t, err, verify.ErrUntrustedKey)
	wantError(t, verify.TreeHead(other.Head(6), l.Public()), verify.ErrSignature)
	// The key's name stays, the signature is the other log's.
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.STH.Signature = other.Head(6).Signature }, verify.ErrSignature)
}

func rejectsOriginOfAnotherLog(t *testing.T) {
	l, _ := six()
	twin := &testlog.Log{Origin: testlog.New(2).Origin, Key: l.Key}
	twin.Fill(6)
	_, err := verify.Package(marshal(t, twin.Package(4, 6)), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrOrigin)
}

func rejectsEd25519ph(t *testing.T) { rejectsVariant(t, &ed25519.Options{Hash: crypto.SHA512}) }

func rejectsEd25519ctx(t *testing.T) { rejectsVariant(t, &ed25519.Options{Context: "kapsel"}) }

// rejectsVariant signs the head and the checkpoint with the log's own key, but with another variant of Ed25519.
func rejectsVariant(t *testing.T, variant *ed25519.Options) {
	l, p := six()
	message := verify.STHMessage(p.STH.TreeSize, p.STH.Timestamp, p.STH.RootHash)
	sth := p.STH.SignedTreeHead()
	sth.Signature = signVariant(t, l.Key, message, variant)
	wantError(t, verify.TreeHead(sth, l.Public()), verify.ErrSignature)
	p.STH.Signature = sth.Signature
	_, err := verify.Package(marshal(t, p), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrSignature)

	text := verify.CheckpointText(l.Origin, 6, p.STH.RootHash)
	c, err := verify.ParseCheckpoint(verify.FormatCheckpoint(l.Origin, l.Public(), l.Head(6), signVariant(t, l.Key, []byte(text), variant)))
	must(t, err)
	_, err = c.Verify(l.Public())
	wantError(t, err, verify.ErrSignature)
}

func signVariant(t *testing.T, key ed25519.PrivateKey, message []byte, variant *ed25519.Options) []byte {
	t.Helper()
	if variant.Hash == crypto.SHA512 {
		digest := sha512.Sum512(message)
		message = digest[:]
	}
	sig, err := key.Sign(nil, message, variant)
	must(t, err)
	return sig
}

// malleate adds the order of the group to S, which gives a second signature for verifiers that don't look (RFC 8032,
// section 5.1.7, demands S < L).
func malleate(sig []byte) []byte {
	order, _ := new(big.Int).SetString("27742317777372353535851937790883648493", 10)
	order.Add(order, new(big.Int).Lsh(big.NewInt(1), 252))
	s := bytes.Clone(sig[32:])
	reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order)
	out := sum.FillBytes(make([]byte, 32))
	reverse(out)
	return append(bytes.Clone(sig[:32]), out...)
}

func reverse(b []byte) {
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
}

func rejectsMalleatedSignature(t *testing.T) {
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.STH.Signature = malleate(p.STH.Signature) }, verify.ErrSignature)
}

func rejectsMalleatedCheckpoint(t *testing.T) {
	rejects(t, func(l *testlog.Log, p *verify.ProofPackage) {
		c, err := verify.ParseCheckpoint([]byte(p.Checkpoint))
		must(t, err)
		c.Note.Signatures[0].Signature = malleate(c.Note.Signatures[0].Signature)
		p.Checkpoint = string(c.Note.Bytes())
	}, verify.ErrSignature)
}

// One key signs both; neither signature stands for the other.
func rejectsCheckpointSignatureForHead(t *testing.T) {
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) {
		c, err := verify.ParseCheckpoint([]byte(p.Checkpoint))
		must(t, err)
		p.STH.Signature = c.Note.Signatures[0].Signature
	}, verify.ErrSignature)
}

// rejectsLoggedLeaf logs bytes that aren't leaf v1: everything about the proof holds, and the leaf is refused still.
func rejectsLoggedLeaf(t *testing.T, want error, edit func(string) string) {
	l, _ := six()
	leaf := []byte(edit(string(l.Leaves[4])))
	if bytes.Equal(leaf, l.Leaves[4]) {
		t.Fatal("nothing was changed")
	}
	l.Leaves[4] = leaf
	_, err := verify.Package(marshal(t, l.Package(4, 6)), verify.Options{VKey: l.VKey()})
	wantError(t, err, want)
}

func rejectsUncanonicalLeaf(t *testing.T) {
	for _, change := range [][2]string{
		{`{"attempt_id"`, `{ "attempt_id"`}, {`"kind":"attempt"`, `"kind":"\u0061ttempt"`},
		{`"duration_ms":41`, `"duration_ms":4.1e1`}, {`"duration_ms":41`, `"duration_ms":41.0`}, {`"v":1}`, `"v":1}` + "\n"},
	} {
		rejectsLoggedLeaf(t, verify.ErrLeafFormat, func(s string) string { return strings.Replace(s, change[0], change[1], 1) })
	}
	rejectsLoggedLeaf(t, verify.ErrLeafFormat, func(s string) string { // another order
		return `{"v":1,` + strings.TrimSuffix(s[1:], `,"v":1}`) + `}`
	})
}

func rejectsRepeatedMember(t *testing.T) {
	rejectsLoggedLeaf(t, verify.ErrLeafFormat, func(s string) string { return strings.Replace(s, `"seq":1`, `"seq":1,"seq":1`, 1) })
}

func rejectsInvalidUTF8(t *testing.T) {
	rejectsLoggedLeaf(t, verify.ErrLeafFormat, func(s string) string { return strings.Replace(s, `"error":""`, "\"error\":\"\xff\"", 1) })
}

func rejectsHugeNumbers(t *testing.T) {
	for _, n := range []string{"9007199254740992", "18446744073709551616", "1e300", "-1"} {
		rejectsLoggedLeaf(t, verify.ErrLeafFormat, func(s string) string { return strings.Replace(s, `"duration_ms":41`, `"duration_ms":`+n, 1) })
	}
	l, p := six()
	b := bytes.Replace(marshal(t, p), []byte(`"leaf_index":4`), []byte(`"leaf_index":9007199254740992`), 1)
	_, err := verify.Package(b, verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrPackageFormat)
	huge := l.Head(6)
	huge.TreeSize = 1 << 53
	huge.Signature = ed25519.Sign(l.Key, verify.STHMessage(huge.TreeSize, huge.Timestamp, huge.RootHash))
	wantError(t, verify.TreeHead(huge, l.Public()), verify.ErrHeadFormat)
}

func rejectsUnknownFormat(t *testing.T) {
	for _, format := range []string{"", "kapsel.proof/v2", "kapsel.proof/V1", "kapsel.evidence/v1"} {
		rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.Format = format }, verify.ErrPackageFormat)
	}
	rejectsLoggedLeaf(t, verify.ErrLeafFormat, func(s string) string { return strings.Replace(s, `"v":1`, `"v":2`, 1) })
}

// A vkey names its algorithm in the first byte of what it encodes; 0x01 is Ed25519.
func rejectsUnknownAlgorithm(t *testing.T) {
	rejects(t, func(l *testlog.Log, p *verify.ProofPackage) {
		prefix := strings.Join(strings.Split(l.VKey(), "+")[:2], "+")
		p.VKey = prefix + "+" + base64.StdEncoding.EncodeToString(append([]byte{2}, l.Public()...))
	}, verify.ErrPackageFormat)
}

func rejectsAnotherCheckpoint(t *testing.T) {
	rejects(t, func(l *testlog.Log, p *verify.ProofPackage) { p.Checkpoint = string(l.Checkpoint(l.Head(5))) }, verify.ErrHeadMismatch)
	rejects(t, func(l *testlog.Log, p *verify.ProofPackage) { // the same tree, signed again a second later
		again := l.Head(6)
		again.Timestamp += 1000
		again.Signature = ed25519.Sign(l.Key, verify.STHMessage(again.TreeSize, again.Timestamp, again.RootHash))
		p.Checkpoint = string(l.Checkpoint(again))
	}, verify.ErrHeadMismatch)
}

func rejectsTimeRunningBackwards(t *testing.T) {
	l, _ := six()
	smaller, larger := l.Head(4), l.Head(6)
	smaller.Timestamp = larger.Timestamp + 1
	for _, pair := range [][2]verify.SignedTreeHead{{smaller, larger}, {larger, smaller}} {
		verdict, err := verify.CompareHeads(pair[0], pair[1], testlog.EvidencePath(4, l.Leaves))
		must(t, err)
		if verdict != verify.Rollback {
			t.Errorf("the verdict is %q", verdict)
		}
	}
	// Of a leaf, the time is only what the recording process thought; it warns.
	l.Append(func(leaf *verify.Leaf) { leaf.AttemptedAt = "2030-01-01T00:00:00.000Z" })
	r, err := verify.Package(marshal(t, l.Package(6, 7)), verify.Options{VKey: l.VKey()})
	must(t, err)
	if len(r.Warnings) != 1 {
		t.Errorf("warnings: %q", r.Warnings)
	}
}

func rejectsHugeFiles(t *testing.T) {
	l, p := six()
	_, err := verify.Package(append(marshal(t, p), bytes.Repeat([]byte{' '}, verify.MaxPackageSize)...), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrPackageFormat)
	_, err = verify.ParseNote(append([]byte(p.Checkpoint), bytes.Repeat([]byte{'\n'}, verify.MaxNoteSize)...))
	wantError(t, err, verify.ErrNoteFormat)
	_, err = verify.ParseLeaf(append(l.Leaves[0], bytes.Repeat([]byte{' '}, verify.MaxLeafSize)...))
	wantError(t, err, verify.ErrLeafFormat)
	_, err = verify.ParseEvidence(bytes.Repeat([]byte{' '}, verify.MaxPackageSize+1))
	wantError(t, err, verify.ErrEvidenceFormat)
	wantError(t, verify.Inclusion(verify.EmptyRoot(), 0, verify.MaxTreeSize, repeat(verify.EmptyRoot(), 64), verify.EmptyRoot()), verify.ErrInclusion)
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.Anchors = make([]verify.PackageAnchor, 65) }, verify.ErrPackageFormat)
}

func repeat(h []byte, n int) (list [][]byte) {
	for range n {
		list = append(list, h)
	}
	return list
}

func rejectsStrippedAnchor(t *testing.T) {
	l, p := six()
	p.Anchors = nil
	r, err := verify.Package(marshal(t, p), verify.Options{VKey: l.VKey()})
	must(t, err)
	if r.Anchors != 0 {
		t.Errorf("%d anchors in a package that holds none", r.Anchors)
	}
}

func rejectsForgedAnchor(t *testing.T) {
	l, p := six()
	for _, kind := range []string{"", "ethereum", "bitcoin", "rfc3161"} {
		p.Anchors = []verify.PackageAnchor{{Type: kind, Checkpoint: p.Checkpoint, Proof: "confirmed"}}
		r, err := verify.Package(marshal(t, p), verify.Options{VKey: l.VKey()})
		must(t, err)
		if r.Anchors != 0 || len(r.Warnings) != 1 {
			t.Errorf("anchor %q: %d confirmed, warnings %q", kind, r.Anchors, r.Warnings)
		}
	}
}

func rejectsStrippedSalt(t *testing.T) {
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.Salts.Payload = nil }, verify.ErrPackageFormat)
	rejects(t, func(_ *testlog.Log, p *verify.ProofPackage) { p.Salts = nil }, verify.ErrErased)
}

func rejectsForgedWitness(t *testing.T) {
	l, p := six()
	vkey, id := witnessVKey("witness.example", testlog.New(8).Public())
	opts := verify.Options{VKey: l.VKey(), Witnesses: []string{vkey}, Quorum: 1}
	_, err := verify.Package(marshal(t, p), opts)
	wantError(t, err, verify.ErrQuorum)
	c, err := verify.ParseCheckpoint([]byte(p.Checkpoint))
	must(t, err)
	c.Note.Signatures = append(c.Note.Signatures, verify.NoteSignature{Name: "witness.example", KeyID: id, Signature: make([]byte, 72)})
	p.Checkpoint = string(c.Note.Bytes())
	_, err = verify.Package(marshal(t, p), opts)
	wantError(t, err, verify.ErrSignature)
}

// FuzzProof reads a proof, in JSON, as both kinds: whatever it holds, only the genuine hashes lead from leaf 2 of 6, and
// from size 3 to size 6, to the root.
func FuzzProof(f *testing.F) {
	leaves := testlog.Numbered(6)
	root, paths := testlog.Paths(leaves)
	old, size := testlog.Root(leaves[:3]), uint64(len(leaves))
	consistency := testlog.ConsistencyPath(3, leaves)
	for _, list := range [][][]byte{paths[2], consistency, nil, repeat(root, 64), {root[:31]}} {
		b, err := json.Marshal(verify.Hashes(list))
		must(f, err)
		f.Add(b, uint64(2))
	}
	f.Add([]byte(`["zz"]`), uint64(6))
	f.Fuzz(func(t *testing.T, b []byte, index uint64) {
		var hashes verify.Hashes
		if json.Unmarshal(b, &hashes) != nil {
			return
		}
		if verify.Inclusion(verify.LeafHash(leaves[2]), index, size, hashes, root) == nil && (index != 2 || !equal(hashes, paths[2])) {
			t.Fatalf("leaf 2 is also proved at %d by %s", index, b)
		}
		if verify.Consistency(3, size, hashes, old, root) == nil && !equal(hashes, consistency) {
			t.Fatalf("another proof of consistency: %s", b)
		}
	})
}

func equal(a, b [][]byte) bool {
	return bytes.Equal(bytes.Join(a, nil), bytes.Join(b, nil)) && len(a) == len(b)
}

// FuzzParseNote wants a note to have one spelling.
func FuzzParseNote(f *testing.F) {
	l, p := six()
	f.Add([]byte(p.Checkpoint))
	f.Add([]byte(l.Transition(testlog.Key(3), verify.ReasonRotation)))
	f.Add([]byte("a\n\n\n\n— a AAAAAAA=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := verify.ParseNote(b)
		if err == nil && !bytes.Equal(n.Bytes(), b) {
			t.Fatalf("%q is read as %q", b, n.Bytes())
		}
	})
}
