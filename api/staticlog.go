package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// The static interface of a log, as https://c2sp.org/tlog-tiles has it, below the log's origin. Clients of other projects
// read it, so nothing here is of our own making. It is what generated code can't do: a path of as many elements as a tile's
// index needs, and compression.

const (
	routeCheckpoint = "/log/:log/checkpoint"
	routeTile       = "/log/:log/tile/*tile"
)

// getCheckpoint answers with the newest head as a note.
func (s *Server) getCheckpoint(c *gin.Context) {
	log, err := s.logInPath(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	head, err := s.newestHead(c.Request.Context(), log.ID)
	if err != nil {
		s.fail(c, err)
		return
	}
	tellClosed(c.Writer.Header(), log)
	ifNoneMatch := strings.Join(c.Request.Header.Values("If-None-Match"), ",")
	answer := newConditional(head.Checkpoint, "text/plain; charset=utf-8", "no-cache", &ifNoneMatch)
	answer.body = compress(c, answer.body, gzip.DefaultCompression)
	if c.Writer.Header().Get("Content-Encoding") != "" {
		answer.etag = "W/" + answer.etag // a strong one would be of other bytes
	}
	s.answerWith(c, answer.write)
}

// getTile answers with the hashes of a tile. Full ones never change. Partial ones don't either, but soon nobody wants them.
func (s *Server) getTile(c *gin.Context) {
	hashes, full, err := s.readTile(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	header := c.Writer.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Cache-Control", "public, max-age=3600")
	if full {
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	// Hashes get no smaller; who asks for gzip gets it at no cost.
	hashes = compress(c, hashes, gzip.NoCompression)
	s.answerWith(c, func(w http.ResponseWriter) error {
		w.Header().Set("Content-Length", strconv.Itoa(len(hashes)))
		_, err := w.Write(hashes)
		return err
	})
}

// readTile finds the tile that the path names and cuts it to the width that is asked for.
func (s *Server) readTile(c *gin.Context) (hashes []byte, full bool, err error) {
	path := strings.TrimPrefix(c.Param("tile"), "/")
	if s.config.HeadsOnly {
		return nil, false, &problem{kind: kindNotFound, detail: "This server publishes heads and no tiles. Ask for proofs at /api/v1/attestation/."}
	}
	if strings.HasPrefix(path, "entries/") {
		return nil, false, &problem{kind: kindNotFound, detail: "Entry bundles are not published: a leaf belongs to its tenant. Tiles hold the hashes."}
	}
	if c.Request.URL.RawPath != "" { // the same tile at a second path would be cached twice
		return nil, false, &problem{kind: kindParameter, field: "tile", detail: "Write the tile's path without percent-encoding."}
	}
	id, width, err := attestation.ParseTilePath(path)
	var wrong *attestation.TilePathError
	if errors.As(err, &wrong) {
		return nil, false, invalidParameter(wrong.Part, "%s", wrong.Must)
	}
	log, err := s.logInPath(c)
	if err != nil {
		return nil, false, err
	}
	ctx := c.Request.Context()
	if err := s.checkPublished(ctx, log, id, width); err != nil {
		return nil, false, err
	}
	tiles, err := s.tiles.reader(s.config.API, log.ID)(ctx, []attestation.TileID{id})
	if err != nil {
		return nil, false, err
	}
	size := width * verify.HashSize
	if len(tiles[id]) < size {
		return nil, false, fmt.Errorf("tile %v of log %s has %d bytes, a published head needs %d: %w", id, log.ID, len(tiles[id]), size, attestation.ErrTile)
	}
	return tiles[id][:size], size == attestation.FullTile, nil
}

// checkPublished lets through full tiles that the newest published head covers, and partial ones of the width that they
// have under some published head. What is stored may be wider: nothing beyond the newest head is shown.
func (s *Server) checkPublished(ctx context.Context, log db.PublicLogRow, id attestation.TileID, width int) error {
	head, err := s.newestHead(ctx, log.ID)
	if err != nil {
		return err
	}
	absent := func(format string, args ...any) error {
		return &problem{kind: kindNotFound, detail: fmt.Sprintf("The newest signed tree head has size %d. ", head.TreeSize) + fmt.Sprintf(format, args...)}
	}
	switch has := attestation.TileWidth(id, uint64(head.TreeSize)); {
	case has == width:
		return nil
	case has == 0:
		return absent("No tile of its tree is at this path.")
	case has < width:
		return absent("This tile has %d hashes in its tree: ask for .p/%d.", has, has)
	}
	from, end := attestation.TileSizes(id, width)
	published, err := db.New(s.config.API).PublishedBetween(ctx, log.ID, int64(from), int64(end))
	if err != nil {
		return fmt.Errorf("look for a head: %w", err)
	}
	if !published {
		return absent("No signed tree head had a size that gives this tile the width %d.", width)
	}
	return nil
}

// logInPath finds the log that a path names; what can't name one names nothing.
func (s *Server) logInPath(c *gin.Context) (db.PublicLogRow, error) {
	name := c.Param("log")
	log, err := s.findLog(c.Request.Context(), &name)
	var p *problem
	if errors.As(err, &p) && p.kind == kindParameter {
		return log, notFound("log")
	}
	return log, err
}

// answerWith writes an answer, and leaves it to the request log if that broke off.
func (s *Server) answerWith(c *gin.Context, write func(http.ResponseWriter) error) {
	if err := write(c.Writer); err != nil {
		s.fail(c, err)
	}
}

// compress returns body in gzip if the request asks for it, and sets the headers that say so.
func compress(c *gin.Context, body []byte, level int) []byte {
	header := c.Writer.Header()
	header.Add("Vary", "Accept-Encoding")
	if !acceptsGzip(c.Request.Header.Values("Accept-Encoding")) {
		return body
	}
	var compressed bytes.Buffer
	w, err := gzip.NewWriterLevel(&compressed, level)
	if err == nil {
		_, err = w.Write(body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil { // a known level and a buffer can't fail
		panic(err)
	}
	header.Set("Content-Encoding", "gzip")
	return compressed.Bytes()
}

// acceptsGzip reads Accept-Encoding (RFC 9110, section 12.5.3): gzip, or *, with a weight other than 0. What names gzip wins.
func acceptsGzip(headers []string) bool {
	var named, accepted, any bool
	for part := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		coding, parameter, _ := strings.Cut(part, ";")
		weight := 1.0
		if q, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(parameter)), "q="); ok {
			var err error
			if weight, err = strconv.ParseFloat(q, 64); err != nil {
				weight = 0
			}
		}
		switch strings.ToLower(strings.TrimSpace(coding)) {
		case "gzip", "x-gzip":
			named, accepted = true, accepted || weight > 0
		case "*":
			any = weight > 0
		}
	}
	return accepted || !named && any
}
