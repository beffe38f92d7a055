package api

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// A log that couldn't be completed after a restore is closed. It goes on being read, and says what became of it: a checkpoint that
// stays as it is would else look like one that is held back.

// tellClosed says in the headers of a closed log's checkpoint where it goes on.
func tellClosed(header http.Header, log db.PublicLogRow) {
	if log.ClosedAt == nil || log.Successor == nil {
		return
	}
	header.Set("Kapsel-Log-Closed", log.ClosedAt.UTC().Format(time.RFC3339Nano))
	header.Set("Link", fmt.Sprintf(`</log/%s/checkpoint>; rel="successor-version"`, id.Log.Format(*log.Successor)))
}

// closures returns how a log was closed, and how the one was that it goes on for; nil where it is neither.
func (s *Server) closures(ctx context.Context, log uuid.UUID) (closed, predecessor *openapi.Closure, err error) {
	rows, err := db.New(s.config.API).Closures(ctx, log)
	if err != nil {
		return nil, nil, fmt.Errorf("read closures: %w", err)
	}
	for _, row := range rows {
		closure := &openapi.Closure{
			LogID: id.Log.Format(row.LogID), Origin: row.LogOrigin, TreeSize: row.TreeSize, ClosedAt: row.ClosedAt,
			PublishedTreeSize: row.PublishedSize, PublishedRootHash: hex.EncodeToString(row.PublishedRoot), PublishedTimestamp: row.PublishedTimestamp,
			SuccessorID: id.Log.Format(row.Successor), SuccessorOrigin: row.SuccessorOrigin,
		}
		if row.LogID == log {
			closed = closure
		} else {
			predecessor = closure
		}
	}
	return closed, predecessor, nil
}
