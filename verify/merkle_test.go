package verify_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/testlog"
)

// tester is what *testing.T, *testing.B, *testing.F and *rapid.T share.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// wantError fails unless err wraps want.
func wantError(t tester, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// must fails on any error.
func must(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHashesAreThoseOfRFC6962(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		got  []byte
		want string
	}{ // from the test vectors of Certificate Transparency
		{verify.EmptyRoot(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{verify.LeafHash(nil), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
		{verify.LeafHash([]byte("L123456")), "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"},
		{verify.NodeHash([]byte("N123"), []byte("N456")), "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"},
	} {
		if got := fmt.Sprintf("%x", c.got); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestEveryLeafOfEverySmallTreeIsProvable(t *testing.T) {
	t.Parallel()
	leaves := testlog.Numbered(300)
	for n := 1; n <= len(leaves); n++ {
		checkWholeTree(t, leaves[:n])
	}
}

func TestEveryLeafOfLargeTreesIsProvable(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1023, 1024, 1025, 4097, 9999, 10000} {
		checkWholeTree(t, testlog.Numbered(n))
	}
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 10_000).Draw(r, "size")
		root, paths := testlog.Paths(testlog.Numbered(n))
		i := rapid.IntRange(0, n-1).Draw(r, "index")
		hash := verify.LeafHash(testlog.Numbered(n)[i])
		must(r, verify.Inclusion(hash, uint64(i), uint64(n), paths[i], root))
	})
}

func checkWholeTree(t *testing.T, leaves [][]byte) {
	t.Helper()
	root, paths := testlog.Paths(leaves)
	for i, leaf := range leaves {
		if err := verify.Inclusion(verify.LeafHash(leaf), uint64(i), uint64(len(leaves)), paths[i], root); err != nil {
			t.Fatalf("leaf %d of %d: %v", i, len(leaves), err)
		}
	}
}

// The Go checksum database's tree is a second, independent oracle.
func TestAgreesWithTlog(t *testing.T) {
	t.Parallel()
	leaves := testlog.Numbered(130)
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = stored[x]
		}
		return out, nil
	})
	for i, leaf := range leaves {
		hashes, err := tlog.StoredHashes(int64(i), leaf, reader)
		must(t, err)
		stored = append(stored, hashes...)
	}
	for n := int64(1); n <= int64(len(leaves)); n++ {
		root, err := tlog.TreeHash(n, reader)
		must(t, err)
		for i := range n {
			path, err := tlog.ProveRecord(n, i, reader)
			must(t, err)
			must(t, verify.Inclusion(verify.LeafHash(leaves[i]), uint64(i), uint64(n), raw(path), root[:]))
			old, err := tlog.TreeHash(i+1, reader)
			must(t, err)
			proof, err := tlog.ProveTree(n, i+1, reader)
			must(t, err)
			must(t, verify.Consistency(uint64(i+1), uint64(n), raw(proof), old[:], root[:]))
		}
	}
}

func raw(hashes []tlog.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

func TestEveryPrefixIsConsistent(t *testing.T) {
	t.Parallel()
	leaves := testlog.Numbered(70)
	for n := range len(leaves) + 1 {
		for m := range n + 1 {
			err := verify.Consistency(uint64(m), uint64(n), testlog.ConsistencyPath(m, leaves[:n]),
				testlog.Root(leaves[:m]), testlog.Root(leaves[:n]))
			if err != nil {
				t.Fatalf("%d of %d: %v", m, n, err)
			}
		}
	}
}

func TestTamperedProofsAreRejected(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(2, 300).Draw(r, "size")
		i := rapid.IntRange(0, n-1).Draw(r, "index")
		leaves := testlog.Numbered(n)
		root, paths := testlog.Paths(leaves)
		hash, path := verify.LeafHash(leaves[i]), paths[i]
		targets := append([][]byte{hash, root}, path...)
		flip(r, targets[rapid.IntRange(0, len(targets)-1).Draw(r, "target")])
		wantError(r, verify.Inclusion(hash, uint64(i), uint64(n), path, root), verify.ErrInclusion)
	})
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(2, 300).Draw(r, "size")
		m := rapid.IntRange(1, n-1).Draw(r, "old size")
		leaves := testlog.Numbered(n)
		path, root1, root2 := testlog.ConsistencyPath(m, leaves), testlog.Root(leaves[:m]), testlog.Root(leaves)
		targets := append([][]byte{root1, root2}, path...)
		flip(r, targets[rapid.IntRange(0, len(targets)-1).Draw(r, "target")])
		wantError(r, verify.Consistency(uint64(m), uint64(n), path, root1, root2), verify.ErrConsistency)
	})
}

// flip changes one byte of b.
func flip(r *rapid.T, b []byte) {
	i := rapid.IntRange(0, len(b)-1).Draw(r, "byte")
	b[i] ^= byte(rapid.IntRange(1, 255).Draw(r, "mask"))
}

func TestAWrongIndexOrLeafIsRejected(t *testing.T) {
	t.Parallel()
	const n = 13
	leaves := testlog.Numbered(n)
	root, paths := testlog.Paths(leaves)
	for i := range leaves {
		for j := range leaves {
			if i != j {
				wantError(t, verify.Inclusion(verify.LeafHash(leaves[i]), uint64(j), n, paths[j], root), verify.ErrInclusion)
				wantError(t, verify.Inclusion(verify.LeafHash(leaves[i]), uint64(j), n, paths[i], root), verify.ErrInclusion)
			}
		}
	}
}

func TestInclusionGuards(t *testing.T) {
	t.Parallel()
	leaves := testlog.Numbered(5)
	root, paths := testlog.Paths(leaves)
	h, path := verify.LeafHash(leaves[1]), paths[1]
	must(t, verify.Inclusion(h, 1, 5, path, root))
	short := append([][]byte{path[0][:31]}, path[1:]...)
	long := append([][]byte{append(slices.Clone(path[0]), 0)}, path[1:]...)
	for name, err := range map[string]error{
		"index at size":     verify.Inclusion(h, 5, 5, path, root),
		"index beyond size": verify.Inclusion(h, 1<<63, 5, path, root),
		"empty tree":        verify.Inclusion(h, 0, 0, nil, h),
		"size 2^53":         verify.Inclusion(h, 1, 1<<53, path, root),
		"short proof":       verify.Inclusion(h, 1, 5, path[:2], root),
		"long proof":        verify.Inclusion(h, 1, 5, append(slices.Clone(path), h), root),
		"no proof":          verify.Inclusion(h, 1, 5, nil, root),
		"short leaf hash":   verify.Inclusion(h[:31], 1, 5, path, root),
		"nil leaf hash":     verify.Inclusion(nil, 0, 1, nil, nil),
		"short root":        verify.Inclusion(h, 1, 5, path, root[:16]),
		"short hash":        verify.Inclusion(h, 1, 5, short, root),
		"long hash":         verify.Inclusion(h, 1, 5, long, root),
		"64 hashes":         verify.Inclusion(h, 1, 5, slices.Repeat([][]byte{h}, 64), root),
		"node as leaf":      verify.Inclusion(verify.NodeHash(h, h), 0, 1, nil, h),
	} {
		t.Run(name, func(t *testing.T) { wantError(t, err, verify.ErrInclusion) })
	}
}

func TestConsistencyGuards(t *testing.T) {
	t.Parallel()
	leaves := testlog.Numbered(8)
	r0, r4, r8 := verify.EmptyRoot(), testlog.Root(leaves[:4]), testlog.Root(leaves)
	path := testlog.ConsistencyPath(4, leaves)
	must(t, verify.Consistency(0, 8, nil, r0, r8))
	must(t, verify.Consistency(0, 0, nil, r0, r0))
	must(t, verify.Consistency(8, 8, nil, r8, r8))
	for name, err := range map[string]error{
		"size 0 with another root":   verify.Consistency(0, 8, nil, r4, r8),
		"size 0 twice, another root": verify.Consistency(0, 0, nil, r4, r4),
		"size 0 with a proof":        verify.Consistency(0, 8, path, r0, r8),
		"one size, two roots":        verify.Consistency(8, 8, nil, r4, r8),
		"one size with a proof":      verify.Consistency(8, 8, path, r8, r8),
		"backwards":                  verify.Consistency(8, 4, path, r8, r4),
		"empty proof":                verify.Consistency(4, 8, nil, r4, r8),
		"size 2^53":                  verify.Consistency(4, 1<<53, path, r4, r8),
		"16-byte roots":              verify.Consistency(8, 8, nil, r8[:16], r8[:16]),
		"nil roots":                  verify.Consistency(0, 0, nil, nil, nil),
		"short hash":                 verify.Consistency(4, 8, [][]byte{path[0][:5]}, r4, r8),
		"long proof":                 verify.Consistency(4, 8, append(slices.Clone(path), r4), r4, r8),
	} {
		t.Run(name, func(t *testing.T) { wantError(t, err, verify.ErrConsistency) })
	}
}

// CVE-2012-2459: a tree that pairs an odd last leaf with itself has the same root with that leaf appended once more.
func TestAnOddLeafIsNotDuplicated(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 5, 6, 7} {
		leaves := testlog.Numbered(n)
		root, paths := testlog.Paths(leaves)
		last := verify.LeafHash(leaves[n-1])
		must(t, verify.Inclusion(last, uint64(n-1), uint64(n), paths[n-1], root))
		doubled, doubledPath := duplicatingTree(leaves)
		wantError(t, verify.Inclusion(last, uint64(n-1), uint64(n), doubledPath, doubled), verify.ErrInclusion)
		wantError(t, verify.Inclusion(last, uint64(n), uint64(n+1), doubledPath, root), verify.ErrInclusion)
		longer := append(slices.Clone(leaves), leaves[n-1])
		if bytes.Equal(testlog.Root(longer), root) {
			t.Fatalf("size %d and %d share a root", n, n+1)
		}
	}
}

// duplicatingTree is the flawed tree: its root, and the path of its last leaf.
func duplicatingTree(leaves [][]byte) (root []byte, path [][]byte) {
	var level [][]byte
	for _, l := range leaves {
		level = append(level, verify.LeafHash(l))
	}
	last := len(level) - 1
	for len(level) > 1 {
		if len(level)%2 == 1 {
			level = append(level, level[len(level)-1])
		}
		path = append(path, level[last^1])
		var up [][]byte
		for i := 0; i < len(level); i += 2 {
			up = append(up, verify.NodeHash(level[i], level[i+1]))
		}
		level, last = up, last/2
	}
	return level[0], path
}

func BenchmarkInclusion(b *testing.B) {
	leaves := testlog.Numbered(10_000)
	root, paths := testlog.Paths(leaves)
	hash := verify.LeafHash(leaves[1234])
	for b.Loop() {
		must(b, verify.Inclusion(hash, 1234, 10_000, paths[1234], root))
	}
}
