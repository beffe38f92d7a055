package api_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
)

const operationalEndpoint = `{"name":"Operations","operational":true,"verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/ops"}]}`

func TestAnOperationalEndpointTakesNothingFromOutside(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ordinary := b.createEndpoint(t, plainEndpoint)
	require.False(t, ordinary.Operational)
	require.NotEmpty(t, ordinary.IngestURL)

	created := b.createEndpoint(t, operationalEndpoint)
	require.True(t, created.Operational)
	require.Empty(t, created.IngestURL)
	require.NotEmpty(t, created.Destinations[0].SigningSecret)
	shown := read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+created.ID), 200)
	require.True(t, shown.Operational)
	require.NotContains(t, string(b.get(t, "/api/v1/endpoints/"+created.ID).body), "ingest_url")
	page := read[openapi.EndpointPage](t, b.get(t, "/api/v1/endpoints"), 200)
	require.Len(t, page.Data, 2)
	require.True(t, page.Data[0].Operational)
	require.False(t, page.Data[1].Operational)

	problem(t, b.ingest(t, created.ID, "{}"), 404, "not-found")
	problem(t, b.do(t, "GET", "/ingest/"+created.ID+"?hub.challenge=x", nil), 404, "not-found")
	b.requireNothingStored(t)
}

// A tenant has one; other tenants have theirs.
func TestOneOperationalEndpointOfATenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const atOnce = 6
	answers := make([]answer, atOnce)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() { answers[i] = b.post(t, "/api/v1/endpoints", operationalEndpoint) })
	}
	all.Wait()
	var created []openapi.Endpoint
	for _, a := range answers {
		if a.status == 201 {
			created = append(created, read[openapi.Endpoint](t, a, 201))
			continue
		}
		problem(t, a, 409, "limit-reached")
	}
	require.Len(t, created, 1)
	require.Equal(t, 1, b.count(t, "endpoints"))
	require.Equal(t, 1, b.count(t, "destinations"))

	mine := b.key
	_, b.key = b.addTenant(t, "Other Bank")
	b.createEndpoint(t, operationalEndpoint)
	problem(t, b.get(t, "/api/v1/endpoints/"+created[0].ID), 404, "not-found")
	b.key = mine
	a := b.do(t, "DELETE", "/api/v1/endpoints/"+created[0].ID, nil, "Authorization", "Bearer "+b.key)
	require.Equal(t, 204, a.status, "%s", a.body)
	b.createEndpoint(t, operationalEndpoint)
}

func TestWhatAnOperationalEndpointHasNoUseFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const secret = `"secrets":["It's a Secret to Everybody"]`
	for field, member := range map[string]string{
		"verification.scheme": `"verification":{"scheme":"github"},` + secret,
		"secrets":             secret,
		"duplicates":          `"duplicates":{"source":"content"}`,
		"ordering":            `"ordering":{"source":"endpoint","on_dead":"skip"}`,
		"event_type":          `"event_type":{"source":"header","header":"X-Type"}`,
	} {
		body := strings.Replace(operationalEndpoint, `"operational":true`, `"operational":true,`+member, 1)
		if strings.HasPrefix(member, `"verification"`) {
			body = strings.Replace(body, `"verification":{"scheme":"none"},`, "", 1)
		}
		p := problem(t, b.post(t, "/api/v1/endpoints", body), 422, "invalid-field")
		require.Equal(t, field, *p.Field)
		require.Contains(t, p.Detail, "an operational endpoint, which takes nothing from outside")
	}
	problem(t, b.post(t, "/api/v1/endpoints", strings.Replace(operationalEndpoint, "true", `"yes"`, 1)), 422, "invalid-field")
	require.Zero(t, b.count(t, "endpoints"))

	created := b.createEndpoint(t, operationalEndpoint)
	patch := func(body string) answer {
		return b.do(t, "PATCH", "/api/v1/endpoints/"+created.ID, strings.NewReader(body), "Authorization", "Bearer "+b.key, "Content-Type", "application/json")
	}
	for field, body := range map[string]string{
		"verification": `{"verification":{"scheme":"github"},` + secret + `}`,
		"duplicates":   `{"duplicates":{"source":"content"}}`,
		"event_type":   `{"event_type":{"source":"header","header":"X-Type"}}`,
	} {
		p := problem(t, patch(body), 422, "invalid-field")
		require.Equal(t, field, *p.Field)
	}
	problem(t, patch(`{"operational":false}`), 422, "invalid-field")
	p := problem(t, b.post(t, "/api/v1/endpoints/"+created.ID+"/secrets", `{"secret":"It's a Secret to Everybody"}`), 422, "invalid-field")
	require.NotEmpty(t, p.Detail)
	changed := read[openapi.Endpoint](t, patch(`{"name":"On call","lane":"workflow"}`), 200)
	require.True(t, changed.Operational)
	require.Equal(t, "On call", changed.Name)
	require.Zero(t, changed.SecretCount)
}
