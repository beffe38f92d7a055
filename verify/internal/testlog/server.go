package testlog

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/kapsel-io/kapsel/verify"
)

// Server serves one size of a log the way Kapsel does: checkpoint, tiles, and the API's consistency proofs.
type Server struct {
	mu      sync.Mutex
	log     *Log
	head    verify.SignedTreeHead
	tiles   *Log // if not nil, another log whose tiles are served
	noTiles bool
}

// Show makes the server publish the first size leaves of l as of a time, in ms after Start.
func (s *Server) Show(l *Log, size int, ms int64) {
	head := l.HeadAt(size, ms)
	s.mu.Lock()
	defer s.mu.Unlock()
	copied := *l
	s.log, s.head = &copied, head
}

// WithTilesOf serves the tiles of another tree than the one that the checkpoint is of.
func (s *Server) WithTilesOf(l *Log) { s.tiles = l }

// WithoutTiles leaves only the API.
func (s *Server) WithoutTiles() { s.noTiles = true }

// HeadAt signs the first size leaves as of a time, in ms after Start.
func (l *Log) HeadAt(size int, ms int64) verify.SignedTreeHead {
	sth := verify.SignedTreeHead{TreeSize: uint64(size), Timestamp: Start + ms, RootHash: Root(l.Leaves[:size])}
	sth.Signature = ed25519.Sign(l.Key, verify.STHMessage(sth.TreeSize, sth.Timestamp, sth.RootHash))
	return sth
}

// ServeHTTP answers for the log at any /log/…/ path.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	leaves := s.log.Leaves[:s.head.TreeSize]
	if s.tiles != nil && strings.Contains(r.URL.Path, "/tile/") {
		leaves = s.tiles.Leaves
	}
	_, path, isTile := strings.Cut(r.URL.Path, "/tile/")
	switch {
	case strings.HasSuffix(r.URL.Path, "/checkpoint"):
		_, _ = w.Write(s.log.Checkpoint(s.head))
	case isTile && !s.noTiles:
		tile, ok := tileAt(leaves, path)
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(tile)
	case r.URL.Path == "/api/v1/attestation/consistency-proof":
		m, _ := strconv.Atoi(r.URL.Query().Get("old_size"))
		n, _ := strconv.Atoi(r.URL.Query().Get("new_size"))
		if m < 1 || m > n || n > len(leaves) {
			http.Error(w, "bad sizes", http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"old_size": m, "new_size": n,
			"consistency_proof": verify.Hashes(ConsistencyPath(m, leaves[:n]))})
	default:
		http.NotFound(w, r)
	}
}

// tileAt cuts a tile out of a whole level of the tree.
func tileAt(leaves [][]byte, path string) ([]byte, bool) {
	path, partial, isPartial := strings.Cut(path, ".p/")
	level, index, _ := strings.Cut(path, "/")
	n, err := strconv.Atoi(strings.NewReplacer("x", "", "/", "").Replace(index))
	if err != nil {
		return nil, false
	}
	width := 256
	if isPartial {
		if width, err = strconv.Atoi(partial); err != nil {
			return nil, false
		}
	}
	span, err := strconv.Atoi(level)
	if err != nil || span > 7 || fmt.Sprintf("%03d", n) != index && n < 1000 {
		return nil, false
	}
	leavesPerHash := 1 << (8 * span)
	var tile []byte
	for i := range width {
		from := (n*256 + i) * leavesPerHash
		if from+leavesPerHash > len(leaves) {
			return nil, false
		}
		tile = append(tile, Root(leaves[from:from+leavesPerHash])...)
	}
	return tile, true
}
