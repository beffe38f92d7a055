package verify_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

func TestWeakPublicKeysAreRefused(t *testing.T) {
	t.Parallel()
	must(t, verify.CheckPublicKey(testlog.New(1).Public()))
	zeros, ones := strings.Repeat("00", 30), strings.Repeat("ff", 30)
	for name, key := range map[string]string{
		"nothing":                     "",
		"31 bytes":                    "01" + zeros,
		"33 bytes":                    "01" + zeros + "0000",
		"the identity":                "01" + zeros + "00",
		"the identity, sign set":      "01" + zeros + "80",
		"order 2":                     "ec" + ones + "7f",
		"order 4":                     "00" + zeros + "00",
		"order 4, sign set":           "00" + zeros + "80",
		"order 8":                     "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"order 8, sign set":           "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"order 8, the other":          "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"order 8, the other, sign":    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"0 as p":                      "ed" + ones + "7f",
		"1 as p+1":                    "ee" + ones + "7f",
		"3 as p+3, a point":           "f0" + ones + "7f",
		"no point of the curve":       "02" + zeros + "00",
		"largest encoding, sign set":  "ff" + ones + "ff",
		"largest encoding, sign free": "ff" + ones + "7f",
	} {
		raw, err := hex.DecodeString(key)
		must(t, err)
		t.Run(name, func(t *testing.T) { wantError(t, verify.CheckPublicKey(raw), verify.ErrKey) })
	}
}

// Under the low-order key 0x01 00…, the signature R = identity, s = 0 would verify for every message.
func TestALowOrderKeySignsNothing(t *testing.T) {
	t.Parallel()
	key := append([]byte{1}, make([]byte, 31)...)
	sth := testlog.New(1).Fill(1).Head(1)
	sth.Signature = append(slices.Clone(key), make([]byte, 32)...)
	if !ed25519.Verify(key, verify.STHMessage(1, sth.Timestamp, sth.RootHash), sth.Signature) {
		t.Fatal("the forgery that this test is about no longer works")
	}
	wantError(t, verify.TreeHead(sth, key), verify.ErrKey)
}

func TestVKeyIsTheOneOfSignedNotes(t *testing.T) {
	t.Parallel()
	l := testlog.New(3)
	want, err := note.NewEd25519VerifierKey(l.Origin, l.Public())
	must(t, err)
	if got := l.VKey(); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	origin, key, err := verify.ParseVKey(want)
	must(t, err)
	if origin != l.Origin || !key.Equal(l.Public()) {
		t.Fatalf("got %s and %x back", origin, key)
	}
	for i := range want {
		bad := []byte(want)
		bad[i] ^= 1
		if _, _, err := verify.ParseVKey(string(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for _, bad := range []string{"", "+", "++", "a+b", want + "=", want + "\n", strings.ToUpper(want)} {
		if _, _, err := verify.ParseVKey(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestSTHMessageLayout(t *testing.T) {
	t.Parallel()
	root := bytes.Repeat([]byte{0xab}, 32)
	got := verify.STHMessage(0x0102030405060708, 0x1112131415161718, root)
	want := "01020304050607081112131415161718" + strings.Repeat("ab", 32)
	if hex.EncodeToString(got) != want {
		t.Fatalf("got %x, want %s", got, want)
	}
}

func TestCommitmentLayout(t *testing.T) {
	t.Parallel()
	salt := bytes.Repeat([]byte{7}, 32)
	// printf 'kapsel.io/payload/v1\0' + 32 × 0x07 + 'body' | sha256sum
	const want = "5305a6d4c986e15db89b18ba1a50ff8c857b1418a59d1094ed7da16dccefaecf"
	if got := hex.EncodeToString(verify.Commitment(verify.LabelPayload, salt, []byte("body"))); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	// RFC 4231's key and data of test case 2, with the data as label.
	const mac = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
	if got := hex.EncodeToString(verify.DeriveSalt([]byte("Jefe"), "what do ya want for nothing?")); got != mac {
		t.Fatalf("got %s, want %s", got, mac)
	}
}

func TestTreeHeadRejects(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(3)
	good := l.Head(3)
	must(t, verify.TreeHead(good, l.Public()))
	wantError(t, verify.TreeHead(good, testlog.New(2).Public()), verify.ErrSignature)
	wantError(t, verify.TreeHead(good, nil), verify.ErrKey)
	for name, c := range map[string]struct {
		edit func(*verify.SignedTreeHead)
		want error
	}{
		"another size":     {func(s *verify.SignedTreeHead) { s.TreeSize++ }, verify.ErrSignature},
		"another time":     {func(s *verify.SignedTreeHead) { s.Timestamp++ }, verify.ErrSignature},
		"another root":     {func(s *verify.SignedTreeHead) { s.RootHash = verify.EmptyRoot() }, verify.ErrSignature},
		"negative time":    {func(s *verify.SignedTreeHead) { s.Timestamp = -1 }, verify.ErrHeadFormat},
		"size 2^53":        {func(s *verify.SignedTreeHead) { s.TreeSize = 1 << 53 }, verify.ErrHeadFormat},
		"short root":       {func(s *verify.SignedTreeHead) { s.RootHash = s.RootHash[:31] }, verify.ErrHeadFormat},
		"short signature":  {func(s *verify.SignedTreeHead) { s.Signature = s.Signature[:63] }, verify.ErrHeadFormat},
		"no signature":     {func(s *verify.SignedTreeHead) { s.Signature = nil }, verify.ErrHeadFormat},
		"signature of all": {func(s *verify.SignedTreeHead) { s.Signature = make([]byte, 64) }, verify.ErrSignature},
	} {
		t.Run(name, func(t *testing.T) {
			sth := good
			c.edit(&sth)
			wantError(t, verify.TreeHead(sth, l.Public()), c.want)
		})
	}
}

// A size from 2^53 is refused even under a genuine signature.
func TestHugeSizesAreRefusedThoughSigned(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(1)
	sth := l.Head(1)
	sth.TreeSize = 1 << 53
	sth.Signature = ed25519.Sign(l.Key, verify.STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash))
	wantError(t, verify.TreeHead(sth, l.Public()), verify.ErrHeadFormat)
}

func TestProofChecksEveryPart(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	p := verify.InclusionProof{LeafIndex: 4, TreeSize: 6, Hashes: testlog.Path(4, l.Leaves)}
	must(t, verify.Proof(l.Leaves[4], p, l.Head(6), l.Public()))
	wantError(t, verify.Proof(l.Leaves[3], p, l.Head(6), l.Public()), verify.ErrInclusion)
	wantError(t, verify.Proof(l.Leaves[4], p, l.Head(5), l.Public()), verify.ErrInclusion)
	wantError(t, verify.Proof(l.Leaves[4], p, l.Head(6), testlog.New(2).Public()), verify.ErrSignature)
}
