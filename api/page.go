package api

import (
	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/id"
)

const (
	defaultLimit = 50
	maxLimit     = 200
)

// page is a part of a list that runs from the newest to the oldest ID.
type page struct {
	kind   id.Kind
	before uuid.UUID // only what is older
	limit  int32
}

// parsePage reads limit and cursor. A cursor is the last ID of the page before: what was added meanwhile moves nothing.
func parsePage(kind id.Kind, limit *int, cursor *string) (page, error) {
	p := page{kind: kind, before: uuid.Max, limit: defaultLimit}
	if limit != nil {
		if *limit < 1 || *limit > maxLimit {
			return p, invalidParameter("limit", "must be 1 to %d, not %d", maxLimit, *limit)
		}
		p.limit = int32(*limit)
	}
	if cursor != nil {
		before, err := kind.Parse(*cursor)
		if err != nil {
			return p, invalidParameter("cursor", "must be the next_cursor of the page before")
		}
		p.before = before
	}
	return p, nil
}

func (p page) cursor(last uuid.UUID) *string {
	c := p.kind.Format(last)
	return &c
}

// cut takes the row off that was read only to see whether there are more.
func cut[T any](rows []T, limit int32) (page []T, more bool) {
	if len(rows) > int(limit) {
		return rows[:limit], true
	}
	return rows, false
}
