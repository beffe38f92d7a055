package admin_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/verify"
)

// testBundle is a database without a log, and where the files of one go.
type testBundle struct {
	owner, api           *pgxpool.Pool
	dir                  string
	keyDir, highWaterDir string // inside dir, not made yet
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	url, dir := postgrestest.New(t), t.TempDir()
	return &testBundle{
		owner: postgrestest.Pool(t, url, postgres.Owner), api: postgrestest.Pool(t, url, postgres.API),
		dir: dir, keyDir: filepath.Join(dir, "keys"), highWaterDir: filepath.Join(dir, "high", "water"),
	}
}

func (b *testBundle) config(host string) admin.LogConfig {
	return admin.LogConfig{Host: host, KeyDir: b.keyDir, HighWaterDir: b.highWaterDir}
}

func (b *testBundle) createLog(t *testing.T) admin.Log {
	t.Helper()
	log, err := admin.CreateLog(t.Context(), b.owner, b.config("kapsel.example"))
	require.NoError(t, err)
	return log
}

func value[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var v T
	require.NoError(t, pool.QueryRow(context.Background(), sql, args...).Scan(&v))
	return v
}

func (b *testBundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// A container that starts again, or two of them that start at once, make one log.
func TestEnsureLogMakesOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	logs := make([]admin.Log, 4)
	var made atomic.Int32
	var all sync.WaitGroup
	for i := range logs {
		all.Go(func() {
			log, isNew, err := admin.EnsureLog(context.Background(), b.owner, b.config("kapsel.example"))
			assert.NoError(t, err)
			if isNew {
				made.Add(1)
			}
			logs[i] = log
		})
	}
	all.Wait()
	require.EqualValues(t, 1, made.Load())
	require.EqualValues(t, 1, value[int](t, b.owner, "select count(*) from logs"))
	for _, log := range logs {
		require.Equal(t, logs[0], log)
	}
	_, err := attestation.LoadSigner(filepath.Join(b.keyDir, id.Log.Format(logs[0].ID)+".seed"), logs[0].Origin)
	require.NoError(t, err)
}

func requireMode(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, mode, info.Mode().Perm(), path)
}

func TestALogHasItsKeyAndItsRecordOutsideTheDatabase(t *testing.T) {
	t.Parallel()
	b := setup(t)
	log, err := admin.CreateLog(t.Context(), b.owner, b.config("kapsel.example:8443"))
	require.NoError(t, err)
	name := id.Log.Format(log.ID)
	require.Equal(t, "kapsel.example:8443/log/"+name, log.Origin)
	require.Equal(t, verify.VKey(log.Origin, log.PublicKey), log.VKey)

	seed := filepath.Join(b.keyDir, name+".seed")
	requireMode(t, seed, 0o600)
	requireMode(t, b.keyDir, 0o700)
	requireMode(t, b.highWaterDir, 0o700)
	text, err := os.ReadFile(seed)
	require.NoError(t, err)
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.EqualValues(t, log.PublicKey, ed25519.NewKeyFromSeed(secret).Public(), "the file holds the log's key")

	recorded, err := attestation.NewHighWater(filepath.Join(b.highWaterDir, name+".highwater"), log.Origin).Read()
	require.NoError(t, err)
	require.Zero(t, recorded.TreeSize)
}

func TestALogStartsEmpty(t *testing.T) {
	t.Parallel()
	b := setup(t)
	log := b.createLog(t)
	require.Equal(t, log.Origin, value[string](t, b.owner, "select origin from logs where id = $1 and closed_at is null", log.ID))
	empty := sha256.Sum256(nil)
	require.Equal(t, empty[:], value[[]byte](t, b.owner, "select root_hash from log_heads where log_id = $1 and tree_size = 0", log.ID))
	require.Equal(t, empty[:], value[[]byte](t, b.owner, "select root_hash from tree_roots where log_id = $1 and tree_size = 0", log.ID))
	keyID := sha256.Sum256(log.PublicKey)
	require.Equal(t, log.PublicKey, value[[]byte](t, b.owner, `select public_key from attestation_keys
		where log_id = $1 and key_id = $2 and purpose = 'log' and not_after is null`, log.ID, keyID[:]))

	other := b.createLog(t)
	require.NotEqual(t, log.PublicKey, other.PublicKey, "one key per log")
	require.NotEqual(t, log.Origin, other.Origin)
}

// An origin can't change later, so a bad host must leave nothing behind.
func (b *testBundle) requireRefused(t *testing.T, host string) {
	t.Helper()
	_, err := admin.CreateLog(t.Context(), b.owner, b.config(host))
	require.Error(t, err, "host %q", host)
	entries, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Empty(t, entries, "host %q", host)
	for _, table := range []string{"logs", "tree_roots", "log_heads", "attestation_keys"} {
		require.Zero(t, value[int](t, b.owner, "select count(*) from "+table), "host %q: %s", host, table)
	}
}

func TestAHostThatMakesABadOriginIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	longest := strings.Repeat("k", 255-len("/log/")-len(id.Log.Format(id.New())))
	for _, host := range []string{"kapsel example", "kapsel.example\n", "kapsel+example", "käpsel.example", longest + "k"} {
		b.requireRefused(t, host)
	}
	log, err := admin.CreateLog(t.Context(), b.owner, b.config(longest))
	require.NoError(t, err)
	require.Len(t, log.Origin, 255)
}

// An origin is a public host, /log/ and the log's ID: nothing, a URL or a path isn't a host.
func TestALogsHostIsAHost(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "https://kapsel.example", "kapsel.example/", "kapsel.example/path"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			setup(t).requireRefused(t, host)
		})
	}
}

func TestALogNeedsItsDirectories(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, config := range []admin.LogConfig{
		{Host: "kapsel.example", KeyDir: b.keyDir},
		{Host: "kapsel.example", HighWaterDir: b.highWaterDir},
	} {
		_, err := admin.CreateLog(t.Context(), b.owner, config)
		require.ErrorContains(t, err, "directory")
	}
	require.Zero(t, value[int](t, b.owner, "select count(*) from logs"))
}

// There is no log without its high-water record: where that can't be made, nothing is.
func TestALogWithoutAHighWaterRecordIsNotMade(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "high"), nil, 0o600)) // in the directory's place
	_, err := admin.CreateLog(t.Context(), b.owner, b.config("kapsel.example"))
	require.Error(t, err)
	require.Zero(t, value[int](t, b.owner, "select count(*) from logs"))
}

func TestATenantIsRecordedInTheOnlyLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := admin.CreateTenant(t.Context(), b.owner, "Example Bank", uuid.Nil)
	require.ErrorContains(t, err, "make one with `kapsel log init`")

	first := b.createLog(t)
	tenant, err := admin.CreateTenant(t.Context(), b.owner, "Example Bank", uuid.Nil)
	require.NoError(t, err)
	require.Equal(t, first.ID, value[uuid.UUID](t, b.owner, "select log_id from tenants where id = $1 and name = 'Example Bank'", tenant))

	second := b.createLog(t)
	_, err = admin.CreateTenant(t.Context(), b.owner, "Other Bank", uuid.Nil)
	require.ErrorContains(t, err, "there are 2 logs; name the tenant's")
	tenant, err = admin.CreateTenant(t.Context(), b.owner, "Other Bank", second.ID)
	require.NoError(t, err)
	require.Equal(t, second.ID, value[uuid.UUID](t, b.owner, "select log_id from tenants where id = $1", tenant))

	b.exec(t, "update logs set closed_at = now() where id = $1", first.ID)
	tenant, err = admin.CreateTenant(t.Context(), b.owner, "Third Bank", uuid.Nil)
	require.NoError(t, err)
	require.Equal(t, second.ID, value[uuid.UUID](t, b.owner, "select log_id from tenants where id = $1", tenant), "a closed log isn't chosen")

	for _, name := range []string{"", strings.Repeat("ü", 201), "a\x00b", "a\nb", "a\xffb"} {
		_, err = admin.CreateTenant(t.Context(), b.owner, name, second.ID)
		require.ErrorContains(t, err, "a tenant's name has 1 to 200 characters", "%q", name)
	}
	_, err = admin.CreateTenant(t.Context(), b.owner, "Late Bank", first.ID)
	require.ErrorContains(t, err, "there is no open log "+id.Log.Format(first.ID))
	_, err = admin.CreateTenant(t.Context(), b.owner, "Lost Bank", id.New())
	require.Error(t, err, "a log that doesn't exist")
	require.Equal(t, 3, value[int](t, b.owner, "select count(*) from tenants"))
}

func TestATenantsNameHasOneTo200Characters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.createLog(t)
	for _, name := range []string{"", strings.Repeat("k", 201), strings.Repeat("é", 201)} {
		_, err := admin.CreateTenant(t.Context(), b.owner, name, uuid.Nil)
		require.ErrorContains(t, err, "1 to 200 characters", name)
	}
	require.Zero(t, value[int](t, b.owner, "select count(*) from tenants"))
	for _, name := range []string{"k", strings.Repeat("k", 200), strings.Repeat("é", 200)} {
		_, err := admin.CreateTenant(t.Context(), b.owner, name, uuid.Nil)
		require.NoError(t, err, name)
	}
}

func (b *testBundle) createTenant(t *testing.T) uuid.UUID {
	t.Helper()
	b.createLog(t)
	tenant, err := admin.CreateTenant(t.Context(), b.owner, "Example Bank", uuid.Nil)
	require.NoError(t, err)
	return tenant
}

func (b *testBundle) createKey(t *testing.T, tenant uuid.UUID, expires *time.Time) admin.APIKey {
	t.Helper()
	key, err := admin.CreateAPIKey(t.Context(), b.owner, tenant, "test", expires)
	require.NoError(t, err)
	return key
}

// authenticate looks a key up as the api does; ErrNoRows if it isn't valid.
func (b *testBundle) authenticate(t *testing.T, key string) (db.AuthenticateRow, error) {
	t.Helper()
	hash := sha256.Sum256([]byte(key))
	return db.New(b.api).Authenticate(t.Context(), hash[:])
}

func TestAnAPIKeyIsKeptAsAHash(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tenant := b.createTenant(t)
	key, other := b.createKey(t, tenant, nil), b.createKey(t, tenant, nil)
	require.NotEqual(t, key.Key, other.Key)
	text, found := strings.CutPrefix(key.Key, "kapsel_")
	require.True(t, found)
	secret, err := base64.RawURLEncoding.DecodeString(text)
	require.NoError(t, err)
	require.Len(t, secret, 32)

	hash := sha256.Sum256([]byte(key.Key))
	require.Equal(t, hash[:], value[[]byte](t, b.owner, "select key_hash from api_keys where id = $1", key.ID))
	row := value[string](t, b.owner, "select k::text from api_keys k where id = $1", key.ID)
	require.NotContains(t, row, text)
	require.NotContains(t, row, hex.EncodeToString(secret))
	require.Contains(t, row, hex.EncodeToString(hash[:]), "the row was looked at as a whole")
	require.False(t, bytes.Equal(hash[:], secret))

	for _, k := range []admin.APIKey{key, other} {
		row, err := b.authenticate(t, k.Key)
		require.NoError(t, err)
		require.Equal(t, db.AuthenticateRow{KeyID: k.ID, TenantID: tenant}, row)
	}
}

func TestOnlyAValidKeyAuthenticates(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tenant := b.createTenant(t)
	past, soon := time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	valid := b.createKey(t, tenant, &soon)
	row, err := b.authenticate(t, valid.Key)
	require.NoError(t, err)
	require.Equal(t, db.AuthenticateRow{KeyID: valid.ID, TenantID: tenant}, row)

	_, err = b.authenticate(t, b.createKey(t, tenant, &past).Key)
	require.ErrorIs(t, err, pgx.ErrNoRows, "expired")
	_, err = b.authenticate(t, valid.Key+"A")
	require.ErrorIs(t, err, pgx.ErrNoRows, "unknown")
	_, err = db.New(b.api).Authenticate(t.Context(), []byte(valid.Key))
	require.ErrorIs(t, err, pgx.ErrNoRows, "not hashed")

	revoked := b.createKey(t, tenant, nil)
	_, err = b.authenticate(t, revoked.Key)
	require.NoError(t, err)
	b.exec(t, "update api_keys set revoked_at = now() where id = $1", revoked.ID)
	_, err = b.authenticate(t, revoked.Key)
	require.ErrorIs(t, err, pgx.ErrNoRows, "revoked")

	_, err = b.authenticate(t, valid.Key)
	require.NoError(t, err, "another key of the tenant")
	b.exec(t, "update tenants set deleted_at = now() where id = $1", tenant)
	_, err = b.authenticate(t, valid.Key)
	require.ErrorIs(t, err, pgx.ErrNoRows, "the tenant is gone")
}

func TestAKeyBelongsToATenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tenant := b.createTenant(t)
	_, err := admin.CreateAPIKey(t.Context(), b.owner, id.New(), "test", nil)
	require.ErrorContains(t, err, "create API key")
	_, err = admin.CreateAPIKey(t.Context(), b.owner, tenant, "", nil)
	require.ErrorContains(t, err, "create API key", "a key has a name")
	require.Zero(t, value[int](t, b.owner, "select count(*) from api_keys"))
}
