package audit_test

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/verify"
)

func TestASoundLogIsSound(t *testing.T) {
	t.Parallel()
	for _, batches := range [][]int{{0}, {1}, {255, 1}, {256}, {257}, {100, 200, 300, 7}, {2000, 4096}} {
		t.Run(fmt.Sprint(batches), func(t *testing.T) {
			t.Parallel()
			b := sealed(t, batches...)
			leaves := 0
			for _, n := range batches {
				leaves += n
			}
			report, faults := b.fsck(t)
			require.Empty(t, where(faults))
			require.EqualValues(t, leaves, report.Leaves)
			require.EqualValues(t, leaves, report.TreeSize)
			require.EqualValues(t, value[int](t, b.owner, "select count(*) from signed_tree_heads"), report.Heads)
			require.EqualValues(t, value[int](t, b.owner, "select count(*) from tree_roots"), report.Roots)
			require.Equal(t, 1, report.Keys)
			require.Equal(t, verify.Hex(value[[]byte](t, b.owner, "select root_hash from log_heads")), report.RootHash)
		})
	}
}

// Each tampering is found where it was done, and nothing else is. The log has 1,100 leaves: tiles 0/0 to 0/3 are full, 0/4 has
// 76 hashes, 1/0 has 4; heads were published at 400, 700 and 1,100.
func TestFsckFindsExactlyWhatWasTamperedWith(t *testing.T) {
	t.Parallel()
	const flip = "set_byte(%s, 3, 255 - get_byte(%s, 3))"
	flipped := func(column string) string { return fmt.Sprintf(flip, column, column) }
	for name, c := range map[string]struct {
		sql    []string
		faults []string
	}{
		"a leaf's bytes": {
			[]string{`update merkle_leaves set leaf = convert_to(replace(convert_from(leaf, 'UTF8'), '"duration_ms":41', '"duration_ms":42'), 'UTF8') where leaf_index = 17`},
			[]string{"leaf_bytes: leaf 17"}},
		"the bytes of a leaf of the last tile": {
			[]string{"update merkle_leaves set leaf = 'x' where leaf_index = 1099"}, []string{"leaf_bytes: leaf 1099"}},
		"a leaf hash": {
			[]string{"update merkle_leaves set leaf_hash = " + flipped("leaf_hash") + " where leaf_index = 300"}, []string{"leaf_hash: leaf 300"}},
		"a leaf hash of the last tile": {
			[]string{"update merkle_leaves set leaf_hash = " + flipped("leaf_hash") + " where leaf_index = 1030"}, []string{"leaf_hash: leaf 1030"}},
		"a leaf hash whose bytes are erased": {
			[]string{"update merkle_leaves set leaf = null, secrets = null, leaf_hash = " + flipped("leaf_hash") + " where leaf_index = 300"},
			[]string{"leaf_replaced: leaf 300"}},
		"a hash in a tile": {
			[]string{"update merkle_tiles set hashes = " + "set_byte(hashes, 32*9+5, 255 - get_byte(hashes, 32*9+5)) where level = 0 and tile_index = 1"},
			[]string{"tile_hash: leaf 265, tile 0/1, hash 9"}},
		"a hash in the last tile": {
			[]string{"update merkle_tiles set hashes = set_byte(hashes, 32*75+5, 255 - get_byte(hashes, 32*75+5)) where level = 0 and tile_index = 4"},
			[]string{"tile_hash: leaf 1099, tile 0/4, hash 75"}},
		"a hash in a tile above": {
			[]string{"update merkle_tiles set hashes = set_byte(hashes, 32*2, 255 - get_byte(hashes, 32*2)) where level = 1"},
			[]string{"tile_hash: leaves 512 to 767, tile 1/0, hash 2"}},
		"hashes in a tile and in the one above, and a leaf hash": {
			[]string{"update merkle_tiles set hashes = set_byte(hashes, 32*1, 255 - get_byte(hashes, 32*1)) where level = 1",
				"update merkle_tiles set hashes = set_byte(hashes, 32*4, 255 - get_byte(hashes, 32*4)) where level = 0 and tile_index = 1",
				"update merkle_leaves set leaf_hash = " + flipped("leaf_hash") + " where leaf_index = 300"},
			[]string{"tile_hash: leaf 260, tile 0/1, hash 4", "leaf_hash: leaf 300", "tile_hash: leaves 256 to 511, tile 1/0, hash 1"}},
		"a tile that is gone":       {[]string{"delete from merkle_tiles where level = 0 and tile_index = 2"}, []string{"tile_missing: tile 0/2"}},
		"a tile above that is gone": {[]string{"delete from merkle_tiles where level = 1"}, []string{"tile_missing: tile 1/0"}},
		"a tile that is cut short": {
			[]string{"update merkle_tiles set hashes = substring(hashes for 64) where level = 0 and tile_index = 4"}, []string{"tile_missing: tile 0/4"}},
		"a tile beyond the tree": {
			[]string{"insert into merkle_tiles (log_id, level, tile_index, hashes) select id, 0, 5, decode(repeat('ab', 32), 'hex') from logs"},
			[]string{"tile_extra: tile 0/5"}},
		"hashes beyond the tree": {
			[]string{"update merkle_tiles set hashes = hashes || decode(repeat('ab', 32), 'hex') where level = 0 and tile_index = 4"},
			[]string{"tile_extra: tile 0/4"}},
		"a leaf that is missing":      {[]string{"delete from merkle_leaves where leaf_index = 600"}, []string{"leaf_missing: leaf 600"}},
		"leaves that are missing":     {[]string{"delete from merkle_leaves where leaf_index between 500 and 799"}, []string{"leaf_missing: leaves 500 to 799"}},
		"the last leaf is missing":    {[]string{"delete from merkle_leaves where leaf_index = 1099"}, []string{"leaf_missing: leaf 1099"}},
		"every leaf is missing":       {[]string{"delete from merkle_leaves"}, []string{"leaf_missing: leaves 0 to 1099"}},
		"a leaf and its tile missing": {[]string{"delete from merkle_leaves where leaf_index = 600", "delete from merkle_tiles where level = 0 and tile_index = 2"}, []string{"tile_missing: tile 0/2", "leaf_missing: leaf 600"}},
		"two leaves swapped": {
			[]string{"update merkle_leaves set leaf_index = case leaf_index when 40 then 99 + 1000000 else 40 + 1000000 end where leaf_index in (40, 99)",
				"update merkle_leaves set leaf_index = leaf_index - 1000000 where leaf_index > 1000000"},
			[]string{"leaf_replaced: leaf 40", "leaf_replaced: leaf 99"}},
		"two leaves of different tiles swapped": {
			[]string{"update merkle_leaves set leaf_index = case leaf_index when 40 then 1099 + 1000000 else 40 + 1000000 end where leaf_index in (40, 1099)",
				"update merkle_leaves set leaf_index = leaf_index - 1000000 where leaf_index > 1000000"},
			[]string{"leaf_replaced: leaf 40", "leaf_replaced: leaf 1099"}},
		"a leaf with its hash": {
			[]string{"update merkle_leaves set leaf = 'x', leaf_hash = sha256('\\x0078'::bytea) where leaf_index = 5"}, []string{"leaf_replaced: leaf 5"}},
		"a leaf with its hash and its tile": {
			[]string{"update merkle_leaves set leaf = '{}', leaf_hash = sha256('\\x007b7d'::bytea) where leaf_index = 1020",
				"update merkle_tiles set hashes = overlay(hashes placing sha256('\\x007b7d'::bytea) from 32*252+1) where level = 0 and tile_index = 3"},
			[]string{"leaf_format: leaf 1020", "subtree: leaves 768 to 1023, tile 1/0, hash 3"}},
		"an erased leaf that isn't": {[]string{"update merkle_leaves set leaf = null where leaf_index = 8"}, []string{"leaf_row: leaf 8"}},
		"a leaf of another tenant":  {[]string{"update merkle_leaves set tenant_id = log_id where leaf_index = 8"}, []string{"leaf_row: leaf 8"}},
		"a leaf of another attempt": {[]string{"update merkle_leaves set attempt_id = log_id where leaf_index = 8"}, []string{"leaf_row: leaf 8", "attempt_index: leaf 8"}},
		"the way from an attempt to its leaf": {
			[]string{"update leaf_of_attempt set leaf_index = 9 where leaf_index = 8"}, []string{"attempt_index: leaf 8"}},
		"a root": {
			[]string{"update tree_roots set root_hash = " + flipped("root_hash") + " where tree_size = 700"}, []string{"root_hash: size 700"}},
		"a root that is gone": {[]string{"delete from tree_roots where tree_size = 700"}, []string{"root_hash: size 700"}},
		"the root of the lock": {
			[]string{"update log_heads set root_hash = " + flipped("root_hash")}, []string{"root_hash: size 1100"}},
		"the root of a head": {
			[]string{"update signed_tree_heads set root_hash = " + flipped("root_hash") + " where tree_size = 700"}, []string{"head_root: head of size 700 and time T"}},
		"the time of a head": {
			[]string{`update signed_tree_heads set "timestamp" = "timestamp" + 1 where tree_size = 700`},
			[]string{"signature: head of size 700 and time T", "checkpoint: head of size 700 and time T"}},
		"the size of a head": {
			[]string{"update signed_tree_heads set tree_size = 699 where tree_size = 700"},
			[]string{"root_hash: size 699", "head_root: head of size 699 and time T", "signature: head of size 699 and time T", "checkpoint: head of size 699 and time T"}},
		"a signature": {
			[]string{"update signed_tree_heads set signature = " + flipped("signature") + " where tree_size = 400"},
			[]string{"signature: head of size 400 and time T", "checkpoint: head of size 400 and time T"}},
		"a checkpoint": {
			[]string{`update signed_tree_heads set checkpoint = overlay(checkpoint placing case substring(checkpoint from octet_length(checkpoint) - 12 for 1)
				when 'A' then 'B'::bytea else 'A'::bytea end from octet_length(checkpoint) - 12) where tree_size = 400`},
			[]string{"checkpoint: head of size 400 and time T"}},
		"another head's checkpoint": {
			[]string{"update signed_tree_heads set checkpoint = (select checkpoint from signed_tree_heads where tree_size = 700) where tree_size = 400"},
			[]string{"checkpoint: head of size 400 and time T"}},
		"a head beyond the tree": {
			[]string{"update signed_tree_heads set tree_size = 1101 where tree_size = 1100"}, []string{"beyond_tree: head of size 1101 and time T"}},
		"a tree that is cut back": {
			[]string{"update log_heads set tree_size = 700, root_hash = (select root_hash from tree_roots where tree_size = 700)"},
			[]string{"tile_extra: tile 0/2", "tile_extra: tile 0/3", "tile_extra: tile 1/0", "beyond_tree: leaf 700", "beyond_tree: size 1100",
				"beyond_tree: head of size 1100 and time T", "high_water: size 1100"}},
		"an old backup": {
			[]string{"delete from merkle_leaves where leaf_index >= 700", "delete from leaf_of_attempt where leaf_index >= 700",
				"delete from merkle_tiles where level = 0 and tile_index > 2", "delete from signed_tree_heads where tree_size > 700",
				"update merkle_tiles set hashes = substring(hashes for 32 * case level when 0 then 700 - 512 else 2 end) where tile_index = case level when 0 then 2 else 0 end",
				"update log_heads set tree_size = 700, root_hash = (select root_hash from tree_roots where tree_size = 700)",
				"delete from tree_roots where tree_size > 700"},
			[]string{"high_water: size 1100"}},
		"the log's key": {
			[]string{"update attestation_keys set public_key = decode('d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a', 'hex'), " +
				"key_id = sha256(decode('d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a', 'hex'))"},
			[]string{
				"head_key: head of size 400 and time T", "signature: head of size 400 and time T", "checkpoint: head of size 400 and time T",
				"head_key: head of size 700 and time T", "signature: head of size 700 and time T", "checkpoint: head of size 700 and time T",
				"head_key: head of size 1100 and time T", "signature: head of size 1100 and time T", "checkpoint: head of size 1100 and time T"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sealed(t, 400, 300, 400)
			b.requireSound(t, 1100)
			for _, sql := range c.sql {
				b.tamper(t, sql)
			}
			_, faults := b.fsck(t)
			got := where(faults)
			for i := range got {
				got[i] = regexp.MustCompile(`time \d+`).ReplaceAllString(got[i], "time T")
			}
			require.ElementsMatch(t, c.faults, got)
		})
	}
}
