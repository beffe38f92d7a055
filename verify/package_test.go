package verify_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// marshal writes a package.
func marshal(t tester, p *verify.ProofPackage) []byte {
	t.Helper()
	b, err := json.Marshal(p)
	must(t, err)
	return b
}

// holdsAll is a caller who trusts l and holds everything that leaf n commits to.
func holdsAll(l *testlog.Log, n int) verify.Options {
	payload, response, headers, url := testlog.Payload, testlog.Response, testlog.Headers, testlog.URL
	leaf := l.Leaf(n)
	return verify.Options{
		VKey: l.VKey(), Payload: &payload, Response: &response, Headers: &headers, URL: &url,
		Attempt: &leaf.AttemptID, Delivery: &leaf.DeliveryID, Event: &leaf.EventID, Tenant: &leaf.TenantID,
	}
}

func TestAGoodPackageIsVerified(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(7)
	for size := 1; size <= 7; size++ {
		for i := range size {
			r, err := verify.Package(marshal(t, l.Package(i, size)), holdsAll(l, i))
			must(t, err)
			if !r.Delivered() || *r.Leaf != *l.Leaf(i) || r.LeafIndex != uint64(i) || r.Head.TreeSize != uint64(size) ||
				!r.OriginBound || r.Origin != l.Origin || !bytes.Equal(r.LeafHash, verify.LeafHash(l.Leaves[i])) ||
				r.Payload != verify.Matched || r.Response != verify.Matched || r.URL != verify.Matched ||
				r.Headers != verify.Matched || r.Witnesses != 0 || r.Anchors != 0 || len(r.Warnings) != 0 {
				t.Fatalf("leaf %d of %d: %+v", i, size, r)
			}
		}
	}
}

func TestOnlyAPublicKeyBindsNoOrigin(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(3)
	r, err := verify.Package(marshal(t, l.Package(1, 3)), verify.Options{PublicKey: l.Public()})
	must(t, err)
	if r.OriginBound || r.Payload != verify.NotChecked || r.Response != verify.NotChecked || r.URL != verify.NotChecked {
		t.Fatalf("got %+v", r)
	}
}

func TestEveryFlippedByteOfAPackageIsRejected(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	pkg, opts := marshal(t, l.Package(4, 6)), holdsAll(l, 4)
	_, err := verify.Package(pkg, opts)
	must(t, err)
	for i := range pkg {
		for _, mask := range []byte{0x01, 0x20} {
			pkg[i] ^= mask
			if _, err := verify.Package(pkg, opts); err == nil {
				t.Fatalf("byte %d, mask %#x: accepted", i, mask)
			}
			pkg[i] ^= mask
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		tampered := bytes.Clone(pkg)
		flip(r, tampered)
		if _, err := verify.Package(tampered, opts); err == nil {
			r.Fatalf("accepted: %s", tampered)
		}
	})
}

// Each part is changed in place, and the step that must notice is named.
func TestTamperedPackages(t *testing.T) {
	t.Parallel()
	l, other := testlog.New(1).Fill(6), testlog.New(2).Fill(6)
	foreign := l.Package(4, 6)
	for name, c := range map[string]struct {
		edit func(*verify.ProofPackage)
		want error
	}{
		"leaf":                    {func(p *verify.ProofPackage) { p.Leaf[40] ^= 1 }, verify.ErrInclusion},
		"another leaf":            {func(p *verify.ProofPackage) { p.Leaf = l.Leaves[3] }, verify.ErrInclusion},
		"index":                   {func(p *verify.ProofPackage) { p.LeafIndex = 5 }, verify.ErrInclusion},
		"index at size":           {func(p *verify.ProofPackage) { p.LeafIndex = 6 }, verify.ErrInclusion},
		"path":                    {func(p *verify.ProofPackage) { p.InclusionProof[0][5] ^= 1 }, verify.ErrInclusion},
		"path too short":          {func(p *verify.ProofPackage) { p.InclusionProof = p.InclusionProof[1:] }, verify.ErrInclusion},
		"short hash":              {func(p *verify.ProofPackage) { p.InclusionProof[0] = p.InclusionProof[0][:31] }, verify.ErrPackageFormat},
		"64 hashes":               {func(p *verify.ProofPackage) { p.InclusionProof = make(verify.Hashes, 64) }, verify.ErrPackageFormat},
		"head's size":             {func(p *verify.ProofPackage) { p.STH.TreeSize++ }, verify.ErrSignature},
		"head's time":             {func(p *verify.ProofPackage) { p.STH.Timestamp++ }, verify.ErrSignature},
		"head's root":             {func(p *verify.ProofPackage) { p.STH.RootHash[0] ^= 1 }, verify.ErrSignature},
		"head's signature":        {func(p *verify.ProofPackage) { p.STH.Signature[0] ^= 1 }, verify.ErrSignature},
		"signature too short":     {func(p *verify.ProofPackage) { p.STH.Signature = p.STH.Signature[:63] }, verify.ErrHeadFormat},
		"root too short":          {func(p *verify.ProofPackage) { p.STH.RootHash = p.STH.RootHash[:16] }, verify.ErrHeadFormat},
		"checkpoint of old head":  {func(p *verify.ProofPackage) { p.Checkpoint = l.Package(4, 5).Checkpoint }, verify.ErrHeadMismatch},
		"checkpoint of other log": {func(p *verify.ProofPackage) { p.Checkpoint = other.Package(4, 6).Checkpoint }, verify.ErrOrigin},
		"checkpoint unsigned":     {func(p *verify.ProofPackage) { p.Checkpoint = strings.Split(p.Checkpoint, "\n\n")[0] }, verify.ErrNoteFormat},
		"no checkpoint":           {func(p *verify.ProofPackage) { p.Checkpoint = "" }, verify.ErrNoteFormat},
		"origin":                  {func(p *verify.ProofPackage) { p.Origin = other.Origin }, verify.ErrPackageFormat},
		"origin and vkey":         {func(p *verify.ProofPackage) { p.Origin, p.VKey = "x", verify.VKey("x", l.Public()) }, verify.ErrOrigin},
		"key ID":                  {func(p *verify.ProofPackage) { p.LogKeyID[0] ^= 1 }, verify.ErrPackageFormat},
		"format":                  {func(p *verify.ProofPackage) { p.Format = "kapsel.proof/v2" }, verify.ErrPackageFormat},
		"short salt":              {func(p *verify.ProofPackage) { p.Salts.URL = p.Salts.URL[:31] }, verify.ErrPackageFormat},
		"huge leaf":               {func(p *verify.ProofPackage) { p.Leaf = make([]byte, verify.MaxLeafSize+1) }, verify.ErrPackageFormat},
		"payload salt":            {func(p *verify.ProofPackage) { p.Salts.Payload[0] ^= 1 }, verify.ErrPayloadMismatch},
		"response salt":           {func(p *verify.ProofPackage) { p.Salts.Response[0] ^= 1 }, verify.ErrResponseMismatch},
		"url salt":                {func(p *verify.ProofPackage) { p.Salts.URL[0] ^= 1 }, verify.ErrURLMismatch},
		"headers salt":            {func(p *verify.ProofPackage) { p.Salts.Headers[0] ^= 1 }, verify.ErrHeadersMismatch},
		"salt removed":            {func(p *verify.ProofPackage) { p.Salts.Payload = nil }, verify.ErrPackageFormat},
		"salts removed":           {func(p *verify.ProofPackage) { p.Salts = nil }, verify.ErrErased},
		"everything of a log with another key": {func(p *verify.ProofPackage) {
			*p = *foreignKey(foreign, other)
		}, verify.ErrUntrustedKey},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := verify.ParsePackage(marshal(t, l.Package(4, 6))) // a deep copy
			must(t, err)
			c.edit(p)
			_, err = verify.Package(marshal(t, p), holdsAll(l, 4))
			wantError(t, err, c.want)
		})
	}
}

// foreignKey re-signs p's head with the key of another log, under p's origin.
func foreignKey(p *verify.ProofPackage, other *testlog.Log) *verify.ProofPackage {
	forger := testlog.Log{Origin: p.Origin, Key: other.Key}
	sth := p.STH.SignedTreeHead()
	sth.Signature = ed25519.Sign(forger.Key, verify.STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash))
	forged := *p
	forged.VKey, forged.LogKeyID = forger.VKey(), verify.LogKeyID(forger.Public())
	forged.STH, forged.Checkpoint = verify.NewPackageHead(sth), string(forger.Checkpoint(sth))
	return &forged
}

func TestPackagesThatOtherParsersWouldMend(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	good := string(marshal(t, l.Package(4, 6)))
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q isn't in the package", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	leaf := base64.StdEncoding.EncodeToString(l.Leaves[4])
	for name, s := range map[string]string{
		"empty":              "",
		"null":               "null",
		"array":              "[]",
		"empty object":       "{}",
		"cut short":          good[:len(good)-1],
		"trailing object":    good + "{}",
		"trailing bracket":   good + "}",
		"trailing comma":     good[:len(good)-1] + ",}",
		"byte order mark":    "\ufeff" + good,
		"unknown member":     edit(`"origin"`, `"x":1,"origin"`),
		"unknown inner":      edit(`"tree_size"`, `"x":1,"tree_size"`),
		"repeated member":    edit(`"leaf_index":4`, `"leaf_index":4,"leaf_index":4`),
		"repeated, escaped":  edit(`"leaf_index":4`, `"leaf_index":4,"leaf\u005findex":4`),
		"repeated inner":     edit(`"tree_size":6`, `"tree_size":6,"tree_size":6`),
		"missing member":     edit(`"leaf_index":4,`, ``),
		"missing inner":      edit(`"tree_size":6,`, ``),
		"another case":       edit(`"sth"`, `"STH"`),
		"both cases":         edit(`"sth"`, `"Sth":{},"sth"`),
		"long s":             edit(`"sth"`, "\"\u017fth\""),
		"kelvin sign":        edit(`"checkpoint"`, "\"chec\u212apoint\""),
		"kelvin in vkey":     edit(`"vkey"`, "\"v\u212aey\""),
		"null salts":         edit(`"salts":{`, `"salts":null,"x":{`),
		"null proof":         edit(`"inclusion_proof":[`, `"inclusion_proof":null,"x":[`),
		"null hash":          edit(`"inclusion_proof":[`, `"inclusion_proof":[null,`),
		"empty salt":         edit(`"salts":{"payload":"`, `"salts":{"payload":"","x":"`),
		"index as string":    edit(`"leaf_index":4`, `"leaf_index":"4"`),
		"index as float":     edit(`"leaf_index":4`, `"leaf_index":4.0`),
		"index as exponent":  edit(`"leaf_index":4`, `"leaf_index":4e0`),
		"negative index":     edit(`"leaf_index":4`, `"leaf_index":-4`),
		"minus zero":         edit(`"leaf_index":4`, `"leaf_index":-0`),
		"index 2^53":         edit(`"leaf_index":4`, `"leaf_index":9007199254740992`),
		"object for string":  edit(`"format":"kapsel.proof/v1"`, `"format":{}`),
		"string for object":  edit(`"sth":{`, `"sth":"","x":{`),
		"uppercase hex":      edit(`"log_key_id":"`, `"log_key_id":"A`),
		"odd hex":            edit(`"log_key_id":"`, `"log_key_id":"0`),
		"leaf broken across": edit(leaf, leaf[:4]+`\n`+leaf[4:]),
		"leaf unpadded":      edit(leaf, strings.TrimRight(leaf, "=")[:len(leaf)-3]),
		"leaf URL-safe":      edit(leaf, "-_-_"),
		"invalid UTF-8":      edit(`"origin":"`, "\"origin\":\"\xff"),
		"too large":          good + strings.Repeat(" ", verify.MaxPackageSize),
		"deep nesting":       strings.Repeat("[", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := verify.Package([]byte(s), verify.Options{VKey: l.VKey()})
			wantError(t, err, verify.ErrPackageFormat)
		})
	}
	var indented bytes.Buffer
	must(t, json.Indent(&indented, []byte(good), "", "  "))
	_, err := verify.Package(indented.Bytes(), holdsAll(l, 4))
	must(t, err)
}

func TestWhatTheCallerHoldsMustMatch(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(3)
	pkg := marshal(t, l.Package(1, 3))
	empty, url, id := []byte{}, "https://example.com/webhook", "dlv_other"
	for name, c := range map[string]struct {
		opts verify.Options
		want error
	}{
		"empty payload":  {verify.Options{Payload: &empty}, verify.ErrPayloadMismatch},
		"empty response": {verify.Options{Response: &empty}, verify.ErrResponseMismatch},
		"empty headers":  {verify.Options{Headers: &empty}, verify.ErrHeadersMismatch},
		"URL, no query":  {verify.Options{URL: &url}, verify.ErrURLMismatch},
		"attempt":        {verify.Options{Attempt: &id}, verify.ErrAttemptMismatch},
		"delivery":       {verify.Options{Delivery: &id}, verify.ErrDeliveryMismatch},
		"event":          {verify.Options{Event: &id}, verify.ErrEventMismatch},
		"tenant":         {verify.Options{Tenant: &id}, verify.ErrTenantMismatch},
		"another origin": {verify.Options{Origin: "kapsel.example/log/other"}, verify.ErrOrigin},
		"another key":    {verify.Options{PublicKey: testlog.New(2).Public()}, verify.ErrUntrustedKey},
	} {
		t.Run(name, func(t *testing.T) {
			if c.opts.PublicKey == nil {
				c.opts.PublicKey = l.Public()
			}
			_, err := verify.Package(pkg, c.opts)
			wantError(t, err, c.want)
		})
	}
}

func TestUnusableOptions(t *testing.T) {
	t.Parallel()
	l, other := testlog.New(1).Fill(1), testlog.New(2)
	for name, opts := range map[string]verify.Options{
		"nothing":               {},
		"only an origin":        {Origin: l.Origin},
		"short key":             {PublicKey: l.Public()[:31]},
		"low-order key":         {PublicKey: append([]byte{1}, make([]byte, 31)...)},
		"broken vkey":           {VKey: l.VKey() + "A"},
		"vkey and another key":  {VKey: l.VKey(), PublicKey: other.Public()},
		"vkey, another origin":  {VKey: l.VKey(), Origin: other.Origin},
		"quorum without anyone": {VKey: l.VKey(), Quorum: 1},
		"negative quorum":       {VKey: l.VKey(), Quorum: -1},
		"log key as witness":    {VKey: l.VKey(), Witnesses: []string{l.VKey()}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := verify.Package(marshal(t, l.Package(0, 1)), opts)
			wantError(t, err, verify.ErrOptions)
		})
	}
}

func TestErasureAndMissingResponses(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	l.Append(func(leaf *verify.Leaf) {
		leaf.Outcome, leaf.Error = verify.OutcomeRetry, "timeout"
		leaf.ResponseStatus, leaf.ResponseHash, leaf.ResponseSize = 0, "", 0
	})
	p := l.Package(0, 1)
	p.Salts = nil
	r, err := verify.Package(marshal(t, p), verify.Options{VKey: l.VKey()})
	must(t, err)
	if r.Payload != verify.Erased || r.URL != verify.Erased || r.Response != verify.NotChecked || r.Delivered() {
		t.Fatalf("got %+v", r)
	}
	empty := []byte{}
	_, err = verify.Package(marshal(t, l.Package(0, 1)), verify.Options{VKey: l.VKey(), Response: &empty})
	wantError(t, err, verify.ErrResponseMismatch)
}

func TestATruncatedResponseIsComparedAsFarAsItWasRead(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	l.Append(func(leaf *verify.Leaf) { leaf.ResponseTruncated = true })
	whole, wrong := append(bytes.Clone(testlog.Response), " and more"...), []byte("no and more")
	r, err := verify.Package(marshal(t, l.Package(0, 1)), verify.Options{VKey: l.VKey(), Response: &whole})
	must(t, err)
	if r.Response != verify.Matched || len(r.Warnings) != 1 {
		t.Fatalf("got %+v", r)
	}
	_, err = verify.Package(marshal(t, l.Package(0, 1)), verify.Options{VKey: l.VKey(), Response: &wrong})
	wantError(t, err, verify.ErrResponseMismatch)
}

func TestALeafThatLiesAboutSizesOrItsLog(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	l.Append(func(leaf *verify.Leaf) { leaf.PayloadSize++ })
	_, err := verify.Package(marshal(t, l.Package(0, 1)), holdsAll(l, 0))
	wantError(t, err, verify.ErrPayloadMismatch)
	l.Append(func(leaf *verify.Leaf) { leaf.Origin = "another.example/log" })
	_, err = verify.Package(marshal(t, l.Package(1, 2)), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrOrigin)
}

func TestIncludedBytesThatAreNoLeaf(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	l.Leaves = append(l.Leaves, []byte("kapsel.io/key-transition/v1\n"))
	_, err := verify.Package(marshal(t, l.Package(0, 1)), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrLeafFormat)
}

func TestUnknownKindsAreNamed(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(1)
	l.Leaves = append(l.Leaves, bytes.Replace(l.Leaves[0], []byte(`"kind":"attempt"`), []byte(`"kind":"mystery"`), 1))
	_, err := verify.Package(marshal(t, l.Package(1, 2)), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrUnknownKind)
}

func TestALateAttemptAndAnchorsOnlyWarn(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	l.Append(func(leaf *verify.Leaf) { leaf.AttemptedAt = "2030-01-01T00:00:00.000Z" })
	p := l.Package(0, 1)
	p.Anchors = []verify.PackageAnchor{{Type: "bitcoin", Checkpoint: p.Checkpoint, Proof: "forged"}}
	r, err := verify.Package(marshal(t, p), verify.Options{VKey: l.VKey()})
	must(t, err)
	if r.Anchors != 0 || len(r.Warnings) != 2 {
		t.Fatalf("got %+v", r)
	}
}

func TestOnlyTrustedWitnessesCount(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(2)
	cosign := func(p *verify.ProofPackage, name string, seed byte) string {
		key := testlog.Key(seed)
		vkey, id := witnessVKey(name, key.Public().(ed25519.PublicKey))
		c, err := verify.ParseCheckpoint([]byte(p.Checkpoint))
		must(t, err)
		sig := ed25519.Sign(key, fmt.Appendf(nil, "cosignature/v1\ntime 1705314700\n%s", c.Note.Text))
		c.Note.Signatures = append(c.Note.Signatures, verify.NoteSignature{
			Name: name, KeyID: id, Signature: append(binary.BigEndian.AppendUint64(nil, 1705314700), sig...)})
		p.Checkpoint = string(c.Note.Bytes())
		return vkey
	}
	p := l.Package(1, 2)
	first, _ := cosign(p, "witness.example", 8), cosign(p, "stranger.example", 9)
	absent, _ := witnessVKey("absent.example", testlog.New(7).Public())
	opts := verify.Options{VKey: l.VKey(), Witnesses: []string{first, absent}, Quorum: 1}
	r, err := verify.Package(marshal(t, p), opts)
	must(t, err)
	if r.Witnesses != 1 {
		t.Fatalf("%d witnesses", r.Witnesses)
	}
	opts.Quorum = 2
	_, err = verify.Package(marshal(t, p), opts)
	wantError(t, err, verify.ErrQuorum)
	lines := strings.Split(strings.TrimSuffix(p.Checkpoint, "\n"), "\n")
	foreign := l.Package(0, 1)
	foreign.Checkpoint += lines[len(lines)-2] + "\n" // the first witness cosigned another head
	opts.Quorum = 0
	_, err = verify.Package(marshal(t, foreign), opts)
	wantError(t, err, verify.ErrSignature)
}

func BenchmarkPackage(b *testing.B) {
	l := testlog.New(1).Fill(1000)
	pkg, opts := marshal(b, l.Package(567, 1000)), holdsAll(l, 567)
	for b.Loop() {
		_, err := verify.Package(pkg, opts)
		must(b, err)
	}
}

func FuzzPackage(f *testing.F) {
	l := testlog.New(1).Fill(6)
	f.Add(marshal(f, l.Package(1, 6)))
	f.Add([]byte(`{"format":"kapsel.proof/v1"}`))
	genuine := map[string]bool{}
	for _, leaf := range l.Leaves {
		genuine[string(leaf)] = true
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := verify.Package(b, verify.Options{VKey: l.VKey()})
		if err != nil {
			return
		}
		leaf, err := r.Leaf.Bytes()
		must(t, err)
		if !genuine[string(leaf)] {
			t.Fatalf("a leaf that was never logged is verified: %s", leaf)
		}
	})
}
