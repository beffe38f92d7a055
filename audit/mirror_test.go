package audit_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/audit"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// tileClient reads a log over HTTP as the Go checksum database's client does: golang.org/x/mod knows nothing of Kapsel.
type tileClient struct {
	url  string
	vkey string
}

func (c tileClient) get(path string) ([]byte, error) {
	response, err := http.Get(c.url + "/" + path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, response.Status)
	}
	return body, err
}

func (c tileClient) Height() int { return 8 }

func (c tileClient) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		// tlog writes the height into the path, c2sp.org/tlog-tiles doesn't.
		path := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		data, err := c.get(path)
		if err != nil { // a tile that has grown meanwhile is there in full only
			if data, err = c.get(strings.TrimSuffix(path, fmt.Sprintf(".p/%d", tile.W))); err != nil {
				return nil, err
			}
			data = data[:tile.W*tlog.HashSize]
		}
		all = append(all, data)
	}
	return all, nil
}

func (c tileClient) SaveTiles([]tlog.Tile, [][]byte) {}

// tree reads and verifies the checkpoint.
func (c tileClient) tree(t testing.TB) tlog.Tree {
	t.Helper()
	text, err := c.get("checkpoint")
	require.NoError(t, err)
	verifier, err := note.NewVerifier(c.vkey)
	require.NoError(t, err)
	opened, err := note.Open(text, note.VerifierList(verifier))
	require.NoError(t, err)
	lines := strings.Split(opened.Text, "\n")
	var size int64
	_, err = fmt.Sscan(lines[1], &size)
	require.NoError(t, err)
	root, err := base64.StdEncoding.DecodeString(lines[2])
	require.NoError(t, err)
	return tlog.Tree{N: size, Hash: tlog.Hash(root)}
}

// requireTree reads the mirror over HTTP and proves every leaf's inclusion (of large ones some), and the consistency with an
// older tree. The reader itself checks each tile against the signed root.
func (c tileClient) requireTree(t testing.TB, leafHashes [][]byte, older *tlog.Tree) tlog.Tree {
	t.Helper()
	tree := c.tree(t)
	require.LessOrEqual(t, tree.N, int64(len(leafHashes)))
	reader := tlog.TileHashReader(tree, c)
	for n := int64(0); n < tree.N; n += max(tree.N/50, 1) {
		proof, err := tlog.ProveRecord(tree.N, n, reader)
		require.NoError(t, err)
		require.NoError(t, tlog.CheckRecord(proof, tree.N, tree.Hash, n, tlog.Hash(leafHashes[n])))
	}
	if older != nil && older.N > 0 {
		proof, err := tlog.ProveTree(tree.N, older.N, reader)
		require.NoError(t, err)
		require.NoError(t, tlog.CheckTree(proof, tree.N, tree.Hash, older.N, older.Hash))
	}
	return tree
}

func (b *testBundle) leafHashes(t testing.TB) [][]byte {
	t.Helper()
	return value[[][]byte](t, b.owner, "select coalesce(array_agg(leaf_hash order by leaf_index), '{}') from merkle_leaves")
}

func (b *testBundle) export(t testing.TB, dir string) *audit.Exported {
	t.Helper()
	done, err := audit.Export(t.Context(), audit.ExportConfig{DB: b.engine, Log: b.row, Dir: dir})
	require.NoError(t, err)
	return done
}

// serve serves a directory by nothing but net/http's file server.
func (b *testBundle) serve(t testing.TB, dir string) tileClient {
	t.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return tileClient{url: server.URL, vkey: b.log.VKey}
}

func TestAMirrorOnAFileServerIsALog(t *testing.T) {
	t.Parallel()
	b := sealed(t, 0)
	dir := filepath.Join(t.TempDir(), "new", "mirror")
	client := b.serve(t, dir)
	var older tlog.Tree
	for _, n := range []int{0, 1, 254, 1, 1, 255, 700, 0} {
		b.queue(t, b.tenant, n)
		b.seal(t)
		done := b.export(t, dir)
		require.EqualValues(t, older.N, done.OldSize)
		newer := client.requireTree(t, b.leafHashes(t), &older)
		require.EqualValues(t, older.N+int64(n), newer.N)
		older = newer
		require.Equal(t, wantFiles(uint64(newer.N)), tileFiles(t, dir), "exactly the tiles of the tree, and no partial one that is full by now")
	}
	again := b.export(t, dir)
	require.Zero(t, again.Tiles)
	require.Zero(t, again.Heads)
	require.EqualValues(t, older.N, again.OldSize)
}

// wantFiles are the tiles of a tree that grew as in TestAMirrorOnAFileServerIsALog.
func wantFiles(size uint64) []string {
	var files []string
	for level := uint8(0); size>>(8*level) > 0; level++ {
		for index := uint64(0); attestation.TileWidth(attestation.TileID{Level: level, Index: index}, size) > 0; index++ {
			tile := attestation.TileID{Level: level, Index: index}
			files = append(files, audit.TilePath(tile, attestation.TileWidth(tile, size)))
		}
	}
	slices.Sort(files)
	return files
}

// tileFiles lists the tiles of a mirror; of a partial tile the widest, because narrower ones stay for clients that come late.
func tileFiles(t testing.TB, dir string) []string {
	t.Helper()
	widest := map[string]int{}
	err := filepath.WalkDir(filepath.Join(dir, "tile"), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // an empty log has none
		}
		require.NoError(t, err)
		if entry.IsDir() {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		require.NoError(t, err)
		tile, partial, isPartial := strings.Cut(name, ".p/")
		width := 256
		if isPartial {
			_, err = fmt.Sscan(partial, &width)
			require.NoError(t, err)
		}
		info, err := entry.Info()
		require.NoError(t, err)
		require.EqualValues(t, 32*width, info.Size(), name)
		widest[tile] = max(widest[tile], width)
		return nil
	})
	require.NoError(t, err)
	var files []string
	for tile, width := range widest {
		if width < 256 {
			tile += fmt.Sprintf(".p/%d", width)
		}
		files = append(files, tile)
	}
	slices.Sort(files)
	return files
}

// The paths are those of the Go checksum database, without the height.
func TestTilePaths(t *testing.T) {
	t.Parallel()
	for _, index := range []int64{0, 1, 999, 1000, 1234, 999_999, 1_000_000, 1_234_067, 1 << 40} {
		for _, width := range []int{1, 17, 255, 256} {
			want := tlog.Tile{H: 8, L: 3, N: index, W: width}.Path()
			require.Equal(t, "tile/"+strings.TrimPrefix(want, "tile/8/"), audit.TilePath(attestation.TileID{Level: 3, Index: uint64(index)}, width))
		}
	}
}

// While workers seal and publish, every export is a whole log, also to a client who reads during the next one.
func TestExportWhileSealingGoesOn(t *testing.T) {
	t.Parallel()
	b := sealed(t, 100)
	dir := t.TempDir()
	client := b.serve(t, dir)
	b.export(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() {
		sealing := b.sealing()
		for ctx.Err() == nil {
			if err := b.enqueue(ctx, b.tenant, 61); err == nil {
				_ = sealing.SealNow(ctx, b.log.ID)
			}
		}
	})
	others.Go(func() {
		for ctx.Err() == nil {
			_, err := audit.Export(ctx, audit.ExportConfig{DB: b.engine, Log: b.row, Dir: dir})
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	older := client.tree(t)
	for range 30 {
		older = client.requireTree(t, b.leafHashes(t), &older)
	}
	stop()
	others.Wait()
	require.Greater(t, older.N, int64(100))
}

// A crash at any moment leaves the old checkpoint and a directory that the next export completes: here, each file of the new
// state is missing once, or is there too early.
func TestAnInterruptedExportIsCompleted(t *testing.T) {
	t.Parallel()
	b := sealed(t, 300)
	before := t.TempDir()
	b.export(t, before)
	b.queue(t, b.tenant, 500)
	b.seal(t)
	after := t.TempDir()
	require.NoError(t, os.CopyFS(after, os.DirFS(before)))
	b.export(t, after)
	old, done := contents(t, before), contents(t, after)
	var added []string
	for name, text := range done {
		if name != "checkpoint" && old[name] != text {
			added = append(added, name)
		}
	}
	slices.Sort(added)
	require.Equal(t, []string{"heads/000000.jsonl", "tile/0/001", "tile/0/002", "tile/0/003.p/32", "tile/1/000.p/3"}, added)
	for n := range len(added) + 1 {
		dir := t.TempDir()
		require.NoError(t, os.CopyFS(dir, os.DirFS(before)))
		for _, name := range added[:n] {
			text := done[name]
			if strings.HasPrefix(name, "heads") {
				text = text[:len(text)-5] // torn
			}
			require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		}
		client := b.serve(t, dir)
		require.EqualValues(t, 300, client.requireTree(t, b.leafHashes(t), nil).N)
		b.export(t, dir)
		require.Equal(t, done, contents(t, dir))
	}
}

// contents are the files of a directory.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, fs.WalkDir(os.DirFS(dir), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			text, readErr := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, readErr)
			files[name] = string(text)
		}
		return err
	}))
	return files
}

// The checkpoint is never lowered, and never becomes that of another history; what was there stays as it was.
func TestAMirrorNeverGoesBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql []string
		say string
	}{
		"a smaller tree": {[]string{"delete from signed_tree_heads where tree_size = 600"}, "was it restored?"},
		"an earlier time": {[]string{`insert into signed_tree_heads select log_id, tree_size, "timestamp" - 7, root_hash, key_id, signature, checkpoint
			from signed_tree_heads where tree_size = 600`, `delete from signed_tree_heads where "timestamp" = (select max("timestamp") from signed_tree_heads)`}, "contradicts"},
		"a changed tile": {[]string{"update merkle_tiles set hashes = set_byte(hashes, 7, 255 - get_byte(hashes, 7)) where level = 0 and tile_index = 2"}, "exported tree isn't a part"},
		"no key":         {[]string{"delete from attestation_keys"}, "no usable key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sealed(t, 300, 300)
			dir := t.TempDir()
			b.export(t, dir)
			if name == "a changed tile" {
				b.queue(t, b.tenant, 300)
				b.seal(t)
			}
			before := contents(t, dir)
			for _, sql := range c.sql {
				b.tamper(t, sql)
			}
			_, err := audit.Export(t.Context(), audit.ExportConfig{DB: b.engine, Log: b.row, Dir: dir})
			require.ErrorIs(t, err, audit.ErrContradiction)
			require.ErrorContains(t, err, c.say)
			require.Equal(t, before, contents(t, dir))
		})
	}
}

// What doesn't lead to the signed root is not published.
func TestATamperedLogIsNotExported(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"a full tile":    "update merkle_tiles set hashes = set_byte(hashes, 7, 255 - get_byte(hashes, 7)) where level = 0 and tile_index = 1",
		"a partial tile": "update merkle_tiles set hashes = set_byte(hashes, 7, 255 - get_byte(hashes, 7)) where level = 0 and tile_index = 2",
		"a tile above":   "update merkle_tiles set hashes = set_byte(hashes, 7, 255 - get_byte(hashes, 7)) where level = 1",
		"no tile":        "delete from merkle_tiles where level = 0 and tile_index = 1",
		"a signature":    "update signed_tree_heads set signature = sha512('') where tree_size = 600",
		"a checkpoint":   "update signed_tree_heads set checkpoint = (select checkpoint from signed_tree_heads where tree_size = 300) where tree_size = 600",
		"an older head":  "update signed_tree_heads set signature = sha512('') where tree_size = 300",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sealed(t, 300, 300)
			b.tamper(t, sql)
			dir := t.TempDir()
			_, err := audit.Export(t.Context(), audit.ExportConfig{DB: b.engine, Log: b.row, Dir: dir})
			require.ErrorIs(t, err, audit.ErrContradiction)
			require.NoFileExists(t, filepath.Join(dir, "checkpoint"))
		})
	}
}

func TestAMirrorIsOfOneLogAndOneExportAtATime(t *testing.T) {
	t.Parallel()
	b, other := sealed(t, 3), sealed(t, 4)
	dir := t.TempDir()
	b.export(t, dir)
	before := contents(t, dir)
	_, err := audit.Export(t.Context(), audit.ExportConfig{DB: other.engine, Log: other.row, Dir: dir})
	require.ErrorContains(t, err, "is a mirror of "+b.log.Origin)
	require.Equal(t, before, contents(t, dir))

	require.NoError(t, os.WriteFile(filepath.Join(dir, "checkpoint"), []byte("nonsense"), 0o644))
	_, err = audit.Export(t.Context(), audit.ExportConfig{DB: b.engine, Log: b.row, Dir: dir})
	require.ErrorContains(t, err, filepath.Join(dir, "checkpoint"))

	// A tile that somebody changed in the directory isn't taken for the log's.
	clean := t.TempDir()
	b.export(t, clean)
	tile := filepath.Join(clean, "tile/0/000.p/3")
	require.NoError(t, os.WriteFile(tile, bytes.Repeat([]byte{1}, 96), 0o644))
	_, err = audit.Export(t.Context(), audit.ExportConfig{DB: b.engine, Log: b.row, Dir: clean})
	require.ErrorIs(t, err, audit.ErrContradiction)
	require.ErrorContains(t, err, "000.p/3 holds something else")
}

// Heads are exported each once, oldest first, also over the end of a file.
func TestEveryHeadIsExported(t *testing.T) {
	t.Parallel()
	b := sealed(t, 3)
	const heads = audit.HeadsPerFile + 10
	signer := b.signer(t)
	newest := value[int64](t, b.owner, `select "timestamp" from signed_tree_heads`)
	root := value[[]byte](t, b.owner, "select root_hash from log_heads")
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			sth, err := signer.SignTreeHead(attestation.Head{TreeSize: 3, Timestamp: newest + int64(i), RootHash: root})
			require.NoError(t, err)
			checkpoint, err := signer.SignCheckpoint(sth)
			require.NoError(t, err)
			b.exec(t, `insert into signed_tree_heads (log_id, tree_size, "timestamp", root_hash, key_id, signature, checkpoint) values ($1, 3, $2, $3, $4, $5, $6)`,
				b.log.ID, sth.Timestamp, root, verify.LogKeyID(signer.PublicKey()), sth.Signature, checkpoint)
		}
	}
	dir := t.TempDir()
	publish(1, heads-5)
	require.Equal(t, heads-5, b.export(t, dir).Heads)
	publish(heads-5, heads)
	require.Equal(t, 5, b.export(t, dir).Heads)
	files := contents(t, filepath.Join(dir, "heads"))
	require.ElementsMatch(t, []string{"000000.jsonl", "000001.jsonl"}, slices.Collect(maps.Keys(files)))
	require.Equal(t, audit.HeadsPerFile, strings.Count(files["000000.jsonl"], "\n"))
	require.Equal(t, 10, strings.Count(files["000001.jsonl"], "\n"))
	b.requireSound(t, 3)

	target := b.fresh(t)
	rebuilt := b.rebuild(t, target, dir)
	require.Equal(t, heads, rebuilt.Heads)
}

func TestTheMirrorNamesLogAndKeys(t *testing.T) {
	t.Parallel()
	b := sealed(t, 3)
	b.rotate(t, verify.ReasonRotation, nil)
	dir := t.TempDir()
	b.export(t, dir)
	log, err := audit.MirrorOf(dir)
	require.NoError(t, err)
	require.Equal(t, id.Log.Format(b.log.ID), log.LogID)
	require.Equal(t, b.log.Origin, log.Origin)
	require.Len(t, log.Keys, 2)
	require.Equal(t, b.log.VKey, log.Keys[0].VKey)
	require.NotNil(t, log.Keys[0].NotAfter)
	require.Nil(t, log.Keys[1].NotAfter)
}
