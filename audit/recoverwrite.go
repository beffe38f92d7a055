package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// errDryRun ends a transaction of which nothing shall stay.
var errDryRun = errors.New("dry run")

// write appends what was checked, under the log's lock.
func (r *recovery) write(ctx context.Context, g *postgres.LogGrower) error {
	if g.TreeSize >= r.target.TreeSize { // another recovery was quicker
		root, err := g.RootOf(ctx, r.target.TreeSize)
		if err == nil && !bytes.Equal(root, r.target.RootHash) {
			err = fmt.Errorf("%w: it has another root at size %d than was published", ErrContradiction, r.target.TreeSize)
		}
		r.done.Complete = err == nil
		return err
	}
	if g.TreeSize != r.size || !bytes.Equal(g.RootHash, r.root) || !bytes.Equal(g.PublicKey, r.keys.chain[0]) ||
		r.newest != nil && g.Newest.Timestamp != r.newest.Timestamp || r.newest == nil && g.Newest.Timestamp != 0 {
		return errors.New("the log has changed since it was looked at; run the command again")
	}
	if err := g.Partitions(ctx, r.target.TreeSize); err != nil {
		return err
	}
	if err := r.writeLeaves(ctx, g); err != nil {
		return err
	}
	for _, write := range []func() error{
		func() error { return r.writeTiles(ctx, g) },
		func() error { return g.Roots(ctx, r.roots) },
		func() error { return r.writeKeys(ctx, g) },
		func() error { return r.writeHeads(ctx, g) },
		func() error {
			return g.Recovery(ctx, postgres.Recovery{OldSize: int64(r.size), NewSize: int64(r.target.TreeSize), Adopted: int64(r.done.Adopted), RecoveredAt: g.Now})
		},
		func() error {
			return g.To(ctx, postgres.SizedRoot{TreeSize: int64(r.target.TreeSize), RootHash: r.target.RootHash})
		},
	} {
		if err := write(); err != nil {
			return err
		}
	}
	r.done.Heads, r.done.Keys = len(r.heads), len(r.change)
	if r.DryRun {
		return errDryRun
	}
	return nil
}

// writeLeaves writes the missing leaves: those that wait in the queue with their bytes, changes of the key with their note, and
// of the rest the hash.
func (r *recovery) writeLeaves(ctx context.Context, g *postgres.LogGrower) error {
	for from := r.size; from < r.target.TreeSize; from += r.step {
		to := min(from+r.step, r.target.TreeSize)
		hashes := r.hashes(from, to)
		waiting, err := g.Waiting(ctx, hashes)
		if err != nil {
			return err
		}
		byHash := map[string]*postgres.WaitingLeaf{}
		for i, w := range waiting {
			if byHash[string(w.Hash)] == nil && r.mayAdopt(&w) {
				byHash[string(w.Hash)] = &waiting[i]
			}
		}
		rows := make([]postgres.StoredLeaf, len(hashes))
		var adopted []postgres.WaitingLeaf
		for i, hash := range hashes {
			rows[i] = postgres.StoredLeaf{Index: int64(from) + int64(i), Hash: hash, Bytes: r.notes[from+uint64(i)]}
			if w := byHash[string(hash)]; w != nil {
				rows[i].TenantID, rows[i].AttemptID, rows[i].Bytes = &w.TenantID, &w.AttemptID, w.Bytes
				if len(w.Secrets) > 0 { // none: the payload is erased
					rows[i].Secrets = w.Secrets
				}
				adopted = append(adopted, *w)
				delete(byHash, string(hash))
			}
			if rows[i].Bytes == nil {
				r.done.Lost++
			}
		}
		r.done.Adopted += uint64(len(adopted))
		if err := g.Leaves(ctx, rows); err != nil {
			return err
		}
		if err := g.Adopted(ctx, adopted); err != nil {
			return err
		}
	}
	return nil
}

// mayAdopt wants a waiting leaf to be what its row says. One that isn't stays where it is, for a sealer to set it aside.
func (r *recovery) mayAdopt(w *postgres.WaitingLeaf) bool {
	e := examine(r.Log.Origin, nil, postgres.StoredLeaf{TenantID: &w.TenantID, AttemptID: &w.AttemptID, Hash: w.Hash, Bytes: w.Bytes, Secrets: w.Secrets})
	return bytes.Equal(e.sum, w.Hash) && e.format == "" && e.row == "" && (len(w.Secrets) == 0 || len(w.Secrets) == 2*attestation.SecretSize)
}

func (r *recovery) writeTiles(ctx context.Context, g *postgres.LogGrower) error {
	var tiles []postgres.Tile
	for id, hashes := range r.tiles {
		tiles = append(tiles, postgres.Tile{TileID: postgres.TileID(id), Hashes: hashes})
	}
	for some := range slices.Chunk(tiles, 256) {
		if err := g.Grown(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// writeKeys writes the changes of the key, in the order of their leaves.
func (r *recovery) writeKeys(ctx context.Context, g *postgres.LogGrower) error {
	for _, change := range r.change {
		t, err := verify.ParseTransition(change.Note)
		if err != nil {
			return err
		}
		if err := g.ChangeKey(ctx, change, t.NewKey); err != nil {
			return err
		}
	}
	return nil
}

func (r *recovery) writeHeads(ctx context.Context, g *postgres.LogGrower) error {
	heads := make([]postgres.PublishedHead, len(r.heads))
	for i, h := range r.heads {
		heads[i] = *h
	}
	for some := range slices.Chunk(heads, pageSize) {
		if err := g.Published(ctx, some); err != nil {
			return err
		}
	}
	return nil
}
