package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// ErrMirror is returned for a mirror from which a log can't be recovered; another one may do.
var ErrMirror = errors.New("the log can't be recovered from this mirror")

// RecoverConfig says which log to complete, and from where.
type RecoverConfig struct {
	Owner *pgxpool.Pool // role kapsel_owner
	Log   postgres.LogRow
	// HighWater is the log's high-water record: up to its head the log is completed, and its root decides what is right.
	HighWater *attestation.HighWater
	// Mirror is a directory that Export wrote, or a directory or an http(s) URL with the layout of c2sp.org/tlog-tiles.
	Mirror string
	// Keys is a file with an answer of /api/v1/attestation/keys, for a mirror without log.json; "": none.
	Keys string
	// DryRun checks everything and writes nothing.
	DryRun   bool
	Progress func(Progress) // may be nil

	step uint64 // how many leaves are appended, written and looked for in the queue at once; 0: 2^15
}

// Recovered says what was, or with DryRun would be, done.
type Recovered struct {
	LogID    string     `json:"log_id"`
	Origin   string     `json:"origin"`
	OldSize  uint64     `json:"old_tree_size"` // of the restored log
	TreeSize uint64     `json:"tree_size"`     // that was published
	RootHash verify.Hex `json:"root_hash"`
	Adopted  uint64     `json:"adopted"` // leaves that were waiting, with their bytes
	Lost     uint64     `json:"lost"`    // leaves of which only the hash came back
	Heads    int        `json:"heads"`   // that were published after the backup
	Keys     int        `json:"keys"`    // changes of the key after the backup
	DryRun   bool       `json:"dry_run"`
	// Complete says that the log lacked nothing; then nothing was done.
	Complete bool `json:"complete_before"`
}

// recovery is a recovery under way.
type recovery struct {
	RecoverConfig
	from   source
	target attestation.Head        // the high-water record
	size   uint64                  // of the restored log
	root   []byte                  // of it
	newest *postgres.PublishedHead // in the database; nil if there is none
	stored []postgres.LogKey
	keys   *keychain
	came   []cameKey // keys that came after the backup, oldest first
	heads  []*postgres.PublishedHead
	gap    []byte // the hashes of the leaves [size, target.TreeSize)
	tiles  map[attestation.TileID][]byte
	roots  []postgres.SizedRoot
	notes  map[uint64][]byte // the transitions in the gap, by leaf index
	change []postgres.KeyTransition
	done   Recovered
}

// Recover completes a log whose database was restored from a backup that is older than what it has published. The hashes of
// the missing leaves come from a mirror, which needn't be trusted: appended to the restored tree they must give the root of the
// high-water record, so they are the published ones, and the restored tree is where they began. Every head that the mirror has
// is checked too. Only then anything is written, in one transaction under the lock of the log's head: a run that is cut off has
// done nothing, of two at once the second finds nothing left to do, and a sealer waits and goes on from the published tree.
//
// Leaves whose bytes wait in the queue get them back; of the others the hash is all there is. The gap is kept in memory: some
// 64 bytes for each leaf.
//
// The error wraps ErrMirror where another mirror may help, and ErrContradiction where the restored log isn't what was published.
func Recover(ctx context.Context, config RecoverConfig) (*Recovered, error) {
	r := &recovery{RecoverConfig: config, from: openSource(config.Mirror), notes: map[uint64][]byte{}}
	if r.step == 0 {
		r.step = 1 << 15
	}
	r.done = Recovered{LogID: id.Log.Format(config.Log.ID), Origin: config.Log.Origin, DryRun: config.DryRun}
	if err := r.run(ctx); err != nil {
		return nil, fmt.Errorf("recover log %s: %w", r.done.LogID, err)
	}
	return &r.done, nil
}

func (r *recovery) run(ctx context.Context) error {
	if err := r.restored(ctx); err != nil || r.done.Complete {
		return err
	}
	for _, check := range []func(context.Context) error{r.readKeys, r.readHeads, r.readGap, r.leads, r.walk} {
		if err := check(ctx); err != nil {
			return err
		}
	}
	err := postgres.GrowLog(ctx, r.Owner, r.Log.ID, func(g *postgres.LogGrower) error { return r.write(ctx, g) })
	if errors.Is(err, errDryRun) {
		return nil
	}
	return err
}

// restored reads what the database has, and what was published.
func (r *recovery) restored(ctx context.Context) error {
	var err error
	if r.target, err = r.HighWater.Read(); err != nil {
		return err
	}
	edge, err := postgres.Edge(ctx, r.Owner, r.Log.ID)
	if err != nil {
		return err
	}
	r.size, r.root = edge.TreeSize, edge.RootHash
	r.done.OldSize, r.done.TreeSize, r.done.RootHash = r.size, r.target.TreeSize, r.target.RootHash
	root, err := postgres.RootOf(ctx, r.Owner, r.Log.ID, r.target.TreeSize)
	switch {
	case err != nil:
		return err
	case bytes.Equal(root, r.target.RootHash):
		r.done.Complete = true
		return nil
	case root != nil || r.size >= r.target.TreeSize:
		return fmt.Errorf("%w: it has %d leaves, and its tree of %d isn't the one that the high-water record names; nothing can be appended to that: %s",
			ErrContradiction, r.size, r.target.TreeSize, closeIt)
	}
	if r.newest, err = postgres.NewestPublished(ctx, r.Owner, r.Log.ID, r.size); err != nil {
		return err
	}
	r.stored, err = postgres.LogKeys(ctx, r.Owner, r.Log.ID)
	return err
}

const closeIt = "close the log and start a successor with `kapsel log recover --close`"

// readGap reads the hashes of the leaves that are missing.
func (r *recovery) readGap(ctx context.Context) error {
	size, end := r.size, r.target.TreeSize
	for index := size / tileWidth; index*tileWidth < end; index++ {
		tile, err := r.from.tile(ctx, attestation.TileID{Index: index}, end)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMirror, err)
		}
		if first := index * tileWidth; first < size {
			tile = tile[(size-first)*hashSize:]
		}
		r.gap = append(r.gap, tile...)
		if r.Progress != nil {
			r.Progress(Progress{Leaves: min((index+1)*tileWidth, end) - size, Of: end - size})
		}
	}
	return nil
}

// leads wants the restored tree and the missing hashes to lead to the published root. Then both are right: there is no other
// way to that root.
func (r *recovery) leads(ctx context.Context) error {
	tree, err := r.open(ctx)
	if err != nil {
		return err
	}
	r.tiles = map[attestation.TileID][]byte{}
	if err := r.appendTo(tree, r.target.TreeSize); err != nil {
		return err
	}
	root, err := tree.Root()
	if err != nil || bytes.Equal(root, r.target.RootHash) {
		return err
	}
	if err := r.mirrorLeads(ctx); err != nil {
		return fmt.Errorf("%w: its tiles don't lead to the published root %x of %d leaves: %w; find another mirror, or %s",
			ErrMirror, r.target.RootHash, r.target.TreeSize, err, closeIt)
	}
	return fmt.Errorf("%w: with the mirror's hashes after its %d leaves the log has the root %x, published is %x for %d leaves; if `kapsel log fsck` finds the restored log sound, it isn't a part of what was published: %s",
		ErrContradiction, r.size, root, r.target.RootHash, r.target.TreeSize, closeIt)
}

// mirrorLeads finds out which of both is wrong, the mirror or the restored log: whether the mirror's tiles of the gap lead to
// those above them, and these to the published root.
func (r *recovery) mirrorLeads(ctx context.Context) error {
	size := r.target.TreeSize
	for level := uint8(0); size>>(8*uint(level+1)) > 0; level++ {
		for index := r.size >> (8 * uint(level+1)); index < size>>(8*uint(level+1)); index++ { // the full ones
			id := attestation.TileID{Level: level, Index: index}
			tile, err := r.from.tile(ctx, id, size)
			if err != nil {
				return err
			}
			above, err := r.from.tile(ctx, attestation.TileID{Level: level + 1, Index: index / tileWidth}, size)
			if err != nil {
				return err
			}
			peaks, err := leafPeaks(tile)
			if err != nil {
				return err
			}
			if place := int(index%tileWidth) * hashSize; !bytes.Equal(peaks[0], above[place:place+hashSize]) {
				return fmt.Errorf("tile %s hashes to %x, the tile above has %x", id, peaks[0], above[place:place+hashSize])
			}
		}
	}
	root, err := attestation.RootAt(ctx, r.from.tiles(size), size)
	if err == nil && !bytes.Equal(root, r.target.RootHash) {
		err = fmt.Errorf("they have the root %x", root)
	}
	return err
}

// open opens the restored tree.
func (r *recovery) open(ctx context.Context) (*attestation.Tree, error) {
	return attestation.OpenStoredTree(ctx, r.size, r.root, func(ctx context.Context, ids []postgres.TileID) (map[postgres.TileID][]byte, error) {
		return postgres.ReadTiles(ctx, r.Owner, r.Log.ID, ids)
	})
}

// appendTo grows a tree of restored and recovered leaves to a size, and keeps the tiles that come to be.
func (r *recovery) appendTo(tree *attestation.Tree, size uint64) error {
	for tree.Size() < size {
		grown, err := tree.Append(r.hashes(tree.Size(), min(size, tree.Size()+r.step)))
		if err != nil {
			return err
		}
		for _, tile := range grown.Tiles {
			r.tiles[tile.ID()] = tile.Hashes
		}
	}
	return nil
}

// hashes are those of the recovered leaves [from, to).
func (r *recovery) hashes(from, to uint64) [][]byte {
	list := make([][]byte, 0, to-from)
	for i := from; i < to; i++ {
		list = append(list, r.gap[(i-r.size)*hashSize:(i-r.size+1)*hashSize])
	}
	return list
}
