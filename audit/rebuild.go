package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// RebuildConfig says from what to make a log anew, and where.
type RebuildConfig struct {
	Source *pgxpool.Pool // role kapsel_engine; of it only merkle_leaves and log_recoveries are read
	Target *pgxpool.Pool // role kapsel_owner, of a fresh and migrated database
	// Mirror is a directory that Export wrote: the log's name and keys, and its heads with their times and signatures.
	Mirror string
	// HighWater is the log's high-water record: without the root of its size the log couldn't be sealed any more. May be nil.
	HighWater *attestation.Head
	Progress  func(Progress) // may be nil
}

// Rebuilt says what was made.
type Rebuilt struct {
	LogID    string     `json:"log_id"`
	Origin   string     `json:"origin"`
	Leaves   uint64     `json:"leaves"`
	Erased   uint64     `json:"erased"` // of these, with a hash only
	Lost     uint64     `json:"lost"`   // of these, with a hash that came back from a mirror: see Recover
	Tiles    int        `json:"tiles"`
	Heads    int        `json:"heads"` // each with its root and both signatures checked
	RootHash verify.Hex `json:"root_hash"`
	// Unpublished leaves lie beyond the last head of the mirror: no signature vouches for them.
	Unpublished uint64 `json:"unpublished"`
}

// rebuilder is a rebuild under way.
type rebuilder struct {
	RebuildConfig
	log       postgres.LogRow
	keys      *keychain
	stored    []postgres.LogKey
	changes   []postgres.KeyTransition
	recovered []postgres.Recovery
	to        *postgres.LogWriter
	tree      *tree
	tiles     []postgres.Tile
	roots     []postgres.SizedRoot
	heads     []postgres.PublishedHead
	end       uint64 // how many leaves there are
	newest    int64  // size of the last root that was made
	last      postgres.Head
	done      Rebuilt
	nextOne   func() (*MirroredHead, error, bool)
	waiting   *MirroredHead // the next head of the mirror; nil after the last
}

// Rebuild makes a log anew in a fresh database from its leaves alone: tiles and roots are computed, and every head of the
// mirror must have the root that is computed for its size, and both its signatures. All of it is one transaction: the log
// is there whole or not at all. What contradicts a head is ErrContradiction; a database that isn't fresh is
// postgres.ErrLogExists.
func Rebuild(ctx context.Context, config RebuildConfig) (*Rebuilt, error) {
	r := &rebuilder{RebuildConfig: config, newest: -1, last: postgres.Head{Timestamp: -1}}
	if err := r.run(ctx); err != nil {
		return nil, fmt.Errorf("rebuild log: %w", err)
	}
	return &r.done, nil
}

func (r *rebuilder) run(ctx context.Context) error {
	mirrored, err := MirrorOf(r.Mirror)
	if err != nil {
		return err
	}
	r.log.Origin = mirrored.Origin
	if r.log.ID, err = id.Log.Parse(mirrored.LogID); err != nil {
		return err
	}
	stored, err := mirrored.keys()
	if err != nil {
		return err
	}
	r.stored = stored
	var faults []Fault
	if r.keys, faults = newKeychain(r.log.Origin, stored); len(faults) > 0 {
		return fmt.Errorf("%w: %s", ErrContradiction, faults[0])
	}
	if r.recovered, err = postgres.Recoveries(ctx, r.Source, r.log.ID); err != nil {
		return err
	}
	end, err := postgres.LeavesEnd(ctx, r.Source, r.log.ID)
	if err != nil {
		return err
	}
	next, stop := iter.Pull2(mirroredHeads(r.Mirror))
	defer stop()
	r.nextOne = func() (*MirroredHead, error, bool) { return next() }
	if err := r.advance(); err != nil {
		return err
	}
	r.done = Rebuilt{LogID: mirrored.LogID, Origin: mirrored.Origin}
	r.end = end
	return postgres.WriteLog(ctx, r.Target, r.log, stored, end, func(w *postgres.LogWriter) error {
		r.to = w
		return r.write(ctx)
	})
}

// keys are a mirror's keys as they are stored.
func (l *MirroredLog) keys() ([]postgres.LogKey, error) {
	var keys []postgres.LogKey
	for _, k := range l.Keys {
		origin, key, err := verify.ParseVKey(k.VKey)
		if err != nil {
			return nil, err
		}
		if origin != l.Origin {
			return nil, fmt.Errorf("a key of %s among those of %s", origin, l.Origin)
		}
		keys = append(keys, postgres.LogKey{KeyID: verify.LogKeyID(key), PublicKey: key, NotBefore: k.NotBefore, NotAfter: k.NotAfter})
	}
	return keys, nil
}

// mirroredHeads yields the heads of a mirror, oldest first.
func mirroredHeads(dir string) iter.Seq2[*MirroredHead, error] {
	return func(yield func(*MirroredHead, error) bool) {
		stopped := errors.New("stopped")
		err := readHeads(dir, func(h *MirroredHead) error {
			if !yield(h, nil) {
				return stopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, stopped) {
			_ = yield(nil, err)
		}
	}
}

// advance reads the next head of the mirror.
func (r *rebuilder) advance() error {
	head, err, more := r.nextOne()
	if !more {
		head = nil
	}
	r.waiting = head
	return err
}

func (r *rebuilder) write(ctx context.Context) error {
	end := r.end
	r.tree = newTree(func(tile attestation.Tile, root []byte) ([]byte, error) {
		r.tiles = append(r.tiles, postgres.Tile{TileID: postgres.TileID(tile.ID()), Hashes: tile.Hashes})
		return root, nil
	})
	if err := r.atSize(0); err != nil {
		return err
	}
	for from := uint64(0); from < end; from += bundleStep {
		if err := r.step(ctx, from, min(from+bundleStep, end)); err != nil {
			return err
		}
	}
	if r.waiting != nil {
		return fmt.Errorf("%w: a head of %d leaves was exported, and there are %d", ErrContradiction, r.waiting.TreeSize, end)
	}
	if r.HighWater != nil && r.HighWater.TreeSize > end {
		return fmt.Errorf("%w: the high-water record is of %d leaves, and there are %d", ErrContradiction, r.HighWater.TreeSize, end)
	}
	return r.finish(ctx)
}

// finish writes the tree's edge and its newest size.
func (r *rebuilder) finish(ctx context.Context) error {
	if err := r.keep(); err != nil {
		return err
	}
	for _, tile := range r.tree.edge() {
		r.tiles = append(r.tiles, postgres.Tile{TileID: postgres.TileID(tile.ID()), Hashes: tile.Hashes})
	}
	root, err := r.tree.root()
	if err != nil {
		return err
	}
	r.done.Leaves, r.done.RootHash, r.done.Unpublished = r.tree.size, root, r.tree.size-r.last.TreeSize
	if err := r.flush(ctx); err != nil {
		return err
	}
	for _, recovery := range r.recovered {
		if err := r.to.Recovery(ctx, recovery); err != nil {
			return err
		}
	}
	return r.to.End(ctx, postgres.SizedRoot{TreeSize: int64(r.tree.size), RootHash: root})
}

// step reads, checks and writes the leaves [from, to).
func (r *rebuilder) step(ctx context.Context, from, to uint64) error {
	leaves, err := postgres.Leaves(ctx, r.Source, r.log.ID, from, to)
	if err != nil {
		return err
	}
	for i, e := range examineAll(r.log.Origin, r.recovered, leaves) {
		if uint64(e.Index) != from+uint64(i) {
			return fmt.Errorf("%w: leaf %d is missing", ErrContradiction, from+uint64(i))
		}
		if err := r.leaf(&e); err != nil {
			return err
		}
	}
	if uint64(len(leaves)) != to-from {
		return fmt.Errorf("%w: leaf %d is missing", ErrContradiction, from+uint64(len(leaves)))
	}
	if err := r.to.Leaves(ctx, leaves); err != nil {
		return err
	}
	if r.Progress != nil {
		r.Progress(Progress{Leaves: to, Of: r.end})
	}
	return r.flush(ctx)
}

func (r *rebuilder) leaf(e *examined) error {
	switch {
	case e.sum != nil && !bytes.Equal(e.sum, e.Hash):
		return fmt.Errorf("%w: leaf %d: the bytes hash to %x, the leaf hash is %x", ErrContradiction, e.Index, e.sum, e.Hash)
	case e.format != "" || e.row != "":
		return fmt.Errorf("%w: leaf %d: %s%s", ErrContradiction, e.Index, e.format, e.row)
	case lost(e.StoredLeaf, r.recovered):
		r.done.Lost++
	case e.Bytes == nil:
		r.done.Erased++
	}
	if e.transition() {
		root, err := r.tree.root()
		if err != nil {
			return err
		}
		t, err := r.keys.transition(e.Bytes, uint64(e.Index), root)
		if err != nil {
			return fmt.Errorf("%w: leaf %d: %w", ErrContradiction, e.Index, err)
		}
		r.changes = append(r.changes, transitionRow(t, e.Bytes, r.stored))
	}
	if err := r.tree.add(e.Hash); err != nil {
		return err
	}
	return r.atSize(r.tree.size)
}

// atSize takes the mirror's heads of this size, and the high-water record if it is of this size.
func (r *rebuilder) atSize(size uint64) error {
	record := r.HighWater != nil && r.HighWater.TreeSize == size
	recovered := slices.ContainsFunc(r.recovered, func(recovery postgres.Recovery) bool { return uint64(recovery.NewSize) == size })
	if size > 0 && !record && !recovered && (r.waiting == nil || r.waiting.TreeSize > size) {
		return nil
	}
	if err := r.keep(); err != nil {
		return err
	}
	root := r.roots[len(r.roots)-1].RootHash
	if record && !bytes.Equal(r.HighWater.RootHash, root) {
		return fmt.Errorf("%w: the high-water record of size %d has the root %x, the leaves have %x", ErrContradiction, size, r.HighWater.RootHash, root)
	}
	for r.waiting != nil && r.waiting.TreeSize <= size {
		head := r.waiting.published()
		if head.TreeSize < size || head.Timestamp <= r.last.Timestamp {
			return fmt.Errorf("%w: the exported heads are out of order at size %d and time %d", ErrContradiction, head.TreeSize, head.Timestamp)
		}
		if faults := r.keys.checkHead(head, root); len(faults) > 0 {
			return fmt.Errorf("%w: %s", ErrContradiction, faults[0])
		}
		r.heads = append(r.heads, *head)
		r.last = head.Head
		r.done.Heads++
		if err := r.advance(); err != nil {
			return err
		}
	}
	return nil
}

// keep makes the root of the present size one that is stored, if it isn't yet.
func (r *rebuilder) keep() error {
	if r.newest == int64(r.tree.size) {
		return nil
	}
	root, err := r.tree.root()
	if err != nil {
		return err
	}
	r.newest = int64(r.tree.size)
	r.roots = append(r.roots, postgres.SizedRoot{TreeSize: r.newest, RootHash: root})
	return nil
}

// flush writes what was collected.
func (r *rebuilder) flush(ctx context.Context) error {
	r.done.Tiles += len(r.tiles)
	for _, write := range []func() error{
		func() error { return r.to.Tiles(ctx, r.tiles) },
		func() error { return r.to.Roots(ctx, r.roots) },
		func() error { return r.to.Heads(ctx, r.heads) },
	} {
		if err := write(); err != nil {
			return err
		}
	}
	for _, change := range r.changes {
		if err := r.to.Transition(ctx, change); err != nil {
			return err
		}
	}
	r.tiles, r.roots, r.heads, r.changes = nil, nil, nil, nil
	return nil
}
