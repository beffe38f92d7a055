package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
)

// Limits and circuits of a destination can be changed, taken away, and are checked as at creation.
func TestLimitsAndCircuitsAreChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, `{"name":"n","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/in","max_concurrency":5}]}`)
	change := func(body string) answer {
		return b.do(t, http.MethodPatch, "/api/v1/destinations/"+endpoint.Destinations[0].ID, strings.NewReader(body),
			"Authorization", "Bearer "+b.key, "Content-Type", "application/json")
	}
	changed := func(body string) (d openapi.Destination) {
		got := change(body)
		require.Equal(t, http.StatusOK, got.status, string(got.body))
		require.NoError(t, json.Unmarshal(got.body, &d))
		return d
	}
	d := changed(`{"rate_per_second":7,"circuit":{"off":true}}`)
	require.Equal(t, 5, *d.MaxConcurrency)
	require.Equal(t, 7, *d.RatePerSecond)
	require.True(t, *d.Circuit.Settings.Off)
	d = changed(`{"max_concurrency":0}`)
	require.Nil(t, d.MaxConcurrency)
	require.Equal(t, 7, *d.RatePerSecond)
	require.True(t, *d.Circuit.Settings.Off)
	for body, field := range map[string]string{
		`{"max_concurrency":-1}`:             "max_concurrency",
		`{"rate_per_second":10001}`:          "rate_per_second",
		`{"circuit":{"failures_in_row":-1}}`: "circuit",
	} {
		got := change(body)
		require.GreaterOrEqual(t, got.status, 400, body)
		require.Less(t, got.status, 500, body)
		require.Contains(t, string(got.body), field, body)
	}
}
