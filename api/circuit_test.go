package api_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
)

func TestCircuitSettingsAreStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	created := b.createEndpoint(t, `{"name":"n","verification":{"scheme":"none"},"destinations":[
		{"url":"https://example.com/default"},
		{"url":"https://example.com/off","circuit":{"off":true}},
		{"url":"https://example.com/on","circuit":{"off":false,"open_ms":1000}},
		{"url":"https://example.com/all","circuit":{"failures_in_row":1,"failures_of_last_10":10,"open_ms":3600000,"successes":100,"ramp_per_second":1000}}]}`)
	for i, stored := range []string{
		`{"failures_in_row":5,"failures_of_last_10":5,"open_ms":30000,"successes":3,"ramp_per_second":1}`,
		`{"off":true}`,
		`{"failures_in_row":5,"failures_of_last_10":5,"open_ms":1000,"successes":3,"ramp_per_second":1}`,
		`{"failures_in_row":1,"failures_of_last_10":10,"open_ms":3600000,"successes":100,"ramp_per_second":1000}`,
	} {
		var found string
		require.NoError(t, b.engine.QueryRow(t.Context(), "select circuit from destinations where url = $1", created.Destinations[i].URL).Scan(&found))
		require.JSONEq(t, stored, found, "as workers read it")
		require.Equal(t, openapi.CircuitState("closed"), created.Destinations[i].Circuit.State)
	}
	require.True(t, *created.Destinations[1].Circuit.Settings.Off)
	require.Nil(t, created.Destinations[1].Circuit.Settings.OpenMs)
	require.EqualValues(t, 1000, *created.Destinations[2].Circuit.Settings.OpenMs)
	read := read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+created.ID), 200)
	for i := range created.Destinations {
		require.Equal(t, created.Destinations[i].Circuit, read.Destinations[i].Circuit)
	}
}

func TestCircuitsAreShown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	destination := read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+endpoint), 200).Destinations[0]
	destinationID, err := id.Destination.Parse(destination.ID)
	require.NoError(t, err)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	_, err = b.engine.Exec(t.Context(), `insert into circuits (destination_id, tenant_id, state, ring, opened_at, probe_until, failing_since, failed_at)
		select id, tenant_id, 'open', 31, $2, $3, $4, $5 from destinations where id = $1`,
		destinationID, at, at.Add(30*time.Second), at.Add(-time.Hour), at)
	require.NoError(t, err)
	shown := read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+endpoint), 200).Destinations[0].Circuit
	require.Equal(t, openapi.CircuitState("open"), shown.State)
	require.True(t, at.Equal(*shown.OpenedAt))
	require.True(t, at.Add(30*time.Second).Equal(*shown.ProbeAt))
	require.True(t, at.Add(-time.Hour).Equal(*shown.FailingSince))
	require.True(t, at.Equal(*shown.LastFailureAt))
	require.Equal(t, destination.Circuit.Settings, shown.Settings)
}
