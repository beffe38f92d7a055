package audit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// fresh is another database, with the same keys and high-water record but no log.
func (b *testBundle) fresh(t testing.TB) *testBundle {
	t.Helper()
	f := *b
	f.url = postgrestest.New(t)
	f.owner, f.engine = postgrestest.Pool(t, f.url, postgres.Owner), postgrestest.Pool(t, f.url, postgres.Engine)
	return &f
}

func (b *testBundle) rebuild(t testing.TB, target *testBundle, mirror string) *audit.Rebuilt {
	t.Helper()
	done, err := audit.Rebuild(t.Context(), audit.RebuildConfig{Source: b.engine, Target: target.owner, Mirror: mirror, HighWater: b.highWater(t)})
	require.NoError(t, err)
	return done
}

// dump is what a table of the log holds, as text.
func dump(t testing.TB, pool *pgxpool.Pool, query string) []string {
	t.Helper()
	return value[[]string](t, pool, "select coalesce(array_agg(r::text order by r::text), '{}') from ("+query+") r")
}

// The rebuilt log is the old one, whatever became of its tiles, roots and heads; and workers go on with it.
func TestRebuildReproducesEveryPublishedRoot(t *testing.T) {
	t.Parallel()
	b := sealed(t, 0, 1, 255, 1, 700, 300)
	b.rotate(t, verify.ReasonRotation, nil)
	b.queue(t, b.tenant, 20)
	b.seal(t)
	b.exec(t, "update merkle_leaves set leaf = null, secrets = null where leaf_index in (5, 700)")
	mirror := t.TempDir()
	b.export(t, mirror)
	tables := []string{
		"select * from merkle_leaves", "select * from leaf_of_attempt", "select * from merkle_tiles", "select * from signed_tree_heads",
		"select log_id, tree_size, root_hash from tree_roots", "select * from log_heads", "select * from attestation_keys", "select * from key_transitions", "select id, origin from logs",
	}
	var before [][]string
	for _, table := range tables {
		before = append(before, dump(t, b.owner, table))
	}
	for _, sql := range []string{"delete from merkle_tiles", "delete from tree_roots", "delete from signed_tree_heads", "delete from leaf_of_attempt",
		"update log_heads set tree_size = 7, root_hash = sha256('')", "delete from attestation_keys", "delete from key_transitions"} {
		b.tamper(t, sql)
	}

	target := b.fresh(t)
	done := b.rebuild(t, target, mirror)
	require.EqualValues(t, 1278, done.Leaves)
	require.EqualValues(t, 2, done.Erased)
	require.Equal(t, len(before[3]), done.Heads)
	require.Zero(t, done.Unpublished)
	for i, table := range tables {
		require.Equal(t, before[i], dump(t, target.owner, table), table)
	}
	target.requireSound(t, 1278)

	target.queue(t, b.tenant, 400)
	target.seal(t)
	target.requireSound(t, 1678)
}

// Leaves that no exported head covers are kept too, and so is the size that the high-water record names: without its root a
// worker would refuse to go on.
func TestRebuildKeepsWhatIsNotPublished(t *testing.T) {
	t.Parallel()
	b := sealed(t, 100)
	mirror := t.TempDir()
	b.export(t, mirror)
	b.queue(t, b.tenant, 50)
	b.seal(t) // published, but not exported
	b.queue(t, b.tenant, 1)
	b.sequence(t) // not even published
	target := b.fresh(t)
	done := b.rebuild(t, target, mirror)
	require.EqualValues(t, 151, done.Leaves)
	require.EqualValues(t, 51, done.Unpublished)
	require.Equal(t, 1, done.Heads)
	require.EqualValues(t, 151, value[int64](t, target.owner, "select leaf_index from reconciled_logs"), "their attempts aren't there")
	target.queue(t, b.tenant, 1)
	target.seal(t)
	target.requireSound(t, 152)

	target = b.fresh(t)
	_, err := audit.Rebuild(t.Context(), audit.RebuildConfig{Source: b.engine, Target: target.owner, Mirror: mirror})
	require.NoError(t, err)
	require.ErrorIs(t, target.sealing().SealNow(t.Context(), b.log.ID), attestation.ErrHighWaterConflict, "what the record is for")
}

// Whatever doesn't fit stops it, and leaves the target as it was.
func TestRebuildRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	editHeads := func(old, replaced string) func(t *testing.T, b *testBundle, mirror string) {
		return func(t *testing.T, _ *testBundle, mirror string) {
			path := filepath.Join(mirror, "heads", "000000.jsonl")
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Contains(t, string(text), old)
			require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(text), old, replaced, 1)), 0o644))
		}
	}
	swapHeads := func(t *testing.T, _ *testBundle, mirror string) {
		path := filepath.Join(mirror, "heads", "000000.jsonl")
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		first, second, _ := strings.Cut(string(text), "\n")
		require.NoError(t, os.WriteFile(path, []byte(second+first+"\n"), 0o644))
	}
	sql := func(sql string) func(t *testing.T, b *testBundle, mirror string) {
		return func(t *testing.T, b *testBundle, _ string) { b.tamper(t, sql) }
	}
	for name, c := range map[string]struct {
		tamper func(t *testing.T, b *testBundle, mirror string)
		say    string
	}{
		"a leaf's bytes":         {sql("update merkle_leaves set leaf = 'x' where leaf_index = 5"), "leaf 5: the bytes hash to"},
		"a leaf hash":            {sql("update merkle_leaves set leaf = null, secrets = null, leaf_hash = sha256('') where leaf_index = 5"), "head_root: head of size 100"},
		"another leaf":           {sql("update merkle_leaves set leaf = '{}', leaf_hash = sha256('\\x007b7d'::bytea) where leaf_index = 5"), "leaf 5: leaf format"},
		"a leaf that is missing": {sql("delete from merkle_leaves where leaf_index = 57"), "leaf 57 is missing"},
		"the last is missing":    {sql("delete from merkle_leaves where leaf_index = 299"), "a head of 300 leaves was exported, and there are 299"},
		"another tenant":         {sql("update merkle_leaves set tenant_id = log_id where leaf_index = 3"), "leaf 3: the row belongs to"},
		"a root of a head":       {editHeads(`"root_hash":"`, `"root_hash":"00`), "head_root: head of size 100"},
		"a time of a head":       {editHeads(`"timestamp":1`, `"timestamp":2`), "signature: head of size 100"},
		"a size of a head":       {editHeads(`"tree_size":300`, `"tree_size":299`), "head_root: head of size 299"},
		"a signature of a head":  {editHeads(`"signature":"`, `"signature":"zz`), "000000.jsonl"},
		"a head beyond the tree": {editHeads(`"tree_size":300`, `"tree_size":301`), "a head of 301 leaves was exported"},
		"heads in another order": {swapHeads, "out of order at size 100"},
		"a mirror without a name": {func(t *testing.T, _ *testBundle, mirror string) {
			require.NoError(t, os.Remove(filepath.Join(mirror, "log.json")))
		}, "log.json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sealed(t, 100, 200)
			mirror := t.TempDir()
			b.export(t, mirror)
			c.tamper(t, b, mirror)
			target := b.fresh(t)
			_, err := audit.Rebuild(t.Context(), audit.RebuildConfig{Source: b.engine, Target: target.owner, Mirror: mirror})
			require.ErrorContains(t, err, c.say)
			require.Zero(t, value[int](t, target.owner, "select (select count(*) from logs) + (select count(*) from merkle_leaves) + (select count(*) from merkle_tiles)"))
		})
	}
}

func TestRebuildNeedsAFreshDatabase(t *testing.T) {
	t.Parallel()
	b := sealed(t, 10)
	mirror := t.TempDir()
	b.export(t, mirror)
	target := b.fresh(t)
	b.rebuild(t, target, mirror)
	before := dump(t, target.owner, "select * from merkle_leaves")
	for _, db := range []*pgxpool.Pool{b.owner, target.owner, sealed(t, 1).owner} {
		_, err := audit.Rebuild(t.Context(), audit.RebuildConfig{Source: b.engine, Target: db, Mirror: mirror})
		require.ErrorIs(t, err, postgres.ErrLogExists)
	}
	_, err := audit.Rebuild(t.Context(), audit.RebuildConfig{Source: b.engine, Target: sealed(t, 0).owner, Mirror: mirror})
	require.NoError(t, err, "another log without leaves is no reason")
	require.Equal(t, before, dump(t, target.owner, "select * from merkle_leaves"))
}
