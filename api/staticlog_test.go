package api_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// queueLeaves queues n leaves of attempts that nobody made, and returns their hashes.
func (b *testBundle) queueLeaves(t testing.TB, log admin.Log, n int) [][]byte {
	t.Helper()
	rows, hashes := make([][]any, n), make([][]byte, n)
	for i := range rows {
		leaf := make([]byte, 32)
		_, _ = rand.Read(leaf)
		hashes[i] = verify.LeafHash(leaf)
		rows[i] = []any{log.ID, b.tenant, id.New(), hashes[i], leaf, make([]byte, 64)}
	}
	_, err := b.engine.CopyFrom(t.Context(), pgx.Identifier{"leaf_queue"},
		[]string{"log_id", "tenant_id", "attempt_id", "leaf_hash", "leaf", "secrets"}, pgx.CopyFromRows(rows))
	require.NoError(t, err)
	return hashes
}

// tileClient reads a log as golang.org/x/mod reads the Go checksum database: it takes hashes from tiles only after it has
// found that they belong to the tree. Its errors go to require.
type tileClient struct {
	t   testing.TB
	b   *testBundle
	log admin.Log
}

func (c tileClient) Height() int                     { return 8 }
func (c tileClient) SaveTiles([]tlog.Tile, [][]byte) {}
func (c tileClient) path(path string) string         { return "/log/" + id.Log.Format(c.log.ID) + "/" + path }
func (c tileClient) get(path string, h ...string) answer {
	return c.b.do(c.t, "GET", c.path(path), nil, h...)
}

func (c tileClient) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		a := c.get(strings.Replace(tile.Path(), "tile/8/", "tile/", 1))
		if a.status != 200 {
			return nil, fmt.Errorf("%s: %d %s", tile.Path(), a.status, a.body)
		}
		data[i] = a.body
	}
	return data, nil
}

// tree reads the checkpoint, verifies it with the note package of golang.org/x/mod, and returns what it says.
func (c tileClient) tree() tlog.Tree {
	c.t.Helper()
	verifier, err := note.NewVerifier(c.log.VKey)
	require.NoError(c.t, err)
	a := c.get("checkpoint")
	require.Equal(c.t, 200, a.status, "%s", a.body)
	opened, err := note.Open(a.body, note.VerifierList(verifier))
	require.NoError(c.t, err)
	require.Len(c.t, opened.Sigs, 1)
	require.Len(c.t, opened.UnverifiedSigs, 1, "the second line carries the signed tree head, which other software ignores")
	lines := strings.Split(opened.Text, "\n")
	require.Equal(c.t, c.log.Origin, lines[0])
	size, err := strconv.ParseInt(lines[1], 10, 64)
	require.NoError(c.t, err)
	root, err := base64.StdEncoding.DecodeString(lines[2])
	require.NoError(c.t, err)
	return tlog.Tree{N: size, Hash: tlog.Hash(root)}
}

// A client of another project fetches a checkpoint, verifies that leaves are included, and follows the log as it grows,
// over all widths of tiles on three levels.
func TestTileClientsOfOtherProjectsFollowTheLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := tileClient{t, b, b.log}
	var hashes [][]byte
	var before tlog.Tree
	for _, size := range []int{1, 2, 255, 256, 257, 600, 65535, 65537, 66000} {
		for len(hashes) < size {
			hashes = append(hashes, b.queueLeaves(t, b.log, min(size-len(hashes), 10_000))...)
			b.sequence(t, b.log)
		}
		b.publish(t, b.log, b.prepareHead(t, b.log))
		tree := client.tree()
		require.EqualValues(t, size, tree.N)
		reader := tlog.TileHashReader(tree, client)
		for _, index := range []int64{0, tree.N / 3, tree.N - 1} {
			path, err := tlog.ProveRecord(tree.N, index, reader)
			require.NoError(t, err)
			require.NoError(t, tlog.CheckRecord(path, tree.N, tree.Hash, index, tlog.Hash(hashes[index])))
		}
		if before.N > 0 {
			path, err := tlog.ProveTree(tree.N, before.N, reader)
			require.NoError(t, err)
			require.NoError(t, tlog.CheckTree(path, tree.N, tree.Hash, before.N, before.Hash))
		}
		before = tree
	}
}

// What is stored may be wider than what a published head covers. Nobody sees that.
func TestTilesShowOnlyWhatIsPublished(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := tileClient{t, b, b.log}
	absent := func(paths ...string) {
		t.Helper()
		for _, path := range paths {
			a := client.get("tile/" + path)
			problem(t, a, 404, "not-found")
			require.Equal(t, "no-store", a.header.Get("Cache-Control"), "it may be there in a second")
		}
	}
	present := func(path string, hashes [][]byte) {
		t.Helper()
		a := client.get("tile/" + path)
		require.Equal(t, 200, a.status, "%s: %s", path, a.body)
		require.Equal(t, bytes.Join(hashes, nil), a.body, path)
	}
	absent("0/000.p/1", "0/000")

	hashes := b.queueLeaves(t, b.log, 100)
	b.sequence(t, b.log)
	head := b.prepareHead(t, b.log)
	absent("0/000.p/100", "0/000")
	b.publish(t, b.log, head)
	present("0/000.p/100", hashes)
	absent("0/000", "0/000.p/99", "0/000.p/101", "0/001.p/1", "1/000.p/1", "1/000", "7/000.p/1", "8/000.p/1", "63/000",
		"0/x999/x999/x999/x999/x999/999", "7/x999/x999/x999/x999/x999/999.p/1")

	hashes = append(hashes, b.queueLeaves(t, b.log, 200)...)
	b.sequence(t, b.log)
	absent("0/000", "0/000.p/200", "0/001.p/44", "1/000.p/1")
	present("0/000.p/100", hashes[:100])
	head = b.prepareHead(t, b.log)
	absent("0/000", "0/001.p/44", "1/000.p/1")
	b.publish(t, b.log, head)
	present("0/000", hashes[:256])
	present("0/000.p/100", hashes[:100]) // was published, and may be asked for by whoever holds that head
	present("0/001.p/44", hashes[256:])
	absent("0/000.p/99", "0/000.p/101", "0/000.p/255", "0/001", "0/001.p/43", "0/001.p/45", "0/002.p/1", "1/000", "1/000.p/2", "1/001.p/1")
	a := client.get("tile/1/000.p/1")
	require.Equal(t, 200, a.status)
	root, err := tlog.TreeHash(256, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) { return storedHashes(hashes, indexes), nil }))
	require.NoError(t, err)
	require.Equal(t, root[:], a.body)
	require.Contains(t, string(client.get("tile/0/001").body), "ask for .p/44", "the answer says what there is")
}

// storedHashes computes what golang.org/x/mod would have stored of the leaves.
func storedHashes(leaves [][]byte, indexes []int64) []tlog.Hash {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		row := leaves[n<<level : (n+1)<<level]
		for len(row) > 1 {
			var above [][]byte
			for j := 0; j < len(row); j += 2 {
				above = append(above, verify.NodeHash(row[j], row[j+1]))
			}
			row = above
		}
		hashes[i] = tlog.Hash(row[0])
	}
	return hashes
}

func TestMalformedTilePathsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := tileClient{t, b, b.log}
	b.queueLeaves(t, b.log, 300)
	b.seal(t)
	for path, field := range map[string]string{
		"": "level", "0": "index", "00/000": "level", "64/000": "level", "-1/000": "level", "0/0": "index", "0/000/": "index",
		"0//000": "index", "0/x000/000": "index", "0/000.p/0": "width", "0/000.p/256": "width", "0/000.p/044": "width", "0/001.p/44.p/1": "width",
		"0/001.P/44": "index", "0/001.p/%34%34": "tile", "0%2F000": "tile", "0/..%2f0/000": "tile", "x/000": "level",
	} {
		a := client.get("tile/" + path)
		p := problem(t, a, 400, "invalid-parameter")
		require.Equal(t, field, *p.Field, path)
	}
	problem(t, client.get("tile/entries/000"), 404, "not-found")
	problem(t, client.get("tile"), 404, "not-found")
	p := problem(t, client.get("tile/0/000?x=1"), 400, "invalid-parameter")
	require.Equal(t, "x", *p.Field)
	for _, path := range []string{"/log/x/tile/0/000", "/log/" + id.Log.Format(id.New()) + "/tile/0/000", "/log//tile/0/000", "/log/" + strings.ToUpper(id.Log.Format(b.log.ID)) + "/checkpoint"} {
		problem(t, b.do(t, "GET", path, nil), 404, "not-found")
	}
	problem(t, b.do(t, "POST", client.path("tile/0/000"), nil), 405, "method-not-allowed")
}

func TestTilesAndCheckpointsSayHowLongTheyHold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := tileClient{t, b, b.log}
	hashes := b.queueLeaves(t, b.log, 300)
	b.seal(t)
	for path, want := range map[string]string{
		"tile/0/000": "public, max-age=31536000, immutable", "tile/0/001.p/44": "public, max-age=3600", "tile/1/000.p/1": "public, max-age=3600",
	} {
		a := client.get(path, "Accept-Encoding", "identity")
		require.Equal(t, 200, a.status)
		require.Equal(t, want, a.header.Get("Cache-Control"), path)
		require.Equal(t, "application/octet-stream", a.header.Get("Content-Type"))
		require.Equal(t, strconv.Itoa(len(a.body)), a.header.Get("Content-Length"))
		require.Equal(t, "Accept-Encoding", a.header.Get("Vary"))
		require.Empty(t, a.header.Get("Content-Encoding"))
	}
	plain, packed := client.get("tile/0/000", "Accept-Encoding", "identity"), client.get("tile/0/000", "Accept-Encoding", "br, gzip;q=0.5")
	require.Equal(t, "gzip", packed.header.Get("Content-Encoding"))
	require.Equal(t, plain.body, unpack(t, packed.body))
	require.Equal(t, bytes.Join(hashes[:256], nil), plain.body)

	plain, packed = client.get("checkpoint", "Accept-Encoding", "identity"), client.get("checkpoint", "Accept-Encoding", "gzip")
	require.Equal(t, "no-cache", plain.header.Get("Cache-Control"))
	require.Equal(t, "text/plain; charset=utf-8", plain.header.Get("Content-Type"))
	require.Equal(t, "gzip", packed.header.Get("Content-Encoding"))
	require.Equal(t, plain.body, unpack(t, packed.body))
	require.Equal(t, "W/"+plain.header.Get("ETag"), packed.header.Get("ETag"))
	for _, etag := range []string{plain.header.Get("ETag"), packed.header.Get("ETag"), `"other", ` + plain.header.Get("ETag"), "*"} {
		a := client.get("checkpoint", "If-None-Match", etag)
		require.Equal(t, http.StatusNotModified, a.status)
		require.Empty(t, a.body)
	}
	b.queueLeaves(t, b.log, 1)
	b.seal(t)
	require.Equal(t, 200, client.get("checkpoint", "If-None-Match", plain.header.Get("ETag")).status, "the log has grown")
}

func unpack(t *testing.T, body []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(body))
	require.NoError(t, err)
	plain, err := io.ReadAll(r)
	require.NoError(t, err)
	return plain
}

func TestTilesCanBeKeptPrivate(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.HeadsOnly = true })
	client := tileClient{t, b, b.log}
	attempt := b.attempted(t, b.endpoint(t), "0")
	b.queueLeaves(t, b.log, 300)
	b.seal(t)
	for _, path := range []string{"tile/0/000", "tile/0/001.p/45", "tile/nonsense"} {
		problem(t, client.get(path), 404, "not-found")
	}
	require.EqualValues(t, 301, client.tree().N)
	require.Equal(t, 200, b.do(t, "GET", "/api/v1/attestation/consistency-proof?old_size=7&new_size=301", nil).status)
	require.Equal(t, 200, b.get(t, "/api/v1/attestation/proof/"+attempt).status)
}

// Full tiles are read from Postgres once; partial ones, which grow, each time.
func TestFullTilesAreReadOnce(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	b := setup(t, func(c *api.Config) { c.Metrics = registry })
	client := tileClient{t, b, b.log}
	attempt := b.attempted(t, b.endpoint(t), "0")
	hashes := b.queueLeaves(t, b.log, 299)
	b.seal(t)
	reads := func(cache, postgres, edge int) {
		t.Helper()
		families, err := registry.Gather()
		require.NoError(t, err)
		got := map[string]int{}
		for _, family := range families {
			for _, m := range family.GetMetric() {
				if family.GetName() == "kapsel_tile_reads_total" {
					got[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
				}
			}
		}
		require.Equal(t, map[string]int{"cache": cache, "postgres": postgres, "edge": edge}, got)
	}
	reads(0, 0, 0)
	require.Equal(t, 200, client.get("tile/0/000").status)
	reads(0, 1, 0)
	require.Equal(t, 200, client.get("tile/0/000").status)
	reads(1, 1, 0)
	require.Equal(t, 200, b.get(t, "/api/v1/attestation/proof/"+attempt).status) // 0/000 and 0/001, of 44 hashes
	reads(2, 1, 1)
	hashes = append(hashes, b.queueLeaves(t, b.log, 10)...)
	b.seal(t)
	a := client.get("tile/0/001.p/54")
	require.Equal(t, bytes.Join(hashes[255:], nil), a.body, "and not what it was before")
	reads(2, 1, 2)
}
