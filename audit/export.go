package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// ErrContradiction is returned when what is stored, and what was exported before, can't both be of one log that only grows:
// the database was restored from an old backup, or one of the two was changed. Nothing was published then.
var ErrContradiction = errors.New("the database contradicts what was published")

// ExportConfig says what to export, and where to.
type ExportConfig struct {
	DB  *pgxpool.Pool // role kapsel_engine; a standby will do
	Log postgres.LogRow
	// Dir becomes a mirror, or already is one of this log.
	Dir      string
	Progress func(Progress) // may be nil
}

// Exported says what an export did.
type Exported struct {
	LogID    string     `json:"log_id"`
	Origin   string     `json:"origin"`
	Dir      string     `json:"directory"`
	OldSize  uint64     `json:"old_tree_size"` // of the checkpoint that was there; 0 if there was none
	TreeSize uint64     `json:"tree_size"`
	RootHash verify.Hex `json:"root_hash"`
	Tiles    int        `json:"tiles"` // written
	Heads    int        `json:"heads"` // written
}

// exporter is an export under way.
type exporter struct {
	ExportConfig
	keys    *keychain
	stored  []postgres.LogKey
	head    *postgres.PublishedHead
	old     uint64
	edge    map[attestation.TileID][]byte // the partial tiles that were written
	parents map[uint8]parentTile
	dirs    map[string]bool // that got files
	done    Exported
}

// Export makes the directory a mirror of the log up to its newest published head, or brings it up to date. The checkpoint
// comes last, once all that it speaks of is on disk: a crash before leaves the old one with more tiles than it needs. It is
// never replaced by one of a smaller tree, an earlier time or another history; then the error is ErrContradiction, and so it
// is if the tiles don't lead to the signed root.
func Export(ctx context.Context, config ExportConfig) (*Exported, error) {
	e := &exporter{ExportConfig: config, edge: map[attestation.TileID][]byte{}, parents: map[uint8]parentTile{}, dirs: map[string]bool{}}
	if err := e.run(ctx); err != nil {
		return nil, fmt.Errorf("export log %s: %w", id.Log.Format(config.Log.ID), err)
	}
	return &e.done, nil
}

func (e *exporter) run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(e.Dir, headsDir), 0o755); err != nil {
		return err
	}
	unlock, err := lockMirror(e.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	if e.head, e.keys, e.stored, err = newestHead(ctx, e.DB, e.Log); err != nil {
		return err
	}
	e.done = Exported{LogID: id.Log.Format(e.Log.ID), Origin: e.Log.Origin, Dir: e.Dir, TreeSize: e.head.TreeSize, RootHash: e.head.RootHash}
	if err := e.continues(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{e.writeTiles, e.writeHeads} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := e.writeLogFile(ctx); err != nil {
		return err
	}
	if err := e.syncDirs(); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(e.Dir, checkpointFile), e.head.Checkpoint, 0o644); err != nil {
		return err
	}
	return e.prune()
}

// newestHead reads a log's newest published head and checks both of its signatures.
func newestHead(ctx context.Context, db *pgxpool.Pool, log postgres.LogRow) (*postgres.PublishedHead, *keychain, []postgres.LogKey, error) {
	head, err := postgres.NewestPublished(ctx, db, log.ID, math.MaxInt64)
	if err != nil {
		return nil, nil, nil, err
	}
	if head == nil {
		return nil, nil, nil, ErrNoHead
	}
	stored, err := postgres.LogKeys(ctx, db, log.ID)
	if err != nil {
		return nil, nil, nil, err
	}
	keys, faults := newKeychain(log.Origin, stored)
	if len(faults) > 0 {
		return nil, nil, nil, fmt.Errorf("%w: %s", ErrContradiction, faults[0])
	}
	return head, keys, stored, keys.signed(head)
}

// signed wants a head to be signed by the key that it names. Which key was the log's at its size is for Fsck to find out,
// which reads the transitions.
func (k *keychain) signed(head *postgres.PublishedHead) error {
	named := keychain{origin: k.origin, keys: k.keys}
	for _, key := range k.keys {
		if sum := sha256.Sum256(key); bytes.Equal(sum[:], head.KeyID) {
			named.chain = append(named.chain, key)
		}
	}
	if len(named.chain) != 1 {
		return fmt.Errorf("%w: the head of size %d is under the key ID %x, which none of the log's keys has", ErrContradiction, head.TreeSize, head.KeyID)
	}
	if faults := named.checkHead(head, nil); len(faults) > 0 {
		return fmt.Errorf("%w: %s; see `kapsel log fsck`", ErrContradiction, faults[0])
	}
	return nil
}

// continues wants the newest head to be a later state of what was exported before.
func (e *exporter) continues(ctx context.Context) error {
	checkpoint, err := readCheckpoint(e.Dir)
	if err != nil || checkpoint == nil {
		return err
	}
	if checkpoint.Origin != e.Log.Origin {
		return fmt.Errorf("%s is a mirror of %s; name another directory", e.Dir, checkpoint.Origin)
	}
	var exported verify.SignedTreeHead
	for _, key := range e.keys.keys {
		if exported, err = checkpoint.Verify(key); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%w: no key of the log has signed %s: %w", ErrContradiction, filepath.Join(e.Dir, checkpointFile), err)
	}
	switch {
	case exported.TreeSize > e.head.TreeSize || exported.TreeSize == e.head.TreeSize && exported.Timestamp > e.head.Timestamp:
		return fmt.Errorf("%w: a head of %d leaves and time %d was exported, the newest in the database has %d and %d; was it restored?",
			ErrContradiction, exported.TreeSize, exported.Timestamp, e.head.TreeSize, e.head.Timestamp)
	case exported.TreeSize == 0 || exported.TreeSize == e.head.TreeSize && bytes.Equal(exported.RootHash, e.head.RootHash):
	default:
		read := func(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
			return readTiles(ctx, e.DB, e.Log.ID, ids)
		}
		proof, err := attestation.ProveConsistency(ctx, read, exported.TreeSize, e.head.TreeSize)
		if err == nil {
			err = verify.Consistency(exported.TreeSize, e.head.TreeSize, proof, exported.RootHash, e.head.RootHash)
		}
		if err != nil {
			return fmt.Errorf("%w: the exported tree isn't a part of the one in the database: %w", ErrContradiction, err)
		}
	}
	e.old, e.done.OldSize = exported.TreeSize, exported.TreeSize
	return nil
}

// writeTiles writes what a tree of the new size has and one of the old size hadn't: full tiles from where the old tree ended,
// and the partial tiles of the new edge. Each full tile is compared with the tile above, and the edge with the signed root.
func (e *exporter) writeTiles(ctx context.Context) error {
	for level := uint8(0); e.head.TreeSize>>(8*uint(level)) > 0; level++ {
		hashes, had := e.head.TreeSize>>(8*uint(level)), e.old>>(8*uint(level))
		for first := had / tileWidth; first*tileWidth < hashes; first += tilesAtOnce {
			if err := e.writeRun(ctx, level, first, min(first+tilesAtOnce, (hashes+tileWidth-1)/tileWidth)); err != nil {
				return err
			}
			if e.Progress != nil && level == 0 {
				e.Progress(Progress{Leaves: min((first+tilesAtOnce)*tileWidth, e.head.TreeSize), Of: e.head.TreeSize})
			}
		}
	}
	fromEdge := func(context.Context, []attestation.TileID) (map[attestation.TileID][]byte, error) { return e.edge, nil }
	root, err := attestation.RootAt(ctx, fromEdge, e.head.TreeSize)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrContradiction, err)
	}
	if !bytes.Equal(root, e.head.RootHash) {
		return fmt.Errorf("%w: the tiles hash to %x, the signed root of %d leaves is %x; see `kapsel log fsck`",
			ErrContradiction, root, e.head.TreeSize, e.head.RootHash)
	}
	return nil
}

// tilesAtOnce is how many tiles are read in one statement.
const tilesAtOnce = 64

// writeRun writes the tiles [from, to) of a level.
func (e *exporter) writeRun(ctx context.Context, level uint8, from, to uint64) error {
	var ids []attestation.TileID
	for index := from; index < to; index++ {
		ids = append(ids, attestation.TileID{Level: level, Index: index})
	}
	stored, err := readTiles(ctx, e.DB, e.Log.ID, ids)
	if err != nil {
		return err
	}
	for _, tile := range ids {
		width := attestation.TileWidth(tile, e.head.TreeSize)
		hashes := stored[tile]
		if len(hashes) < width*hashSize {
			return fmt.Errorf("%w: tile %s has %d hashes of %d; see `kapsel log fsck`", ErrContradiction, tile, len(hashes)/hashSize, width)
		}
		hashes = hashes[:width*hashSize]
		if width < tileWidth {
			e.edge[tile] = hashes
		} else if err := e.checkFull(ctx, tile, hashes); err != nil {
			return err
		}
		if err := e.writeTile(TilePath(tile, width), hashes); err != nil {
			return err
		}
	}
	return nil
}

// checkFull compares a full tile with the hash that stands for it in the tile above, which is compared in its turn.
func (e *exporter) checkFull(ctx context.Context, tile attestation.TileID, hashes []byte) error {
	above := attestation.TileID{Level: tile.Level + 1, Index: tile.Index / tileWidth}
	parent, ok := e.parents[above.Level]
	if !ok || parent.index != above.Index {
		stored, err := readTiles(ctx, e.DB, e.Log.ID, []attestation.TileID{above})
		if err != nil {
			return err
		}
		parent = parentTile{index: above.Index, hashes: stored[above]}
		e.parents[above.Level] = parent
	}
	peaks, err := leafPeaks(hashes)
	if err != nil {
		return err
	}
	place := int(tile.Index%tileWidth) * hashSize
	if len(parent.hashes) < place+hashSize || !bytes.Equal(parent.hashes[place:place+hashSize], peaks[0]) {
		return fmt.Errorf("%w: tile %s doesn't hash to what tile %s has for it; see `kapsel log fsck`", ErrContradiction, tile, above)
	}
	return nil
}

// writeTile writes a tile, unless it is there: an export that was interrupted had got so far.
func (e *exporter) writeTile(name string, hashes []byte) error {
	path := filepath.Join(e.Dir, filepath.FromSlash(name))
	exported, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(exported, hashes) {
		return fmt.Errorf("%w: %s holds something else than the database", ErrContradiction, path)
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	if !e.dirs[dir] {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for up := dir; len(up) >= len(filepath.Clean(e.Dir)) && !e.dirs[up]; up = filepath.Dir(up) {
			e.dirs[up] = true
		}
	}
	temp, err := os.CreateTemp(dir, ".tile-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	if _, err = temp.Write(hashes); err == nil {
		err = temp.Chmod(0o644)
	}
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	e.done.Tiles++
	return os.Rename(temp.Name(), path) // syncDirs makes the name durable
}

// writeHeads appends the heads that were published since the last export.
func (e *exporter) writeHeads(ctx context.Context) error {
	w, err := openHeadWriter(e.Dir)
	if err != nil {
		return err
	}
	size, timestamp := int64(-1), int64(0)
	if w.last != nil {
		size, timestamp = int64(w.last.TreeSize), w.last.Timestamp
		if err := e.stillThere(ctx, w.last); err != nil {
			return err
		}
	}
	for {
		page, err := postgres.PublishedHeads(ctx, e.DB, e.Log.ID, size, timestamp, e.head.TreeSize, pageSize)
		if err != nil || len(page) == 0 {
			return err
		}
		var heads []MirroredHead
		for _, h := range page {
			if err := e.keys.signed(&h); err != nil {
				return err
			}
			heads = append(heads, mirroredHead(&h))
		}
		if err := w.write(heads); err != nil {
			return err
		}
		e.done.Heads += len(heads)
		size, timestamp = int64(page[len(page)-1].TreeSize), page[len(page)-1].Timestamp
	}
}

// stillThere wants the last head that was exported to be in the database.
func (e *exporter) stillThere(ctx context.Context, last *MirroredHead) error {
	page, err := postgres.PublishedHeads(ctx, e.DB, e.Log.ID, int64(last.TreeSize), last.Timestamp-1, last.TreeSize, 1)
	if err != nil {
		return err
	}
	if len(page) == 0 || page[0].Timestamp != last.Timestamp || !bytes.Equal(page[0].RootHash, last.RootHash) {
		return fmt.Errorf("%w: a head of size %d and time %d was exported, and isn't in the database", ErrContradiction, last.TreeSize, last.Timestamp)
	}
	return nil
}

func (e *exporter) writeLogFile(ctx context.Context) error {
	log := MirroredLog{Format: logFormat, LogID: e.done.LogID, Origin: e.Log.Origin}
	transitions, err := postgres.LogKeyTransitions(ctx, e.DB, e.Log.ID)
	if err != nil {
		return err
	}
	notes := map[string]string{}
	for _, t := range transitions {
		if uint64(t.TreeSize) < e.head.TreeSize { // a leaf is told once it is published
			notes[string(t.NewKeyID)] = string(t.Note)
		}
	}
	for _, key := range e.stored {
		log.Keys = append(log.Keys, MirroredKey{VKey: verify.VKey(e.Log.Origin, key.PublicKey), NotBefore: key.NotBefore, NotAfter: key.NotAfter,
			Transition: notes[string(key.KeyID)]})
	}
	text, err := json.MarshalIndent(log, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(e.Dir, logFile), append(text, '\n'), 0o644)
}

// syncDirs makes the names of all new tiles durable.
func (e *exporter) syncDirs() error {
	for dir := range e.dirs {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return syncDir(e.Dir)
}

// prune removes the partial versions of tiles that are full by now: clients ask for the full one where they find none.
func (e *exporter) prune() error {
	for _, tile := range attestation.EdgeTiles(e.old) {
		if attestation.TileWidth(tile, e.head.TreeSize) == tileWidth {
			if err := os.RemoveAll(filepath.Join(e.Dir, filepath.FromSlash(TilePath(tile, tileWidth)+".p"))); err != nil {
				return err
			}
		}
	}
	return nil
}
