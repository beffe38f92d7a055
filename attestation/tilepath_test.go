package attestation_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/attestation"
)

func TestTilePathsAreThoseOfTheSpecification(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]struct {
		id    attestation.TileID
		width int
	}{
		"0/000":                           {attestation.TileID{}, 256},
		"0/000.p/1":                       {attestation.TileID{}, 1},
		"0/999.p/255":                     {attestation.TileID{Index: 999}, 255},
		"0/x001/000":                      {attestation.TileID{Index: 1000}, 256},
		"1/x001/x234/067":                 {attestation.TileID{Level: 1, Index: 1234067}, 256},
		"7/x001/x234/067.p/9":             {attestation.TileID{Level: 7, Index: 1234067}, 9},
		"63/x999/x999/x999/x999/x999/999": {attestation.TileID{Level: 63, Index: 999_999_999_999_999_999}, 256},
	} {
		id, width, err := attestation.ParseTilePath(path)
		require.NoError(t, err, path)
		require.Equal(t, want.id, id)
		require.Equal(t, want.width, width)
		require.Equal(t, path, attestation.TilePath(id, width))
	}
}

func TestMalformedTilePathsNameTheWrongPart(t *testing.T) {
	t.Parallel()
	for path, part := range map[string]string{
		"": "level", "/": "level", "x/000": "level", "-1/000": "level", "+1/000": "level", "00/000": "level", "01/000": "level",
		"64/000": "level", "1e1/000": "level", " 0/000": "level", "entries/000": "level", "99999999999999999999/000": "level",
		"0": "index", "0/": "index", "0/0": "index", "0/00": "index", "0/0000": "index", "0/x000": "index", "0/001/002": "index",
		"0/x000/001": "index", "0/x001/x002": "index", "0/x001//002": "index", "0/X001/002": "index", "0/00a": "index", "0/-01": "index",
		"0/+01": "index", "0/000/": "index", "0//000": "index", "0/000.q/1": "index", "0/000.p": "index", "0/٠٠٠": "index", "0/x٠/000": "index",
		"0/.p/1": "index", "0/x001/x000/x000/x000/x000/x000/000": "index",
		"0/000.p/": "width", "0/000.p/0": "width", "0/000.p/256": "width", "0/000.p/01": "width", "0/000.p/-1": "width", "0/000.p/1/": "width",
		"0/000.p/1.p/1": "width", "0/000.p/1 ": "width", "0/000.p/99999999999999999999": "width",
	} {
		_, _, err := attestation.ParseTilePath(path)
		var wrong *attestation.TilePathError
		require.ErrorAs(t, err, &wrong, path)
		require.Equal(t, part, wrong.Part, path)
	}
}

// golang.org/x/mod writes the same paths, with the tile's height before them.
func TestTilePathsAreThoseOfAnotherImplementation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tile := tlog.Tile{
			H: 8, L: rapid.IntRange(0, 63).Draw(t, "level"), N: rapid.Int64Range(0, 999_999_999_999_999_999).Draw(t, "index"),
			W: rapid.IntRange(1, 256).Draw(t, "width"),
		}
		id := attestation.TileID{Level: uint8(tile.L), Index: uint64(tile.N)}
		require.Equal(t, tile.Path(), "tile/8/"+attestation.TilePath(id, tile.W))
	})
}

func TestTileSizesAreThoseInWhichATileHasTheWidth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(1, 1<<53-1).Draw(t, "size")
		level := uint8(rapid.IntRange(0, 6).Draw(t, "level"))
		id := attestation.TileID{Level: level, Index: size >> (8 * (level + 1))} // the tile at the right edge
		width := attestation.TileWidth(id, size)
		if width == 0 {
			return
		}
		first, end := attestation.TileSizes(id, width)
		require.True(t, first <= size && size < end)
		require.Equal(t, width, attestation.TileWidth(id, first))
		require.Equal(t, width, attestation.TileWidth(id, end-1))
		require.Equal(t, width-1, attestation.TileWidth(id, first-1))
		require.Equal(t, width+1, attestation.TileWidth(id, end))
	})
}

// Whatever is read is written again as the same bytes, so no tile has a second path, and another implementation agrees.
func FuzzTilePath(f *testing.F) {
	for _, path := range []string{
		"0/000", "0/000.p/1", "1/x001/x234/067.p/255", "63/999", "0/x000/001", "00/000", "0/000.p/256", "0/000.p/0", "0/x001/000", "0//000",
		"entries/000", "0/000.p/1.p/1", "7/x001/x234/067", "0/x999/x999/x999/x999/x999/999", "0/x001/x999/x999/x999/x999/x999/999",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		id, width, err := attestation.ParseTilePath(path)
		other, otherErr := tlog.ParseTilePath("tile/8/" + path)
		if err != nil {
			var wrong *attestation.TilePathError
			require.ErrorAs(t, err, &wrong)
			require.NotContains(t, err.Error(), "%!", "and it doesn't quote the path")
			known := otherErr == nil && other.L >= 0 && other.L <= 63 && strings.Count(path, "/") <= 6 // it knows no bounds
			require.False(t, known, "golang.org/x/mod reads it as %+v", other)
			return
		}
		require.Equal(t, path, attestation.TilePath(id, width))
		require.NoError(t, otherErr)
		require.Equal(t, tlog.Tile{H: 8, L: int(id.Level), N: int64(id.Index), W: width}, other)
	})
}
