package api_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
)

func TestEventsAreListedNewestFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoints := []string{b.endpoint(t), b.endpoint(t)}
	var want, ofFirst []string
	for i := range 7 {
		event := acceptedID(t, b.ingest(t, endpoints[i%2], fmt.Sprint(i), "Content-Type", "text/plain"))
		want = append(want, event)
		if i%2 == 0 {
			ofFirst = append(ofFirst, event)
		}
	}
	slices.Reverse(want)
	slices.Reverse(ofFirst)
	require.Equal(t, want, b.listAll(t, "/api/v1/events?limit=3", 3))
	require.Equal(t, want, b.listAll(t, "/api/v1/events?limit=7", 7))
	require.Equal(t, want, b.listAll(t, "/api/v1/events?", 50))
	require.Equal(t, ofFirst, b.listAll(t, "/api/v1/events?limit=3&endpoint_id="+endpoints[0], 3))
	require.Empty(t, b.listAll(t, "/api/v1/events?endpoint_id="+id.Endpoint.Format(id.New()), 50))

	list := read[openapi.EventPage](t, b.get(t, "/api/v1/events?limit=1"), 200)
	got := list.Data[0]
	s := b.stored(t, got.ID)
	require.Equal(t, endpoints[0], got.EndpointID)
	require.Equal(t, "text/plain", got.ContentType)
	require.Equal(t, 1, got.BodySize)
	require.Equal(t, fmt.Sprintf("%x", s.hash), got.PayloadHash)
	require.False(t, got.AcceptedAt.IsZero())
}

// listAll follows the cursors to the end.
func (b *testBundle) listAll(t *testing.T, path string, limit int) []string {
	t.Helper()
	var all []string
	for next := path; ; {
		page := read[openapi.EventPage](t, b.get(t, next), 200)
		require.LessOrEqual(t, len(page.Data), limit)
		for _, e := range page.Data {
			all = append(all, e.ID)
		}
		if page.NextCursor == nil {
			return all
		}
		next = path + "&cursor=" + *page.NextCursor
	}
}

func TestEndpointsAreListedInPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var want, got []string
	for range 5 {
		want = append(want, b.endpoint(t))
	}
	slices.Reverse(want)
	for next := "/api/v1/endpoints?limit=2"; next != ""; {
		page := read[openapi.EndpointPage](t, b.get(t, next), 200)
		next = ""
		for _, e := range page.Data {
			got = append(got, e.ID)
			require.Len(t, e.Destinations, 1)
		}
		if page.NextCursor != nil {
			next = "/api/v1/endpoints?limit=2&cursor=" + *page.NextCursor
		}
	}
	require.Equal(t, want, got)
}

func TestAnEventShowsItsAttempts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	event := acceptedID(t, b.ingest(t, b.endpoint(t), "{}"))
	delivery := b.deliveryOf(t, event)
	b.record(t, delivery, "retry", false)
	b.record(t, delivery, "failed", true)

	got := read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200)
	require.Len(t, got.Deliveries, 1)
	d := got.Deliveries[0]
	require.Equal(t, "dead", d.State)
	require.NotNil(t, d.FinishedAt)
	require.Nil(t, d.DueAt)
	require.Len(t, d.Attempts, 3)
	for i, want := range []struct {
		number        int
		kind, outcome string
	}{{1, "attempt", "retry"}, {2, "attempt", "failed"}, {0, "dead", "rejected"}} {
		a := d.Attempts[i]
		require.Equal(t, want.number, a.Number)
		require.Equal(t, want.kind, a.Kind)
		require.Equal(t, want.outcome, a.Outcome)
		require.Equal(t, id.Attempt.Format(id.AttemptOf(delivery, want.number)), a.ID)
		require.Len(t, a.LeafHash, 64)
	}
	require.Equal(t, 503, d.Attempts[0].ResponseStatus)
	require.EqualValues(t, 41, d.Attempts[0].DurationMs)
	require.Equal(t, "https://example.com/in", d.Attempts[0].EndpointURL)
}

func TestAnErasedPayloadIsGone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	event := acceptedID(t, b.ingest(t, b.endpoint(t), "{}"))
	_, err := b.owner.Exec(t.Context(), "delete from event_payloads")
	require.NoError(t, err)
	problem(t, b.get(t, "/api/v1/events/"+event+"/payload"), 410, "erased")
	require.Len(t, read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Deliveries, 1)
}
