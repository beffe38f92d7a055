package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
)

// What a delivery blocks can be let go on by its tenant alone, and only if it blocks something.
func TestRelease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, `{"name":"orders","verification":{"scheme":"none"},
		"ordering":{"source":"header","header":"X-Order","on_dead":"block"},"destinations":[{"url":"https://example.com/in"}]}`)
	require.Equal(t, "header", string(endpoint.Ordering.Source))
	delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint.ID, "{}", "X-Order", "7")))
	require.Equal(t, http.StatusOK, b.ingest(t, endpoint.ID, "{}", "X-Order", "7").status)
	release := func(key, delivery string) answer {
		return b.do(t, http.MethodPost, "/api/v1/deliveries/"+delivery+"/release", nil, "Authorization", "Bearer "+key)
	}
	require.Equal(t, http.StatusConflict, release(b.key, id.Delivery.Format(delivery)).status, "it is pending")
	_, other := b.addTenant(t, "another")
	require.Equal(t, http.StatusNotFound, release(other, id.Delivery.Format(delivery)).status)
	require.Equal(t, http.StatusNotFound, release(b.key, id.Delivery.Format(id.New())).status)
	require.Equal(t, http.StatusNotFound, release(b.key, "dlv_x").status)
	b.record(t, delivery, "failed", true)
	require.Equal(t, 0, b.count(t, "delivery_queue"))
	require.Equal(t, http.StatusNotFound, release(other, id.Delivery.Format(delivery)).status)
	got := release(b.key, id.Delivery.Format(delivery))
	require.Equal(t, http.StatusNoContent, got.status, string(got.body))
	require.Equal(t, 1, b.count(t, "delivery_queue"))
	require.Equal(t, http.StatusConflict, release(b.key, id.Delivery.Format(delivery)).status)
}

// What becomes of the deliveries behind a dead one can be changed while some wait; what they are ordered by can't.
func TestChangeAnOrdering(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const by = `{"source":"header","header":"X-Order","on_dead":`
	endpoint := b.createEndpoint(t, `{"name":"orders","verification":{"scheme":"none"},"ordering":`+by+`"block"},
		"destinations":[{"url":"https://example.com/in"}]}`)
	path := "/api/v1/endpoints/" + endpoint.ID
	accept := func(key string) (deliveries []uuid.UUID) {
		for range 2 {
			deliveries = append(deliveries, b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint.ID, "{}", "X-Order", key))))
		}
		return deliveries
	}
	first, second := accept("1"), accept("2")
	b.record(t, first[0], "failed", true)
	require.Equal(t, 1, b.count(t, "delivery_queue"), "the first of the other key")

	changed := read[openapi.Endpoint](t, b.patch(t, path, `{"name":"skipping","ordering":{"source":"header","header":"x-order","on_dead":"skip"}}`), 200)
	require.Equal(t, openapi.OrderingOnDead("skip"), changed.Ordering.OnDead)
	require.Equal(t, 1, b.count(t, "delivery_queue"), "what blocks goes on blocking, because nobody has looked at it")
	b.record(t, second[0], "failed", true)
	require.Equal(t, 1, b.count(t, "delivery_queue"), "the next of the other key goes on without it")
	require.Equal(t, http.StatusNoContent, b.post(t, "/api/v1/deliveries/"+id.Delivery.Format(first[0])+"/release", "").status)
	require.Equal(t, 2, b.count(t, "delivery_queue"), "nothing is stranded")

	read[openapi.Endpoint](t, b.patch(t, path, `{"ordering":`+by+`"block"}}`), 200)
	third := accept("2")
	b.record(t, second[1], "failed", true)
	require.Equal(t, 1, b.count(t, "delivery_queue"), "and from then on it blocks again")
	require.NotEmpty(t, third)

	before := b.get(t, path)
	for body, field := range map[string]string{
		`{"name":"x","ordering":{"source":"endpoint","on_dead":"block"}}`:                    "ordering.source",
		`{"name":"x","ordering":{"source":"jsonpath","path":"$.id","on_dead":"block"}}`:      "ordering.source",
		`{"name":"x","ordering":{"source":"header","header":"X-Other","on_dead":"block"}}`:   "ordering.header",
		`{"ordering":{"source":"header","header":"X-Order"}}`:                                "ordering.on_dead",
		`{"ordering":{"source":"header","header":"X-Order","path":"$.id","on_dead":"skip"}}`: "ordering.path",
		`{"ordering":{"source":"header","header":"X-Order","on_dead":"wait"}}`:               "ordering.on_dead",
		`{"ordering":null}`: "ordering",
	} {
		p := problem(t, b.patch(t, path, body), 422, "invalid-field")
		require.Equal(t, field, *p.Field, body)
	}
	p := problem(t, b.patch(t, path, `{"ordering":{"source":"endpoint","on_dead":"block"}}`), 422, "invalid-field")
	require.Contains(t, p.Detail, "only on_dead can. Make an endpoint with the ordering that you want")
	require.Equal(t, string(before.body), string(b.get(t, path).body), "not even the name")

	plain := b.createEndpoint(t, `{"name":"plain","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/in"}]}`)
	p = problem(t, b.patch(t, "/api/v1/endpoints/"+plain.ID, `{"ordering":`+by+`"block"}}`), 422, "invalid-field")
	require.Equal(t, "ordering", *p.Field)
	require.Contains(t, p.Detail, "can't be added")
	_, other := b.addTenant(t, "another")
	require.Equal(t, http.StatusNotFound, b.do(t, http.MethodPatch, path, strings.NewReader(`{"ordering":`+by+`"skip"}}`), "Authorization", "Bearer "+other).status)
}
