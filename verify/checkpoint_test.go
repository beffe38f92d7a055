package verify_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

func TestCheckpointRoundTrip(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(5)
	b := l.Checkpoint(l.Head(5))
	c, err := verify.ParseCheckpoint(b)
	must(t, err)
	sth, err := c.Verify(l.Public())
	must(t, err)
	want := l.Head(5)
	if c.Origin != l.Origin || sth.TreeSize != 5 || sth.Timestamp != want.Timestamp ||
		!bytes.Equal(sth.RootHash, want.RootHash) || !bytes.Equal(sth.Signature, want.Signature) {
		t.Fatalf("got %+v of %s", sth, c.Origin)
	}
	if !bytes.Equal(c.Note.Bytes(), b) {
		t.Fatalf("got %q back", c.Note.Bytes())
	}
}

// Other software verifies the first line and passes over the second.
func TestSumdbNoteOpensCheckpoints(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(5)
	v, err := note.NewVerifier(l.VKey())
	must(t, err)
	n, err := note.Open(l.Checkpoint(l.Head(5)), note.VerifierList(v))
	must(t, err)
	if len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 1 || n.UnverifiedSigs[0].Hash != verify.STHKeyID(l.Origin, l.Public()) {
		t.Fatalf("got %+v", n)
	}
}

func TestEveryFlippedByteOfACheckpointIsRejected(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(5)
	b := l.Checkpoint(l.Head(5))
	for i := range b {
		for _, mask := range []byte{1, 2, 4, 8, 16, 32, 64, 128} {
			tampered := bytes.Clone(b)
			tampered[i] ^= mask
			c, err := verify.ParseCheckpoint(tampered)
			if err == nil {
				_, err = c.Verify(l.Public())
			}
			if err == nil {
				t.Fatalf("byte %d, mask %#x: %q is accepted", i, mask, tampered)
			}
		}
	}
}

func TestMalformedCheckpoints(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(5)
	good := string(l.Checkpoint(l.Head(5)))
	text, lines, _ := strings.Cut(good, "\n\n")
	first, second, _ := strings.Cut(lines, "\n")
	for name, c := range map[string]struct {
		note string
		want error
	}{
		"empty":              {"", verify.ErrNoteFormat},
		"no signatures":      {text + "\n\n", verify.ErrNoteFormat},
		"no blank line":      {text + "\n" + lines, verify.ErrNoteFormat},
		"no final newline":   {strings.TrimSuffix(good, "\n"), verify.ErrNoteFormat},
		"carriage returns":   {strings.ReplaceAll(good, "\n", "\r\n"), verify.ErrNoteFormat},
		"invalid UTF-8":      {"\xff" + good, verify.ErrNoteFormat},
		"a line twice":       {text + "\n\n" + first + "\n" + first + "\n" + second, verify.ErrNoteFormat},
		"hyphen for dash":    {strings.Replace(good, "—", "-", 1), verify.ErrNoteFormat},
		"unpadded signature": {text + "\n\n" + strings.TrimRight(first, "=") + "\n" + second, verify.ErrNoteFormat},
		"too many lines":     {text + "\n\n" + strings.Repeat(first+"\n", 101), verify.ErrNoteFormat},
		"too large":          {strings.Repeat("x", verify.MaxNoteSize) + good, verify.ErrNoteFormat},
		"extension line":     {text + "\nmore\n\n" + lines, verify.ErrCheckpointFormat},
		"size with zero":     {strings.Replace(good, "\n5\n", "\n05\n", 1), verify.ErrCheckpointFormat},
		"size with plus":     {strings.Replace(good, "\n5\n", "\n+5\n", 1), verify.ErrCheckpointFormat},
		"size 2^53":          {strings.Replace(good, "\n5\n", "\n9007199254740992\n", 1), verify.ErrCheckpointFormat},
		"origin with space":  {" " + good, verify.ErrCheckpointFormat},
		"root too short":     {l.Origin + "\n5\nAAAA\n\n" + lines, verify.ErrCheckpointFormat},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := verify.ParseCheckpoint([]byte(c.note))
			wantError(t, err, c.want)
		})
	}
}

func TestBothLinesOfACheckpointAreNeeded(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(5)
	lines := strings.SplitAfter(string(l.Checkpoint(l.Head(5))), "\n")
	for _, drop := range []int{4, 5} {
		b := strings.Join(append(append([]string{}, lines[:drop]...), lines[drop+1:]...), "")
		c, err := verify.ParseCheckpoint([]byte(b))
		must(t, err)
		_, err = c.Verify(l.Public())
		wantError(t, err, verify.ErrSignature)
	}
	c, err := verify.ParseCheckpoint(l.Checkpoint(l.Head(5)))
	must(t, err)
	_, err = c.Verify(testlog.New(2).Public())
	wantError(t, err, verify.ErrSignature)
	_, err = c.Verify(ed25519.PublicKey("short"))
	wantError(t, err, verify.ErrKey)
}

func FuzzParseCheckpoint(f *testing.F) {
	l := testlog.New(1).Fill(6)
	genuine5, genuine6 := string(l.Checkpoint(l.Head(5))), string(l.Checkpoint(l.Head(6)))
	f.Add(l.Checkpoint(l.Head(5)))
	f.Add([]byte("a\n1\nAAAA\n\n— a AAAAAAA=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := verify.ParseCheckpoint(b)
		if err != nil {
			return
		}
		if !bytes.Equal(c.Note.Bytes(), b) || c.Note.Text != verify.CheckpointText(c.Origin, c.TreeSize, c.RootHash) {
			t.Fatalf("%q has a second spelling", b)
		}
		if _, err := c.Verify(l.Public()); err == nil && string(b) != genuine5 && string(b) != genuine6 {
			t.Fatalf("%q is a forgery", b)
		}
	})
}

// witnessVKey names a witness's key of type 0x04 (c2sp.org/tlog-cosignature).
func witnessVKey(name string, key ed25519.PublicKey) (vkey string, id uint32) {
	typed := append([]byte{4}, key...)
	sum := sha256.Sum256(append([]byte(name+"\n"), typed...))
	return fmt.Sprintf("%s+%x+%s", name, sum[:4], base64.StdEncoding.EncodeToString(typed)), binary.BigEndian.Uint32(sum[:])
}
