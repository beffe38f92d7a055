package admin

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// CloseConfig says which log to close. Its successor gets the same host.
type CloseConfig struct {
	Log postgres.LogRow
	// KeyDir and HighWaterDir get the successor's files; HighWaterDir holds the closed log's record.
	KeyDir, HighWaterDir string
}

// Closing is a log that was closed.
type Closing struct {
	Log          postgres.LogRow
	Successor    Log
	TreeSize     uint64           // with which the log ends
	Published    attestation.Head // that may have been published last
	Moved        int              // leaves that were waiting, and go into the successor
	ClosedBefore bool             // an earlier run had closed it; this one only moved leaves
}

var (
	// ErrSound is returned for a log that has what it published: nothing forces it to end.
	ErrSound = errors.New("the log has all that was published, so it isn't closed")
	// ErrWorkers is returned while workers run, who record into the log that is to be closed.
	ErrWorkers = errors.New("workers are running")
)

// CloseLog ends a log that lacks what it has published, and starts a successor with a key and a name of its own. The order is
// that of CreateLog, then one transaction under the lock of the old log's head: the successor, the end of the log, the tenants
// and the leaves that wait, which are made anew, because a leaf names its log. A crash anywhere leaves the log as it was, and
// perhaps files that nobody reads. From the commit on the database refuses the closed log any leaf and any head.
//
// Called again it moves what came into the closed log's queue meanwhile, from an api that still knew the old log.
func CloseLog(ctx context.Context, owner *pgxpool.Pool, config CloseConfig) (Closing, error) {
	c := &closing{config: config}
	if err := c.run(ctx, owner); err != nil {
		return Closing{}, fmt.Errorf("close log %s: %w", id.Log.Format(config.Log.ID), err)
	}
	return c.done, nil
}

// closing is one run of CloseLog.
type closing struct {
	config CloseConfig
	made   Log                 // the successor, if this run made one
	moved  map[[32]byte][]byte // the new hash of each leaf that was made anew, by its old one
	done   Closing
}

func (c *closing) run(ctx context.Context, owner *pgxpool.Pool) error {
	c.done.Log = c.config.Log
	closed, err := postgres.ClosureOf(ctx, owner, c.config.Log.ID)
	if err != nil {
		return err
	}
	if closed == nil {
		if err := c.mustEnd(ctx, owner); err != nil {
			return err
		}
		host, _, _ := strings.Cut(c.config.Log.Origin, "/log/")
		if c.made, err = makeLog(LogConfig{Host: host, KeyDir: c.config.KeyDir, HighWaterDir: c.config.HighWaterDir}); err != nil {
			return err
		}
	}
	if err := postgres.CloseLog(ctx, owner, c.config.Log.ID, func(under *postgres.LogCloser) error { return c.close(ctx, under) }); err != nil {
		return err
	}
	row, err := db.New(owner).LogByID(ctx, c.done.Successor.ID)
	if err != nil {
		return fmt.Errorf("read successor: %w", err)
	}
	c.done.Successor = Log{ID: row.ID, Origin: row.Origin, PublicKey: row.PublicKey, VKey: verify.VKey(row.Origin, row.PublicKey)}
	return nil
}

// mustEnd wants the log to lack what it has published, and nobody to record into it.
func (c *closing) mustEnd(ctx context.Context, owner *pgxpool.Pool) error {
	record := attestation.NewHighWater(filepath.Join(c.config.HighWaterDir, id.Log.Format(c.config.Log.ID)+".highwater"), c.config.Log.Origin)
	var err error
	if c.done.Published, err = record.Read(); err != nil {
		return err
	}
	root, err := postgres.RootOf(ctx, owner, c.config.Log.ID, c.done.Published.TreeSize)
	if err == nil && bytes.Equal(root, c.done.Published.RootHash) {
		err = ErrSound
	}
	return err
}

// close is what happens under the log's lock.
func (c *closing) close(ctx context.Context, under *postgres.LogCloser) error {
	if under.Closed == nil {
		if err := c.end(ctx, under); err != nil {
			return err
		}
	} else {
		c.done.ClosedBefore, c.done.TreeSize = true, uint64(under.Closed.TreeSize)
		c.done.Published = attestation.Head{TreeSize: uint64(under.Closed.PublishedSize), Timestamp: under.Closed.PublishedTimestamp, RootHash: under.Closed.PublishedRoot}
	}
	var err error
	if c.done.Successor.ID, err = under.Successor(ctx); err != nil {
		return err
	}
	if c.moved, err = under.MovedBefore(ctx); err != nil {
		return err
	}
	row, err := db.New(under.Tx).PublicLog(ctx, c.done.Successor.ID)
	if err != nil {
		return fmt.Errorf("read successor: %w", err)
	}
	return c.move(ctx, under, postgres.LogRow{ID: row.ID, Origin: row.Origin})
}

// end writes the successor and the end of the log.
func (c *closing) end(ctx context.Context, under *postgres.LogCloser) error {
	if under.Workers > 0 {
		return fmt.Errorf("%w: %d of them. Stop them, and wait 10 s if they were killed", ErrWorkers, under.Workers)
	}
	c.done.TreeSize = under.TreeSize
	if err := insertLog(ctx, db.New(under.Tx), c.made); err != nil {
		return err
	}
	return under.Close(ctx, c.made.ID, postgres.Head(c.done.Published))
}

// move makes the leaves that wait anew for the successor, in their order, so that each finds the new hash of the one before it.
func (c *closing) move(ctx context.Context, under *postgres.LogCloser, successor postgres.LogRow) error {
	const step = 1000
	for last := int64(0); ; {
		waiting, err := under.Waiting(ctx, last, step)
		if err != nil || len(waiting) == 0 {
			return err
		}
		leaves := make([]postgres.MovedLeaf, len(waiting))
		for i, w := range waiting {
			if leaves[i], err = c.anew(w, successor.Origin); err != nil {
				return err
			}
		}
		if err := under.Move(ctx, successor.ID, leaves); err != nil {
			return err
		}
		c.done.Moved += len(leaves)
		last = waiting[len(waiting)-1].ID
	}
}

// anew makes a waiting leaf one of the successor's: it says the same, but for the log's name and the hash of the leaf before it.
// What is no leaf of the old log stays as it is; a sealer sets it aside with its reason.
func (c *closing) anew(waiting postgres.QueuedLeaf, origin string) (postgres.MovedLeaf, error) {
	moved := postgres.MovedLeaf{QueuedLeaf: waiting, NewHash: waiting.Hash, NewBytes: waiting.Bytes}
	leaf, err := verify.ParseLeaf(waiting.Bytes)
	if err != nil || leaf.Origin != c.config.Log.Origin || !bytes.Equal(verify.LeafHash(waiting.Bytes), waiting.Hash) {
		return moved, nil //nolint:nilerr // see above
	}
	if leaf.DeliveryID != "" {
		if moved.Delivery, err = id.Delivery.Parse(leaf.DeliveryID); err != nil {
			return moved, err
		}
	}
	leaf.Origin = origin
	if previous, err := hex.DecodeString(leaf.PreviousLeafHash); err == nil && len(previous) == verify.HashSize {
		if hash, ok := c.moved[[32]byte(previous)]; ok {
			leaf.PreviousLeafHash = hex.EncodeToString(hash)
		}
	}
	if moved.NewBytes, err = leaf.Bytes(); err != nil {
		return moved, err
	}
	moved.NewHash = verify.LeafHash(moved.NewBytes)
	c.moved[[32]byte(waiting.Hash)] = moved.NewHash
	return moved, nil
}
