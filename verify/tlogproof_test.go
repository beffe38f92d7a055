package verify_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// textOf is the proof of a leaf as a text.
func textOf(l *testlog.Log, index, size int) []byte { return l.TLogProof(index, size).Bytes() }

// erasedText is the text once the leaf's bytes are erased.
func erasedText(l *testlog.Log, index, size int) []byte {
	p := l.TLogProof(index, size)
	p.Leaf, p.Salts = nil, nil
	return p.Bytes()
}

func TestAGoodTextIsVerifiedAsItsPackageIs(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(7)
	for size := 1; size <= 7; size++ {
		for i := range size {
			text := textOf(l, i, size)
			if !verify.IsTLogProof(text) || verify.IsTLogProof(marshal(t, l.Package(i, size))) {
				t.Fatal("texts and packages are taken for each other")
			}
			r, err := verify.TLog(text, holdsAll(l, i))
			must(t, err)
			p, err := verify.Package(marshal(t, l.Package(i, size)), holdsAll(l, i))
			must(t, err)
			if *r.Leaf != *p.Leaf || r.LeafIndex != p.LeafIndex || !bytes.Equal(r.LeafHash, p.LeafHash) || r.Head.TreeSize != p.Head.TreeSize ||
				r.Head.Timestamp != p.Head.Timestamp || r.Origin != p.Origin || r.OriginBound != p.OriginBound ||
				r.Payload != verify.Matched || r.Response != verify.Matched || r.URL != verify.Matched || r.Headers != verify.Matched {
				t.Fatalf("leaf %d of %d: %+v, the package says %+v", i, size, r, p)
			}
		}
	}
}

// Of an erased leaf the text proves what its holder has kept: all of it, or that it was logged.
func TestATextOfAnErasedLeaf(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	text := erasedText(l, 4, 6)
	leaf, hash := l.Leaves[4], verify.LeafHash(l.Leaves[4])
	event := l.Leaf(4).EventID
	r, err := verify.TLog(text, verify.Options{VKey: l.VKey(), Leaf: &leaf, LeafHash: &hash, Event: &event})
	must(t, err)
	if !r.Delivered() || r.Payload != verify.Erased {
		t.Fatalf("with the leaf: %+v", r)
	}
	r, err = verify.TLog(text, verify.Options{VKey: l.VKey(), LeafHash: &hash})
	must(t, err)
	if r.Leaf != nil || r.Delivered() || !bytes.Equal(r.LeafHash, hash) || r.LeafIndex != 4 || r.Payload != verify.NotChecked {
		t.Fatalf("with the hash: %+v", r)
	}
	other, otherHash, short := l.Leaves[3], verify.LeafHash(l.Leaves[3]), hash[:31]
	empty := []byte{}
	for name, c := range map[string]struct {
		opts verify.Options
		want error
	}{
		"nothing kept":                  {verify.Options{VKey: l.VKey()}, verify.ErrNoLeaf},
		"content beside a hash":         {verify.Options{VKey: l.VKey(), LeafHash: &hash, Payload: &testlog.Payload}, verify.ErrNoLeaf},
		"an ID beside a hash":           {verify.Options{VKey: l.VKey(), LeafHash: &hash, Event: &event}, verify.ErrNoLeaf},
		"content beside the leaf":       {verify.Options{VKey: l.VKey(), Leaf: &leaf, Payload: &testlog.Payload}, verify.ErrErased},
		"another leaf":                  {verify.Options{VKey: l.VKey(), Leaf: &other}, verify.ErrInclusion},
		"another hash":                  {verify.Options{VKey: l.VKey(), LeafHash: &otherHash}, verify.ErrInclusion},
		"leaf and hash contradict":      {verify.Options{VKey: l.VKey(), Leaf: &leaf, LeafHash: &otherHash}, verify.ErrLeafMismatch},
		"a hash of another length":      {verify.Options{VKey: l.VKey(), LeafHash: &short}, verify.ErrOptions},
		"an empty leaf isn't a missing": {verify.Options{VKey: l.VKey(), Leaf: &empty}, verify.ErrInclusion},
	} {
		if _, err := verify.TLog(text, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// Whoever was told a leaf hash holds a proof to it, in either form.
func TestAProofOfAnotherLeafThanTheOneHeld(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	leaf, hash := l.Leaves[4], verify.LeafHash(l.Leaves[4])
	held := verify.Options{VKey: l.VKey(), Leaf: &leaf, LeafHash: &hash}
	for i, want := range map[int]error{4: nil, 3: verify.ErrLeafMismatch} {
		if _, err := verify.TLog(textOf(l, i, 6), held); !errors.Is(err, want) {
			t.Errorf("text of leaf %d: %v", i, err)
		}
		if _, err := verify.Package(marshal(t, l.Package(i, 6)), held); !errors.Is(err, want) {
			t.Errorf("package of leaf %d: %v", i, err)
		}
	}
	held.Leaf = nil
	if _, err := verify.Package(marshal(t, l.Package(3, 6)), held); !errors.Is(err, verify.ErrLeafMismatch) {
		t.Errorf("by the hash: %v", err)
	}
}

func TestATextMustBeRejected(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	good := string(textOf(l, 4, 6))
	must2 := func(_ *verify.Result, err error) { must(t, err) }
	must2(verify.TLog([]byte(good), verify.Options{VKey: l.VKey()}))
	edit := func(change func(*verify.TLogProof)) string {
		p := l.TLogProof(4, 6)
		change(p)
		return string(p.Bytes())
	}
	extra := func(s string) string {
		lines := strings.Split(good, "\n")
		lines[1] = "extra " + base64.StdEncoding.EncodeToString([]byte(s))
		return strings.Join(lines, "\n")
	}
	leaf := base64.StdEncoding.EncodeToString(l.Leaves[4])
	other := testlog.New(2)
	other.Origin = l.Origin
	other.Leaves = l.Leaves
	elsewhere := testlog.New(1)
	elsewhere.Origin = "kapsel.example/log/" + testlog.ID("log", 9)
	elsewhere.Fill(6)
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"another version":              {strings.Replace(good, "@v1", "@v2", 1), verify.ErrTLogProofFormat},
		"CR LF":                        {strings.ReplaceAll(good, "\n", "\r\n"), verify.ErrTLogProofFormat},
		"no checkpoint":                {good[:strings.Index(good, "\n\n")+1], verify.ErrTLogProofFormat},
		"no index":                     {strings.Replace(good, "index 4\n", "", 1), verify.ErrTLogProofFormat},
		"an index with a leading zero": {strings.Replace(good, "index 4\n", "index 04\n", 1), verify.ErrTLogProofFormat},
		"an index with a sign":         {strings.Replace(good, "index 4\n", "index +4\n", 1), verify.ErrTLogProofFormat},
		"an index of 2^53":             {strings.Replace(good, "index 4\n", "index 9007199254740992\n", 1), verify.ErrTLogProofFormat},
		"an index not below the size":  {edit(func(p *verify.TLogProof) { p.LeafIndex = 6 }), verify.ErrInclusion},
		"another index":                {edit(func(p *verify.TLogProof) { p.LeafIndex = 5 }), verify.ErrInclusion},
		"extra after index":            {strings.Replace(good, "index 4\n", "index 4\nextra AAAA\n", 1), verify.ErrTLogProofFormat},
		"extra twice":                  {strings.Replace(good, "index 4\n", "extra AAAA\nindex 4\n", 1), verify.ErrTLogProofFormat},
		"extra that isn't base64":      {strings.Replace(good, "extra ", "extra !", 1), verify.ErrTLogProofFormat},
		"extra of another application": {extra("age-v1"), verify.ErrTLogProofFormat},
		"extra with an unknown member": {extra(`{"leaf":"` + leaf + `","more":1}`), verify.ErrTLogProofFormat},
		"extra with a repeated member": {extra(`{"leaf":"` + leaf + `","leaf":"` + leaf + `"}`), verify.ErrTLogProofFormat},
		"extra in another order":       {extra(`{"salts":{"headers":"","payload":"","response":"","url":""},"leaf":"` + leaf + `"}`), verify.ErrTLogProofFormat},
		"extra with a space":           {extra(`{"leaf": "` + leaf + `"}`), verify.ErrTLogProofFormat},
		"extra without a leaf":         {extra(`{}`), verify.ErrTLogProofFormat},
		"extra with null":              {extra(`null`), verify.ErrTLogProofFormat},
		"a salt that is too short":     {edit(func(p *verify.TLogProof) { p.Salts.URL = p.Salts.URL[1:] }), verify.ErrTLogProofFormat},
		"a leaf that is too long":      {edit(func(p *verify.TLogProof) { p.Leaf = make([]byte, verify.MaxLeafSize+1) }), verify.ErrTLogProofFormat},
		"a hash of 31 bytes":           {edit(func(p *verify.TLogProof) { p.InclusionProof[0] = p.InclusionProof[0][1:] }), verify.ErrTLogProofFormat},
		"64 hashes":                    {edit(func(p *verify.TLogProof) { p.InclusionProof = slices.Repeat([][]byte{verify.EmptyRoot()}, 64) }), verify.ErrTLogProofFormat},
		"a path that is too long":      {edit(func(p *verify.TLogProof) { p.InclusionProof = append(p.InclusionProof, verify.EmptyRoot()) }), verify.ErrInclusion},
		"a path that is too short":     {edit(func(p *verify.TLogProof) { p.InclusionProof = p.InclusionProof[1:] }), verify.ErrInclusion},
		"another path":                 {edit(func(p *verify.TLogProof) { p.InclusionProof[0][0] ^= 1 }), verify.ErrInclusion},
		"a node as a leaf": {edit(func(p *verify.TLogProof) {
			p.Leaf = append(verify.LeafHash(l.Leaves[4]), verify.LeafHash(l.Leaves[5])...)
		}), verify.ErrInclusion},
		"another leaf":                   {edit(func(p *verify.TLogProof) { p.Leaf = l.Leaves[3] }), verify.ErrInclusion},
		"a checkpoint of another size":   {edit(func(p *verify.TLogProof) { p.Checkpoint = l.Checkpoint(l.Head(5)) }), verify.ErrInclusion},
		"a checkpoint of another key":    {edit(func(p *verify.TLogProof) { p.Checkpoint = other.Checkpoint(other.Head(6)) }), verify.ErrUntrustedKey},
		"a checkpoint of another log":    {string(textOf(elsewhere, 4, 6)), verify.ErrOrigin},
		"a checkpoint that was changed":  {strings.Replace(good, "\n6\n", "\n7\n", 1), verify.ErrSignature},
		"no signatures":                  {edit(func(p *verify.TLogProof) { p.Checkpoint = p.Checkpoint[:bytes.Index(p.Checkpoint, []byte("\n\n"))+2] }), verify.ErrNoteFormat},
		"data after the checkpoint":      {good + "x\n", verify.ErrNoteFormat},
		"files beyond a bound":           {good + strings.Repeat("x", verify.MaxPackageSize), verify.ErrTLogProofFormat},
		"a package":                      {string(marshal(t, l.Package(4, 6))), verify.ErrTLogProofFormat},
		"a leaf that isn't an attempt's": {string(noteAsLeaf(l)), verify.ErrLeafFormat},
	} {
		if _, err := verify.TLog([]byte(c.text), verify.Options{VKey: l.VKey()}); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	quorum := verify.Options{VKey: l.VKey(), Quorum: 1, Witnesses: []string{func() string { v, _ := witnessVKey("w", other.Public()); return v }()}}
	if _, err := verify.TLog([]byte(good), quorum); !errors.Is(err, verify.ErrQuorum) {
		t.Errorf("without a witness: %v", err)
	}
	if _, err := verify.TLog([]byte(good), verify.Options{}); !errors.Is(err, verify.ErrOptions) {
		t.Errorf("without a key: %v", err)
	}
}

// noteAsLeaf proves a leaf of the log that is no JSON.
func noteAsLeaf(l *testlog.Log) []byte {
	noted := &testlog.Log{Origin: l.Origin, Key: l.Key, Leaves: append(append([][]byte{}, l.Leaves...), []byte("kapsel.io/key-transition/v1\n"))}
	return textOf(noted, 6, 7)
}

func TestEveryFlippedByteOfATextIsRejected(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	text, opts := textOf(l, 4, 6), holdsAll(l, 4)
	for i := range text {
		for _, mask := range []byte{0x01, 0x20} {
			text[i] ^= mask
			if _, err := verify.TLog(text, opts); err == nil {
				t.Fatalf("byte %d, mask %#x: accepted", i, mask)
			}
			text[i] ^= mask
		}
	}
}

// The vectors: one text with its leaf, and one after the leaf was erased.
func TestTLogProofVectorsVerify(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(vectorsDir, name))
		must(t, err)
		return b
	}
	vkey, payload := strings.TrimSpace(string(read("vkey"))), read("payload")
	r, err := verify.TLog(read("proof.tlog-proof"), verify.Options{VKey: vkey, Payload: &payload})
	must(t, err)
	hash := r.LeafHash
	_, err = verify.TLog(read("erased.tlog-proof"), verify.Options{VKey: vkey, LeafHash: &hash})
	must(t, err)
}

func FuzzTLogProof(f *testing.F) {
	l := testlog.New(1).Fill(6)
	f.Add(textOf(l, 1, 6))
	f.Add(erasedText(l, 4, 6))
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n"))
	genuine := map[string]bool{}
	for _, leaf := range l.Leaves {
		genuine[string(leaf)] = true
	}
	hash := verify.LeafHash(l.Leaves[4])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := verify.ParseTLogProof(b)
		if err == nil && !bytes.Equal(p.Bytes(), b) {
			t.Fatalf("%q has a second spelling", b)
		}
		if r, err := verify.TLog(b, verify.Options{VKey: l.VKey()}); err == nil && !genuine[string(p.Leaf)] {
			t.Fatalf("a forgery: %+v", r)
		}
		if r, err := verify.TLog(b, verify.Options{VKey: l.VKey(), LeafHash: &hash}); err == nil && r.LeafIndex != 4 {
			t.Fatalf("leaf 4 is proved to be leaf %d", r.LeafIndex)
		}
	})
}
