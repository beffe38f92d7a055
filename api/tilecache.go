package api

import (
	"context"

	"github.com/google/uuid"
	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// cachedTiles is how many full tiles of 8 KiB a process remembers: 64 MiB, or the hashes of two million leaves.
const cachedTiles = 8192

// tileCache remembers full tiles, those least used go first. A full tile never changes, so there is nothing to invalidate;
// partial ones, at the right edge, are always read. What may be handed out of a tile isn't decided here.
type tileCache struct {
	cache              *otter.Cache[cachedTile, []byte]
	hits, misses, edge prometheus.Counter
}

type cachedTile struct {
	log  uuid.UUID
	tile attestation.TileID
}

func newTileCache(registerer prometheus.Registerer) *tileCache {
	reads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kapsel_tile_reads_total",
		Help: "Tiles of a log read for proofs and tile clients, by source: cache and postgres for full tiles, whose ratio is the " +
			"cache's hit ratio, and edge for partial ones, which are never cached.",
	}, []string{"source"})
	if registerer != nil {
		registerer.MustRegister(reads)
	}
	return &tileCache{
		cache: otter.Must(&otter.Options[cachedTile, []byte]{MaximumSize: cachedTiles}),
		hits:  reads.WithLabelValues("cache"), misses: reads.WithLabelValues("postgres"), edge: reads.WithLabelValues("edge"),
	}
}

// reader reads full tiles from the cache, and all that it doesn't hold in one query from a pool or a transaction. Nobody
// writes into what it returns.
func (c *tileCache) reader(from db.DBTX, log uuid.UUID) attestation.TileReader {
	read := tileReader(from, log)
	return func(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
		tiles := make(map[attestation.TileID][]byte, len(ids))
		var missing []attestation.TileID
		for _, id := range ids {
			if hashes, ok := c.cache.GetIfPresent(cachedTile{log, id}); ok {
				tiles[id] = hashes
			} else {
				missing = append(missing, id)
			}
		}
		c.hits.Add(float64(len(tiles)))
		if len(missing) == 0 {
			return tiles, nil
		}
		stored, err := read(ctx, missing)
		if err != nil {
			return nil, err
		}
		for id, hashes := range stored {
			tiles[id] = hashes
			if len(hashes) < attestation.FullTile {
				c.edge.Inc()
				continue
			}
			c.misses.Inc()
			c.cache.Set(cachedTile{log, id}, hashes)
		}
		return tiles, nil
	}
}
