package verify_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

var update = flag.Bool("update", false, "write testdata/vectors again; a difference means that a format changed")

const vectorsDir = "testdata/vectors"

// vectors is vectors.json: what another implementation has to compute from the same input.
type vectors struct {
	Origin       string              `json:"origin"`
	Seed         verify.Hex          `json:"seed"` // of the log's key, RFC 8032
	PublicKey    verify.Hex          `json:"public_key"`
	VKey         string              `json:"vkey"`
	LogKeyID     verify.Hex          `json:"log_key_id"`
	CheckpointID string              `json:"checkpoint_key_id"`
	STHID        string              `json:"sth_key_id"`
	Commitments  []commitmentVector  `json:"commitments"`
	Leaves       []leafVector        `json:"leaves"`
	Roots        []verify.Hex        `json:"roots"` // of the first 0, 1, 2 … leaves
	Inclusion    []inclusionVector   `json:"inclusion"`
	Consistency  []consistencyVector `json:"consistency"`
	Heads        []headVector        `json:"heads"`
	Reject       []rejectVector      `json:"reject"`
}

type commitmentVector struct {
	Label      string     `json:"label"`
	Salt       verify.Hex `json:"salt"`
	Content    verify.Hex `json:"content"`
	Commitment verify.Hex `json:"commitment"`
}

type leafVector struct {
	Bytes string     `json:"bytes"`
	Hash  verify.Hex `json:"hash"`
}

type inclusionVector struct {
	Index  int           `json:"leaf_index"`
	Size   int           `json:"tree_size"`
	Hashes verify.Hashes `json:"inclusion_proof"`
}

type consistencyVector struct {
	Old    int           `json:"old_size"`
	New    int           `json:"new_size"`
	Hashes verify.Hashes `json:"consistency_proof"`
}

type headVector struct {
	Message   verify.Hex `json:"message"`
	Timestamp int64      `json:"timestamp"`
	Signature verify.Hex `json:"signature"`
}

// rejectVector is a file in reject/ that a verifier who trusts vkey must refuse.
type rejectVector struct {
	File string `json:"file"`
	Why  string `json:"why"`
}

func makeVectors(l *testlog.Log) vectors {
	n := len(l.Leaves)
	v := vectors{
		Origin: l.Origin, Seed: verify.Hex(l.Key.Seed()), PublicKey: verify.Hex(l.Public()), VKey: l.VKey(),
		LogKeyID:     verify.LogKeyID(l.Public()),
		CheckpointID: fmt.Sprintf("%08x", verify.CheckpointKeyID(l.Origin, l.Public())),
		STHID:        fmt.Sprintf("%08x", verify.STHKeyID(l.Origin, l.Public())),
	}
	salts := l.Package(4, n).Salts
	for _, c := range []commitmentVector{
		{Label: verify.LabelPayload, Salt: salts.Payload, Content: testlog.Payload},
		{Label: verify.LabelResponse, Salt: salts.Response, Content: testlog.Response},
		{Label: verify.LabelURL, Salt: salts.URL, Content: []byte(testlog.URL)},
		{Label: verify.LabelHeaders, Salt: salts.Headers, Content: testlog.Headers},
		{Label: verify.LabelPayload, Salt: salts.Payload, Content: verify.Hex{}},
	} {
		c.Commitment = verify.Commitment(c.Label, c.Salt, c.Content)
		v.Commitments = append(v.Commitments, c)
	}
	for i, leaf := range l.Leaves {
		v.Leaves = append(v.Leaves, leafVector{string(leaf), verify.LeafHash(leaf)})
		for size := i + 1; size <= n; size++ {
			v.Inclusion = append(v.Inclusion, inclusionVector{i, size, testlog.Path(i, l.Leaves[:size])})
		}
	}
	for size := range n + 1 {
		v.Roots = append(v.Roots, testlog.Root(l.Leaves[:size]))
		for old := 1; old <= size; old++ {
			v.Consistency = append(v.Consistency, consistencyVector{old, size, testlog.ConsistencyPath(old, l.Leaves[:size])})
		}
		head := headAt(l, size, int64(size+1)*1000)
		v.Heads = append(v.Heads, headVector{verify.STHMessage(head.TreeSize, head.Timestamp, head.RootHash), head.Timestamp, head.Signature})
	}
	return v
}

// rejected are packages that look good, by the reason why they aren't.
func rejected(t *testing.T, l *testlog.Log) map[string]struct {
	why  string
	pkg  []byte
	want error
} {
	edit := func(change func(*verify.ProofPackage)) []byte {
		p, err := verify.ParsePackage(marshal(t, l.Package(4, 6)))
		must(t, err)
		change(p)
		return marshal(t, p)
	}
	replace := func(old, new string) []byte {
		return bytes.Replace(marshal(t, l.Package(4, 6)), []byte(old), []byte(new), 1)
	}
	list := map[string]struct {
		why  string
		pkg  []byte
		want error
	}{
		"path.json":       {"one bit of the path is another", edit(func(p *verify.ProofPackage) { p.InclusionProof[0][0] ^= 1 }), verify.ErrInclusion},
		"path-long.json":  {"the path has one hash too many", edit(func(p *verify.ProofPackage) { p.InclusionProof = append(p.InclusionProof, verify.EmptyRoot()) }), verify.ErrInclusion},
		"index.json":      {"the index isn't below the size", edit(func(p *verify.ProofPackage) { p.LeafIndex = 6 }), verify.ErrInclusion},
		"size.json":       {"the size isn't the signed one", edit(func(p *verify.ProofPackage) { p.STH.TreeSize = 5 }), verify.ErrSignature},
		"malleable.json":  {"S of the signature isn't below the group's order", edit(func(p *verify.ProofPackage) { p.STH.Signature = malleate(p.STH.Signature) }), verify.ErrSignature},
		"checkpoint.json": {"the checkpoint is of another head", edit(func(p *verify.ProofPackage) { p.Checkpoint = string(l.Checkpoint(l.Head(5))) }), verify.ErrHeadMismatch},
		"key.json":        {"everything is signed by another key, which the package names", edit(func(p *verify.ProofPackage) { *p = *foreignKey(p, testlog.New(2)) }), verify.ErrUntrustedKey},
		"repeated.json":   {"a member comes twice", replace(`"leaf_index":4`, `"leaf_index":4,"leaf_index":4`), verify.ErrPackageFormat},
		"case.json":       {"a member is spelt with U+017F, which some parsers fold to s", replace(`"sth"`, "\"\u017fth\""), verify.ErrPackageFormat},
		"number.json":     {"an integer is 2^53", replace(`"leaf_index":4`, `"leaf_index":9007199254740992`), verify.ErrPackageFormat},
		"salts.json":      {"one salt of four is missing", edit(func(p *verify.ProofPackage) { p.Salts.URL = nil }), verify.ErrPackageFormat},
	}
	spaced := &testlog.Log{Origin: l.Origin, Key: l.Key, Leaves: append([][]byte{}, l.Leaves...)}
	spaced.Leaves[4] = bytes.Replace(spaced.Leaves[4], []byte(`":`), []byte(`": `), 1)
	c := list["path.json"]
	c.why, c.pkg, c.want = "the leaf, though logged, isn't canonical JSON", marshal(t, spaced.Package(4, 6)), verify.ErrLeafFormat
	list["leaf.json"] = c
	return list
}

// vectorFiles makes every file of testdata/vectors.
func vectorFiles(t *testing.T) map[string][]byte {
	t.Helper()
	l := testlog.New(1).Fill(6)
	v := makeVectors(l)
	pkg, err := json.MarshalIndent(l.Package(4, 6), "", "  ")
	must(t, err)
	honest, forked := twoTrees(3, 9)
	evidence, err := json.MarshalIndent(evidenceOf(forked, honest), "", "  ")
	must(t, err)
	rotated := testlog.New(1).Fill(6)
	files := map[string][]byte{
		"proof.json":        append(pkg, '\n'),
		"evidence.json":     append(evidence, '\n'),
		"proof.tlog-proof":  textOf(l, 4, 6),
		"erased.tlog-proof": erasedText(l, 4, 6),
		"payload":           testlog.Payload,
		"response":          testlog.Response,
		"headers":           testlog.Headers,
		"url":               []byte(testlog.URL),
		"public-key":        []byte(hex.EncodeToString(l.Public()) + "\n"),
		"vkey":              []byte(l.VKey() + "\n"),
		"checkpoint":        l.Checkpoint(l.Head(6)),
		"transition":        []byte(rotated.Transition(testlog.Key(2), verify.ReasonRotation)),
	}
	for name, c := range rejected(t, l) {
		files["reject/"+name] = c.pkg
		v.Reject = append(v.Reject, rejectVector{name, c.why})
	}
	sortRejects(v.Reject)
	all, err := json.MarshalIndent(v, "", " ")
	must(t, err)
	files["vectors.json"] = append(all, '\n')
	return files
}

func sortRejects(list []rejectVector) {
	for i := range list {
		for j := i; j > 0 && list[j].File < list[j-1].File; j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
}

// The vectors are what this code writes: a change of a format can't pass unseen.
func TestVectorsAreCurrent(t *testing.T) {
	t.Parallel()
	for name, want := range vectorFiles(t) {
		path := filepath.Join(vectorsDir, name)
		if *update {
			must(t, os.WriteFile(path, want, 0o644))
		}
		got, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s isn't what the code writes", path)
		}
	}
}

// The other way round: what stands in the files verifies, and what has to be rejected is, for its reason.
func TestVectorsVerify(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(vectorsDir, name))
		must(t, err)
		return b
	}
	var v vectors
	must(t, json.Unmarshal(read("vectors.json"), &v))
	for _, c := range v.Commitments {
		if !bytes.Equal(verify.Commitment(c.Label, c.Salt, c.Content), c.Commitment) {
			t.Errorf("commitment to %s", c.Label)
		}
	}
	for _, p := range v.Inclusion {
		must(t, verify.Inclusion(verify.LeafHash([]byte(v.Leaves[p.Index].Bytes)), uint64(p.Index), uint64(p.Size), p.Hashes, v.Roots[p.Size]))
	}
	for _, p := range v.Consistency {
		must(t, verify.Consistency(uint64(p.Old), uint64(p.New), p.Hashes, v.Roots[p.Old], v.Roots[p.New]))
	}
	for size, h := range v.Heads {
		sth := verify.SignedTreeHead{TreeSize: uint64(size), Timestamp: h.Timestamp, RootHash: v.Roots[size], Signature: h.Signature}
		must(t, verify.TreeHead(sth, []byte(v.PublicKey)))
	}
	payload, response, headers, url := read("payload"), read("response"), read("headers"), string(read("url"))
	_, err := verify.Package(read("proof.json"), verify.Options{
		VKey: strings.TrimSpace(string(read("vkey"))), Payload: &payload, Response: &response, Headers: &headers, URL: &url})
	must(t, err)
	e, err := verify.ParseEvidence(read("evidence.json"))
	must(t, err)
	_, _, err = e.Judge(v.VKey)
	must(t, err)
	transition, err := verify.ParseTransition(read("transition"))
	must(t, err)
	must(t, transition.Verify())
	list := rejected(t, testlog.New(1).Fill(6))
	for _, r := range v.Reject {
		_, err := verify.Package(read("reject/"+r.File), verify.Options{VKey: v.VKey})
		if !errors.Is(err, list[r.File].want) {
			t.Errorf("%s: got error %v, want %v", r.File, err, list[r.File].want)
		}
	}
}
