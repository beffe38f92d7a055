package admin

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// RotateConfig says which log's key to change, and why.
type RotateConfig struct {
	Log uuid.UUID // uuid.Nil means the only open one
	// KeyDir gets the new key's seed, and holds the old one's unless that was compromised; HighWaterDir holds the record.
	KeyDir, HighWaterDir string
	// Compromise gives the old key up as known to others, or as lost: it signs nothing, and nobody comes to trust the new one
	// because of it.
	Compromise bool
}

func (c RotateConfig) reason() string {
	if c.Compromise {
		return verify.ReasonCompromise
	}
	return verify.ReasonRotation
}

// Rotation is a change of a log's key that is committed.
type Rotation struct {
	Log            Log // with the new key
	OldKey         []byte
	Reason         string
	LeafIndex      uint64 // of the transition, which is also the size of the tree before it
	Note           []byte
	ChangedAt      time.Time
	FinishedBefore bool // an earlier run had committed it and was cut off then; this one changed nothing
}

// clockAhead is how far Postgres's clock may be ahead of this machine's, as for every head.
const clockAhead = time.Minute

// errAlready ends a transaction that has nothing left to do.
var errAlready = errors.New("the key was changed before")

// RotateKey gives a log a new key. The order matters:
//
//  1. The new seed is made and stored. A crash here: it is a file that nobody uses, and the next run goes on with it.
//  2. In one transaction, under the lock of the log's head: the tree of size n gets its last head of the old key (after a
//     compromise none), the transition over its root becomes leaf n, and the keys change. A crash here: nothing of it has
//     happened, and what was signed has left this process nowhere.
//  3. The mark that a change is under way is removed. A crash here: the next run finds the new key to be the log's, removes
//     the mark and says so.
//
// From the commit on no sealer can publish under the old key: see postgres.NextHead and postgres.StoreSignatures.
func RotateKey(ctx context.Context, owner *pgxpool.Pool, config RotateConfig) (Rotation, error) {
	r, err := openRotation(ctx, owner, config)
	if err != nil {
		return Rotation{}, fmt.Errorf("rotate key: %w", err)
	}
	if err := r.prepare(ctx); err != nil {
		return Rotation{}, fmt.Errorf("rotate key of %s: %w", r.name, err)
	}
	err = postgres.ChangeKey(ctx, owner, r.row.ID, r.change)
	if err != nil && !errors.Is(err, errAlready) {
		return Rotation{}, fmt.Errorf("rotate key of %s: %w", r.name, err)
	}
	done, err := r.finish(ctx, errors.Is(err, errAlready))
	if err != nil {
		return Rotation{}, fmt.Errorf("rotate key of %s: the key is changed, but %w", r.name, err)
	}
	return done, nil
}

// rotation is one run of RotateKey.
type rotation struct {
	config    RotateConfig
	queries   *db.Queries
	row       db.LogByIDRow
	former    []db.KeyTransitionsRow // those before; read after row, so a change between the two shows in row's key
	name      string
	older     *attestation.Signer // nil after a compromise
	newer     *attestation.Signer
	highWater *attestation.HighWater
}

func openRotation(ctx context.Context, owner *pgxpool.Pool, config RotateConfig) (*rotation, error) {
	if config.KeyDir == "" || config.HighWaterDir == "" {
		return nil, errors.New("a log needs a directory for its key and one for its high-water record")
	}
	r := &rotation{config: config, queries: db.New(owner)}
	logID := config.Log
	if logID == uuid.Nil {
		logs, err := r.queries.ListOpenLogs(ctx)
		switch {
		case err != nil:
			return nil, err
		case len(logs) == 0:
			return nil, errors.New("there is no log yet; make one with `kapsel log init`")
		case len(logs) > 1:
			return nil, fmt.Errorf("there are %d logs; name one with --log", len(logs))
		}
		logID = logs[0].ID
	}
	var err error
	r.row, err = r.queries.LogByID(ctx, logID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("there is no open log %s", id.Log.Format(logID))
	}
	if err != nil {
		return nil, err
	}
	r.name = id.Log.Format(logID)
	if r.former, err = r.queries.KeyTransitions(ctx, logID); err != nil {
		return nil, err
	}
	r.highWater = attestation.NewHighWater(filepath.Join(config.HighWaterDir, r.name+".highwater"), r.row.Origin)
	return r, nil
}

// prepare makes the new key, or finds the one of a run that was cut off, and loads the old one if it has to sign.
func (r *rotation) prepare(ctx context.Context) error {
	// Before any file is made.
	if len(r.former) >= verify.MaxKeyHistory {
		return fmt.Errorf("the log has changed its key %d times, and verifiers follow no more than that; start another log", len(r.former))
	}
	if _, err := r.highWater.Read(); err != nil {
		return err
	}
	reason := r.config.reason()
	for {
		var err error
		if r.newer, err = attestation.PrepareKey(r.config.KeyDir, r.name, r.row.Origin, reason); err != nil {
			return err
		}
		if r.newer.PublicKey().Equal(ed25519.PublicKey(r.row.PublicKey)) {
			return nil // of a run that was cut off after its commit
		}
		known, err := r.queries.KnowsLogKey(ctx, r.row.ID, verify.LogKeyID(r.newer.PublicKey()))
		if err != nil {
			return err
		}
		if !known {
			break
		}
		// Of such a run too, and the key has been changed again since: a key never comes back.
		if err := attestation.FinishKey(r.config.KeyDir, r.name, reason); err != nil {
			return err
		}
	}
	if r.config.Compromise {
		return nil
	}
	var err error
	r.older, err = attestation.FindSigner(r.config.KeyDir, r.name, r.row.Origin, r.row.PublicKey)
	if errors.Is(err, attestation.ErrNoSeed) {
		return fmt.Errorf("%w; if it is lost, or others may have it, run with --compromise", err)
	}
	return err
}

// change decides what becomes of the log, under its lock.
func (r *rotation) change(ctx context.Context, state postgres.KeyState) (postgres.KeyChange, error) {
	none := postgres.KeyChange{}
	if r.newer.PublicKey().Equal(ed25519.PublicKey(state.PublicKey)) {
		return none, errAlready
	}
	if !bytes.Equal(state.PublicKey, r.row.PublicKey) {
		return none, fmt.Errorf("%w by another run at the same time; look at the keys, and run again if it should be changed once more", postgres.ErrKeyChanged)
	}
	if err := checkClock(state); err != nil {
		return none, err
	}
	if err := r.highWater.Continues(ctx, state.RootOf); err != nil {
		return none, err
	}
	note, err := attestation.Transit(state.TreeSize, state.RootHash, state.PublicKey, r.older, r.newer)
	if err != nil {
		return none, err
	}
	grown, err := grow(ctx, state, verify.LeafHash(note))
	if err != nil {
		return none, err
	}
	c := postgres.KeyChange{
		OldKeyID: verify.LogKeyID(state.PublicKey), NewKeyID: verify.LogKeyID(r.newer.PublicKey()), NewKey: r.newer.PublicKey(),
		Reason: r.config.reason(), Note: note, LeafHash: verify.LeafHash(note), TreeSize: grown.Size, RootHash: grown.Root,
	}
	for _, t := range grown.Tiles {
		c.Tiles = append(c.Tiles, postgres.Tile{TileID: postgres.TileID(t.ID()), Hashes: t.Hashes})
	}
	if r.older != nil && !state.Published {
		if c.LastHead, err = r.lastHead(ctx, state); err != nil {
			return none, err
		}
	}
	return c, nil
}

// checkClock wants a time for the change that is later than every head, and no later than now.
func checkClock(state postgres.KeyState) error {
	if ahead := time.Until(time.UnixMilli(state.Now)); ahead > clockAhead {
		return fmt.Errorf("%w: Postgres is %s ahead of this machine", postgres.ErrClock, ahead.Round(time.Second))
	}
	if state.Now <= state.LastTime {
		return fmt.Errorf("%w: Postgres's time isn't later than that of the newest head; run again in a moment", postgres.ErrClock)
	}
	return nil
}

// lastHead signs the tree before the transition with the old key. As for every head, the high-water record is advanced
// before. A crash between here and the commit: the record holds a time that no head has; the next one is later.
func (r *rotation) lastHead(ctx context.Context, state postgres.KeyState) (*postgres.SignedHead, error) {
	head := attestation.Head{TreeSize: state.TreeSize, Timestamp: state.Now, RootHash: state.RootHash}
	var overlapping []*attestation.Signer
	for _, key := range attestation.Overlapping(formerKeys(r.former), head.Timestamp) {
		signer, err := attestation.FindSigner(r.config.KeyDir, r.name, r.row.Origin, key)
		if errors.Is(err, attestation.ErrNoSeed) {
			continue // given up early: see docs/guides/log-keys.md
		}
		if err != nil {
			return nil, err
		}
		overlapping = append(overlapping, signer)
	}
	if err := r.highWater.Advance(ctx, head); err != nil {
		return nil, err
	}
	sth, checkpoint, err := attestation.SignHead(head, r.older, overlapping...)
	if err != nil {
		return nil, err
	}
	return &postgres.SignedHead{Head: postgres.Head(head), Signature: sth.Signature, Checkpoint: checkpoint}, nil
}

func formerKeys(rows []db.KeyTransitionsRow) []attestation.FormerKey {
	keys := make([]attestation.FormerKey, len(rows))
	for i, row := range rows {
		keys[i] = attestation.FormerKey{Key: row.OldKey, Reason: row.Reason, Until: row.ChangedAt.UnixMilli()}
	}
	return keys
}

// grow appends one leaf to the tree, which its edge tiles must lead to.
func grow(ctx context.Context, state postgres.KeyState, leafHash []byte) (*attestation.Growth, error) {
	edge := attestation.EdgeTiles(state.TreeSize)
	ids := make([]postgres.TileID, len(edge))
	for i, t := range edge {
		ids[i] = postgres.TileID(t)
	}
	stored, err := state.Tiles(ctx, ids)
	if err != nil {
		return nil, err
	}
	tiles := make(map[attestation.TileID][]byte, len(stored))
	for t, h := range stored {
		tiles[attestation.TileID(t)] = h
	}
	tree, err := attestation.OpenTree(state.TreeSize, state.RootHash, tiles)
	if err != nil {
		return nil, fmt.Errorf("open tree of size %d: %w", state.TreeSize, err)
	}
	return tree.Append([][]byte{leafHash})
}

// finish reads what was committed, and removes the marks. A planned change that was under way when the key was given up
// as compromised is given up too: its seed lay beside the other.
func (r *rotation) finish(ctx context.Context, before bool) (Rotation, error) {
	rows, err := r.queries.KeyTransitions(ctx, r.row.ID)
	if err != nil {
		return Rotation{}, err
	}
	reasons := []string{r.config.reason()}
	if r.config.Compromise {
		reasons = append(reasons, verify.ReasonRotation)
	}
	for _, reason := range reasons {
		if err := attestation.FinishKey(r.config.KeyDir, r.name, reason); err != nil {
			return Rotation{}, err
		}
	}
	for _, row := range rows {
		if bytes.Equal(row.NewKey, r.newer.PublicKey()) {
			log := Log{ID: r.row.ID, Origin: r.row.Origin, PublicKey: row.NewKey, VKey: r.newer.VKey()}
			return Rotation{
				Log: log, OldKey: row.OldKey, Reason: row.Reason, LeafIndex: uint64(row.TreeSize), Note: row.Note,
				ChangedAt: row.ChangedAt, FinishedBefore: before,
			}, nil
		}
	}
	return Rotation{}, errors.New("its transition can't be found")
}
