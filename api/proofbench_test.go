package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// BenchmarkProofsOf10MillionLeaves asks over HTTP for proofs of attempts anywhere in a log of 10 million leaves, one caller after
// the other, and reports p50 and p99 in milliseconds. Each answer is verified, outside of the time that is measured. The tree
// is a real one, of random leaves; the attempts asked for are some of them.
func BenchmarkProofsOf10MillionLeaves(b *testing.B) {
	site := setup(b)
	attempts := site.syntheticLog(b, 10_000_000, 5_000)
	head := site.publish(b, site.log, site.prepareHead(b, site.log))
	bearer := []string{"Authorization", "Bearer " + site.key}
	verifyAll := func(b *testing.B, p openapi.InclusionProof) {
		hashes := decodeAll(b, append(p.InclusionProof, p.LeafHash))
		last := len(hashes) - 1
		require.NoError(b, verify.Inclusion(hashes[last], uint64(p.LeafIndex), head.TreeSize, hashes[:last], head.RootHash))
	}
	b.Run("inclusion", func(b *testing.B) {
		site.measure(b, func(i int) (method, path, body string) {
			return "GET", "/api/v1/attestation/proof/" + attempts[i%len(attempts)], ""
		}, bearer, func(a answer) { verifyAll(b, read[openapi.InclusionProof](b, a, 200)) })
	})
	b.Run("package", func(b *testing.B) {
		site.measure(b, func(i int) (method, path, body string) {
			return "GET", "/api/v1/attestation/download-proof/" + attempts[i%len(attempts)], ""
		}, bearer, func(a answer) {
			_, err := verify.Package(a.body, verify.Options{VKey: site.log.VKey})
			require.NoError(b, err)
		})
	})
	b.Run("many=1000", func(b *testing.B) {
		site.measure(b, func(int) (method, path, body string) {
			rand.Shuffle(len(attempts), func(i, j int) { attempts[i], attempts[j] = attempts[j], attempts[i] })
			names, err := json.Marshal(attempts[:1000])
			require.NoError(b, err)
			return "POST", "/api/v1/attestation/proofs", `{"attempt_ids":` + string(names) + `}`
		}, bearer, func(a answer) {
			for _, p := range read[openapi.Proofs](b, a, 200).Proofs {
				verifyAll(b, openapi.InclusionProof{LeafIndex: *p.LeafIndex, LeafHash: *p.LeafHash, InclusionProof: *p.InclusionProof})
			}
		})
	})
	b.Run("consistency", func(b *testing.B) {
		site.measure(b, func(int) (method, path, body string) {
			return "GET", fmt.Sprintf("/api/v1/attestation/consistency-proof?old_size=%d&new_size=%d", 1+rand.Uint64N(head.TreeSize), head.TreeSize), ""
		}, nil, func(a answer) { require.NotNil(b, read[openapi.ConsistencyProof](b, a, 200).ConsistencyProof) })
	})
	b.Run("tile", func(b *testing.B) {
		site.measure(b, func(int) (method, path, body string) {
			tile := attestation.TilePath(attestation.TileID{Index: rand.Uint64N(head.TreeSize / 256)}, 256)
			return "GET", "/log/" + id.Log.Format(site.log.ID) + "/tile/" + tile, ""
		}, []string{"Accept-Encoding", "identity"}, func(a answer) { require.Len(b, a.body, attestation.FullTile) })
	})
}

// measure sends requests, lets each answer be checked, and reports what the requests took.
func (b *testBundle) measure(t *testing.B, request func(i int) (method, path, body string), headers []string, check func(answer)) {
	var took []time.Duration
	for i := 0; t.Loop(); i++ {
		method, path, body := request(i)
		if body != "" {
			headers = append(slices.Clip(headers), "Content-Type", "application/json")
		}
		started := time.Now()
		a, err := b.try(t.Context(), method, path, strings.NewReader(body), headers...)
		took = append(took, time.Since(started))
		t.StopTimer()
		require.NoError(t, err)
		require.Equal(t, 200, a.status, "%s", a.body)
		check(a)
		t.StartTimer()
	}
	slices.Sort(took)
	for _, percent := range []int{50, 99} {
		t.ReportMetric(float64(took[len(took)*percent/100])/float64(time.Millisecond), fmt.Sprintf("p%d-ms", percent))
	}
}

// syntheticLog makes a tree of size leaves with its tiles and root in Postgres, as sequencing would have left it, and some of
// the leaves as attempts of the tenant. It returns those.
func (b *testBundle) syntheticLog(t testing.TB, size uint64, some int) (attempts []string) {
	t.Helper()
	leaves, ofAttempts := map[uint64][]any{}, [][]any{}
	delivery := &postgres.Delivery{TenantID: b.tenant, EndpointID: id.New(), EventID: id.New(), DestinationID: id.New(), LogID: b.log.ID,
		Origin: b.log.Origin, NextAttempt: 1, Commitment: postgres.Commitment{Salt: make([]byte, 32), Secret: make([]byte, 32), PayloadHash: make([]byte, 32)}}
	for len(leaves) < some {
		index := rand.Uint64N(size)
		if leaves[index] != nil {
			continue
		}
		delivery.ID, delivery.Leaves, delivery.LastLeafHash = id.New(), 0, nil
		a := leafOf(t, delivery, 1, "attempt", "delivered", 200)
		leaves[index] = []any{b.log.ID, int64(index), b.tenant, a.ID, a.LeafHash, a.Leaf, a.Secrets}
		ofAttempts = append(ofAttempts, []any{b.log.ID, a.ID, b.tenant, int64(index)})
		attempts = append(attempts, id.Attempt.Format(a.ID))
	}
	b.copy(t, "leaf_of_attempt", []string{"log_id", "attempt_id", "tenant_id", "leaf_index"}, pgx.CopyFromRows(ofAttempts))
	rows := make([][]any, 0, some)
	for _, row := range leaves {
		rows = append(rows, row)
	}
	b.copy(t, "merkle_leaves", []string{"log_id", "leaf_index", "tenant_id", "attempt_id", "leaf_hash", "leaf", "secrets"}, pgx.CopyFromRows(rows))

	random := rand.NewChaCha8([32]byte{1})
	hashes, level := func(index uint64) []byte {
		if leaf := leaves[index]; leaf != nil {
			return leaf[4].([]byte)
		}
		hash := make([]byte, 32)
		_, _ = random.Read(hash)
		return hash
	}, size
	for l := 0; level > 0; l++ {
		above := make([][]byte, 0, level/256)
		var tile []byte
		next := uint64(0)
		b.copy(t, "merkle_tiles", []string{"log_id", "level", "tile_index", "hashes"}, pgx.CopyFromFunc(func() ([]any, error) {
			if next == level {
				return nil, nil
			}
			tile = tile[:0]
			index := next / 256
			for ; next < level && next < (index+1)*256; next++ {
				tile = append(tile, hashes(next)...)
			}
			if len(tile) == attestation.FullTile {
				above = append(above, rootOf(slices.Collect(slices.Chunk(tile, 32))))
			}
			return []any{b.log.ID, int16(l), int64(index), tile}, nil
		}))
		hashes, level = func(index uint64) []byte { return above[index] }, level/256
	}
	root, err := attestation.RootAt(t.Context(), b.storedTiles, size)
	require.NoError(t, err)
	_, err = b.engine.Exec(t.Context(), "insert into tree_roots (log_id, tree_size, root_hash) values ($1, $2, $3)", b.log.ID, int64(size), root)
	require.NoError(t, err)
	_, err = b.engine.Exec(t.Context(), "update log_heads set tree_size = $2, root_hash = $3 where log_id = $1", b.log.ID, int64(size), root)
	require.NoError(t, err)
	return attempts
}

func (b *testBundle) copy(t testing.TB, table string, columns []string, rows pgx.CopyFromSource) {
	t.Helper()
	_, err := b.engine.CopyFrom(t.Context(), pgx.Identifier{table}, columns, rows)
	require.NoError(t, err)
}

// storedTiles reads tiles as they are.
func (b *testBundle) storedTiles(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
	wanted := make([]postgres.TileID, len(ids))
	for i, tile := range ids {
		wanted[i] = postgres.TileID(tile)
	}
	stored, err := postgres.ReadTiles(ctx, b.engine, b.log.ID, wanted)
	tiles := map[attestation.TileID][]byte{}
	for tile, hashes := range stored {
		tiles[attestation.TileID(tile)] = hashes
	}
	return tiles, err
}
