package verify_test

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// appendChain logs a delivery whose attempts have these outcomes; "dead" and the like are decisions. Leaves of another
// delivery stand between them. edit may change a leaf before it is logged.
func appendChain(l *testlog.Log, outcomes []string, edit func(seq int, leaf *verify.Leaf)) (indexes []int) {
	previous, attempts := "", int64(0)
	for i, outcome := range outcomes {
		l.Append(nil)
		n := l.Append(func(leaf *verify.Leaf) {
			leaf.DeliveryID, leaf.EventID = testlog.ID("dlv", 7), testlog.ID("evt", 7)
			leaf.PayloadHash = l.Leaf(0).PayloadHash
			leaf.Seq, leaf.PreviousLeafHash = int64(i+1), previous
			switch outcome {
			case "dead", "canceled", "skipped":
				leaf.Kind, leaf.Outcome = outcome, "exhausted"
				leaf.ResponseStatus, leaf.ResponseHash, leaf.ResponseSize, leaf.URLHash, leaf.HeadersHash = 0, "", 0, "", ""
			case "retry", "failed":
				leaf.Outcome, leaf.ResponseStatus = outcome, 503
				attempts++
			default:
				attempts++
			}
			leaf.AttemptNumber = attempts
			if edit != nil {
				edit(i+1, leaf)
			}
		})
		previous = hex.EncodeToString(verify.LeafHash(l.Leaves[n]))
		indexes = append(indexes, n)
	}
	return indexes
}

// packages makes the packages of leaves, each under the head that first covers it, timed as the log grows.
func packages(t tester, l *testlog.Log, indexes ...int) (list [][]byte) {
	for _, i := range indexes {
		p := l.Package(i, i+1)
		sth := headAt(l, i+1, int64(i+1)*1000)
		p.STH, p.Checkpoint = verify.NewPackageHead(sth), string(l.Checkpoint(sth))
		list = append(list, marshal(t, p))
	}
	return list
}

func TestAChainIsComplete(t *testing.T) {
	t.Parallel()
	for _, outcomes := range [][]string{
		{"delivered"}, {"retry", "retry", "delivered"}, {"retry", "failed", "dead"}, {"skipped"}, {"canceled"}, {"retry", "canceled"},
	} {
		l := testlog.New(1)
		list := packages(t, l, appendChain(l, outcomes, nil)...)
		slices.Reverse(list)
		list = append(list, list[0]) // the order doesn't matter, nor that one comes twice
		c, err := verify.Delivery(list, verify.Options{VKey: l.VKey()})
		must(t, err)
		if !c.Complete() || c.Terminal() == nil || len(c.Links) != len(outcomes) || c.Delivery != testlog.ID("dlv", 7) || len(c.Warnings) != 0 {
			t.Errorf("%v: %+v", outcomes, c)
		}
	}
}

func TestWhatIsMissingFromAChainIsNamed(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	at := appendChain(l, []string{"retry", "retry", "retry", "retry", "failed", "dead"}, nil)
	for name, c := range map[string]struct {
		take []int
		want []string
	}{
		"the first":     {[]int{1, 2, 3, 4, 5}, []string{"leaf 1; the hash of leaf 1 is " + hash(l, at[0])}},
		"in the middle": {[]int{0, 3, 4, 5}, []string{"leaves 2 to 3; the hash of leaf 3 is " + hash(l, at[2])}},
		"the last":      {[]int{0, 1, 2, 3}, []string{"what follows leaf 4"}},
		"the dead":      {[]int{0, 1, 2, 3, 4}, []string{`leaf 6, of kind "dead"`}},
		"all but one":   {[]int{2}, []string{"leaves 1 to 2", "what follows leaf 3"}},
		"all but dead":  {[]int{5}, []string{"leaves 1 to 5"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var take []int
			for _, i := range c.take {
				take = append(take, at[i])
			}
			chain, err := verify.Delivery(packages(t, l, take...), verify.Options{VKey: l.VKey()})
			must(t, err)
			if chain.Complete() || len(chain.Missing) != len(c.want) {
				t.Fatalf("missing: %q", chain.Missing)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(chain.Missing[i], want) {
					t.Errorf("missing: %q, want %q", chain.Missing[i], want)
				}
			}
		})
	}
}

func hash(l *testlog.Log, i int) string { return hex.EncodeToString(verify.LeafHash(l.Leaves[i])) }

func TestChainsThatContradictThemselves(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		outcomes []string
		edit     func(seq int, leaf *verify.Leaf)
	}{
		"another hash before": {[]string{"retry", "delivered"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.PreviousLeafHash = strings.Repeat("0", 64)
			}
		}},
		"something after the end":  {[]string{"delivered", "delivered"}, nil},
		"something after dead":     {[]string{"failed", "dead", "canceled"}, nil},
		"failed, then another try": {[]string{"failed", "delivered"}, nil},
		"an attempt with two numbers": {[]string{"retry", "delivered"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.AttemptNumber = 3
			}
		}},
		"a miscounting decision": {[]string{"failed", "dead"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.AttemptNumber = 0
			}
		}},
		"another payload": {[]string{"retry", "delivered"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.PayloadHash = strings.Repeat("0", 64)
			}
		}},
		"another destination": {[]string{"retry", "delivered"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.DestinationID = testlog.ID("dst", 9)
			}
		}},
		"another event": {[]string{"retry", "delivered"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.EventID = testlog.ID("evt", 9)
			}
		}},
		"another tenant": {[]string{"retry", "delivered"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.TenantID = testlog.ID("ten", 9)
			}
		}},
		"another delivery": {[]string{"retry", "delivered"}, func(seq int, l *verify.Leaf) {
			if seq == 2 {
				l.DeliveryID = testlog.ID("dlv", 9)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := testlog.New(1)
			list := packages(t, l, appendChain(l, c.outcomes, c.edit)...)
			_, err := verify.Delivery(list, verify.Options{VKey: l.VKey()})
			wantError(t, err, verify.ErrChain)
		})
	}
}

func TestTwoLeavesOfOneNumber(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	first := appendChain(l, []string{"retry", "delivered"}, nil)
	second := appendChain(l, []string{"retry"}, nil)
	_, err := verify.Delivery(packages(t, l, append(first, second...)...), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrChain)
	l.Leaves = append(l.Leaves, l.Leaves[first[0]]) // the same bytes, logged twice
	_, err = verify.Delivery(packages(t, l, first[0], first[1], len(l.Leaves)-1), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrChain)
}

func TestHeadsOfAChainAreCompared(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	at := appendChain(l, []string{"retry", "delivered"}, nil)
	good := packages(t, l, at...)
	late := l.Package(at[1], at[1]+1) // larger, and of the same time as the start: older than the first
	sth := headAt(l, at[1]+1, 1)
	late.STH, late.Checkpoint = verify.NewPackageHead(sth), string(l.Checkpoint(sth))
	_, err := verify.Delivery([][]byte{good[0], marshal(t, late)}, verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrChain)

	// An idle log signs a size again. Its last head of that size counts, whatever the order of the packages.
	again := l.Package(at[0], at[1])
	for _, ms := range []int64{5_000, 1} {
		first := l.Package(at[0], at[1])
		sth = headAt(l, at[1], 10_001-ms)
		first.STH, first.Checkpoint = verify.NewPackageHead(sth), string(l.Checkpoint(sth))
		sth = headAt(l, at[1], ms)
		again.STH, again.Checkpoint = verify.NewPackageHead(sth), string(l.Checkpoint(sth))
		next := l.Package(at[1], at[1]+1)
		sth = headAt(l, at[1]+1, 5_000)
		next.STH, next.Checkpoint = verify.NewPackageHead(sth), string(l.Checkpoint(sth))
		_, err = verify.Delivery([][]byte{marshal(t, first), marshal(t, again), marshal(t, next)}, verify.Options{VKey: l.VKey()})
		wantError(t, err, verify.ErrChain)
	}

	split := testlog.New(1)
	split.Append(func(leaf *verify.Leaf) { leaf.DurationMS = 1 })
	split.Leaves = append(split.Leaves, l.Leaves[1:]...)
	two := [][]byte{marshal(t, l.Package(at[0], 4)), marshal(t, split.Package(at[1], 4))}
	_, err = verify.Delivery(two, verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrChain)
}

func TestAChainNeedsVerifiedPackages(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	at := appendChain(l, []string{"retry", "delivered"}, nil)
	good := packages(t, l, at...)
	bad := l.Package(at[1], 4)
	bad.InclusionProof[0][0] ^= 1
	_, err := verify.Delivery([][]byte{good[0], marshal(t, bad)}, verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrInclusion)
	other := testlog.ID("dlv", 9)
	_, err = verify.Delivery(good, verify.Options{VKey: l.VKey(), Delivery: &other})
	wantError(t, err, verify.ErrDeliveryMismatch)
	_, err = verify.Delivery(nil, verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrOptions)
	response := []byte{}
	_, err = verify.Delivery(good, verify.Options{VKey: l.VKey(), Response: &response})
	wantError(t, err, verify.ErrOptions)
	l.Append(func(leaf *verify.Leaf) { leaf.Kind, leaf.Outcome = verify.KindAccepted, "" })
	_, err = verify.Delivery(packages(t, l, 4), verify.Options{VKey: l.VKey()})
	wantError(t, err, verify.ErrChain)
}

func TestABackdatedLeafOnlyWarns(t *testing.T) {
	t.Parallel()
	l := testlog.New(1)
	at := appendChain(l, []string{"retry", "delivered"}, func(seq int, leaf *verify.Leaf) {
		if seq == 2 {
			leaf.AttemptedAt = "2020-01-01T00:00:00.000Z"
		}
	})
	c, err := verify.Delivery(packages(t, l, at...), verify.Options{VKey: l.VKey()})
	must(t, err)
	if !c.Complete() || len(c.Warnings) != 1 {
		t.Errorf("got %+v", c)
	}
}

// successors makes logs of which each goes on where the one before was closed, and a delivery whose leaves are in them by turns,
// one in each log that is named by its number.
func successors(t tester, in ...int) (logs []*testlog.Log, list [][]byte) {
	for i := range 3 {
		l := testlog.New(byte(i + 1))
		l.Origin += strings.Repeat("x", i)
		logs = append(logs, l)
	}
	previous := ""
	for i, log := range in {
		l := logs[log]
		n := l.Append(func(leaf *verify.Leaf) {
			leaf.DeliveryID, leaf.EventID = testlog.ID("dlv", 7), testlog.ID("evt", 7)
			leaf.PayloadHash = logs[0].Leaf(0).PayloadHash
			leaf.Seq, leaf.AttemptNumber, leaf.PreviousLeafHash = int64(i+1), int64(i+1), previous
			if i < len(in)-1 {
				leaf.Outcome, leaf.ResponseStatus = "retry", 503
			}
		})
		previous = hash(l, n)
		list = append(list, packages(t, l, n)...)
	}
	return logs, list
}

func TestAChainGoesOnInTheSuccessorOfAClosedLog(t *testing.T) {
	t.Parallel()
	logs, list := successors(t, 0, 0, 1, 2, 2)
	opts := verify.Options{VKey: logs[0].VKey(), Successors: []string{logs[1].VKey(), logs[2].VKey()}}
	c, err := verify.Delivery(list, opts)
	must(t, err)
	if !c.Complete() || len(c.Links) != 5 || c.Terminal() == nil {
		t.Fatalf("%+v", c)
	}
	c, err = verify.Delivery(list[2:], opts)
	must(t, err)
	if want := []string{"leaves 1 to 2; the hash of leaf 2 is " + hash(logs[0], 1)}; !slices.Equal(c.Missing, want) {
		t.Fatalf("%q", c.Missing)
	}
	opts.Successors = opts.Successors[:1]
	_, err = verify.Delivery(list, opts)
	wantError(t, err, verify.ErrOrigin) // the last log isn't trusted
	opts.Successors = []string{verify.VKey(logs[1].Origin, logs[2].Public()), logs[2].VKey()}
	_, err = verify.Delivery(list, opts)
	wantError(t, err, verify.ErrUntrustedKey) // each log by its own key
}

func TestAChainNeverComesBackFromASuccessor(t *testing.T) {
	t.Parallel()
	logs, list := successors(t, 0, 1, 0)
	_, err := verify.Delivery(list, verify.Options{VKey: logs[0].VKey(), Successors: []string{logs[1].VKey()}})
	wantError(t, err, verify.ErrChain)
	logs, list = successors(t, 0, 1)
	_, err = verify.Delivery(list, verify.Options{VKey: logs[1].VKey(), Successors: []string{logs[0].VKey()}})
	wantError(t, err, verify.ErrChain) // in another order than theirs
}

func TestSuccessorsThatCanNotBeUsed(t *testing.T) {
	t.Parallel()
	logs, list := successors(t, 0)
	for name, opts := range map[string]verify.Options{
		"a name twice":     {VKey: logs[0].VKey(), Successors: []string{logs[1].VKey(), logs[1].VKey()}},
		"the log itself":   {VKey: logs[0].VKey(), Successors: []string{logs[0].VKey()}},
		"not a vkey":       {VKey: logs[0].VKey(), Successors: []string{"x"}},
		"a log of no name": {PublicKey: logs[0].Public(), Successors: []string{logs[1].VKey()}},
	} {
		_, err := verify.Delivery(list, opts)
		wantError(t, err, verify.ErrOptions)
		if _, err = verify.Package(list[0], opts); err == nil {
			t.Errorf("%s: a single package takes successors", name)
		}
	}
}
