package api

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
)

// What one page of a search may cost. A search that needs more goes on with the next page (ADR 20).
const (
	searchTime   = 500 * time.Millisecond // after it no other chunk is begun
	searchRows   = 20_000                 // are looked at
	searchChunk  = 2_000                  // of them by one statement
	searchWindow = 7 * 24 * time.Hour     // and no more days than these
	// Rows whose deliveries or headers have to be read cost more.
	dearRows  = 2_000
	dearChunk = 200
)

// span is the part of time that a search goes back through, as bounds of UUIDv7s: floor <= id < before.
type span struct {
	before, floor uuid.UUID
}

// newSpan narrows the page's span by the times that are asked for. Nothing is older than the tenant, whose ID says when it
// was made; a day more allows for clocks that disagree.
func newSpan(p page, tenant uuid.UUID, after, before *time.Time) span {
	s := span{before: p.before, floor: floorOf(id.Time(tenant).Add(-24 * time.Hour))}
	if after != nil {
		s.floor = latest(s.floor, floorOf(*after))
	}
	if before != nil {
		s.before = earliest(s.before, floorOf(*before))
	}
	return s
}

// floorOf is the smallest UUID of a moment's millisecond, or of the next one if the moment lies within a millisecond.
func floorOf(moment time.Time) uuid.UUID {
	ms := moment.UnixMilli()
	if moment.After(time.UnixMilli(ms)) {
		ms++
	}
	ms = min(max(ms, 0), 1<<48-1)
	var u uuid.UUID
	for i := range 6 {
		u[i] = byte(ms >> (40 - 8*i))
	}
	return u
}

func latest(a, b uuid.UUID) uuid.UUID {
	if older(a, b) {
		return b
	}
	return a
}

func earliest(a, b uuid.UUID) uuid.UUID {
	if older(a, b) {
		return a
	}
	return b
}

func older(a, b uuid.UUID) bool { return bytes.Compare(a[:], b[:]) < 0 }

// search is one page of a search. It goes back in time chunk by chunk until the page is full, the span is over, or the
// page has cost enough.
type search[T any] struct {
	span
	limit       int
	rows, chunk int
	// end finds the ID that ends the next chunk; pgx.ErrNoRows: there are fewer rows than a chunk down to the floor.
	end func(ctx context.Context, before, floor uuid.UUID, chunk int32) (uuid.UUID, error)
	// read returns what matches in a span, newest first; more than most rows aren't needed.
	read func(ctx context.Context, in span, most int) ([]T, error)
	id   func(T) uuid.UUID
}

// found is one page. It ends at next if there may be more.
type found[T any] struct {
	rows []T
	next *uuid.UUID
}

func (s search[T]) run(ctx context.Context) (found[T], error) {
	var f found[T]
	started := time.Now()
	top := earliest(s.before, floorOf(started.Add(24*time.Hour))) // nothing is newer: no window is spent on the future
	for looked := 0; older(s.floor, top); looked += s.chunk {
		if looked >= s.rows || time.Since(started) > searchTime {
			f.next = &top
			return f, nil
		}
		in, err := s.nextChunk(ctx, top)
		if err != nil {
			return f, err
		}
		rows, err := s.read(ctx, in, s.limit+1-len(f.rows))
		if err != nil {
			return f, err
		}
		f.rows = append(f.rows, rows...)
		if len(f.rows) > s.limit {
			f.rows = f.rows[:s.limit]
			last := s.id(f.rows[s.limit-1])
			f.next = &last
			return f, nil
		}
		top = in.floor
	}
	return f, nil
}

// nextChunk is the next part of the span: some number of rows, and never more than some days.
func (s search[T]) nextChunk(ctx context.Context, top uuid.UUID) (span, error) {
	in := span{before: top, floor: latest(s.floor, floorOf(id.Time(top).Add(-searchWindow)))}
	end, err := s.end(ctx, in.before, in.floor, int32(s.chunk))
	if errors.Is(err, pgx.ErrNoRows) {
		return in, nil
	}
	in.floor = end
	return in, err
}

// cursor writes where the next page goes on, and until when this one looked.
func (f found[T]) cursor(kind id.Kind) (next *string, until *time.Time) {
	if f.next == nil {
		return nil, nil
	}
	cursor, moment := kind.Format(*f.next), id.Time(*f.next)
	return &cursor, &moment
}

// parseID reads an ID that is a query parameter.
func parseID(parameter string, kind id.Kind, text *string) (*uuid.UUID, error) {
	if text == nil {
		return nil, nil //nolint:nilnil // absent is absent
	}
	u, err := kind.Parse(*text)
	if err != nil {
		return nil, invalidParameter(parameter, "must be an ID: %s_ and 26 digits and lower-case letters", kind)
	}
	return &u, nil
}

// parseState reads the state of a delivery that is a query parameter.
func parseState(parameter string, text *string) error {
	if text == nil || *text == string(delivery.Pending) || delivery.State(*text).Terminal() {
		return nil
	}
	return invalidParameter(parameter, "must be pending, delivered, dead, canceled or skipped")
}
