package api_test

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/webhook"
)

// allDeliveries follows the cursors to the end; between is called after each page.
func (b *testBundle) allDeliveries(t testing.TB, query string, between func()) (all []openapi.DeliverySummary, pages int) {
	t.Helper()
	for cursor := ""; ; pages++ {
		page := read[openapi.DeliveryPage](t, b.get(t, "/api/v1/deliveries?"+query+cursor), 200)
		all = append(all, page.Data...)
		if page.NextCursor == nil {
			require.Nil(t, page.ScannedUntil)
			return all, pages + 1
		}
		require.NotNil(t, page.ScannedUntil)
		cursor = "&cursor=" + *page.NextCursor
		if between != nil {
			between()
		}
	}
}

// nextMillisecond waits until what is stored from now on has a later time than what is.
func nextMillisecond(t testing.TB) {
	t.Helper()
	now := time.Now().UnixMilli()
	require.Eventually(t, func() bool { return time.Now().UnixMilli() > now }, time.Second, time.Millisecond)
}

func idsOf(deliveries []openapi.DeliverySummary) []string {
	ids := make([]string, len(deliveries))
	for i, d := range deliveries {
		ids[i] = d.ID
	}
	return ids
}

func TestDeliveriesAreListedNewestFirstWhileOthersArrive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	var want []string
	for i := range 7 {
		want = append(want, id.Delivery.Format(b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, fmt.Sprint(i))))))
		nextMillisecond(t) // their order is that of their milliseconds
	}
	slices.Reverse(want)
	got, pages := b.allDeliveries(t, "limit=3", func() { acceptedID(t, b.ingest(t, endpoint, "meanwhile")) })
	require.Equal(t, want, idsOf(got), "each once, and nothing that came later")
	require.GreaterOrEqual(t, pages, 3)
	got, _ = b.allDeliveries(t, "", nil)
	require.Len(t, got, 7+pages-1)
}

func TestDeliveriesAreFiltered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one := b.createEndpoint(t, `{"name":"n","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/1"},{"url":"https://example.com/2"}]}`)
	two := b.createEndpoint(t, plainEndpoint)
	fanned := acceptedID(t, b.ingest(t, one.ID, "{}"))
	var ids []string
	for _, outcome := range []string{"delivered", "failed", "retry"} {
		delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, two.ID, outcome)))
		b.record(t, delivery, outcome, outcome == "failed")
		ids = append(ids, id.Delivery.Format(delivery))
		nextMillisecond(t) // so that their times differ
	}
	_, err := b.owner.Exec(t.Context(), "update deliveries set lane = 'batch' where state = 'pending' and next_attempt = 2")
	require.NoError(t, err)
	list := func(query string) []string {
		got, _ := b.allDeliveries(t, query, nil)
		return idsOf(got)
	}
	delivered, dead, retried := ids[0], ids[1], ids[2]
	require.Equal(t, []string{delivered}, list("state=delivered"))
	require.Equal(t, []string{dead}, list("state=dead"))
	require.Equal(t, []string{retried, dead, delivered}, list("endpoint_id="+two.ID))
	require.Len(t, list("event_id="+fanned), 2)
	require.Len(t, list("destination_id="+one.Destinations[1].ID), 1)
	require.Len(t, list("state=pending"), 3)
	require.Equal(t, []string{retried}, list("state=pending&endpoint_id="+two.ID))
	require.Equal(t, []string{retried}, list("lane=batch"))
	require.Empty(t, list("lane=workflow"))
	require.Empty(t, list("state=skipped"))
	require.Empty(t, list("state=dead&destination_id="+one.Destinations[0].ID))
	require.Empty(t, list("event_id="+id.Event.Format(id.New())))

	deadID, err := id.Delivery.Parse(dead)
	require.NoError(t, err)
	at := func(offset time.Duration) string {
		return url.QueryEscape(id.Time(deadID).Add(offset).In(time.FixedZone("", 7200)).Format(time.RFC3339Nano))
	}
	require.Equal(t, []string{retried, dead}, list("created_after="+at(0)), "at that time or later")
	require.Equal(t, []string{retried}, list("created_after="+at(time.Millisecond)))
	require.Equal(t, []string{delivered}, list("endpoint_id="+two.ID+"&created_before="+at(0)))
	require.Equal(t, []string{dead}, list("created_after="+at(0)+"&created_before="+at(time.Millisecond)))
	require.Empty(t, list("created_after="+at(time.Hour)))
	require.Empty(t, list("created_before="+at(-time.Hour)))
	require.Len(t, list("created_after="+id.Time(deadID).AddDate(0, 0, -1).Format(time.DateOnly)), 5, "a date is its beginning in UTC")
	require.Empty(t, list("created_before="+id.Time(deadID).Format(time.DateOnly)))

	got, _ := b.allDeliveries(t, "state=dead", nil)
	require.Equal(t, 1, got[0].AttemptCount)
	require.NotNil(t, got[0].FinishedAt)
	require.Equal(t, id.Time(deadID), got[0].CreatedAt)
	require.Equal(t, two.Destinations[0].ID, got[0].DestinationID)
	detail := read[openapi.Delivery](t, b.get(t, "/api/v1/deliveries/"+dead), 200)
	require.Equal(t, got[0].EventID, detail.EventID)
	require.Len(t, detail.Attempts, 2)
	require.Equal(t, "rejected", detail.Attempts[1].Outcome)
	event := read[openapi.Event](t, b.get(t, "/api/v1/events/"+detail.EventID), 200)
	require.Equal(t, event.Deliveries[0], detail)
}

// fill stores n deliveries, one a millisecond back from now, and returns their IDs, newest first.
func (b *testBundle) fill(t testing.TB, tenant uuid.UUID, n int) []uuid.UUID {
	t.Helper()
	ids := make([]uuid.UUID, n)
	for i := range ids {
		ms := time.Now().UnixMilli() - int64(i)
		ids[i] = id.New()
		for k := range 6 {
			ids[i][k] = byte(ms >> (40 - 8*k))
		}
	}
	_, err := b.engine.Exec(t.Context(), `insert into deliveries (id, event_id, tenant_id, endpoint_id, destination_id, log_id)
		select id, id, $2, $2, $2, $2 from unnest($1::uuid[]) as id`, ids, tenant)
	require.NoError(t, err)
	return ids
}

// However rare what is looked for is, a page ends after a bounded number of rows, and the next one goes on.
func TestASearchIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n = 45_000
	ids := b.fill(t, b.tenant, n)
	other, _ := b.addTenant(t, "A large one")
	b.fill(t, other, n)
	_, err := b.engine.Exec(t.Context(), "update deliveries set state = 'dead', finished_at = now(), leaves = 1, last_leaf_hash = $2 where id = any($1)",
		[]uuid.UUID{ids[n-1], ids[100]}, make([]byte, 32))
	require.NoError(t, err)

	first := read[openapi.DeliveryPage](t, b.get(t, "/api/v1/deliveries?state=dead"), 200)
	require.Equal(t, []string{id.Delivery.Format(ids[100])}, idsOf(first.Data))
	require.NotNil(t, first.NextCursor)
	until := id.Time(ids[20_000-1])
	require.False(t, first.ScannedUntil.Before(until), "no more than 20,000 rows are looked at: %s, %s", first.ScannedUntil, until)
	all, pages := b.allDeliveries(t, "state=dead", nil)
	require.Equal(t, []string{id.Delivery.Format(ids[100]), id.Delivery.Format(ids[n-1])}, idsOf(all))
	require.GreaterOrEqual(t, pages, 3)
}

func TestEventsAreSearched(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	push := acceptedID(t, b.ingest(t, endpoint, "1", "Content-Type", "application/json; charset=utf-8", "X-GitHub-Event", "push", "Idempotency-Key", "key-1"))
	nextMillisecond(t)
	ping := acceptedID(t, b.ingest(t, endpoint, "2", "Content-Type", "APPLICATION/JSON", "x-github-event", "ping", "X-Idempotency-Key", "key-2"))
	nextMillisecond(t)
	plain := acceptedID(t, b.ingest(t, endpoint, "3", "Content-Type", "text/plain", "X-Twice", "a", "X-Twice", "b"))
	b.record(t, b.deliveryOf(t, ping), "failed", true)
	list := func(query string) []string { return b.listAll(t, "/api/v1/events?"+query, 50) }

	require.Equal(t, []string{ping, push}, list("content_type=application/json"))
	require.Equal(t, []string{plain}, list("content_type=Text/Plain"))
	require.Equal(t, []string{ping, push}, list("header_name=X-GITHUB-EVENT"))
	require.Equal(t, []string{push}, list("header_name=x-github-event&header_value=push"))
	require.Equal(t, []string{plain}, list("header_name=x-twice&header_value=b"))
	require.Empty(t, list("header_name=x-github-event&header_value=pu"))
	require.Empty(t, list("header_name=x-github-event&header_value=Push"))
	require.Equal(t, []string{push}, list("idempotency_key=key-1"))
	require.Equal(t, []string{ping}, list("idempotency_key=key-2"))
	require.Empty(t, list("idempotency_key=key-3"))
	require.Equal(t, []string{ping}, list("delivery_state=dead"))
	require.Equal(t, []string{plain, push}, list("delivery_state=pending"))
	require.Equal(t, []string{ping}, list("delivery_state=dead&header_name=x-github-event&content_type=application/json&endpoint_id="+endpoint))
	require.Empty(t, list("delivery_state=dead&header_name=x-github-event&header_value=push"))
	pingID, err := id.Event.Parse(ping)
	require.NoError(t, err)
	at := url.QueryEscape(id.Time(pingID).Format(time.RFC3339Nano))
	require.Equal(t, []string{plain, ping}, list("accepted_after="+at))
	require.Equal(t, []string{push}, list("accepted_before="+at))
	require.Equal(t, []string{ping, push}, list("limit=1&header_name=x-github-event"), "in pages")

	_, err = b.owner.Exec(t.Context(), "delete from event_payloads where event_id = $1", pingID)
	require.NoError(t, err)
	require.Equal(t, []string{push}, list("header_name=x-github-event"), "what is erased can't be found by what was in it")

	_, b.key = b.addTenant(t, "Another Bank")
	for _, query := range []string{"idempotency_key=key-1", "header_name=x-github-event", "delivery_state=dead", "content_type=text/plain"} {
		require.Empty(t, list(query), query)
	}
}

// Looking into headers is dear, so a page looks into fewer; where it stopped it says.
func TestASearchByHeaderIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, err := id.Endpoint.Parse(b.endpoint(t))
	require.NoError(t, err)
	const n = 2500
	rows := make([]*postgres.Acceptance, n)
	for i := range rows {
		rows[i] = &postgres.Acceptance{
			EventID: id.New(), TenantID: b.tenant, EndpointID: endpoint, LogID: b.log.ID, Headers: []byte("X-Number: " + fmt.Sprint(i) + "\r\n"),
			PayloadHash: make([]byte, 32), Salt: make([]byte, 32), Secret: make([]byte, 32), Body: []byte("{}"),
		}
	}
	for part := range slices.Chunk(rows, 500) {
		_, err := postgres.Accept(t.Context(), b.engine, part)
		require.NoError(t, err)
	}
	path := "/api/v1/events?header_name=x-number&header_value=0"
	page := read[openapi.EventPage](t, b.get(t, path), 200)
	require.Empty(t, page.Data)
	require.NotNil(t, page.NextCursor)
	require.False(t, page.ScannedUntil.Before(id.Time(rows[n-2000].EventID)), "no more than 2,000 are looked into")
	require.Equal(t, []string{id.Event.Format(rows[0].EventID)}, b.listAll(t, path, 50))
}

func TestWrongSearchesAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for query, field := range map[string]string{
		"deliveries?limit=0":                      "limit",
		"deliveries?limit=201":                    "limit",
		"deliveries?cursor=evt_x":                 "cursor",
		"deliveries?cursor=":                      "cursor",
		"deliveries?state=failed":                 "state",
		"deliveries?state=":                       "state",
		"deliveries?lane=auto":                    "lane",
		"deliveries?destination_id=ep_x":          "destination_id",
		"deliveries?endpoint_id=x":                "endpoint_id",
		"deliveries?event_id=":                    "event_id",
		"deliveries?created_after=yesterday":      "created_after",
		"deliveries?created_before=2026-13-01":    "created_before",
		"deliveries?status=dead":                  "status",
		"deliveries?state=dead&state=pending":     "state",
		"deliveries?state=dead%00":                "state",
		"events?delivery_state=failed":            "delivery_state",
		"events?accepted_after=1":                 "accepted_after",
		"events?header_name=":                     "header_name",
		"events?header_name=a%20b":                "header_name",
		"events?header_value=push":                "header_value",
		"events?idempotency_key=":                 "idempotency_key",
		"events?content_type=":                    "content_type",
		"events?content_type=a%00":                "content_type",
		"events?content_type=%ff":                 "content_type",
		"events?content_type=a/b%3bcharset=utf-8": "content_type",
		"events?idempotency_key=" + strings.Repeat("k", webhook.MaxIdempotencyKey+1): "idempotency_key",
		"events?type=push": "type",
	} {
		p := problem(t, b.get(t, "/api/v1/"+query), 400, "invalid-parameter")
		require.NotNil(t, p.Field, query)
		require.Equal(t, field, *p.Field, query)
	}
	for _, path := range []string{"deliveries/" + id.Delivery.Format(id.New()), "attempts/" + id.Attempt.Format(id.New())} {
		p := problem(t, b.get(t, "/api/v1/"+path+"?x=1"), 400, "invalid-parameter")
		require.Equal(t, "x", *p.Field)
	}
}

func TestGetAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.PublicURL = "https://kapsel.example" })
	endpoint, destination := b.destination(t)
	event := acceptedID(t, b.ingest(t, endpoint, "hello", "X-Kept", "a value", "Authorization", "Bearer of the sender", "Kapsel-Attempt", "9"))
	delivery := b.deliveryOf(t, event)
	answered := func(headers, body []byte) func(*postgres.Attempt) {
		return func(a *postgres.Attempt) { a.ResponseHeaders, a.ResponseBody = headers, body }
	}
	b.recordWith(t, delivery, "retry", false, answered([]byte("Content-Type: text/plain\r\nX-A: 1\r\nX-A: 2\r\n"), []byte(sentResponse)))
	b.recordWith(t, delivery, "failed", true, answered(nil, nil)) // as when the sender could not record it
	get := func(number int) openapi.AttemptDetail {
		a := b.get(t, "/api/v1/attempts/"+id.Attempt.Format(id.AttemptOf(delivery, number)))
		require.NotContains(t, string(a.body), "Bearer of")
		require.NotContains(t, string(a.body), "a value")
		return read[openapi.AttemptDetail](t, a, 200)
	}

	got := get(1)
	require.Equal(t, read[openapi.Delivery](t, b.get(t, "/api/v1/deliveries/"+id.Delivery.Format(delivery)), 200).Attempts[0], got.Attempt)
	require.Equal(t, []string{id.Delivery.Format(delivery), event, endpoint, destination}, []string{got.DeliveryID, got.EventID, got.EndpointID, got.DestinationID})
	require.EqualValues(t, "POST", got.Request.Method)
	require.Equal(t, sentURL, got.Request.URL)
	require.Equal(t, 5, got.Request.BodySize)
	require.Equal(t, "https://kapsel.example/api/v1/events/"+event+"/payload", got.Request.BodyURL)
	require.Subset(t, *got.Request.HeaderNames, []string{"X-Kept", "Kapsel-Attempt", "Webhook-Id", "Webhook-Signature"})
	require.NotContains(t, *got.Request.HeaderNames, "Authorization")
	require.Equal(t, 503, got.Response.Status)
	require.Equal(t, map[string][]string{"Content-Type": {"text/plain"}, "X-A": {"1", "2"}}, *got.Response.Headers)
	body, err := base64.StdEncoding.DecodeString(*got.Response.Body)
	require.NoError(t, err)
	require.Equal(t, sentResponse, string(body))
	require.False(t, got.Leaf.Sealed)
	require.Nil(t, got.Leaf.Index)

	lost := get(2)
	require.Equal(t, 404, lost.Response.Status)
	require.Nil(t, lost.Response.Body)
	require.Nil(t, lost.Response.Headers)
	decision := get(0)
	require.Equal(t, "dead", decision.Attempt.Kind)
	require.Nil(t, decision.Request)
	require.Nil(t, decision.Response)

	b.seal(t)
	for number, index := range map[int]int64{1: 0, 2: 1, 0: 2} {
		leaf := get(number).Leaf
		require.True(t, leaf.Sealed)
		require.Equal(t, index, *leaf.Index)
		require.Equal(t, id.Log.Format(b.log.ID), *leaf.LogID)
		path, ok := strings.CutPrefix(leaf.ProofURL, "https://kapsel.example")
		require.True(t, ok)
		proof := read[openapi.InclusionProof](t, b.get(t, path), 200)
		require.Equal(t, index, proof.LeafIndex)
		require.Equal(t, leaf.Hash, proof.LeafHash)
		require.Equal(t, 200, b.get(t, strings.TrimPrefix(leaf.PackageURL, "https://kapsel.example")).status)
	}
	_, err = b.owner.Exec(t.Context(), "delete from event_payloads")
	require.NoError(t, err)
	require.Nil(t, get(1).Request.HeaderNames, "they were in the payload")
}

func TestDestinationStats(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, destination := b.destination(t)
	other, _ := b.destination(t)
	path := "/api/v1/destinations/" + destination + "/stats"
	empty := read[openapi.DestinationStats](t, b.get(t, path), 200)
	require.Equal(t, openapi.DestinationStats{Sample: openapi.DestinationSample{States: map[string]int{}}}, empty)

	b.record(t, b.deliveryOf(t, acceptedID(t, b.ingest(t, other, "not of it"))), "failed", true)
	oldest := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, "waits")))
	acceptedID(t, b.ingest(t, endpoint, "waits too"))
	for _, outcome := range []string{"delivered", "delivered", "failed"} {
		delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, outcome)))
		b.record(t, delivery, "retry", false)
		b.record(t, delivery, outcome, outcome == "failed")
	}
	got := read[openapi.DestinationStats](t, b.get(t, path), 200)
	require.Equal(t, 2, got.Waiting)
	require.False(t, got.WaitingIsMore)
	require.WithinDuration(t, id.Time(oldest), *got.OldestDueAt, time.Minute)
	require.Equal(t, 5, got.Sample.Deliveries)
	require.Equal(t, map[string]int{"pending": 2, "delivered": 2, "dead": 1}, got.Sample.States)
	require.Equal(t, 6, got.Sample.Attempts)
	require.EqualValues(t, 41, *got.Sample.DurationP50Ms)
	require.EqualValues(t, 41, *got.Sample.DurationP95Ms)
	require.Equal(t, "failed", got.Sample.LastFailure.Outcome)
	require.Equal(t, 404, got.Sample.LastFailure.ResponseStatus)
	require.Equal(t, id.Time(oldest), *got.Sample.Since)

	_, err := b.engine.Exec(t.Context(), "insert into delivery_queue (delivery_id, destination_id, tenant_id) select gen_random_uuid(), $1, $2 from generate_series(1, 10000)",
		destinationID(t, destination), b.tenant)
	require.NoError(t, err)
	got = read[openapi.DestinationStats](t, b.get(t, path), 200)
	require.Equal(t, 10_000, got.Waiting)
	require.True(t, got.WaitingIsMore)
}
