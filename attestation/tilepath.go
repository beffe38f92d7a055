package attestation

import (
	"fmt"
	"strconv"
	"strings"
)

// TilePathError says which part of a tile's path is wrong and what it must be.
type TilePathError struct {
	Part string // "level", "index" or "width"
	Must string // "must be …"
}

func (e *TilePathError) Error() string { return "malformed tile path: " + e.Part + " " + e.Must }

const (
	maxTileLevel   = 63
	maxIndexGroups = 6 // of three digits: more tiles than a tree of 2^53 leaves has
)

// TilePath writes where the first width hashes of a tile are found below a log's "tile/", as C2SP tlog-tiles has it: level
// 0, index 1234067 and width 5 become "0/x001/x234/067.p/5"; a tile of the full width, 256, has no ending.
func TilePath(id TileID, width int) string {
	path := fmt.Sprintf("%03d", id.Index%1000)
	for rest := id.Index / 1000; rest > 0; rest /= 1000 {
		path = fmt.Sprintf("x%03d/%s", rest%1000, path)
	}
	path = strconv.Itoa(int(id.Level)) + "/" + path
	if width < tileWidth {
		path += ".p/" + strconv.Itoa(width)
	}
	return path
}

// ParseTilePath reads exactly what TilePath writes, for levels of 0 to 63 and widths of 1 to 256, so that a tile has one
// path and no other. The tile may lie beyond any tree that exists: see TileWidth. The error is a *TilePathError.
func ParseTilePath(path string) (id TileID, width int, err error) {
	level, rest, _ := strings.Cut(path, "/")
	index, partial, isPartial := strings.Cut(rest, ".p/")
	number, ok := parseDecimal(level, 0, maxTileLevel)
	if !ok {
		return TileID{}, 0, &TilePathError{"level", "must be a number of 0 to 63 without leading zeros"}
	}
	id.Level = uint8(number)
	if id.Index, ok = parseIndex(index); !ok {
		return TileID{}, 0, &TilePathError{"index", "must be groups of three digits with an x before all but the last, such as 067 or x001/x234/067, and no more groups than it needs"}
	}
	width = tileWidth
	if isPartial {
		if width, ok = parseDecimal(partial, 1, tileWidth-1); !ok {
			return TileID{}, 0, &TilePathError{"width", "must be a number of 1 to 255 without leading zeros; a full tile has none"}
		}
	}
	return id, width, nil
}

// parseDecimal reads a number that is spelled in the only way there is.
func parseDecimal(s string, from, to int) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && strconv.Itoa(n) == s && n >= from && n <= to
}

// parseIndex reads groups of three digits, all but the last with an x. The first of several isn't 000.
func parseIndex(s string) (uint64, bool) {
	groups := strings.Split(s, "/")
	if len(groups) > maxIndexGroups || len(groups) > 1 && groups[0] == "x000" {
		return 0, false
	}
	var index uint64
	for i, group := range groups {
		digits, marked := strings.CutPrefix(group, "x")
		if marked != (i < len(groups)-1) || len(digits) != 3 {
			return 0, false
		}
		for _, d := range []byte(digits) {
			if d < '0' || d > '9' {
				return 0, false
			}
			index = index*10 + uint64(d-'0')
		}
	}
	return index, true
}

// TileSizes tells in trees of which sizes a tile has exactly width hashes, 1 to 255: those from first on, below end. The
// tile must be one that some tree of up to 2^53-1 leaves has.
func TileSizes(id TileID, width int) (first, end uint64) {
	hashes := id.Index*tileWidth + uint64(width)
	shift := tileHeight * uint(id.Level)
	return hashes << shift, (hashes + 1) << shift
}
