package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kapsel-io/kapsel/attestation"
)

// maxMirrorFile bounds what is read of one file of a mirror: headsPerFile heads with checkpoints of several keys.
const maxMirrorFile = 64 << 20

// source reads the files of a mirror: of a directory, or of whatever serves c2sp.org/tlog-tiles. A file that isn't there is
// fs.ErrNotExist.
type source struct {
	name string
	file func(ctx context.Context, path string) ([]byte, error)
}

// openSource takes a directory or an http(s) URL, below which are checkpoint and tile/.
func openSource(place string) source {
	if !strings.HasPrefix(place, "http://") && !strings.HasPrefix(place, "https://") {
		return source{place, func(_ context.Context, path string) ([]byte, error) {
			return os.ReadFile(filepath.Join(place, filepath.FromSlash(path)))
		}}
	}
	client := &http.Client{Timeout: time.Minute}
	return source{place, func(ctx context.Context, path string) ([]byte, error) {
		return fetch(ctx, client, strings.TrimSuffix(place, "/")+"/"+path)
	}}
}

func fetch(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }() // read to its end below
	body, err := io.ReadAll(io.LimitReader(response.Body, maxMirrorFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", url, err)
	case response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusGone:
		return nil, fmt.Errorf("%s: status %d: %w", url, response.StatusCode, fs.ErrNotExist)
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: status %d", url, response.StatusCode)
	case len(body) > maxMirrorFile:
		return nil, fmt.Errorf("%s has more than %d bytes", url, maxMirrorFile)
	}
	return body, nil
}

// tile reads a tile of a tree of the given size. A mirror that has grown since has the full tile in the place of a partial one.
func (s source) tile(ctx context.Context, id attestation.TileID, size uint64) ([]byte, error) {
	width := attestation.TileWidth(id, size)
	hashes, err := s.file(ctx, TilePath(id, width))
	if errors.Is(err, fs.ErrNotExist) && width < tileWidth {
		hashes, err = s.file(ctx, TilePath(id, tileWidth))
	}
	if err != nil {
		return nil, fmt.Errorf("read tile %s of the mirror: %w", id, err)
	}
	if len(hashes) != width*hashSize && len(hashes) != tileBytes {
		return nil, fmt.Errorf("tile %s of the mirror has %d bytes, a tree of %d leaves has %d there", id, len(hashes), size, width*hashSize)
	}
	return hashes[:width*hashSize], nil
}

// tiles is an attestation.TileReader.
func (s source) tiles(size uint64) attestation.TileReader {
	return func(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
		read := make(map[attestation.TileID][]byte, len(ids))
		for _, id := range ids {
			var err error
			if read[id], err = s.tile(ctx, id, size); err != nil {
				return nil, err
			}
		}
		return read, nil
	}
}

// heads calls f with each head of the mirror, oldest first: none if it isn't one that Export wrote.
func (s source) heads(ctx context.Context, f func(*MirroredHead) error) error {
	for number := 0; ; number++ {
		name := fmt.Sprintf("%s/%06d.jsonl", headsDir, number)
		text, err := s.file(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := readHeadLines(bufio.NewReader(bytes.NewReader(text)), name, f); err != nil {
			return err
		}
	}
}

// log reads the mirror's log.json; nil if it has none.
func (s source) log(ctx context.Context) (*MirroredLog, error) {
	text, err := s.file(ctx, logFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var log MirroredLog
	if err := json.Unmarshal(text, &log); err != nil {
		return nil, fmt.Errorf("%s of the mirror: %w", logFile, err)
	}
	return &log, nil
}
