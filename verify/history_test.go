package verify_test

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// rotated is a log with three keys: it changes from the first to the second at size 4, and to the third at size 9.
type rotated struct {
	log  *testlog.Log
	keys []ed25519.PrivateKey
	list []verify.PackageTransition
	at   []int
}

func newRotated(first, second string) *rotated {
	r := &rotated{log: testlog.New(1), keys: []ed25519.PrivateKey{testlog.Key(1), testlog.Key(2), testlog.Key(3)}}
	for i, reason := range []string{first, second} {
		r.log.Fill([]int{4, 9}[i])
		r.at = append(r.at, len(r.log.Leaves))
		r.list = append(r.list, verify.PackageTransition{Transition: r.log.Transition(r.keys[i+1], reason)})
	}
	r.log.Fill(14)
	return r
}

// pack makes the package of leaf 1 under the head of a size and key, with the whole history.
func (r *rotated) pack(size, key int) *verify.ProofPackage {
	l := *r.log
	l.Key = r.keys[key]
	p := l.Package(1, size)
	for i, h := range r.list {
		h.ConsistencyProof = testlog.ConsistencyPath(min(size, r.at[i]), l.Leaves[:max(size, r.at[i])])
		p.KeyHistory = append(p.KeyHistory, h)
	}
	return p
}

func (r *rotated) check(t *testing.T, p *verify.ProofPackage, trusted int) (*verify.Result, error) {
	t.Helper()
	return verify.Package(marshal(t, p), verify.Options{PublicKey: r.keys[trusted].Public().(ed25519.PublicKey)})
}

func TestTrustGoesBothWaysOverRotations(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	for key, size := range []int{4, 9, 14} {
		for trusted := range r.keys {
			if _, err := r.check(t, r.pack(size, key), trusted); err != nil {
				t.Errorf("head of key %d, trusting key %d: %v", key, trusted, err)
			}
		}
	}
}

func TestTrustNeverGoesForwardOverACompromise(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonCompromise)
	_, err := r.check(t, r.pack(14, 2), 1)
	wantError(t, err, verify.ErrUntrustedKey)
	_, err = r.check(t, r.pack(14, 2), 0)
	wantError(t, err, verify.ErrUntrustedKey)
	result, err := r.check(t, r.pack(8, 1), 2)
	must(t, err)
	if len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0], "compromised") {
		t.Fatalf("got %v", result.Warnings)
	}
}

func TestKeyHistoriesThatProveNothing(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonRotation)
	stranger := testlog.Key(9)
	resign := func(p *verify.ProofPackage, i int, keys ...ed25519.PrivateKey) {
		text := strings.Split(p.KeyHistory[i].Transition, "\n\n")[0] + "\n"
		p.KeyHistory[i].Transition = string(testlog.SignNote(text, p.Origin, keys...))
	}
	for name, c := range map[string]struct {
		size, key, trusted int
		edit               func(*verify.ProofPackage)
		want               error
	}{
		"no history":           {4, 0, 2, func(p *verify.ProofPackage) { p.KeyHistory = nil }, verify.ErrUntrustedKey},
		"history too short":    {4, 0, 2, func(p *verify.ProofPackage) { p.KeyHistory = p.KeyHistory[:1] }, verify.ErrUntrustedKey},
		"another order":        {4, 0, 2, func(p *verify.ProofPackage) { p.KeyHistory[0], p.KeyHistory[1] = p.KeyHistory[1], p.KeyHistory[0] }, verify.ErrKeyHistory},
		"a gap":                {4, 0, 2, func(p *verify.ProofPackage) { p.KeyHistory[1] = p.KeyHistory[0] }, verify.ErrKeyHistory},
		"old head past change": {5, 0, 2, func(*verify.ProofPackage) {}, verify.ErrKeyHistory},
		"new head before":      {9, 2, 0, func(*verify.ProofPackage) {}, verify.ErrKeyHistory},
		"no old signature":     {14, 2, 1, func(p *verify.ProofPackage) { resign(p, 1, r.keys[2]) }, verify.ErrKeyHistory},
		"no new signature":     {9, 1, 2, func(p *verify.ProofPackage) { resign(p, 1, r.keys[1]) }, verify.ErrKeyHistory},
		"signed by a stranger": {9, 1, 2, func(p *verify.ProofPackage) { resign(p, 1, stranger) }, verify.ErrKeyHistory},
		"no consistency":       {8, 1, 2, func(p *verify.ProofPackage) { p.KeyHistory[1].ConsistencyProof = nil }, verify.ErrKeyHistory},
		"wrong consistency":    {8, 1, 2, func(p *verify.ProofPackage) { p.KeyHistory[1].ConsistencyProof[0][0] ^= 1 }, verify.ErrKeyHistory},
		"rewritten reason": {14, 2, 1, func(p *verify.ProofPackage) {
			p.KeyHistory[1].Transition = strings.Replace(p.KeyHistory[1].Transition, "rotation", "compromise", 1)
		}, verify.ErrKeyHistory},
		"unknown reason": {14, 2, 1, func(p *verify.ProofPackage) {
			p.KeyHistory[1].Transition = strings.Replace(p.KeyHistory[1].Transition, "rotation", "boredom", 1)
		}, verify.ErrKeyHistory},
		"another header": {14, 2, 1, func(p *verify.ProofPackage) {
			p.KeyHistory[1].Transition = strings.Replace(p.KeyHistory[1].Transition, "/v1", "/v2", 1)
		}, verify.ErrKeyHistory},
		"not a note": {14, 2, 1, func(p *verify.ProofPackage) { p.KeyHistory[1].Transition = "" }, verify.ErrKeyHistory},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := verify.ParsePackage(marshal(t, r.pack(c.size, c.key)))
			must(t, err)
			c.edit(p)
			_, err = r.check(t, p, c.trusted)
			wantError(t, err, c.want)
		})
	}
}

// A head that its old key signed for a tree that the log never had is stopped by the consistency proof, although every
// signature is genuine.
func TestAForkUnderAnOldKeyIsRejected(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonCompromise)
	fork := testlog.New(1).Fill(8)
	fork.Key = r.keys[1]
	fork.Leaves[1] = fork.Leaves[2]
	p := fork.Package(1, 8)
	p.KeyHistory = r.pack(8, 1).KeyHistory
	_, err := r.check(t, p, 2)
	wantError(t, err, verify.ErrKeyHistory)
}

func TestTransitionRoundTrip(t *testing.T) {
	t.Parallel()
	r := newRotated(verify.ReasonRotation, verify.ReasonCompromise)
	for i, h := range r.list {
		got, err := verify.ParseTransition([]byte(h.Transition))
		must(t, err)
		must(t, got.Verify())
		if got.Text() != got.Note.Text || string(r.log.Leaves[r.at[i]]) != h.Transition {
			t.Fatalf("got %q", got.Text())
		}
	}
}
