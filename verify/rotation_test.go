package verify_test

import (
	"crypto/ed25519"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// transition writes a note for the change from one key of r to the next, with whatever a case changes in it, signed by
// keys.
func (r *rotated) transition(change func(*verify.Transition), keys ...ed25519.PrivateKey) string {
	t, err := verify.ParseTransition([]byte(r.list[0].Transition))
	if err != nil {
		panic(err)
	}
	t.Note = nil
	change(t)
	return string(testlog.SignNote(t.Text(), t.Origin, keys...))
}

// A package of before a rotation, one of between two, and one of after, each under the old pin, the middle and the new.
func TestPackagesVerifyAcrossOneAndSeveralRotations(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	for _, c := range []struct{ size, key int }{{2, 0}, {3, 0}, {4, 0}, {5, 1}, {8, 1}, {9, 1}, {10, 2}, {14, 2}} {
		for trusted := range r.keys {
			result, err := r.check(t, r.pack(c.size, c.key), trusted)
			if err != nil {
				t.Errorf("head of size %d under key %d, trusting key %d: %v", c.size, c.key, trusted, err)
			} else if len(result.Warnings) != 0 {
				t.Errorf("head of size %d under key %d, trusting key %d: %q", c.size, c.key, trusted, result.Warnings)
			}
		}
	}
}

func TestARotationWithOnlyOneSignatureIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	for name, key := range map[string]ed25519.PrivateKey{"the old key's": r.keys[0], "the new key's": r.keys[1]} {
		for trusted := range 2 {
			p := r.pack(8, 1)
			p.KeyHistory[0].Transition = r.transition(func(*verify.Transition) {}, key)
			if trusted == 1 {
				p = r.pack(3, 0)
				p.KeyHistory[0].Transition = r.transition(func(*verify.Transition) {}, key)
			}
			_, err := r.check(t, p, trusted)
			if err == nil {
				t.Errorf("only %s line, trusting key %d: accepted", name, trusted)
				continue
			}
			wantError(t, err, verify.ErrKeyHistory)
		}
	}
}

// Both keys sign, but not for the tree that the log had: the consistency proof finds it.
func TestATransitionAtAWrongSizeIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	for _, n := range []uint64{0, 2, 3, 5, 7, 8, 9} {
		for _, c := range []struct{ size, key, trusted int }{{8, 1, 0}, {4, 0, 1}, {4, 0, 0}} {
			p := r.pack(c.size, c.key)
			p.KeyHistory[0].Transition = r.transition(func(t *verify.Transition) { t.TreeSize = n }, r.keys[0], r.keys[1])
			_, err := r.check(t, p, c.trusted)
			wantError(t, err, verify.ErrKeyHistory)
		}
	}
}

func TestATransitionOverAWrongRootIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	for _, c := range []struct{ size, key, trusted int }{{8, 1, 0}, {4, 0, 1}, {4, 0, 0}, {2, 0, 1}} {
		p := r.pack(c.size, c.key)
		p.KeyHistory[0].Transition = r.transition(func(t *verify.Transition) { t.RootHash[0] ^= 1 }, r.keys[0], r.keys[1])
		_, err := r.check(t, p, c.trusted)
		wantError(t, err, verify.ErrKeyHistory)
	}
}

// The keys and all signatures are right, but the note is another log's.
func TestAReplayedTransitionOfAnotherLogIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	other := r.transition(func(t *verify.Transition) { t.Origin = "kapsel.example/log/other" }, r.keys[0], r.keys[1])
	for _, c := range []struct{ size, key, trusted int }{{8, 1, 0}, {4, 0, 1}} {
		p := r.pack(c.size, c.key)
		p.KeyHistory[0].Transition = other
		_, err := r.check(t, p, c.trusted)
		wantError(t, err, verify.ErrKeyHistory)
	}
}

// Every byte of a transition counts.
func TestATamperedTransitionIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	genuine, p := r.list[0].Transition, r.pack(8, 1)
	for i := range genuine {
		changed := []byte(genuine)
		changed[i] ^= 1
		p.KeyHistory[0].Transition = string(changed)
		if _, err := r.check(t, p, 0); err == nil {
			t.Fatalf("byte %d (%q): accepted", i, genuine[i])
		}
	}
}

// A transition to or from a key that no honest signer has is no transition.
func TestATransitionWithALowOrderKeyIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	for _, bad := range unusableKeys(t) {
		for _, change := range []func(*verify.Transition){
			func(t *verify.Transition) { t.NewKey = bad }, func(t *verify.Transition) { t.OldKey = bad },
		} {
			_, err := verify.ParseTransition([]byte(r.transition(change, r.keys[0], r.keys[1])))
			wantError(t, err, verify.ErrKeyHistory)
		}
	}
}

// unusableKeys are the identity, points of order 2, 4 and 8, and an encoding above the field's prime.
func unusableKeys(t *testing.T) []ed25519.PublicKey {
	t.Helper()
	hexes := []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	}
	keys := make([]ed25519.PublicKey, len(hexes))
	for i, h := range hexes {
		var err error
		keys[i], err = hex.DecodeString(h)
		must(t, err)
	}
	return keys
}

// Wherever a key is read, one that no honest signer has is refused.
func TestUnusableKeysAreRefusedWhereverAKeyIsRead(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(3)
	sth := l.Head(3)
	checkpoint, err := verify.ParseCheckpoint(l.Checkpoint(sth))
	must(t, err)
	for i, bad := range unusableKeys(t) {
		p := l.Package(1, 3)
		_, err := verify.Package(marshal(t, p), verify.Options{PublicKey: bad})
		wantError(t, err, verify.ErrOptions)
		_, err = verify.Package(marshal(t, p), verify.Options{VKey: verify.VKey(l.Origin, bad)})
		wantError(t, err, verify.ErrOptions)
		p.VKey, p.LogKeyID = verify.VKey(l.Origin, bad), verify.LogKeyID(bad)
		_, err = verify.Package(marshal(t, p), verify.Options{PublicKey: l.Public()})
		wantError(t, err, verify.ErrPackageFormat)
		_, _, err = verify.ParseVKey(verify.VKey(l.Origin, bad))
		wantError(t, err, verify.ErrKey)
		wantError(t, verify.TreeHead(sth, bad), verify.ErrKey)
		_, err = checkpoint.Verify(bad)
		wantError(t, err, verify.ErrKey)
		wantError(t, verify.Proof(l.Leaves[1], verify.InclusionProof{LeafIndex: 1, TreeSize: 3, Hashes: testlog.Path(1, l.Leaves)}, sth, bad), verify.ErrKey)
		if t.Failed() {
			t.Fatalf("key %d", i)
		}
	}
}

// A thief has the old key and everything that the log ever published. What it can make, and who sees through it.
func TestAThiefOfTheOldKey(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{verify.ReasonRotation, verify.ReasonCompromise} {
		r := newRotated(reason, verify.ReasonRotation)
		stolen := r.keys[0]
		history := func(size int, leaves [][]byte) []verify.PackageTransition {
			var list []verify.PackageTransition
			for i, h := range r.list {
				small, large := min(size, r.at[i]), max(size, r.at[i])
				all := leaves
				if large > len(all) {
					all = append(append([][]byte{}, leaves...), r.log.Leaves[len(leaves):]...)
				}
				h.ConsistencyProof = testlog.ConsistencyPath(small, all[:large])
				list = append(list, h)
			}
			return list
		}
		// forge makes a package of leaf 1 of a tree of the thief's own, or of the log's, signed with the stolen key.
		forge := func(leaves [][]byte, size int) *verify.ProofPackage {
			thief := &testlog.Log{Origin: r.log.Origin, Key: stolen, Leaves: leaves}
			return thief.Package(1, size)
		}
		other := append([][]byte{}, r.log.Leaves...)
		other[1] = other[2]

		for name, p := range map[string]*verify.ProofPackage{
			"the log's own tree, grown past the change": forge(r.log.Leaves, 8),
			"another tree, past the change":             forge(other, 8),
			"another tree, before the change":           forge(other, 4),
			"another tree, smaller":                     forge(other, 3),
		} {
			size := int(p.STH.TreeSize)
			for _, trusted := range []int{1, 2} { // the new pin
				_, err := r.check(t, p, trusted)
				wantError(t, err, verify.ErrUntrustedKey)
			}
			p.KeyHistory = history(size, r.log.Leaves)
			if strings.HasPrefix(name, "another") {
				p.KeyHistory = history(size, other)
			}
			for _, trusted := range []int{0, 1, 2} { // also the old pin, as long as the history is there
				_, err := r.check(t, p, trusted)
				if err == nil {
					t.Fatalf("%s, %s, trusting key %d: accepted", reason, name, trusted)
				}
				wantError(t, err, verify.ErrKeyHistory)
			}
		}

		// A change of the thief's own, to a key of its own, is nothing to those who trust the new key.
		mine := testlog.Key(9)
		own := &testlog.Log{Origin: r.log.Origin, Key: stolen, Leaves: append([][]byte{}, other[:4]...)}
		note := own.Transition(mine, verify.ReasonRotation)
		own.Fill(6)
		p := own.Package(1, 6)
		p.KeyHistory = []verify.PackageTransition{{Transition: note, ConsistencyProof: testlog.ConsistencyPath(4, own.Leaves[:6])}}
		for _, trusted := range []int{1, 2} {
			_, err := r.check(t, p, trusted)
			wantError(t, err, verify.ErrUntrustedKey)
		}

		// What no format can prevent, and the guide says so: who trusts the old key only, and sees no history, takes the
		// thief's word, and with it any key that the thief names.
		for _, p := range []*verify.ProofPackage{p, forge(r.log.Leaves, 8)} {
			_, err := r.check(t, p, 0)
			must(t, err)
		}
	}
}

// What the old key signed before it was given up keeps verifying, under the old pin too; the reader is warned.
func TestPackagesFromBeforeACompromiseKeepVerifying(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonCompromise, verify.ReasonRotation)
	for trusted := range r.keys {
		result, err := r.check(t, r.pack(4, 0), trusted)
		must(t, err)
		if len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0], "given up as compromised at size 4") {
			t.Fatalf("trusting key %d: got %q", trusted, result.Warnings)
		}
	}
	_, err := r.check(t, r.pack(8, 1), 0)
	wantError(t, err, verify.ErrUntrustedKey)
}

// A log that changes its key before its first leaf.
func TestAChangeOfTheKeyOfAnEmptyLog(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	first := l.Public()
	note := l.Transition(testlog.Key(2), verify.ReasonRotation)
	l.Fill(3)
	p := l.Package(1, 3)
	p.KeyHistory = []verify.PackageTransition{{Transition: note, ConsistencyProof: verify.Hashes{}}}
	_, err := verify.Package(marshal(t, p), verify.Options{PublicKey: first})
	must(t, err)
	p.KeyHistory[0].ConsistencyProof = verify.Hashes{make([]byte, 32)}
	_, err = verify.Package(marshal(t, p), verify.Options{PublicKey: first})
	wantError(t, err, verify.ErrKeyHistory)
}

func TestAHistoryWithoutTheKeyOfTheHeadIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	l := testlog.New(1).Fill(4)
	l.Key = testlog.Key(7)
	p := l.Package(1, 4)
	p.KeyHistory = r.pack(4, 0).KeyHistory
	_, err := verify.Package(marshal(t, p), verify.Options{PublicKey: l.Public()})
	wantError(t, err, verify.ErrKeyHistory)
}
