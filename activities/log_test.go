package activities_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// naiveTree computes roots as RFC 6962, section 2.1, defines them, remembering those of perfect subtrees.
type naiveTree struct {
	leaves [][]byte
	full   map[[2]int][]byte
}

func (n *naiveTree) root(from, to int) []byte {
	switch to - from {
	case 0:
		empty := sha256.Sum256(nil)
		return empty[:]
	case 1:
		return n.leaves[from]
	}
	if known := n.full[[2]int{from, to}]; known != nil {
		return known
	}
	split := 1
	for split*2 < to-from {
		split *= 2
	}
	node := sha256.New()
	node.Write([]byte{0x01})
	node.Write(n.root(from, from+split))
	node.Write(n.root(from+split, to))
	root := node.Sum(nil)
	if to-from == 2*split {
		n.full[[2]int{from, to}] = root
	}
	return root
}

// storedLeaf is a row of merkle_leaves. Tenant and attempt of a key transition are uuid.Nil.
type storedLeaf struct {
	Index    int64
	TenantID uuid.UUID
	Attempt  uuid.UUID
	Hash     []byte
	Leaf     []byte
	Secrets  []byte
}

// storedHead is a row of signed_tree_heads.
type storedHead struct {
	TreeSize   int64
	Timestamp  int64
	RootHash   []byte
	Signature  []byte
	Checkpoint []byte
}

// collect reads rows into structs.
func collect[T any](t testing.TB, b *testBundle, sql string, args ...any) []T {
	t.Helper()
	rows, err := b.engine.Query(context.Background(), sql, args...)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	require.NoError(t, err)
	return all
}

// checkLog recomputes the whole log from its leaves by a naive implementation, and compares everything that is stored:
// leaves, tiles, every root, every signed head; and has a stranger verify a package of every leaf that a head covers
// (of a log of more than 200 leaves, of every seventh). It returns the number of leaves and the signed heads.
func checkLog(t testing.TB, b *testBundle) (int, []storedHead) {
	t.Helper()
	leaves := collect[storedLeaf](t, b, `select leaf_index,
		coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'), coalesce(attempt_id, '00000000-0000-0000-0000-000000000000'),
		leaf_hash, leaf, secrets from merkle_leaves where log_id = $1 order by leaf_index`, b.log.ID)
	tree := &naiveTree{full: map[[2]int][]byte{}}
	for i, l := range leaves {
		require.EqualValues(t, i, l.Index)
		require.Equal(t, verify.LeafHash(l.Leaf), l.Hash)
		tree.leaves = append(tree.leaves, l.Hash)
	}
	checkRoots(t, b, tree)
	checkTiles(t, b, tree)
	checkLeavesOfAttempts(t, b, leaves)
	heads := checkHeads(t, b, tree)
	checkPackages(t, b, leaves, heads)
	return len(leaves), heads
}

func checkRoots(t testing.TB, b *testBundle, tree *naiveTree) {
	t.Helper()
	type rootRow struct {
		Size int64
		Root []byte
	}
	roots := collect[rootRow](t, b, "select tree_size, root_hash from tree_roots where log_id = $1 order by tree_size", b.log.ID)
	sizes := map[string]int64{}
	for _, r := range roots {
		require.Equal(t, tree.root(0, int(r.Size)), r.Root, "root of size %d", r.Size)
		require.NotContains(t, sizes, string(r.Root), "no root twice")
		sizes[string(r.Root)] = r.Size
	}
	head := collect[rootRow](t, b, "select tree_size, root_hash from log_heads where log_id = $1", b.log.ID)[0]
	require.Equal(t, roots[len(roots)-1], head)
	require.EqualValues(t, len(tree.leaves), head.Size, "the head covers all leaves")
}

func checkTiles(t testing.TB, b *testBundle, tree *naiveTree) {
	t.Helper()
	type tileRow struct {
		Level  int16
		Index  int64
		Hashes []byte
	}
	want := map[attestation.TileID]string{}
	for level, span := 0, 1; len(tree.leaves) >= span; level, span = level+1, span*256 {
		for i := 0; (i+1)*span <= len(tree.leaves); i++ {
			want[attestation.TileID{Level: uint8(level), Index: uint64(i / 256)}] += string(tree.root(i*span, (i+1)*span))
		}
	}
	got := map[attestation.TileID]string{}
	for _, r := range collect[tileRow](t, b, "select level, tile_index, hashes from merkle_tiles where log_id = $1", b.log.ID) {
		got[attestation.TileID{Level: uint8(r.Level), Index: uint64(r.Index)}] = string(r.Hashes)
	}
	require.Equal(t, want, got)
}

func checkLeavesOfAttempts(t testing.TB, b *testBundle, leaves []storedLeaf) {
	t.Helper()
	type indexRow struct {
		Attempt uuid.UUID
		Tenant  uuid.UUID
		Index   int64
	}
	var want []indexRow
	for _, l := range leaves {
		if l.Attempt == uuid.Nil {
			continue
		}
		want = append(want, indexRow{l.Attempt, l.TenantID, l.Index})
	}
	got := collect[indexRow](t, b, "select attempt_id, tenant_id, leaf_index from leaf_of_attempt where log_id = $1 order by leaf_index", b.log.ID)
	require.ElementsMatch(t, want, got)
}

// checkHeads returns the signed heads, oldest first.
func checkHeads(t testing.TB, b *testBundle, tree *naiveTree) []storedHead {
	t.Helper()
	heads := collect[storedHead](t, b, `select tree_size, "timestamp", root_hash, signature, checkpoint from signed_tree_heads
		where log_id = $1 and signature is not null order by "timestamp"`, b.log.ID)
	for i, h := range heads {
		require.Equal(t, tree.root(0, int(h.TreeSize)), h.RootHash)
		key := b.keyOf(t, h)
		require.NoError(t, verify.TreeHead(h.signed(), key))
		checkpoint, err := verify.ParseCheckpoint(h.Checkpoint)
		require.NoError(t, err)
		require.Equal(t, b.log.Origin, checkpoint.Origin)
		carried, err := checkpoint.Verify(key)
		require.NoError(t, err)
		require.Equal(t, h.signed(), carried)
		if i > 0 {
			require.GreaterOrEqual(t, h.TreeSize, heads[i-1].TreeSize)
			require.Greater(t, h.Timestamp, heads[i-1].Timestamp)
		}
	}
	return heads
}

func (h storedHead) signed() verify.SignedTreeHead {
	return verify.SignedTreeHead{TreeSize: uint64(h.TreeSize), Timestamp: h.Timestamp, RootHash: h.RootHash, Signature: h.Signature}
}

// checkPackages proves leaves by the earliest head that covers each.
func checkPackages(t testing.TB, b *testBundle, leaves []storedLeaf, heads []storedHead) {
	t.Helper()
	step := 1
	if len(leaves) > 200 {
		step = 7
	}
	for i := 0; i < len(leaves); i += step {
		if leaves[i].Attempt == uuid.Nil {
			continue
		}
		for _, head := range heads {
			if int64(i) < head.TreeSize {
				pkg, err := b.evidence(t, leaves[i], head).Package()
				require.NoError(t, err)
				_, err = verify.Package(pkg, verify.Options{VKey: b.presentVKey(t)})
				require.NoError(t, err)
				_, err = verify.Package(pkg, verify.Options{VKey: b.log.VKey}) // the first key's
				if b.trustGoesForward(t, head) {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, verify.ErrUntrustedKey)
				}
				break
			}
		}
	}
}

// evidence assembles what proves a leaf, from the database alone.
func (b *testBundle) evidence(t testing.TB, leaf storedLeaf, head storedHead) attestation.Evidence {
	t.Helper()
	var salts *verify.Salts // none if the payload was erased
	if leaf.Secrets != nil {
		var err error
		salts, err = attestation.SaltsOf(leaf.Secrets[:32], leaf.Secrets[32:])
		require.NoError(t, err)
	}
	path, err := attestation.ProveInclusion(context.Background(), b.readTiles, uint64(leaf.Index), uint64(head.TreeSize))
	require.NoError(t, err)
	return attestation.Evidence{
		Origin: b.log.Origin, Key: b.keyOf(t, head), Leaf: leaf.Leaf, Salts: salts, History: b.history(t, head.TreeSize),
		Proof: verify.InclusionProof{LeafIndex: uint64(leaf.Index), TreeSize: uint64(head.TreeSize), Hashes: path},
		Head:  head.signed(), Checkpoint: head.Checkpoint,
	}
}

func (b *testBundle) readTiles(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
	wanted := make([]postgres.TileID, len(ids))
	for i, t := range ids {
		wanted[i] = postgres.TileID(t)
	}
	stored, err := postgres.ReadTiles(ctx, b.engine, b.log.ID, wanted)
	if err != nil {
		return nil, fmt.Errorf("read tiles: %w", err)
	}
	tiles := map[attestation.TileID][]byte{}
	for t, hashes := range stored {
		tiles[attestation.TileID(t)] = hashes
	}
	return tiles, nil
}
