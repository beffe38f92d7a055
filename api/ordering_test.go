package api_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

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
