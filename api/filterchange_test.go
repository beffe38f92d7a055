package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
)

// A filter is set, replaced and removed; each time what is accepted next goes by it, and nothing else of the destination changes.
func TestFiltersAreChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(byHeader, ""))
	path := "/api/v1/destinations/" + endpoint.Destinations[0].ID
	want := read[openapi.Destination](t, b.get(t, path), 200)
	expression := "body.n > 1"
	for _, step := range []struct {
		body   string
		filter *openapi.Filter
		state  string // of an event of type push and n = 1
	}{
		{`{"filter":{"event_types":["issues"]}}`, &openapi.Filter{EventTypes: &[]string{"issues"}}, "skipped"},
		{`{"timeout_ms":1000}`, &openapi.Filter{EventTypes: &[]string{"issues"}}, "skipped"},
		{`{"filter":{"event_types":["push"]}}`, &openapi.Filter{EventTypes: &[]string{"push"}}, "pending"},
		{`{"filter":{"expression":"body.n > 1"}}`, &openapi.Filter{Expression: &expression}, "skipped"},
		{`{"filter":{}}`, nil, "pending"},
		{`{"filter":{}}`, nil, "pending"},
	} {
		want.Filter = step.filter
		if strings.Contains(step.body, "timeout_ms") {
			want.TimeoutMs = 1000
		}
		require.Equal(t, want, read[openapi.Destination](t, b.patch(t, path, step.body), 200), step.body)
		require.Equal(t, want, read[openapi.Destination](t, b.get(t, path), 200), step.body)
		event := acceptedID(t, b.ingest(t, endpoint.ID, `{"n":1}`, "X-Event", "push"))
		require.Equal(t, step.state, b.event(t, event).Deliveries[0].State, step.body)
	}
	b.requireExplained(t)
}

// The leaf of what is skipped names the URL as it is: a change of it counts for the next event.
func TestASkipNamesTheURLOfToday(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered("", `{"expression":"false"}`))
	named := func() string {
		return b.event(t, acceptedID(t, b.ingest(t, endpoint.ID, "{}"))).Deliveries[0].Attempts[0].EndpointURL
	}
	require.Equal(t, "https://example.com/in/0", named())
	read[openapi.Destination](t, b.patch(t, "/api/v1/destinations/"+endpoint.Destinations[0].ID, `{"secret_path":true}`), 200)
	require.Equal(t, "https://example.com", named())
}

func TestWrongChangesOfFiltersAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(byHeader, `{"event_types":["push"]}`))
	destination, path := "/api/v1/destinations/"+endpoint.Destinations[0].ID, "/api/v1/endpoints/"+endpoint.ID
	before := [2]string{string(b.get(t, destination).body), string(b.get(t, path).body)}
	for _, c := range []struct{ path, body, field string }{
		{destination, `{"timeout_ms":1000,"filter":{"event_types":[]}}`, "filter.event_types"},
		{destination, `{"timeout_ms":1000,"filter":{"event_types":["a*b"]}}`, "filter.event_types[0]"},
		{destination, `{"timeout_ms":1000,"filter":{"expression":"body.a ="}}`, "filter.expression"},
		{destination, `{"timeout_ms":1000,"filter":{"expression":"event.type","event_types":["a"]}}`, "filter.expression"},
		{destination, `{"timeout_ms":1000,"filter":{"types":["a"]}}`, "filter.types"},
		{destination, `{"timeout_ms":1000,"filter":null}`, "filter"},
		{destination, `{"timeout_ms":1000,"filter":"body.a"}`, "filter"},
		{path, `{"name":"new","event_type":{}}`, "event_type.source"},
		{path, `{"name":"new","event_type":{"source":"body"}}`, "event_type.source"},
		{path, `{"name":"new","event_type":{"source":"header","header":"Host"}}`, "event_type.header"},
		{path, `{"name":"new","event_type":{"source":"jsonpath","path":"$..a"}}`, "event_type.path"},
		{path, `{"name":"new","event_type":null}`, "event_type"},
		{path, `{"name":"new","record_skipped":"no"}`, "record_skipped"},
		{path, `{"name":"new","record_skipped":null}`, "record_skipped"},
	} {
		p := problem(t, b.patch(t, c.path, c.body), 422, "invalid-field")
		require.NotNil(t, p.Field, c.body)
		require.Equal(t, c.field, *p.Field, c.body)
	}
	require.Equal(t, before, [2]string{string(b.get(t, destination).body), string(b.get(t, path).body)})
}

func TestEventTypeAndRecordSkippedAreChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	want := b.createEndpoint(t, filtered("", `{"event_types":["push"]}`))
	want.Destinations[0].SigningSecret = nil
	path := "/api/v1/endpoints/" + want.ID
	change := func(body string) {
		t.Helper()
		require.Equal(t, want, read[openapi.Endpoint](t, b.patch(t, path, body), 200), body)
		require.Equal(t, want, read[openapi.Endpoint](t, b.get(t, path), 200), body)
	}
	ingest := func() openapi.Event {
		t.Helper()
		return b.event(t, acceptedID(t, b.ingest(t, want.ID, `{"kind":"push"}`, "X-Event", "issues")))
	}
	header, place := "X-Event", "$.kind"
	want.EventType = openapi.EventType{Source: openapi.EventTypeSourceHeader, Header: &header}
	change(`{"event_type":{"source":"header","header":"X-Event"}}`)
	event := ingest()
	require.Equal(t, "issues", *event.EventType)
	require.Equal(t, "skipped", event.Deliveries[0].State)

	want.RecordSkipped = false
	change(`{"record_skipped":false}`)
	require.Empty(t, ingest().Deliveries)
	change(`{}`)
	change(`{"name":"in"}`)

	want.EventType = openapi.EventType{Source: openapi.EventTypeSourceJsonpath, Path: &place}
	change(`{"event_type":{"source":"jsonpath","path":"$.kind"}}`)
	event = ingest()
	require.Equal(t, "push", *event.EventType)
	require.Equal(t, "pending", event.Deliveries[0].State)

	want.EventType, want.RecordSkipped = openapi.EventType{Source: openapi.EventTypeSourceNone}, true
	change(`{"event_type":{"source":"none"},"record_skipped":true}`)
	event = ingest()
	require.Nil(t, event.EventType)
	require.Equal(t, "skipped", event.Deliveries[0].State, "a pattern that isn't * wants a type")
}

// Somebody who finds that a filter was wrong finds what it left out, mends it, and has it delivered after all.
func TestWhatAWrongFilterLeftOutIsFoundAndRedelivered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered("", `{"expression":"body.n == 1"}`, ""))
	destination := endpoint.Destinations[0].ID
	var events []string
	for n := range 3 {
		events = append(events, acceptedID(t, b.ingest(t, endpoint.ID, fmt.Sprintf(`{"n":%d}`, n))))
	}
	skipped, _ := b.allDeliveries(t, "state=skipped", nil)
	require.Len(t, skipped, 2)
	for _, d := range skipped {
		require.Equal(t, destination, d.DestinationID)
		require.Zero(t, d.AttemptCount)
		require.NotNil(t, d.FinishedAt)
	}
	require.ElementsMatch(t, []string{events[0], events[2]}, []string{skipped[0].EventID, skipped[1].EventID})
	require.ElementsMatch(t, []string{events[0], events[2]}, b.listAll(t, "/api/v1/events?delivery_state=skipped&limit=1", 1))
	stats := read[openapi.DestinationStats](t, b.get(t, "/api/v1/destinations/"+destination+"/stats"), 200)
	require.Equal(t, map[string]int{"pending": 1, "skipped": 2}, stats.Sample.States)
	require.Equal(t, []int{1, 3, 0}, []int{stats.Waiting, stats.Sample.Deliveries, stats.Sample.Attempts})
	require.Nil(t, stats.Sample.LastFailure, "nothing failed")

	for _, command := range []string{"/cancel", "/retry-now"} {
		problem(t, b.command(t, "/api/v1/deliveries/"+skipped[0].ID+command), 409, "already-finished")
	}
	read[openapi.Destination](t, b.patch(t, "/api/v1/destinations/"+destination, `{"filter":{"expression":"true"}}`), 200)
	again := read[openapi.Redelivery](t, b.command(t, "/api/v1/deliveries/"+skipped[0].ID+"/redeliver"), 202)
	require.Equal(t, skipped[0].ID, again.RedeliveryOf)
	made := read[openapi.Delivery](t, b.get(t, "/api/v1/deliveries/"+again.DeliveryID), 200)
	require.Equal(t, "pending", made.State)
	require.Equal(t, destination, made.DestinationID)
	require.Equal(t, "skipped", read[openapi.Delivery](t, b.get(t, "/api/v1/deliveries/"+skipped[0].ID), 200).State, "the record stays")
	count := read[openapi.RedeliveryCount](t, b.post(t, redeliveries, `{"destination_id":"`+destination+`","states":["skipped"],"dry_run":true}`), 200)
	require.Equal(t, openapi.RedeliveryCount{Total: 2, WouldRedeliver: 1, WouldSkip: openapi.RedeliverySkips{Redelivered: 1}, Complete: true}, count)
}

// An endpoint that keeps an order and has filters keeps both: the order is among what is sent.
func TestOrderAndFiltersTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(`"ordering":{"source":"jsonpath","path":"$.order","on_dead":"skip"},`, `{"expression":"body.even"}`))
	var deliveries []openapi.Delivery
	for n := range 4 {
		event := acceptedID(t, b.ingest(t, endpoint.ID, fmt.Sprintf(`{"order":7,"even":%t}`, n%2 == 0)))
		deliveries = append(deliveries, b.event(t, event).Deliveries...)
	}
	one, two := int64(1), int64(2)
	for i, want := range []struct {
		state string
		seq   *int64
	}{{"pending", &one}, {"skipped", nil}, {"pending", &two}, {"skipped", nil}} {
		require.Equal(t, want.state, deliveries[i].State)
		require.Equal(t, want.seq, deliveries[i].OrderSeq)
	}
	require.Equal(t, 1, b.count(t, "delivery_queue"))
	require.Equal(t, 1, b.count(t, "order_keys where next_seq = 3 and head_seq = 1"))
}

// A large body waits for its place and then has its order like a small one, also beyond what filters look into.
func TestALargeBodyKeepsItsOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(`"ordering":{"source":"jsonpath","path":"$.order","on_dead":"skip"},`, "")).ID
	pad := strings.Repeat("x", 2<<20)
	for range 3 { // each gives its place back
		acceptedID(t, b.ingest(t, endpoint, `{"pad":"`+pad+`","order":"a"}`))
	}
	acceptedID(t, b.ingest(t, endpoint, `{"order":"a"}`))
	require.Equal(t, 4, b.count(t, "ordered_deliveries"))
	require.Equal(t, 1, b.count(t, "delivery_queue"))
}

// A search for a type goes through the events of that type, however many others lie between them.
func TestARareTypeIsFoundOnTheFirstPage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(byHeader, "")).ID
	rare := acceptedID(t, b.ingest(t, endpoint, "{}", "X-Event", "rare"))
	_, err := b.engine.Exec(t.Context(), `insert into events (id, tenant_id, endpoint_id, content_type, body_size, payload_hash, event_type)
		select (substr(uuid_floor(now())::text, 1, 13) || substr(gen_random_uuid()::text, 14))::uuid, $1, $1, '', 0, decode(repeat('00', 32), 'hex'), 'common'
		from generate_series(1, 25000)`, b.tenant)
	require.NoError(t, err)
	page := read[openapi.EventPage](t, b.get(t, "/api/v1/events?event_type=rare"), 200)
	require.Len(t, page.Data, 1)
	require.Equal(t, rare, page.Data[0].ID)
	require.Nil(t, page.NextCursor)
	none := read[openapi.EventPage](t, b.get(t, "/api/v1/events?event_type=common&limit=1&endpoint_id="+endpoint), 200)
	require.Empty(t, none.Data)
	require.NotNil(t, none.NextCursor, "20,000 of the type were looked at, and there are more")
}
