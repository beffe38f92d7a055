package verify_test

import (
	"crypto/ed25519"
	"encoding/json"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// headAt signs the first size leaves of l at a time, in ms after the start.
func headAt(l *testlog.Log, size int, ms int64) verify.SignedTreeHead {
	sth := l.Head(size)
	sth.Timestamp = testlog.Start + ms
	sth.Signature = ed25519.Sign(l.Key, verify.STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash))
	return sth
}

// twoTrees are logs of one key that share their first leaves, up to n.
func twoTrees(n, size int) (honest, forked *testlog.Log) {
	honest, forked = testlog.New(1).Fill(size), testlog.New(1).Fill(n)
	for len(forked.Leaves) < size {
		forked.Append(func(leaf *verify.Leaf) { leaf.DurationMS++ })
	}
	return honest, forked
}

func TestEveryPairOfSizesIsJudged(t *testing.T) {
	t.Parallel()
	honest, forked := twoTrees(0, 17)
	for m := 1; m <= 17; m++ {
		for n := m + 1; n <= 17; n++ {
			small, large := headAt(honest, m, 1), headAt(honest, n, 2)
			proof := testlog.EvidencePath(m, honest.Leaves[:n])
			check(t, small, large, proof, verify.Consistent)
			check(t, large, small, proof, verify.Stale)
			check(t, large, small, nil, verify.Stale)
			other := headAt(forked, m, 1)
			check(t, other, large, proof, verify.Fork)
			check(t, large, other, proof, verify.Fork) // older, and of another tree
			check(t, headAt(honest, m, 3), large, nil, verify.Rollback)
			check(t, headAt(honest, m, 2), large, nil, verify.Rollback)
			for i := range proof { // a hash that leads to no signed root proves nothing
				bad := cloned(proof)
				bad[i] = verify.EmptyRoot()
				_, err := verify.CompareHeads(small, large, bad)
				wantError(t, err, verify.ErrConsistency)
			}
			for _, bad := range [][][]byte{nil, proof[1:], append(cloned(proof), verify.EmptyRoot()), {proof[0][:31]}} {
				_, err := verify.CompareHeads(small, large, bad)
				wantError(t, err, verify.ErrConsistency)
			}
		}
		check(t, headAt(honest, m, 1), headAt(forked, m, 2), nil, verify.Split)
		check(t, headAt(honest, m, 1), headAt(honest, m, 2), nil, verify.Consistent)
		check(t, headAt(honest, m, 2), headAt(honest, m, 1), nil, verify.Stale)
		check(t, headAt(honest, 0, 1), headAt(honest, m, 2), nil, verify.Consistent)
		nothing := headAt(honest, 0, 1)
		nothing.RootHash = make([]byte, 32)
		check(t, nothing, headAt(honest, m, 2), nil, verify.Fork)
	}
}

func check(t *testing.T, seen, now verify.SignedTreeHead, proof [][]byte, want verify.Verdict) {
	t.Helper()
	got, err := verify.CompareHeads(seen, now, proof)
	must(t, err)
	if got != want {
		t.Fatalf("sizes %d and %d: %q, want %q", seen.TreeSize, now.TreeSize, got, want)
	}
}

// evidenceOf is a fork at sizes 5 and 9 as a monitor writes it.
func evidenceOf(seen, now *testlog.Log) *verify.Evidence {
	return &verify.Evidence{
		Format: verify.EvidenceFormat, Verdict: verify.Fork, VKey: seen.VKey(), URL: "https://" + seen.Origin,
		Seen:             verify.EvidenceHead{Checkpoint: string(seen.Checkpoint(headAt(seen, 5, 1))), FetchedAt: "2026-11-23T12:00:00.000Z"},
		Now:              verify.EvidenceHead{Checkpoint: string(now.Checkpoint(headAt(now, 9, 2))), FetchedAt: "2026-11-23T12:01:00.000Z"},
		ConsistencyProof: testlog.EvidencePath(5, now.Leaves[:9]),
	}
}

func judge(t *testing.T, e *verify.Evidence, vkey string) error {
	t.Helper()
	b, err := json.Marshal(e)
	must(t, err)
	parsed, err := verify.ParseEvidence(b)
	if err != nil {
		return err
	}
	_, _, err = parsed.Judge(vkey)
	return err
}

func TestEvidenceIsJudgedOffline(t *testing.T) {
	t.Parallel()
	honest, forked := twoTrees(3, 9)
	must(t, judge(t, evidenceOf(forked, honest), honest.VKey()))
	for name, c := range map[string]struct {
		edit func(*verify.Evidence)
		want error
	}{
		"an honest log":   {func(e *verify.Evidence) { *e = *evidenceOf(honest, honest) }, verify.ErrNoEvidence},
		"another verdict": {func(e *verify.Evidence) { e.Verdict = verify.Split }, verify.ErrNoEvidence},
		"no misconduct":   {func(e *verify.Evidence) { e.Verdict, e.Seen = verify.Consistent, e.Now; e.ConsistencyProof = nil }, verify.ErrNoEvidence},
		"a made-up hash":  {func(e *verify.Evidence) { e.ConsistencyProof[0] = verify.EmptyRoot() }, verify.ErrNoEvidence},
		"a hash missing":  {func(e *verify.Evidence) { e.ConsistencyProof = e.ConsistencyProof[1:] }, verify.ErrNoEvidence},
		"a forged head":   {func(e *verify.Evidence) { e.Seen.Checkpoint = strings.Replace(e.Seen.Checkpoint, "\n5\n", "\n6\n", 1) }, verify.ErrSignature},
		"another log's head": {func(e *verify.Evidence) {
			o := testlog.New(2).Fill(9)
			e.Now.Checkpoint = string(o.Checkpoint(o.Head(9)))
		}, verify.ErrOrigin},
		"not a checkpoint":     {func(e *verify.Evidence) { e.Now.Checkpoint = "nothing" }, verify.ErrNoteFormat},
		"another format":       {func(e *verify.Evidence) { e.Format = "kapsel.evidence/v2" }, verify.ErrEvidenceFormat},
		"a hash that is short": {func(e *verify.Evidence) { e.ConsistencyProof[0] = e.ConsistencyProof[0][1:] }, verify.ErrEvidenceFormat},
		"no transition":        {func(e *verify.Evidence) { e.Transitions = []string{"x"} }, verify.ErrKeyHistory},
		"too many transitions": {func(e *verify.Evidence) { e.Transitions = make([]string, 65) }, verify.ErrEvidenceFormat},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := evidenceOf(forked, honest)
			c.edit(e)
			wantError(t, judge(t, e, honest.VKey()), c.want)
		})
	}
	wantError(t, judge(t, evidenceOf(forked, honest), testlog.New(2).VKey()), verify.ErrOrigin)
	imposter := &testlog.Log{Origin: honest.Origin, Key: testlog.Key(9)}
	wantError(t, judge(t, evidenceOf(forked, honest), imposter.VKey()), verify.ErrUntrustedKey)
}

// A log changes its key at size 4. Heads of both keys are told apart by size.
func TestAKeyringFollowsTransitions(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{verify.ReasonRotation, verify.ReasonCompromise} {
		l := testlog.New(1).Fill(4)
		old := *l
		note := []byte(l.Transition(testlog.Key(2), reason))
		l.Fill(9)
		old.Leaves = l.Leaves
		head := func(vkey string, signer *testlog.Log, size int) (bool, error) {
			ring, err := verify.NewKeyring(vkey, note)
			must(t, err)
			_, compromised, err := ring.Head(signer.Checkpoint(signer.Head(size)))
			return compromised, err
		}
		_, err := head(old.VKey(), &old, 4)
		must(t, err)
		_, err = head(l.VKey(), l, 9)
		must(t, err)
		compromised, err := head(l.VKey(), &old, 3)
		must(t, err)
		if compromised != (reason == verify.ReasonCompromise) {
			t.Errorf("%s: compromised is %v", reason, compromised)
		}
		_, err = head(old.VKey(), &old, 5) // after its end
		wantError(t, err, verify.ErrUntrustedKey)
		_, err = head(l.VKey(), l, 4) // before its start
		wantError(t, err, verify.ErrUntrustedKey)
		_, err = head(old.VKey(), l, 9)
		if reason == verify.ReasonRotation {
			must(t, err)
		} else {
			wantError(t, err, verify.ErrUntrustedKey)
		}
	}
	l := testlog.New(1).Fill(4)
	forged := strings.Replace(l.Transition(testlog.Key(2), verify.ReasonCompromise), verify.ReasonCompromise, verify.ReasonRotation, 1)
	_, err := verify.NewKeyring(testlog.New(1).VKey(), []byte(forged))
	wantError(t, err, verify.ErrKeyHistory)
}

// What a thief of a given-up key signs convicts nobody.
func TestACompromisedKeyIsNoEvidence(t *testing.T) {
	t.Parallel()
	l := testlog.New(1).Fill(6)
	thief := testlog.New(1)
	for range 5 {
		thief.Append(func(leaf *verify.Leaf) { leaf.DurationMS = 7 })
	}
	note := l.Transition(testlog.Key(2), verify.ReasonCompromise)
	l.Fill(9)
	e := evidenceOf(thief, l)
	e.Transitions = []string{note}
	wantError(t, judge(t, e, l.VKey()), verify.ErrNoEvidence)
}

func FuzzParseEvidence(f *testing.F) {
	honest, forked := twoTrees(3, 9)
	b, err := json.Marshal(evidenceOf(forked, honest))
	must(f, err)
	f.Add(b)
	b, err = json.Marshal(evidenceOf(honest, honest))
	must(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := verify.ParseEvidence(b)
		if err != nil {
			return
		}
		seen, now, err := e.Judge(honest.VKey())
		if err != nil {
			return
		}
		if seen.TreeSize != 5 || now.TreeSize != 9 || string(seen.RootHash) == string(testlog.Root(honest.Leaves[:5])) {
			t.Fatalf("an honest log is convicted by %s", b)
		}
	})
}
