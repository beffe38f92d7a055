package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/net/http/httpguts"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/webhook"
)

// eventFilter is what events are searched by. Some of it stands in their rows, the rest has to be looked up for each.
type eventFilter struct {
	row           db.SearchEventsParams
	deliveryState *string
	headerName    string // canonical; empty: any
	headerValue   *string
}

// ListEvents reads a page of events.
func (s *Server) ListEvents(ctx context.Context, request openapi.ListEventsRequestObject) (openapi.ListEventsResponseObject, error) {
	p, err := parsePage(id.Event, request.Params.Limit, request.Params.Cursor)
	if err != nil {
		return nil, err
	}
	filter, err := parseEventFilter(request.Params)
	if err != nil {
		return nil, err
	}
	var page found[eventRow]
	err = s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		q := db.New(tx)
		look := search[eventRow]{
			span: newSpan(p, tenant, request.Params.AcceptedAfter, request.Params.AcceptedBefore), limit: int(p.limit),
			rows: searchRows, chunk: searchChunk, end: q.EndOfEventChunk, id: func(e eventRow) uuid.UUID { return e.ID },
			read: func(ctx context.Context, in span, most int) ([]eventRow, error) { return filter.read(ctx, q, in, most) },
		}
		if filter.isDear() {
			look.rows, look.chunk = dearRows, dearChunk
		}
		if eventType := filter.row.EventType; eventType != nil {
			look.end = func(ctx context.Context, before, floor uuid.UUID, chunk int32) (uuid.UUID, error) {
				return q.EndOfTypeChunk(ctx, *eventType, before, floor, chunk)
			}
		}
		page, err = look.run(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	answer := openapi.ListEvents200JSONResponse{Data: []openapi.EventSummary{}}
	for _, row := range page.rows {
		answer.Data = append(answer.Data, openapi.EventSummary{
			ID: id.Event.Format(row.ID), EndpointID: id.Endpoint.Format(row.EndpointID), AcceptedAt: row.AcceptedAt,
			ContentType: row.ContentType, EventType: row.EventType, BodySize: int(row.BodySize), PayloadHash: hex.EncodeToString(row.PayloadHash),
		})
	}
	answer.NextCursor, answer.ScannedUntil = page.cursor(id.Event)
	return answer, nil
}

func parseEventFilter(params openapi.ListEventsParams) (f eventFilter, err error) {
	if f.row.EndpointID, err = parseID("endpoint_id", id.Endpoint, params.EndpointID); err != nil {
		return f, err
	}
	if f.row.EventType = params.EventType; f.row.EventType != nil && !delivery.ValidEventType(*f.row.EventType) {
		return f, invalidParameter("event_type", "must be 1 to %d bytes of printable text", delivery.MaxEventType)
	}
	if f.row.MediaType = params.ContentType; f.row.MediaType != nil && !isText(*f.row.MediaType) {
		return f, invalidParameter("content_type", "must be a media type such as application/json, without its parameters")
	}
	f.deliveryState = params.DeliveryState
	if err := parseState("delivery_state", f.deliveryState); err != nil {
		return f, err
	}
	if params.HeaderName != nil {
		if !httpguts.ValidHeaderFieldName(*params.HeaderName) {
			return f, invalidParameter("header_name", "must be the name of a header")
		}
		f.headerName = http.CanonicalHeaderKey(*params.HeaderName)
	}
	if f.headerValue = params.HeaderValue; f.headerValue != nil && f.headerName == "" {
		return f, invalidParameter("header_value", "needs header_name beside it")
	}
	if key := params.IdempotencyKey; key != nil {
		// The key is hashed as on the way in; it is stored nowhere else.
		hashed, _, err := webhook.DuplicatePolicy{}.Key(http.Header{"Idempotency-Key": {*key}}, nil)
		if err != nil {
			return f, invalidParameter("idempotency_key", "must have 1 to %d bytes", webhook.MaxIdempotencyKey)
		}
		f.row.DuplicateKey = hashed.Hash[:]
	}
	return f, nil
}

// isText reports whether Postgres can compare text with s.
func isText(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsAny(s, "\x00;")
}

// isDear reports whether more than the events' own rows has to be read.
func (f *eventFilter) isDear() bool { return f.deliveryState != nil || f.headerName != "" }

// read returns the events of a span that match.
func (f *eventFilter) read(ctx context.Context, q *db.Queries, in span, most int) ([]eventRow, error) {
	params := f.row
	params.Before, params.Floor, params.MaxRows = in.before, in.floor, int32(most)
	if f.isDear() { // all of the chunk, and what was committed into it since its end was found
		params.MaxRows = dearChunk + searchRows
	}
	rows, err := q.SearchEvents(ctx, params)
	if err != nil {
		return nil, err
	}
	events := make([]eventRow, len(rows))
	for i, row := range rows {
		events[i] = eventRow(row)
	}
	if events, err = f.withDelivery(ctx, q, events); err != nil {
		return nil, err
	}
	return f.withHeader(ctx, q, events)
}

// withDelivery keeps the events that have a delivery in the wanted state.
func (f *eventFilter) withDelivery(ctx context.Context, q *db.Queries, events []eventRow) ([]eventRow, error) {
	if f.deliveryState == nil || len(events) == 0 {
		return events, nil
	}
	low, _ := millisecond(events[len(events)-1].ID)
	_, high := millisecond(events[0].ID)
	matching, err := q.EventsWithDelivery(ctx, idsOf(events), low, high, *f.deliveryState)
	return keep(events, matching), err
}

// withHeader keeps the events that arrived with the wanted header.
func (f *eventFilter) withHeader(ctx context.Context, q *db.Queries, events []eventRow) ([]eventRow, error) {
	if f.headerName == "" || len(events) == 0 {
		return events, nil
	}
	rows, err := q.HeadersOfEvents(ctx, idsOf(events))
	if err != nil {
		return nil, err
	}
	var matching []uuid.UUID
	for _, row := range rows {
		headers, err := webhook.DecodeHeaders(row.Headers)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("event %s", id.Event.Format(row.EventID)), err)
		}
		if f.matches(headers) {
			matching = append(matching, row.EventID)
		}
	}
	return keep(events, matching), nil
}

// matches compares names in any case: HTTP/2 and a client of ours may have stored them in different ones.
func (f *eventFilter) matches(headers http.Header) bool {
	for name, values := range headers {
		if http.CanonicalHeaderKey(name) == f.headerName && (f.headerValue == nil || slices.Contains(values, *f.headerValue)) {
			return true
		}
	}
	return false
}

func idsOf(events []eventRow) []uuid.UUID {
	ids := make([]uuid.UUID, len(events))
	for i, e := range events {
		ids[i] = e.ID
	}
	return ids
}

// keep returns those of events that are among ids, in their order.
func keep(events []eventRow, ids []uuid.UUID) []eventRow {
	wanted := make(map[uuid.UUID]bool, len(ids))
	for _, u := range ids {
		wanted[u] = true
	}
	return slices.DeleteFunc(events, func(e eventRow) bool { return !wanted[e.ID] })
}
