package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// rebuilt is the same log in another database, made from its leaves and an export, with the tenant that may read it.
func (b *testBundle) rebuilt(t *testing.T) *testBundle {
	t.Helper()
	row, mirror := postgres.LogRow{ID: b.log.ID, Origin: b.log.Origin}, t.TempDir()
	_, err := audit.Export(t.Context(), audit.ExportConfig{DB: b.engine, Log: row, Dir: mirror})
	require.NoError(t, err)
	fresh, url := *b, postgrestest.New(t)
	fresh.owner, fresh.engine = postgrestest.Pool(t, url, postgres.Owner), postgrestest.Pool(t, url, postgres.Engine)
	fresh.config.Engine, fresh.config.API = fresh.engine, postgrestest.Pool(t, url, postgres.API)
	_, err = audit.Rebuild(t.Context(), audit.RebuildConfig{Source: b.engine, Target: fresh.owner, Mirror: mirror})
	require.NoError(t, err)
	for _, table := range []string{"tenants", "api_keys"} {
		var rows string
		require.NoError(t, b.owner.QueryRow(t.Context(), "select json_agg(r) from "+table+" r").Scan(&rows))
		_, err := fresh.owner.Exec(t.Context(), "insert into "+table+" select * from json_populate_recordset(null::"+table+", $1::json)", rows)
		require.NoError(t, err)
	}
	fresh.serve(t)
	return &fresh
}

// A log whose key was changed is served as before once it was made anew from its leaves, to the byte; and it is sealed, and
// its key changed, as before.
func TestARebuiltLogServesItsKeyHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	attempts := []string{b.attempted(t, endpoint, "0")}
	b.sealNow(t)
	for i, compromise := range []bool{false, true, false} {
		b.rotate(t, compromise)
		attempts = append(attempts, b.attempted(t, endpoint, string(rune('1'+i))))
		b.sealNow(t)
	}
	fresh := b.rebuilt(t)
	paths := []string{"/api/v1/attestation/keys", "/api/v1/attestation/sth", "/log/" + b.log.Origin[len("kapsel.example/log/"):] + "/checkpoint"}
	for _, attempt := range attempts {
		paths = append(paths, "/api/v1/attestation/download-proof/"+attempt)
	}
	for _, path := range paths {
		before, after := b.get(t, path), fresh.get(t, path)
		require.Equal(t, 200, after.status, "%s: %s", path, after.body)
		require.Equal(t, string(before.body), string(after.body), path)
	}
	require.Len(t, fresh.logKeys(t), 4)

	fresh.sealNow(t)
	last := fresh.rotate(t, false)
	fresh.sealNow(t)
	require.Len(t, fresh.logKeys(t), 5)
	pkg := fresh.get(t, paths[3]).body
	for _, vkey := range []string{b.log.VKey, last.Log.VKey} {
		_, err := verify.Package(pkg, verify.Options{VKey: vkey})
		require.NoError(t, err)
	}
	report, err := audit.Fsck(t.Context(), audit.FsckConfig{DB: fresh.engine, Log: postgres.LogRow{ID: b.log.ID, Origin: b.log.Origin}})
	require.NoError(t, err)
	require.True(t, report.Sound)
}
