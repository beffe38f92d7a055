package audit_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// direct runs statements as a superuser.
func direct(t testing.TB, url, database string, statements ...string) {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	require.NoError(t, err)
	if database != "" {
		config.Database = database
	}
	conn, err := pgx.ConnectConfig(context.Background(), config)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	for _, sql := range statements {
		_, err := conn.Exec(context.Background(), sql)
		require.NoError(t, err, sql)
	}
}

// backup copies the database, and returns what puts it back.
func (b *testBundle) backup(t testing.TB) (restore func()) {
	t.Helper()
	config, err := pgx.ParseConfig(b.url)
	require.NoError(t, err)
	name := config.Database
	copied := func(from, to string) {
		b.owner.Reset() // a template must have no sessions, and sessions of a database that goes are useless
		b.engine.Reset()
		direct(t, b.url, "postgres", "select pg_terminate_backend(pid) from pg_stat_activity where datname = '"+from+"'",
			`drop database if exists "`+to+`" with (force)`, `create database "`+to+`" template "`+from+`"`)
	}
	copied(name, name+"_backup")
	t.Cleanup(func() { direct(t, b.url, "", `drop database if exists "`+name+`_backup" with (force)`) })
	return func() { copied(name+"_backup", name) }
}

func (b *testBundle) highWaterFile() *attestation.HighWater {
	return attestation.NewHighWater(filepath.Join(b.highWaterDir, id.Log.Format(b.log.ID)+".highwater"), b.log.Origin)
}

func (b *testBundle) tryRecover(ctx context.Context, mirror string, change ...func(*audit.RecoverConfig)) (*audit.Recovered, error) {
	config := audit.RecoverConfig{Owner: b.owner, Log: b.row, HighWater: b.highWaterFile(), Mirror: mirror}
	for _, c := range change {
		c(&config)
	}
	return audit.Recover(ctx, config)
}

func (b *testBundle) recover(t testing.TB, mirror string, change ...func(*audit.RecoverConfig)) *audit.Recovered {
	t.Helper()
	done, err := b.tryRecover(t.Context(), mirror, change...)
	require.NoError(t, err)
	return done
}

// published is everything of a log that was ever shown to anybody.
func (b *testBundle) published(t testing.TB) [][]string {
	t.Helper()
	var all [][]string
	for _, query := range []string{
		"select leaf_index, leaf_hash from merkle_leaves", "select * from merkle_tiles", "select * from log_heads",
		`select * from signed_tree_heads where signature is not null`,
		"select log_id, key_id, public_key, not_before, not_after from attestation_keys", "select * from key_transitions",
		"select tree_size, root_hash from tree_roots r where exists (select from signed_tree_heads s where s.tree_size = r.tree_size)",
	} {
		all = append(all, dump(t, b.owner, query))
	}
	return all
}

// everything is every row of the log.
func (b *testBundle) everything(t testing.TB) [][]string {
	t.Helper()
	var all [][]string
	for _, table := range []string{"merkle_leaves", "leaf_of_attempt", "merkle_tiles", "tree_roots", "log_heads", "signed_tree_heads",
		"attestation_keys", "key_transitions", "leaf_queue", "attestation_dead_letters", "log_recoveries"} {
		all = append(all, dump(t, b.owner, "select * from "+table))
	}
	return all
}

// disaster is a log that has published 300 leaves, then a backup was made while 5 more were waiting, then 706 leaves were published, 5 of
// them those, with several heads, an old backup was restored, and meanwhile 2 attempts were recorded.
func disaster(t testing.TB, meanwhile ...func(b *testBundle)) (b *testBundle, mirror string, published [][]string) {
	t.Helper()
	b = sealed(t, 0, 300)
	b.queue(t, b.tenant, 5)
	restore := b.backup(t)
	b.seal(t)
	b.queue(t, b.tenant, 700)
	b.seal(t)
	for _, f := range meanwhile {
		f(b)
	}
	b.queue(t, b.tenant, 1)
	b.seal(t)
	mirror = t.TempDir()
	b.export(t, mirror)
	published = b.published(t)
	restore()
	b.queue(t, b.tenant, 2)
	require.ErrorIs(t, b.sealing().SealNow(t.Context(), b.log.ID), attestation.ErrHighWaterConflict)
	return b, mirror, published
}

func (b *testBundle) realRotate(t testing.TB, compromise bool) admin.Rotation {
	t.Helper()
	done, err := admin.RotateKey(t.Context(), b.owner, admin.RotateConfig{Log: b.log.ID, KeyDir: b.keyDir, HighWaterDir: b.highWaterDir, Compromise: compromise})
	require.NoError(t, err)
	return done
}

// The log becomes what was published, to the byte, with the bytes of those leaves that were waiting; and goes on.
func TestRecoverCompletesARestoredLog(t *testing.T) {
	t.Parallel()
	b, mirror, published := disaster(t)
	before := b.everything(t)
	planned := b.recover(t, mirror, func(c *audit.RecoverConfig) { c.DryRun = true })
	require.Equal(t, before, b.everything(t), "a dry run writes nothing")

	done := b.recover(t, mirror)
	planned.DryRun = false
	require.Equal(t, planned, done)
	require.EqualValues(t, 300, done.OldSize)
	require.EqualValues(t, 1006, done.TreeSize)
	require.EqualValues(t, 5, done.Adopted)
	require.EqualValues(t, 701, done.Lost)
	require.Equal(t, 3, done.Heads)
	require.False(t, done.Complete)
	require.Equal(t, published, b.published(t))
	require.Equal(t, 2, value[int](t, b.owner, "select count(*) from leaf_queue"), "what was recorded after the restore")
	report, faults := b.fsck(t)
	require.Empty(t, where(faults))
	require.EqualValues(t, 701, report.Lost)
	require.Zero(t, report.Erased)
	require.Equal(t, 305, value[int](t, b.owner, "select count(*) from merkle_leaves m join leaf_of_attempt a using (attempt_id, leaf_index) where leaf is not null"))

	again := b.recover(t, mirror)
	require.True(t, again.Complete)
	b.seal(t)
	b.requireSound(t, 1008)
	b.export(t, mirror) // the same mirror goes on
	require.EqualValues(t, 1008, b.highWater(t).TreeSize)

	target := b.fresh(t)
	rebuilt := b.rebuild(t, target, mirror)
	require.EqualValues(t, 701, rebuilt.Lost)
	target.requireSound(t, 1008)
}

// However many leaves are taken at once, the outcome is the same, also where a step ends within a tile or with it.
func TestRecoverInSteps(t *testing.T) {
	t.Parallel()
	b, mirror, published := disaster(t)
	var reached []audit.Progress
	planned := b.recover(t, mirror, func(c *audit.RecoverConfig) { c.DryRun = true; c.Step(1000) })
	for _, step := range []uint64{1, 212, 256} {
		dry := b.recover(t, mirror, func(c *audit.RecoverConfig) { c.DryRun = true; c.Step(step) })
		require.Equal(t, planned, dry, "%d at once", step)
	}
	done := b.recover(t, mirror, func(c *audit.RecoverConfig) {
		c.Progress = func(p audit.Progress) { reached = append(reached, p) }
		c.Step(3)
	})
	require.EqualValues(t, 5, done.Adopted)
	require.EqualValues(t, 701, done.Lost)
	require.Equal(t, []audit.Progress{{Leaves: 212, Of: 706}, {Leaves: 468, Of: 706}, {Leaves: 706, Of: 706}}, reached)
	require.Equal(t, published, b.published(t))
	b.requireSound(t, 1006)
}

// Any copy of the tiles will do, also one that a web server has, without heads and without the names of keys.
func TestRecoverFromTilesOnTheWeb(t *testing.T) {
	t.Parallel()
	b, mirror, _ := disaster(t)
	require.NoError(t, os.RemoveAll(filepath.Join(mirror, "heads")))
	require.NoError(t, os.Remove(filepath.Join(mirror, "log.json")))
	server := httptest.NewServer(http.FileServer(http.Dir(mirror)))
	defer server.Close()
	done := b.recover(t, server.URL+"/")
	require.EqualValues(t, 1006, done.TreeSize)
	require.Equal(t, 1, done.Heads)
	b.seal(t)
	b.requireSound(t, 1008)
}

// A head that was committed when the backup was made, and signed after, gets its signatures.
func TestRecoverSignsNoHeadAgain(t *testing.T) {
	t.Parallel()
	b := sealed(t, 10)
	b.queue(t, b.tenant, 3)
	b.seal(t)
	b.tamper(t, "update signed_tree_heads set signature = null, checkpoint = null where tree_size = 13")
	restore := b.backup(t)
	b.seal(t) // signs it, with the same bytes, or a later one
	b.queue(t, b.tenant, 3)
	b.seal(t)
	mirror := t.TempDir()
	b.export(t, mirror)
	published := b.published(t)
	restore()
	require.EqualValues(t, 3, b.recover(t, mirror).Lost)
	require.Equal(t, published, b.published(t))
	b.requireSound(t, 16)
}

// Changes of the key among the missing leaves come back with their note, of the mirror itself or of a copy of /keys.
func TestRecoverBringsChangesOfTheKeyBack(t *testing.T) {
	t.Parallel()
	var rotations []admin.Rotation
	b, mirror, published := disaster(t, func(b *testBundle) {
		for _, compromise := range []bool{false, true} {
			rotations = append(rotations, b.realRotate(t, compromise))
			b.queue(t, b.tenant, 2)
			b.seal(t)
		}
	})
	keys := filepath.Join(t.TempDir(), "keys.json")
	answer := map[string]any{"log_id": id.Log.Format(b.log.ID), "origin": b.log.Origin}
	log, err := audit.MirrorOf(mirror)
	require.NoError(t, err)
	require.Equal(t, string(rotations[0].Note), log.Keys[1].Transition)
	var list []map[string]any
	for _, k := range log.Keys {
		entry := map[string]any{"vkey": k.VKey, "not_before": k.NotBefore, "purpose": "log", "not_after": k.NotAfter}
		if k.Transition != "" {
			entry["transition"] = k.Transition
		}
		list = append(list, entry)
	}
	answer["keys"] = append(list, map[string]any{"purpose": "v1a", "public_key": "00", "not_before": log.Keys[0].NotBefore})
	text, err := json.Marshal(answer)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(keys, text, 0o600))

	plain := t.TempDir()
	require.NoError(t, os.CopyFS(plain, os.DirFS(mirror)))
	require.NoError(t, os.Remove(filepath.Join(plain, "log.json")))
	_, err = b.tryRecover(t.Context(), plain)
	require.ErrorIs(t, err, audit.ErrMirror)
	require.ErrorContains(t, err, "name with --keys a file")
	require.EqualValues(t, 300, value[int64](t, b.owner, "select tree_size from log_heads"))
	done := b.recover(t, plain, func(c *audit.RecoverConfig) { c.Keys, c.DryRun = keys, true })
	require.Equal(t, 2, done.Keys)

	done = b.recover(t, mirror)
	require.Equal(t, 2, done.Keys)
	require.Equal(t, 5, done.Heads)
	require.Equal(t, published, b.published(t))
	report, faults := b.fsck(t)
	require.Empty(t, where(faults))
	require.Equal(t, 3, report.Keys)
	b.seal(t)
	b.realRotate(t, false)
	b.seal(t)
	_, faults = b.fsck(t, func(c *audit.FsckConfig) { c.Key = ed25519.PublicKey(b.log.PublicKey) })
	require.Empty(t, where(faults))
}

// Whatever doesn't fit stops it before anything is written, and what is said helps.
func TestRecoverRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	edit := func(name, old, replaced string) func(t *testing.T, b *testBundle, mirror string) {
		return func(t *testing.T, _ *testBundle, mirror string) {
			path := filepath.Join(mirror, filepath.FromSlash(name))
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Contains(t, string(text), old)
			require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(text), old, replaced, 1)), 0o644))
		}
	}
	flip := func(name string, at int) func(t *testing.T, b *testBundle, mirror string) {
		return func(t *testing.T, _ *testBundle, mirror string) {
			path := filepath.Join(mirror, filepath.FromSlash(name))
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			text[at] ^= 1
			require.NoError(t, os.WriteFile(path, text, 0o644))
		}
	}
	remove := func(name string) func(t *testing.T, b *testBundle, mirror string) {
		return func(t *testing.T, _ *testBundle, mirror string) {
			require.NoError(t, os.RemoveAll(filepath.Join(mirror, filepath.FromSlash(name))))
		}
	}
	for name, c := range map[string]struct {
		tamper func(t *testing.T, b *testBundle, mirror string)
		is     error
		says   string
	}{
		"a hash that is missing":  {flip("tile/0/002", 7), audit.ErrMirror, "its tiles don't lead to the published root"},
		"a hash before the gap":   {flip("tile/0/001", 32*43), nil, ""}, // isn't needed, and nobody looks at it
		"a tile that isn't there": {remove("tile/0/002"), audit.ErrMirror, "read tile 0/2 of the mirror"},
		"a tile that is cut off": {func(t *testing.T, _ *testBundle, m string) {
			require.NoError(t, os.Truncate(filepath.Join(m, "tile/0/002"), 100))
		}, audit.ErrMirror, "tile 0/2 of the mirror has 100 bytes"},
		"no checkpoint":                {remove("checkpoint"), audit.ErrMirror, "there is no checkpoint"},
		"a checkpoint of another size": {edit("checkpoint", "\n1006\n", "\n1005\n"), audit.ErrMirror, "no key of the log has signed its checkpoint"},
		"a head's root":                {edit("heads/000000.jsonl", `"tree_size":305,"timestamp"`, `"tree_size":306,"timestamp"`), audit.ErrMirror, "head of size 306"},
		"a head's time":                {edit("heads/000000.jsonl", `"tree_size":305,"timestamp":1`, `"tree_size":305,"timestamp":2`), audit.ErrMirror, "its heads are out of order at size 1005"},
		"a head that is no head":       {edit("heads/000000.jsonl", `{"tree_size":305`, `{tree_size:305`), audit.ErrMirror, "000000.jsonl"},
		"another log's keys":           {edit("log.json", `"origin": "`, `"origin": "x`), audit.ErrMirror, "its keys are those of the log x"},
		"a mirror that is older": {func(t *testing.T, b *testBundle, _ string) {
			head := *b.highWater(t)
			head.TreeSize, head.Timestamp = 1007, head.Timestamp+1
			require.NoError(t, b.highWaterFile().Advance(t.Context(), head))
		}, audit.ErrMirror, "it ends at size 1006, and a head of 1007 leaves may have been published"},
		"a record that was put back": {func(t *testing.T, b *testBundle, mirror string) {
			name := filepath.Join(b.highWaterDir, id.Log.Format(b.log.ID)+".highwater")
			require.NoError(t, os.Remove(name))
			require.NoError(t, b.highWaterFile().Init())
			require.NoError(t, b.highWaterFile().Advance(t.Context(), attestation.Head{TreeSize: 500, Timestamp: 1, RootHash: verify.EmptyRoot()}))
		}, audit.ErrContradiction, "it was put back to an older state"},
		"a mirror of another log": {func(t *testing.T, _ *testBundle, mirror string) {
			other := sealed(t, 3)
			require.NoError(t, os.RemoveAll(mirror))
			other.export(t, mirror)
			require.NoError(t, os.Remove(filepath.Join(mirror, "log.json")))
		}, audit.ErrMirror, "it is one of kapsel.example/log/"},
		"no high-water record": {func(t *testing.T, b *testBundle, _ string) {
			require.NoError(t, os.RemoveAll(b.highWaterDir))
		}, attestation.ErrHighWaterMissing, ""},
		"a restored log that went another way": {func(t *testing.T, b *testBundle, _ string) {
			b.queue(t, b.tenant, 10)
			b.sequence(t)
		}, audit.ErrContradiction, "it isn't a part of what was published"},
		"a restored log that went further": {func(t *testing.T, b *testBundle, _ string) {
			b.queue(t, b.tenant, 1000)
			b.sequence(t)
		}, audit.ErrContradiction, "isn't the one that the high-water record names"},
		"tiles that were changed": {func(t *testing.T, b *testBundle, _ string) {
			b.tamper(t, "update merkle_tiles set hashes = set_byte(hashes, 0, 255 - get_byte(hashes, 0)) where level = 0 and tile_index = 1")
		}, attestation.ErrRootMismatch, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, mirror, _ := disaster(t)
			c.tamper(t, b, mirror)
			before := b.everything(t)
			_, err := b.tryRecover(t.Context(), mirror)
			if c.is == nil && c.says == "" {
				require.NoError(t, err)
				b.requireSound(t, 1006)
				return
			}
			require.ErrorContains(t, err, c.says)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			require.Equal(t, before, b.everything(t))
		})
	}
}

// A leaf that waits is taken only as what it says it is; one that was set aside is taken too.
func TestRecoverAdoptsWhatIsRight(t *testing.T) {
	t.Parallel()
	b, mirror, published := disaster(t)
	b.tamper(t, "update leaf_queue set leaf = leaf || ' ' where id = (select min(id) from leaf_queue)")
	b.tamper(t, "update leaf_queue set secrets = 'short' where id = (select min(id) + 1 from leaf_queue)")
	b.tamper(t, "update leaf_queue set tenant_id = log_id where id = (select min(id) + 2 from leaf_queue)")
	b.tamper(t, `insert into attestation_dead_letters (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, reason)
		select log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, 'by hand' from leaf_queue where id = (select min(id) + 3 from leaf_queue)`)
	b.tamper(t, "delete from leaf_queue where id = (select min(id) + 3 from leaf_queue)")
	done := b.recover(t, mirror)
	require.EqualValues(t, 2, done.Adopted)
	require.Equal(t, published, b.published(t))
	require.Equal(t, 1, value[int](t, b.owner, "select count(*) from attestation_dead_letters where resolved_at is not null"))
	b.seal(t)
	require.Equal(t, 3, value[int](t, b.owner, "select count(*) from attestation_dead_letters where resolved_at is null"), "what wasn't right is set aside")
	b.requireSound(t, 1008)
}

// Wherever it is killed, nothing of it stays, and the next run leads to the same bytes.
func TestRecoverAfterAKill(t *testing.T) {
	t.Parallel()
	for table, event := range map[string]string{
		"merkle_leaves": "insert", "leaf_of_attempt": "insert", "leaf_queue": "delete", "attestation_dead_letters": "update", "merkle_tiles": "insert",
		"tree_roots": "insert", "attestation_keys": "insert", "key_transitions": "insert", "signed_tree_heads": "insert", "log_recoveries": "insert",
		"log_heads": "update",
	} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			b, mirror, published := disaster(t, func(b *testBundle) { b.realRotate(t, false) })
			b.tamper(t, `insert into attestation_dead_letters (log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, reason)
				select log_id, tenant_id, attempt_id, leaf_hash, leaf, secrets, 'by hand' from leaf_queue where id = (select min(id) from leaf_queue)`)
			b.tamper(t, "delete from leaf_queue where id = (select min(id) from leaf_queue)")
			before := b.everything(t)
			direct(t, b.url, "", `create function die() returns trigger language plpgsql security definer as
				'begin perform pg_terminate_backend(pg_backend_pid()); return null; end'`,
				"create trigger die after "+event+" on "+table+" for each statement execute function die()")
			_, err := b.tryRecover(t.Context(), mirror)
			require.ErrorContains(t, err, "57P01") // admin_shutdown
			direct(t, b.url, "", "drop trigger die on "+table)
			require.Equal(t, before, b.everything(t))

			done := b.recover(t, mirror)
			require.EqualValues(t, 5, done.Adopted)
			require.Equal(t, published, b.published(t))
			b.seal(t)
			b.requireSound(t, 1009)
		})
	}
}

// Of several at once one does it, the others find it done; sealers meanwhile refuse, or go on from the published tree.
func TestRecoverAndOthersAtOnce(t *testing.T) {
	t.Parallel()
	b, mirror, published := disaster(t)
	var all sync.WaitGroup
	done := make([]*audit.Recovered, 3)
	errs := make([]error, 6)
	for i := range errs {
		all.Go(func() {
			if i < len(done) {
				done[i], errs[i] = b.tryRecover(t.Context(), mirror)
				return
			}
			errs[i] = b.sealing().SealNow(t.Context(), b.log.ID)
		})
	}
	all.Wait()
	var won int
	for i, err := range errs {
		switch {
		case i >= len(done) && err != nil:
			require.ErrorIs(t, err, attestation.ErrHighWaterConflict)
		case i < len(done):
			require.NoError(t, err)
			if !done[i].Complete {
				won++
			}
		}
	}
	require.Equal(t, 1, won)
	b.seal(t)
	b.requireSound(t, 1008)
	require.Subset(t, b.published(t)[0], published[0])
	require.Subset(t, b.published(t)[3], published[3])
}
