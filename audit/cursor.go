package audit

import (
	"context"

	"github.com/kapsel-io/kapsel/postgres"
)

// pageSize is how many roots or heads are read at once: an idle log has many heads of one size.
const pageSize = 1000

// cursor goes through rows in order, page by page.
type cursor[T any] struct {
	page []T
	end  bool
	read func() ([]T, error) // what follows the last row that was read
}

// peek returns the next row, nil at the end.
func (c *cursor[T]) peek() (*T, error) {
	if len(c.page) == 0 && !c.end {
		page, err := c.read()
		if err != nil {
			return nil, err
		}
		c.page, c.end = page, len(page) < pageSize
	}
	if len(c.page) == 0 {
		return nil, nil
	}
	return &c.page[0], nil
}

func (c *cursor[T]) take() { c.page = c.page[1:] }

// openCursors makes the cursors go on after what was checked last.
func (c *checker) openCursors(ctx context.Context) {
	rootSize, size, timestamp := c.lastRoot, int64(c.lastHead.TreeSize), c.lastHead.Timestamp
	if timestamp < 0 {
		size = -1
	}
	c.roots.read = func() ([]postgres.SizedRoot, error) {
		page, err := postgres.Roots(ctx, c.DB, c.Log.ID, rootSize, c.head.TreeSize, pageSize)
		if len(page) > 0 {
			rootSize = page[len(page)-1].TreeSize
		}
		return page, err
	}
	c.heads.read = func() ([]postgres.PublishedHead, error) {
		page, err := postgres.PublishedHeads(ctx, c.DB, c.Log.ID, size, timestamp, c.head.TreeSize, pageSize)
		if len(page) > 0 {
			size, timestamp = int64(page[len(page)-1].TreeSize), page[len(page)-1].Timestamp
		}
		return page, err
	}
}
