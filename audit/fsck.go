package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// ErrNoHead is returned for a log that has published no head: there is nothing that it could be held against.
var ErrNoHead = errors.New("the log has published no head yet")

// FsckConfig says what to check.
type FsckConfig struct {
	DB  *pgxpool.Pool // role kapsel_engine; a standby will do
	Log postgres.LogRow
	// HighWater is the log's high-water record, read before Fsck is called; nil if it isn't at hand.
	HighWater *attestation.Head
	// Key must be one of those that the log's heads are under; nil: whichever the database names.
	Key ed25519.PublicKey
	// Checkpoint is one that was kept elsewhere, which the log must contain; nil: none.
	Checkpoint []byte
	// StateFile keeps how far the check has come, so that another run goes on; "": the check begins at the first leaf.
	StateFile string
	// Found is called with each fault, as soon as it is found; those of an earlier run that this one continues come first.
	Found func(Fault)
	// Progress is called after each chunk of leaves; nil: never.
	Progress func(Progress)

	chunkTiles int           // how many tiles of leaves are read at once; 0: 16
	saveEvery  time.Duration // 0: 2 s
}

// Progress is how far a check, a rebuild or an export has come.
type Progress struct{ Leaves, Of, Faults uint64 }

// Report is what a check has found. Counts are of what was looked at, in this run and those it continues.
type Report struct {
	LogID     string     `json:"log_id"`
	Origin    string     `json:"origin"`
	Sound     bool       `json:"sound"`
	TreeSize  uint64     `json:"tree_size"` // of the newest published head, up to which everything was checked
	RootHash  verify.Hex `json:"root_hash"` // as that head has it
	Timestamp int64      `json:"timestamp"` // of that head, Unix ms
	Leaves    uint64     `json:"leaves"`
	Erased    uint64     `json:"erased"` // of these, with a hash only
	// Lost leaves came back as hashes, from a mirror, after a backup was restored: see Recover.
	Lost  uint64 `json:"lost"`
	Roots uint64 `json:"roots"`
	Heads uint64 `json:"heads"`
	Keys  int    `json:"keys"` // that heads are under
	// Unpublished leaves lie beyond the newest published head and were not looked at.
	Unpublished uint64 `json:"unpublished"`
	Resumed     uint64 `json:"resumed_at"` // the leaf at which this run went on
	Faults      uint64 `json:"faults"`
	// Stopped is the leaf at which nothing was left to go on from; absent if all was checked.
	Stopped *uint64 `json:"stopped_at,omitempty"`
}

// Fsck checks a log from its first leaf to its newest published head: the bytes of each leaf against its hash, the hash
// against the tile, each tile against the one above it, every root that was stored and every head and checkpoint that was
// published against the leaves, all signatures against the key that was the log's at that size. Where two disagree, the
// signed root decides which of them was changed.
//
// An error means that the check couldn't be made or finished; what isn't sound is no error but a fault.
func Fsck(ctx context.Context, config FsckConfig) (*Report, error) {
	c, err := openChecker(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("check log %s: %w", id.Log.Format(config.Log.ID), err)
	}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("check log %s: %w", id.Log.Format(config.Log.ID), err)
	}
	return &c.report, nil
}

// checker is a check under way.
type checker struct {
	FsckConfig
	head      *postgres.PublishedHead // the newest within the tree
	tree      *tree
	keys      *keychain
	stored    []postgres.LogKey
	recovered []postgres.Recovery
	expected  []expectation
	parents   map[uint8]parentTile // the tile of each level above 0 that was looked at last
	roots     cursor[postgres.SizedRoot]
	heads     cursor[postgres.PublishedHead]
	lastRoot  int64 // the largest size of which tree_roots was looked at
	lastHead  postgres.Head
	missing   Fault // leaves that are missing, up to where the tree has been read
	kept      []Fault
	saved     time.Time
	report    Report
}

// expectation is a root that the log must have had, as something outside the database says.
type expectation struct {
	size uint64
	root []byte
	kind string
	what string
	met  bool // compared with the leaves
}

func openChecker(ctx context.Context, config FsckConfig) (*checker, error) {
	c := &checker{FsckConfig: config, parents: map[uint8]parentTile{}, lastRoot: -1, lastHead: postgres.Head{Timestamp: -1}}
	if c.chunkTiles == 0 {
		c.chunkTiles = 16
	}
	if c.saveEvery == 0 {
		c.saveEvery = 2 * time.Second
	}
	c.report = Report{LogID: id.Log.Format(c.Log.ID), Origin: c.Log.Origin}
	// In this order: a head is published when its leaves are in the tree, and its key is known.
	newest, err := postgres.NewestPublished(ctx, c.DB, c.Log.ID, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	edge, err := postgres.Edge(ctx, c.DB, c.Log.ID)
	if err != nil {
		return nil, err
	}
	if newest == nil {
		return nil, ErrNoHead
	}
	stored, err := postgres.LogKeys(ctx, c.DB, c.Log.ID)
	if err != nil {
		return nil, err
	}
	c.stored = stored
	if c.recovered, err = postgres.Recoveries(ctx, c.DB, c.Log.ID); err != nil {
		return nil, err
	}
	var faults []Fault
	c.keys, faults = newKeychain(c.Log.Origin, stored)
	if err := c.expect(); err != nil {
		return nil, err
	}
	if newest.TreeSize > edge.TreeSize { // finish says so
		if newest, err = postgres.NewestPublished(ctx, c.DB, c.Log.ID, edge.TreeSize); err != nil {
			return nil, err
		}
	}
	if newest == nil { // all are beyond the tree
		newest = &postgres.PublishedHead{Head: postgres.Head{RootHash: verify.EmptyRoot()}}
	}
	c.head = newest
	c.report.TreeSize, c.report.RootHash, c.report.Timestamp = newest.TreeSize, newest.RootHash, newest.Timestamp
	c.tree = newTree(nil)
	resumed, err := c.resume()
	if err != nil {
		return nil, err
	}
	if !resumed { // else they were found before
		for _, f := range faults {
			c.found(f)
		}
	}
	return c, nil
}

// expect notes what was recorded outside the database.
func (c *checker) expect() error {
	if c.HighWater != nil {
		c.expected = append(c.expected, expectation{
			size: c.HighWater.TreeSize, root: c.HighWater.RootHash, kind: HighWater, what: "the high-water record"})
	}
	if c.Checkpoint == nil {
		return nil
	}
	checkpoint, err := verify.ParseCheckpoint(c.Checkpoint)
	if err != nil {
		return err
	}
	if checkpoint.Origin != c.Log.Origin {
		return fmt.Errorf("the checkpoint is of the log %s", checkpoint.Origin)
	}
	for _, key := range c.keys.keys {
		if _, err = checkpoint.Verify(key); err == nil {
			c.expected = append(c.expected, expectation{
				size: checkpoint.TreeSize, root: checkpoint.RootHash, kind: Rollback, what: "the checkpoint that was kept elsewhere"})
			return nil
		}
	}
	return fmt.Errorf("no key of the log has signed the checkpoint: %w", err)
}

func (c *checker) found(f Fault) {
	c.report.Faults++
	if len(c.kept) < maxKept {
		c.kept = append(c.kept, f)
	}
	if c.Found != nil {
		c.Found(f)
	}
}

func (c *checker) run(ctx context.Context) error {
	c.tree.filled = func(tile attestation.Tile, root []byte) ([]byte, error) { return c.filled(ctx, tile, root) }
	c.openCursors(ctx)
	if c.tree.size == 0 {
		if err := c.atSize(0, true); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for part := range c.chunks(ctx, c.tree.size) {
		if part.err != nil {
			return part.err
		}
		if err := c.chunk(ctx, part); err != nil {
			return err
		}
		if c.report.Stopped != nil {
			break
		}
		if err := c.save(); err != nil {
			return err
		}
		if c.Progress != nil {
			c.Progress(Progress{Leaves: c.tree.size, Of: c.head.TreeSize, Faults: c.report.Faults})
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.finish(ctx)
}

// chunk is a run of tiles with their leaves, as they are stored.
type chunk struct {
	first  uint64 // tile
	leaves []postgres.StoredLeaf
	tiles  map[postgres.TileID][]byte
	err    error
}

// chunks reads leaves and tiles from a multiple of 256 on, one chunk ahead. The channel is closed at the newest head or when
// ctx ends.
func (c *checker) chunks(ctx context.Context, from uint64) <-chan chunk {
	parts := make(chan chunk, 1)
	go func() {
		defer close(parts)
		step := uint64(c.chunkTiles) * tileWidth
		for ; from < c.head.TreeSize; from += step {
			part := c.readChunk(ctx, from, min(from+step, c.head.TreeSize))
			select {
			case parts <- part:
			case <-ctx.Done():
				return
			}
			if part.err != nil {
				return
			}
		}
	}()
	return parts
}

func (c *checker) readChunk(ctx context.Context, from, to uint64) (part chunk) {
	part.first = from / tileWidth
	if part.leaves, part.err = postgres.Leaves(ctx, c.DB, c.Log.ID, from, to); part.err != nil {
		return part
	}
	var ids []postgres.TileID
	for index := part.first; index*tileWidth < to; index++ {
		ids = append(ids, postgres.TileID{Index: index})
	}
	part.tiles, part.err = postgres.ReadTiles(ctx, c.DB, c.Log.ID, ids)
	return part
}

func (c *checker) chunk(ctx context.Context, part chunk) error {
	leaves := examineAll(c.Log.Origin, c.recovered, part.leaves)
	for index := part.first; index < part.first+uint64(c.chunkTiles) && index*tileWidth < c.head.TreeSize; index++ {
		end := min((index+1)*tileWidth, c.head.TreeSize)
		n := 0
		for n < len(leaves) && uint64(leaves[n].Index) < end {
			n++
		}
		if err := c.leafTile(ctx, index, int(end-index*tileWidth), leaves[:n], part.tiles[postgres.TileID{Index: index}]); err != nil {
			return err
		}
		if c.report.Stopped != nil {
			return nil
		}
		leaves = leaves[n:]
	}
	return nil
}

// atSize checks all that is stored about trees of up to size leaves. If known is false, the tree's root isn't that of the
// leaves, because some of them are gone; then only signatures can be checked.
func (c *checker) atSize(size uint64, known bool) error {
	due, err := c.due(size)
	if err != nil || !due {
		return err
	}
	root, err := c.tree.root()
	if err != nil {
		return err
	}
	rootOf := func(at uint64) []byte {
		if known && at == size {
			return root
		}
		return nil
	}
	for {
		more, err := c.checkNext(size, rootOf)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	for i, e := range c.expected {
		if want := rootOf(e.size); want != nil {
			c.expected[i].met = true
			if !bytes.Equal(e.root, want) {
				c.found(sizeFault(e.kind, e.size, fmt.Sprintf("%s has the root %x, the leaves have %x", e.what, e.root, want)))
			}
		}
	}
	return nil
}

// checkNext checks the next root or head of at most size leaves, by size, roots first. It reports whether there was one.
func (c *checker) checkNext(size uint64, rootOf func(uint64) []byte) (bool, error) {
	root, err := c.roots.peek()
	if err != nil {
		return false, err
	}
	head, err := c.heads.peek()
	if err != nil {
		return false, err
	}
	switch {
	case root != nil && uint64(root.TreeSize) <= size && (head == nil || uint64(root.TreeSize) <= head.TreeSize):
		c.checkRoot(root, rootOf(uint64(root.TreeSize)))
		c.roots.take()
	case head != nil && head.TreeSize <= size:
		c.checkHead(head, rootOf(head.TreeSize))
		c.heads.take()
	default:
		return false, nil
	}
	return true, nil
}

// due reports whether anything is stored or expected of a tree of up to size leaves.
func (c *checker) due(size uint64) (bool, error) {
	root, err := c.roots.peek()
	if err != nil {
		return false, err
	}
	head, err := c.heads.peek()
	if err != nil {
		return false, err
	}
	due := root != nil && uint64(root.TreeSize) <= size || head != nil && head.TreeSize <= size
	for _, e := range c.expected {
		due = due || e.size == size
	}
	return due, nil
}

func (c *checker) checkRoot(row *postgres.SizedRoot, want []byte) {
	c.report.Roots++
	c.lastRoot = row.TreeSize
	if want != nil && !bytes.Equal(row.RootHash, want) {
		c.found(sizeFault(RootHash, uint64(row.TreeSize), fmt.Sprintf("tree_roots has %x, the leaves have %x", row.RootHash, want)))
	}
}

func (c *checker) checkHead(h *postgres.PublishedHead, want []byte) {
	c.report.Heads++
	if c.lastRoot != int64(h.TreeSize) {
		c.found(sizeFault(RootHash, h.TreeSize, "tree_roots has none, though a head of this size was published"))
	}
	if h.Timestamp <= c.lastHead.Timestamp {
		f := sizeFault(HeadTime, h.TreeSize, fmt.Sprintf("it isn't later than the head of size %d, whose time is %d", c.lastHead.TreeSize, c.lastHead.Timestamp))
		f.Timestamp = h.Timestamp
		c.found(f)
	}
	for _, f := range c.keys.checkHead(h, want) {
		c.found(f)
	}
	c.lastHead = h.Head
}
