package audit_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

func (b *testBundle) bundle(t testing.TB, tenant uuid.UUID, dir string, recipients ...age.Recipient) *audit.Bundled {
	t.Helper()
	done, err := audit.Bundle(t.Context(), b.bundleConfig(t, tenant, dir, recipients...))
	require.NoError(t, err)
	return done
}

func (b *testBundle) bundleConfig(t testing.TB, tenant uuid.UUID, dir string, recipients ...age.Recipient) audit.BundleConfig {
	return audit.BundleConfig{DB: b.engine, API: postgrestest.Pool(t, b.url, postgres.API), Log: b.row, Tenant: tenant, Dir: dir, Recipients: recipients}
}

// readBundle does what a tenant does: it makes a proof package of each line, and has it verified offline. It returns the
// indexes of the leaves, and those of the erased ones.
func readBundle(t testing.TB, bundle io.Reader, vkey string) (proved, erased []uint64) {
	t.Helper()
	lines := bufio.NewScanner(bundle)
	lines.Buffer(nil, 1<<20)
	next := func() map[string]json.RawMessage {
		require.True(t, lines.Scan(), "the bundle isn't cut off")
		members := map[string]json.RawMessage{}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &members))
		return members
	}
	head := next()
	require.JSONEq(t, `"kapsel.leaves/v1"`, string(head["format"]))
	for {
		line := next()
		if end, ok := line["leaves"]; ok {
			require.Equal(t, len(proved)+len(erased), integer(t, end))
			require.False(t, lines.Scan())
			return proved, erased
		}
		index := uint64(integer(t, line["leaf_index"]))
		if _, ok := line["leaf"]; !ok {
			erased = append(erased, index)
			continue
		}
		pkg := map[string]json.RawMessage{}
		require.NoError(t, json.Unmarshal(head["package"], &pkg))
		for _, member := range []string{"leaf", "leaf_index", "inclusion_proof", "salts"} {
			pkg[member] = line[member]
		}
		text, err := json.Marshal(pkg)
		require.NoError(t, err)
		result, err := verify.Package(text, verify.Options{VKey: vkey})
		require.NoError(t, err)
		require.True(t, result.Delivered())
		proved = append(proved, index)
	}
}

func integer(t testing.TB, text json.RawMessage) int {
	t.Helper()
	var n int
	require.NoError(t, json.Unmarshal(text, &n))
	return n
}

// A tenant gets its own leaves and no other's, each in one file only, and can verify every one of them.
func TestATenantVerifiesItsLeavesOffline(t *testing.T) {
	t.Parallel()
	b := sealed(t, 300)
	other, err := admin.CreateTenant(t.Context(), b.owner, "Other Bank", b.log.ID)
	require.NoError(t, err)
	b.queue(t, other, 40)
	b.queue(t, b.tenant, 10)
	b.seal(t)
	b.exec(t, "update merkle_leaves set leaf = null, secrets = null where leaf_index = 302")
	dir := filepath.Join(t.TempDir(), "bundles")

	done := b.bundle(t, other, dir)
	require.Equal(t, audit.Bundled{TenantID: id.Tenant.Format(other), File: done.File, To: 350, Leaves: 40}, *done)
	text, err := os.ReadFile(done.File)
	require.NoError(t, err)
	proved, erased := readBundle(t, bytes.NewReader(text), b.log.VKey)
	require.Len(t, proved, 39)
	require.Equal(t, []uint64{302}, erased)
	require.EqualValues(t, 300, proved[0])
	require.EqualValues(t, 339, proved[38])
	requireMode(t, done.File, 0o600)
	requireMode(t, filepath.Dir(done.File), 0o700)

	again := b.bundle(t, other, dir)
	require.Zero(t, again.Leaves)
	require.Empty(t, again.File)
	b.queue(t, b.tenant, 5)
	b.queue(t, other, 7)
	b.seal(t)
	next := b.bundle(t, other, dir)
	require.EqualValues(t, 350, next.From)
	require.Equal(t, 7, next.Leaves)
	entries, err := os.ReadDir(filepath.Dir(done.File))
	require.NoError(t, err)
	require.Len(t, entries, 2)
}

func requireMode(t testing.TB, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, mode, info.Mode().Perm(), path)
}

func TestABundleIsReadByItsRecipientsOnly(t *testing.T) {
	t.Parallel()
	b := sealed(t, 300)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	done := b.bundle(t, b.tenant, t.TempDir(), identity.Recipient())
	require.True(t, done.Encrypted)
	require.Equal(t, ".age", filepath.Ext(done.File))
	requireMode(t, done.File, 0o600)
	text, err := os.ReadFile(done.File)
	require.NoError(t, err)
	require.NotContains(t, string(text), "leaf_index")
	plain, err := age.Decrypt(bytes.NewReader(text), identity)
	require.NoError(t, err)
	proved, _ := readBundle(t, plain, b.log.VKey)
	require.Len(t, proved, 300)

	stranger, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	_, err = age.Decrypt(bytes.NewReader(text), stranger)
	require.Error(t, err)
	entries, err := os.ReadDir(filepath.Dir(done.File))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file is left")
}

// A leaf that isn't proved is handed to nobody, and no file appears.
func TestABundleHoldsOnlyWhatIsProved(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{
		"update merkle_leaves set leaf = 'x' where leaf_index = 5",
		"update merkle_leaves set leaf = null, secrets = null, leaf_hash = sha256('') where leaf_index = 5",
		"update merkle_tiles set hashes = set_byte(hashes, 7, 255 - get_byte(hashes, 7)) where level = 0 and tile_index = 0",
		"update signed_tree_heads set signature = sha512('')",
	} {
		b := sealed(t, 300)
		b.tamper(t, sql)
		dir := t.TempDir()
		_, err := audit.Bundle(t.Context(), b.bundleConfig(t, b.tenant, dir))
		require.ErrorIs(t, err, audit.ErrContradiction, sql)
		entries, err := os.ReadDir(filepath.Join(dir, id.Tenant.Format(b.tenant)))
		require.NoError(t, err)
		require.Empty(t, entries, sql)
	}
}

func TestABundleGoesOnFromTheLast(t *testing.T) {
	t.Parallel()
	b := sealed(t, 10)
	dir := t.TempDir()
	place := filepath.Join(dir, id.Tenant.Format(b.tenant))
	require.NoError(t, os.MkdirAll(place, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(place, "000000000000-000000000011.jsonl.age"), nil, 0o600))
	_, err := audit.Bundle(t.Context(), b.bundleConfig(t, b.tenant, dir))
	require.ErrorIs(t, err, audit.ErrContradiction, "there were more leaves once")
	require.NoError(t, os.WriteFile(filepath.Join(place, "000000000000-all.jsonl"), nil, 0o600))
	_, err = audit.Bundle(t.Context(), b.bundleConfig(t, b.tenant, dir))
	require.ErrorContains(t, err, "isn't named for a range of leaves")
}
