package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
)

// filtered is the JSON of an endpoint with one destination for each filter; "" is none. More are members of the endpoint.
func filtered(more string, filters ...string) string {
	var destinations []string
	for i, filter := range filters {
		if filter != "" {
			filter = `,"filter":` + filter
		}
		destinations = append(destinations, fmt.Sprintf(`{"url":"https://example.com/in/%d"%s}`, i, filter))
	}
	return `{"name":"in","verification":{"scheme":"none"},` + more + `"destinations":[` + strings.Join(destinations, ",") + `]}`
}

const byHeader = `"event_type":{"source":"header","header":"X-Event"},`

// event reads an event as its tenant does.
func (b *testBundle) event(t testing.TB, name string) openapi.Event {
	t.Helper()
	return read[openapi.Event](t, b.get(t, "/api/v1/events/"+name), 200)
}

// states are those of an event's deliveries by the last character of their destination's URL, with the filter's error.
func (b *testBundle) states(t testing.TB, endpoint openapi.Endpoint, event string) map[string]string {
	t.Helper()
	urls := map[string]string{}
	for _, d := range endpoint.Destinations {
		urls[d.ID] = d.URL[len(d.URL)-1:]
	}
	states := map[string]string{}
	for _, d := range b.event(t, event).Deliveries {
		states[urls[d.DestinationID]] = d.State
		if d.FilterError != nil {
			states[urls[d.DestinationID]] += " " + *d.FilterError
		}
	}
	return states
}

// requireExplained fails if a delivery's rows contradict each other: invariants 4 and 5.
func (b *testBundle) requireExplained(t testing.TB) {
	t.Helper()
	require.Zero(t, b.count(t, `deliveries d where state = 'skipped' and 1 <> (select count(*) from attempts a join leaf_queue l on l.attempt_id = a.id
		where a.delivery_id = d.id and a.number = 0 and a.kind = 'skipped' and a.leaf_hash = d.last_leaf_hash)`))
	require.Zero(t, b.count(t, "delivery_queue q join deliveries d on d.id = q.delivery_id where d.state <> 'pending'"))
	require.Equal(t, b.count(t, "deliveries where state = 'pending'"), b.count(t, "delivery_queue"))
	require.Equal(t, b.count(t, "deliveries where state = 'skipped'"), b.count(t, "attempts"))
}

func TestFiltersChooseDestinations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(byHeader,
		"",
		`{"event_types":["push","issues.*"]}`,
		`{"event_types":["pull_request"],"expression":"body.action in ['opened','reopened'] && !body.draft"}`,
		`{"expression":"headers['x-env'] == 'prod'"}`,
	))
	for _, c := range []struct {
		event, env, body string
		want             map[string]string
	}{
		{"push", "prod", `{}`, map[string]string{"0": "pending", "1": "pending", "2": "skipped", "3": "pending"}},
		{"pull_request", "test", `{"action":"opened","draft":false}`, map[string]string{"0": "pending", "1": "skipped", "2": "pending", "3": "skipped"}},
		{"pull_request", "test", `{"action":"closed","draft":false}`, map[string]string{"0": "pending", "1": "skipped", "2": "skipped", "3": "skipped"}},
		{"pull_request", "test", `{"action":"opened"}`, map[string]string{"0": "pending", "1": "skipped", "2": "pending no_such_key", "3": "skipped"}},
		{"issues.opened", "prod", `not JSON`, map[string]string{"0": "pending", "1": "pending", "2": "skipped", "3": "pending"}},
	} {
		event := acceptedID(t, b.ingest(t, endpoint.ID, c.body, "X-Event", c.event, "X-Env", c.env))
		require.Equal(t, c.want, b.states(t, endpoint, event), c)
		require.Equal(t, &c.event, b.event(t, event).EventType)
	}
	b.requireExplained(t)
}

func TestWhatAFilterLeavesOutIsProven(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(byHeader, `{"event_types":["push"]}`))
	const body = `{"zen":"Keep it logically awesome."}`
	event := acceptedID(t, b.ingest(t, endpoint.ID, body, "X-Event", "ping"))
	deliveries := b.event(t, event).Deliveries
	require.Len(t, deliveries, 1)
	require.Equal(t, "skipped", deliveries[0].State)
	require.NotNil(t, deliveries[0].FinishedAt)
	require.Nil(t, deliveries[0].DueAt)
	require.Len(t, deliveries[0].Attempts, 1)
	attempt := deliveries[0].Attempts[0]
	require.Equal(t, openapi.Attempt{
		ID: attempt.ID, Number: 0, Kind: "skipped", Outcome: "filter", AttemptedAt: attempt.AttemptedAt, EndpointURL: "https://example.com/in/0",
		LeafHash: attempt.LeafHash, RecordedAt: attempt.RecordedAt,
	}, attempt)
	require.Equal(t, 202, b.get(t, "/api/v1/attestation/download-proof/"+attempt.ID).status, "not sealed yet")

	b.seal(t)
	proof := b.get(t, "/api/v1/attestation/download-proof/"+attempt.ID)
	require.Equal(t, 200, proof.status, "%s", proof.body)
	payload := []byte(body)
	result, err := verify.Package(proof.body, verify.Options{VKey: b.log.VKey, Payload: &payload})
	require.NoError(t, err)
	require.False(t, result.Delivered())
	require.Equal(t, verify.Matched, result.Payload)
	leaf := result.Leaf
	require.Equal(t, verify.Leaf{
		AttemptID: attempt.ID, AttemptedAt: leaf.AttemptedAt, DeliveryID: deliveries[0].ID, DestinationID: endpoint.Destinations[0].ID,
		EndpointID: endpoint.ID, EndpointURL: "https://example.com/in/0", EventID: event, Kind: "skipped", Nonce: leaf.Nonce,
		Origin: b.log.Origin, Outcome: "filter", PayloadHash: b.event(t, event).PayloadHash, PayloadSize: int64(len(body)), Seq: 1,
		TenantID: id.Tenant.Format(b.tenant), V: 1,
	}, *leaf)

	other := []byte("{}")
	_, err = verify.Package(proof.body, verify.Options{VKey: b.log.VKey, Payload: &other})
	require.Error(t, err)
}

func TestSkipsMayStayUnrecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(byHeader+`"record_skipped":false,`, `{"event_types":["push"]}`, `{"event_types":["p*"]}`))
	require.False(t, endpoint.RecordSkipped)
	some := acceptedID(t, b.ingest(t, endpoint.ID, "{}", "X-Event", "ping"))
	require.Equal(t, map[string]string{"1": "pending"}, b.states(t, endpoint, some))
	none := acceptedID(t, b.ingest(t, endpoint.ID, "{}", "X-Event", "issues"))
	require.Empty(t, b.event(t, none).Deliveries)
	require.Equal(t, 2, b.count(t, "events"))
	require.Zero(t, b.count(t, "attempts"))
	require.Zero(t, b.count(t, "leaf_queue"))
}

func TestADuplicateIsSkippedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered(byHeader, `{"event_types":["push"]}`, ""))
	first := acceptedID(t, b.ingest(t, endpoint.ID, "{}", "X-Event", "ping", "Idempotency-Key", "k"))
	again := b.ingest(t, endpoint.ID, "{}", "X-Event", "ping", "Idempotency-Key", "k")
	require.Equal(t, first, acceptedID(t, again))
	require.Equal(t, "true", again.header.Get("Kapsel-Duplicate"))
	require.Equal(t, 1, b.count(t, "attempts"))
	require.Equal(t, 1, b.count(t, "leaf_queue"))
	require.Equal(t, 2, b.count(t, "deliveries"))
	b.requireExplained(t)
}

// A filter that can't say no delivers, and everybody can see that it did.
func TestAFilterThatFailsLosesNothing(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	b := setup(t, func(c *api.Config) { c.Metrics = registry })
	endpoint := b.createEndpoint(t, filtered("",
		`{"expression":"body.amount > 100"}`,
		`{"expression":"body.currency == 'EUR'"}`,
		`{"expression":"body.name"}`,
		`{"expression":"body.list.all(x, body.list == body.list)"}`,
		`{"expression":"false"}`,
		`{"expression":"true"}`,
	))
	event := acceptedID(t, b.ingest(t, endpoint.ID, `{"amount":"150","name":"x","list":[`+strings.Repeat(`"x",`, 60_000)+`1]}`))
	require.Equal(t, map[string]string{
		"0": "pending type_mismatch", "1": "pending no_such_key", "2": "pending not_a_boolean", "3": "pending cost_exceeded", "4": "skipped", "5": "pending",
	}, b.states(t, endpoint, event))

	large := acceptedID(t, b.ingest(t, endpoint.ID, `{"amount":1,"pad":"`+strings.Repeat("x", 1<<20)+`"}`))
	require.Equal(t, map[string]string{
		"0": "pending body_unreadable", "1": "pending body_unreadable", "2": "pending body_unreadable", "3": "pending body_unreadable", "4": "skipped", "5": "pending",
	}, b.states(t, endpoint, large))

	// A duplicate isn't counted again.
	for range 2 {
		b.ingest(t, endpoint.ID, `{}`, "Idempotency-Key", "k")
	}
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP kapsel_deliveries_skipped_total Deliveries that a filter left out and that were recorded as skipped.
# TYPE kapsel_deliveries_skipped_total counter
kapsel_deliveries_skipped_total 3
# HELP kapsel_filter_errors_total Deliveries made because their filter failed, by why it did.
# TYPE kapsel_filter_errors_total counter
kapsel_filter_errors_total{error="body_unreadable"} 4
kapsel_filter_errors_total{error="cost_exceeded"} 1
kapsel_filter_errors_total{error="no_such_key"} 5
kapsel_filter_errors_total{error="not_a_boolean"} 1
kapsel_filter_errors_total{error="type_mismatch"} 1
`), "kapsel_deliveries_skipped_total", "kapsel_filter_errors_total"))
	b.requireExplained(t)
}

// Large bodies are looked into a few at a time: each waits for its place, and gives it back.
func TestManyLargeBodiesAreLookedInto(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered("", `{"expression":"body.even"}`)).ID
	answers, errs := make([]answer, 40), make([]error, 40)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			body := fmt.Sprintf(`{"even":%t,"pad":"%s"}`, i%2 == 0, strings.Repeat("x", 100<<10))
			answers[i], errs[i] = b.try(t.Context(), "POST", "/ingest/"+endpoint, strings.NewReader(body))
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	for _, a := range answers {
		require.Equal(t, 200, a.status, "%s", a.body)
	}
	require.Equal(t, 20, b.count(t, "deliveries where state = 'skipped'"))
	require.Equal(t, 20, b.count(t, "deliveries where state = 'pending' and filter_error is null"))
	b.requireExplained(t)
}

// A later version may know less than the one that stored the filter.
func TestAStoredFilterThatCannotBeReadDelivers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered("", `{"event_types":["a"]}`, `{"event_types":["b"]}`))
	for i, stored := range []string{`{"expression":"body.matches('x')"}`, `{"unknown":1}`} {
		destination, err := id.Destination.Parse(endpoint.Destinations[i].ID)
		require.NoError(t, err)
		_, err = b.owner.Exec(t.Context(), "update destinations set filter = $1 where id = $2", stored, destination)
		require.NoError(t, err)
	}
	event := acceptedID(t, b.ingest(t, endpoint.ID, "{}"))
	require.Equal(t, map[string]string{"0": "pending unusable", "1": "pending unusable"}, b.states(t, endpoint, event))
}

func TestFiltersSeeNoCredentials(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, filtered("",
		`{"expression":"'authorization' in headers || 'cookie' in headers"}`, `{"expression":"headers['x-many'] == 'a, b' && headers['x-bad'] == '\uFFFD'"}`))
	event := acceptedID(t, b.ingest(t, endpoint.ID, "{}", "Authorization", "Bearer x", "Cookie", "a=b", "X-Many", "a", "X-Many", "b", "X-Bad", "\xff"))
	require.Equal(t, map[string]string{"0": "skipped", "1": "pending"}, b.states(t, endpoint, event))
}

func TestEventsAreListedByType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	byPath := b.createEndpoint(t, filtered(`"event_type":{"source":"jsonpath","path":"$.data.type"},`, "")).ID
	byHeader := b.createEndpoint(t, filtered(byHeader, "")).ID
	untyped := b.endpoint(t)
	send := func(endpoint, body string, headers ...string) string {
		return acceptedID(t, b.ingest(t, endpoint, body, headers...))
	}
	paid := send(byPath, `{"data":{"type":"invoice.paid"}}`)
	failed := send(byPath, `{"data":{"type":"invoice.failed"}}`)
	alsoPaid := send(byHeader, `{}`, "X-Event", "invoice.paid")
	for _, none := range []string{
		send(byPath, `{"data":{"type":7}}`), send(byPath, `no JSON`), send(byPath, `{"data":{"type":"`+strings.Repeat("a", 201)+`"}}`),
		send(byPath, `{"data":{"type":"a\u0000b"}}`), send(byPath, `{"data":{"type":"a\nb"}}`), send(byPath, `{"data":{"type":""}}`),
		send(byHeader, `{}`), send(byHeader, `{}`, "X-Event", "a", "X-Event", "b"), send(byHeader, `{}`, "X-Event", "\xff"), send(untyped, `{}`, "X-Event", "x"),
	} {
		require.Nil(t, b.event(t, none).EventType)
	}
	list := func(query string) (events []string) {
		page := read[openapi.EventPage](t, b.get(t, "/api/v1/events?"+query), 200)
		for _, e := range page.Data {
			events = append(events, e.ID)
		}
		return events
	}
	require.Equal(t, []string{alsoPaid, paid}, list("event_type=invoice.paid"))
	require.Equal(t, []string{paid}, list("event_type=invoice.paid&endpoint_id="+byPath))
	require.Equal(t, []string{failed}, list("event_type=invoice.failed"))
	require.Empty(t, list("event_type=invoice.*"))

	page := read[openapi.EventPage](t, b.get(t, "/api/v1/events?event_type=invoice.paid&limit=1"), 200)
	require.Equal(t, "invoice.paid", *page.Data[0].EventType)
	require.NotNil(t, page.NextCursor)
	require.Equal(t, []string{paid}, list("event_type=invoice.paid&limit=1&cursor="+*page.NextCursor))

	for _, bad := range []string{"", "a%00", "a%0Ab", "%FF", strings.Repeat("a", 201)} {
		require.Equal(t, "event_type", *problem(t, b.get(t, "/api/v1/events?event_type="+bad), 400, "invalid-parameter").Field)
	}
	_, key := b.addTenant(t, "another")
	theirs := read[openapi.EventPage](t, b.do(t, "GET", "/api/v1/events?event_type=invoice.paid", nil, "Authorization", "Bearer "+key), 200)
	require.Empty(t, theirs.Data)
}

func TestFiltersAndEventTypesAreShownAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const filter = `{"event_types":["a.*"],"expression":"body.x \u003e 1 \u0026\u0026 true"}`
	made := b.createEndpoint(t, filtered(`"event_type":{"source":"jsonpath","path":"$['a b'].c"},`, filter, ""))
	got := read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+made.ID), 200)
	added := read[openapi.Destination](t, b.post(t, "/api/v1/endpoints/"+made.ID+"/destinations", `{"url":"https://example.com","filter":`+filter+`}`), 201)
	for _, shown := range []*openapi.Filter{made.Destinations[0].Filter, got.Destinations[0].Filter, added.Filter} {
		text, err := json.Marshal(shown)
		require.NoError(t, err)
		require.JSONEq(t, filter, string(text))
	}
	require.Nil(t, got.Destinations[1].Filter)
	require.Equal(t, made.EventType, got.EventType)
	require.Equal(t, "$['a b'].c", *got.EventType.Path)
	require.True(t, got.RecordSkipped)

	plain := read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+b.endpoint(t)), 200)
	require.Equal(t, openapi.EventType{Source: openapi.EventTypeSourceNone}, plain.EventType)
	require.True(t, plain.RecordSkipped)
}

func TestWrongFiltersAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct{ filter, field, detail string }{
		{`{}`, "destinations[0].filter.event_types", "must be given"},
		{`{"event_types":[]}`, "destinations[0].filter.event_types", "must be given"},
		{`{"event_types":["a*b"]}`, "destinations[0].filter.event_types[0]", "* only at its end"},
		{`{"event_types":"a"}`, "destinations[0].filter.event_types", "must be an array"},
		{`{"event_type":["a"]}`, "destinations[0].filter.event_type", "is unknown. Known are event_types, expression"},
		{`{"expression":"body.a ="}`, "destinations[0].filter.expression", "line 1, column 8"},
		{`{"expression":"true \n&& foo"}`, "destinations[0].filter.expression", "line 2, column 4: undeclared reference to 'foo'. Known are event.type"},
		{`{"expression":"body.a.matches('(a+)+')"}`, "destinations[0].filter.expression", "undeclared reference to 'matches'"},
		{`{"expression":"event.type"}`, "destinations[0].filter.expression", "must be true or false"},
		{`{"expression":"body.a.all(x, body.b.all(y, x == y))"}`, "destinations[0].filter.expression", "nesting"},
		{`{"expression":"body.a.all(x, x in body.a)"}`, "destinations[0].filter.expression", "steps"},
		{`{"expression":"` + strings.Repeat("x", 2001) + `"}`, "destinations[0].filter.expression", "at most 2000 bytes"},
	} {
		p := problem(t, b.post(t, "/api/v1/endpoints", filtered("", c.filter)), 422, "invalid-field")
		require.Equal(t, c.field, *p.Field, c.filter)
		require.Contains(t, p.Detail, c.detail)
	}
	for _, c := range []struct{ eventType, field, detail string }{
		{`{}`, "event_type.source", "is missing"},
		{`{"source":""}`, "event_type.source", "must be"},
		{`{"source":"body"}`, "event_type.source", "must be"},
		{`{"source":"header"}`, "event_type.header", "must be"},
		{`{"source":"header","header":"Host"}`, "event_type.header", "belongs to the connection"},
		{`{"source":"none","header":"X-A"}`, "event_type.header", "has no meaning"},
		{`{"source":"jsonpath","path":"$..a"}`, "event_type.path", "no wildcards"},
		{`{"source":"jsonpath","path":"a.b"}`, "event_type.path", "begins with $"},
	} {
		p := problem(t, b.post(t, "/api/v1/endpoints", filtered(`"event_type":`+c.eventType+`,`, "")), 422, "invalid-field")
		require.Equal(t, c.field, *p.Field, c.eventType)
		require.Contains(t, p.Detail, c.detail)
	}
	require.Zero(t, b.count(t, "endpoints"))
	require.Zero(t, b.count(t, "destinations"))
}
