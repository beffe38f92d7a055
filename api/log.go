package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// What is everybody's of a log: its heads, its keys, and that one head follows from another. Nothing beyond the newest
// head that carries both signatures is handed out, be it a root, a proof or the number of leaves.

// publishedHead is a head that carries both signatures.
type publishedHead db.NewestSignedHeadRow

func (h publishedHead) signed() verify.SignedTreeHead {
	return verify.SignedTreeHead{TreeSize: uint64(h.TreeSize), Timestamp: h.Timestamp, RootHash: h.RootHash, Signature: h.Signature}
}

func (h publishedHead) answer(log db.PublicLogRow) openapi.SignedTreeHead {
	return openapi.SignedTreeHead{
		LogID: id.Log.Format(log.ID), Origin: log.Origin, LogKeyID: hex.EncodeToString(h.KeyID),
		TreeSize: h.TreeSize, Timestamp: h.Timestamp, RootHash: hex.EncodeToString(h.RootHash),
		Signature: hex.EncodeToString(h.Signature), Checkpoint: string(h.Checkpoint),
	}
}

// GetTreeHead reads the newest head.
func (s *Server) GetTreeHead(ctx context.Context, request openapi.GetTreeHeadRequestObject) (openapi.GetTreeHeadResponseObject, error) {
	log, err := s.findLog(ctx, request.Params.Log)
	if err != nil {
		return nil, err
	}
	head, err := s.newestHead(ctx, log.ID)
	if err != nil {
		return nil, err
	}
	return conditionalJSON(head.answer(log), "no-cache", request.Params.IfNoneMatch)
}

// GetConsistencyProof reads the proof between two sizes that the log has had.
func (s *Server) GetConsistencyProof(ctx context.Context, request openapi.GetConsistencyProofRequestObject) (openapi.GetConsistencyProofResponseObject, error) {
	oldSize, newSize := request.Params.OldSize, request.Params.NewSize
	if oldSize < 1 {
		return nil, invalidParameter("old_size", "must be at least 1, since any tree follows from the empty one")
	}
	if newSize < oldSize {
		return nil, invalidParameter("new_size", "must be at least old_size")
	}
	log, err := s.findLog(ctx, request.Params.Log)
	if err != nil {
		return nil, err
	}
	head, err := s.newestHead(ctx, log.ID)
	if err != nil {
		return nil, err
	}
	if newSize > head.TreeSize {
		return nil, &problem{kind: kindNotFound, field: "new_size",
			detail: fmt.Sprintf("new_size must be at most %d, the size of the newest signed tree head.", head.TreeSize)}
	}
	hashes, err := attestation.ProveConsistency(ctx, s.tiles.reader(s.config.API, log.ID), uint64(oldSize), uint64(newSize))
	if err != nil {
		return nil, err
	}
	return conditionalJSON(openapi.ConsistencyProof{
		LogID: id.Log.Format(log.ID), OldSize: oldSize, NewSize: newSize, ConsistencyProof: hexAll(hashes),
	}, "no-cache", request.Params.IfNoneMatch)
}

// ListKeys lists the keys of a log, also those that are retired: old heads remain signed by them. After them come the public
// keys that its tenants' deliveries were signed with, page by page, since every tenant can add to them.
func (s *Server) ListKeys(ctx context.Context, request openapi.ListKeysRequestObject) (openapi.ListKeysResponseObject, error) {
	p, err := parsePage(id.SigningKey, request.Params.Limit, request.Params.Cursor)
	if err != nil {
		return nil, err
	}
	log, err := s.findLog(ctx, request.Params.Log)
	if err != nil {
		return nil, err
	}
	answer := openapi.ListKeys200JSONResponse{LogID: id.Log.Format(log.ID), Origin: log.Origin, Keys: []openapi.Key{}}
	if request.Params.Cursor == nil {
		if answer.Keys, err = s.logKeys(ctx, log); err != nil {
			return nil, err
		}
		if answer.Closed, answer.Predecessor, err = s.closures(ctx, log.ID); err != nil {
			return nil, err
		}
	}
	keys, err := postgres.SigningKeysOfLog(ctx, s.config.API, log.ID, p.before, p.limit+1)
	if err != nil {
		return nil, err
	}
	keys, more := cut(keys, p.limit)
	if more {
		answer.NextCursor = p.cursor(keys[len(keys)-1].ID)
	}
	for _, key := range keys {
		hash := sha256.Sum256(key.PublicKey)
		answer.Keys = append(answer.Keys, openapi.Key{
			LogKeyID: hex.EncodeToString(hash[:]), PublicKey: hex.EncodeToString(key.PublicKey), Purpose: "v1a",
			NotBefore: key.NotBefore, NotAfter: key.NotAfter,
		})
	}
	return answer, nil
}

func (s *Server) logKeys(ctx context.Context, log db.PublicLogRow) ([]openapi.Key, error) {
	rows, err := db.New(s.config.API).LogKeys(ctx, log.ID)
	if err != nil {
		return nil, fmt.Errorf("read keys of a log: %w", err)
	}
	introduced, err := transitionNotes(ctx, s.config.API, log.ID)
	if err != nil {
		return nil, err
	}
	keys := make([]openapi.Key, len(rows))
	for i, row := range rows {
		keys[i] = openapi.Key{
			LogKeyID: hex.EncodeToString(row.KeyID), PublicKey: hex.EncodeToString(row.PublicKey), Purpose: row.Purpose,
			NotBefore: row.NotBefore, NotAfter: row.NotAfter,
		}
		if row.Purpose == "log" {
			vkey := verify.VKey(log.Origin, row.PublicKey)
			keys[i].Vkey = &vkey
			keys[i].Transition = introduced[string(row.KeyID)]
		}
	}
	return keys, nil
}

// findLog finds the log that is named, or the only one that is open. Which logs there are it doesn't tell: a tenant may
// have one of its own.
func (s *Server) findLog(ctx context.Context, name *string) (db.PublicLogRow, error) {
	q := db.New(s.config.API)
	if name == nil {
		logs, err := q.OpenPublicLogs(ctx)
		switch {
		case err != nil:
			return db.PublicLogRow{}, fmt.Errorf("find log: %w", err)
		case len(logs) == 0:
			return db.PublicLogRow{}, notFound("log")
		case len(logs) > 1:
			return db.PublicLogRow{}, invalidParameter("log", "is needed, because there are several logs. It is in the origin of every proof")
		}
		return db.PublicLogRow(logs[0]), nil
	}
	logID, err := id.Log.Parse(*name)
	if err != nil {
		return db.PublicLogRow{}, invalidParameter("log", "must be an ID: log_ and 26 digits and lower-case letters")
	}
	log, err := q.PublicLog(ctx, logID)
	if errors.Is(err, pgx.ErrNoRows) {
		return db.PublicLogRow{}, notFound("log")
	}
	if err != nil {
		return db.PublicLogRow{}, fmt.Errorf("find log: %w", err)
	}
	return log, nil
}

func (s *Server) newestHead(ctx context.Context, log uuid.UUID) (publishedHead, error) {
	row, err := db.New(s.config.API).NewestSignedHead(ctx, log)
	if errors.Is(err, pgx.ErrNoRows) {
		return publishedHead{}, &problem{kind: kindNotFound, retryAfter: cadence,
			detail: "The log has no signed tree head yet. The first one follows soon; come back then."}
	}
	if err != nil {
		return publishedHead{}, fmt.Errorf("read newest head: %w", err)
	}
	return publishedHead(row), nil
}

// tileReader reads tiles from a pool or a transaction. They may be wider than a published size; proofs take what they
// need of them.
func tileReader(from db.DBTX, log uuid.UUID) attestation.TileReader {
	return func(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
		wanted := make([]postgres.TileID, len(ids))
		for i, tile := range ids {
			wanted[i] = postgres.TileID(tile)
		}
		stored, err := postgres.ReadTiles(ctx, from, log, wanted)
		if err != nil {
			return nil, err
		}
		tiles := make(map[attestation.TileID][]byte, len(stored))
		for tile, hashes := range stored {
			tiles[attestation.TileID(tile)] = hashes
		}
		return tiles, nil
	}
}

func hexAll(hashes [][]byte) []string {
	all := make([]string, len(hashes))
	for i, h := range hashes {
		all[i] = hex.EncodeToString(h)
	}
	return all
}
