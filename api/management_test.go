package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/webhook"
)

func TestCreateEndpoint(t *testing.T) {
	t.Parallel()
	b := setup(t, allowLoopback, func(c *api.Config) { c.PublicURL = "https://kapsel.example/" })
	created := b.createEndpoint(t, `{
		"name": "Bank of \u00c5land", "verification": {"scheme": "hmac", "hmac": {"header": "X-Sig"}},
		"secrets": ["sixteen bytes or more", "seventeen bytes or more"],
		"duplicates": {"source": "header", "header": "X-Id", "window_seconds": 60}, "lane": "workflow",
		"destinations": [
			{"url": "http://127.0.0.1:8080/in?a=b", "timeout_ms": 100, "schedule": {"type": "list", "delays_ms": [10, 20]},
			 "headers": {"x-team": "payments", "Authorization": "Bearer of the receiver"}, "secret_path": true},
			{"url": "https://hooks.slack.com/services/T/B/token", "schedule": {"type": "none"}},
			{"url": "https://example.com", "max_concurrency": 10000, "rate_per_second": 1}
		]}`)
	require.Equal(t, "Bank of Åland", created.Name)
	require.Equal(t, "https://kapsel.example/ingest/"+created.ID, created.IngestURL)
	require.Equal(t, 2, created.SecretCount)
	require.Equal(t, "workflow", created.Lane)
	require.Equal(t, "X-Sig", created.Verification.Hmac.Header)
	require.EqualValues(t, 60, *created.Duplicates.WindowSeconds)

	first, slack, plain := created.Destinations[0], created.Destinations[1], created.Destinations[2]
	require.Equal(t, []string{"Authorization", "X-Team"}, first.HeaderNames)
	require.Equal(t, []int64{10, 20}, *first.Schedule.DelaysMs)
	require.Equal(t, 3, *first.Schedule.MaxAttempts)
	require.Equal(t, 100, first.TimeoutMs)
	require.True(t, first.SecretPath)
	require.True(t, slack.SecretPath, "the default for a host that puts credentials there")
	require.Equal(t, 1, *slack.Schedule.MaxAttempts)
	require.False(t, plain.SecretPath)
	require.Equal(t, 30_000, plain.TimeoutMs)
	require.Equal(t, 10, *plain.Schedule.MaxAttempts)
	require.Equal(t, []int{10_000, 1}, []int{*plain.MaxConcurrency, *plain.RatePerSecond})
	require.Nil(t, first.MaxConcurrency)
	require.Nil(t, first.RatePerSecond)
	for i := range created.Destinations {
		secret := created.Destinations[i].SigningSecret
		bytes, err := webhook.ParseSigningSecret(*secret)
		require.NoError(t, err)
		require.Len(t, bytes, 32)
		created.Destinations[i].SigningSecret = nil // in no other answer
	}

	got := b.get(t, "/api/v1/endpoints/"+created.ID)
	require.Equal(t, created, read[openapi.Endpoint](t, got, 200))
	for _, secret := range []string{"sixteen", "Bearer of", "whsec_"} {
		require.NotContains(t, string(got.body), secret)
	}
	list := read[openapi.EndpointPage](t, b.get(t, "/api/v1/endpoints"), 200)
	require.Equal(t, []openapi.Endpoint{created}, list.Data)
	require.Nil(t, list.NextCursor)

	var headers string
	require.NoError(t, b.engine.QueryRow(t.Context(), "select headers from destinations where headers <> '{}'").Scan(&headers))
	require.JSONEq(t, `{"X-Team": ["payments"], "Authorization": ["Bearer of the receiver"]}`, headers, "as workers read it")
}

func TestAddDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	acceptedID(t, b.ingest(t, endpoint, "to one"))
	added := read[openapi.Destination](t, b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://example.com/2"}`), 201)
	require.NotNil(t, added.SigningSecret)
	event := acceptedID(t, b.ingest(t, endpoint, "to both, at once")) // what this process remembered is forgotten
	require.Len(t, read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Deliveries, 2)

	p := problem(t, b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://user@example.com"}`), 422, "invalid-field")
	require.Equal(t, "url", *p.Field)
	problem(t, b.post(t, "/api/v1/endpoints/"+id.Endpoint.Format(id.New())+"/destinations", `{"url":"https://example.com"}`), 404, "not-found")
	problem(t, b.post(t, "/api/v1/endpoints/x/destinations", `{"url":"https://example.com"}`), 404, "not-found")
	require.Equal(t, 2, b.count(t, "destinations"))
}

func TestAnEndpointHasAtMostAHundredDestinations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	many := strings.TrimSuffix(strings.Repeat(`{"url":"https://example.com"},`, 100), ",")
	p := problem(t, b.post(t, "/api/v1/endpoints", `{"name":"n","verification":{"scheme":"none"},"destinations":[`+many+`,{"url":"https://example.com"}]}`), 422, "invalid-field")
	require.Equal(t, "destinations", *p.Field)
	endpoint := b.createEndpoint(t, `{"name":"n","verification":{"scheme":"none"},"destinations":[`+many+`]}`).ID
	problem(t, b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://example.com"}`), 409, "limit-reached")
}

// Each names the field that is wrong, says what is allowed, and stores nothing.
func TestWrongEndpointsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// endpoint is a right one with some members exchanged.
	endpoint := func(members ...string) string {
		right := map[string]string{"name": `"n"`, "verification": `{"scheme":"none"}`, "destinations": `[{"url":"https://example.com"}]`}
		for i := 0; i < len(members); i += 2 {
			right[members[i]] = members[i+1]
		}
		var parts []string
		for name, value := range right {
			if value != "" {
				parts = append(parts, fmt.Sprintf("%q:%s", name, value))
			}
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	destination := func(members string) string {
		return endpoint("destinations", `[{"url":"https://example.com"},{`+members+`}]`)
	}
	for _, c := range []struct{ body, field, says string }{
		{endpoint("name", ""), "name", "is missing"},
		{endpoint("name", `""`), "name", "1 to 200"},
		{endpoint("name", `"`+strings.Repeat("ü", 201)+`"`), "name", "1 to 200"},
		{endpoint("name", `"a\u0000b"`), "name", "without NUL"},
		{endpoint("name", `"a\nb"`), "name", "control"},
		{endpoint("name", `7`), "name", "a string"},
		{endpoint("name", `null`), "name", "a string"},
		{endpoint("Name", `"n"`), "Name", "unknown"},
		{endpoint("nam\u017f", `"n"`), "nam\u017f", "unknown"},
		{`{"name":"n","name":"n"}`, "name", "twice"},
		{endpoint("color", `"red"`), "color", "Known are attest_acceptance, destinations, duplicates, event_type, lane, name, operational, ordering, record_skipped, secrets, verification"},
		{endpoint("verification", ""), "verification", "is missing"},
		{endpoint("verification", `"none"`), "verification", "a JSON object"},
		{endpoint("verification", `{}`), "verification.scheme", "is missing"},
		{endpoint("verification", `{"scheme":"pigeon"}`), "verification.scheme", `one of "api_key", "basic", "github", "hmac", "none", `},
		{endpoint("verification", `{"scheme":"stripe","tolerance_seconds":0}`), "verification.tolerance_seconds", "1 to 86400, not 0"},
		{endpoint("verification", `{"scheme":"stripe","tolerance_seconds":86401}`), "verification.tolerance_seconds", "1 to 86400"},
		{endpoint("verification", `{"scheme":"github","tolerance_seconds":60}`), "verification.tolerance_seconds", "no meaning"},
		{endpoint("verification", `{"scheme":"hmac","hmac":{"header":"X","signed":"{url}{body}"}}`), "verification.hmac.signed", "must end in {body}"},
		{endpoint("verification", `{"scheme":"hmac","hmac":{"header":"X","signed":"{timestamp}.{body}"}}`), "verification.hmac.timestamp_header", "name of a header"},
		{endpoint("verification", `{"scheme":"standard","standard":{"headers":"hook"}}`), "verification.standard.headers", `"webhook" or "svix"`},
		{endpoint("verification", `{"scheme":"standard"}`, "secrets", `["sixteen bytes or more"]`), "secrets[0]", "whsec_"},
		{endpoint("verification", `{"scheme":"basic"}`, "secrets", `["sixteen bytes or more"]`), "secrets[0]", "a user name, a colon"},
		{endpoint("verification", `{"scheme":"api_key"}`), "verification.api_key", "needed"},
		{endpoint("verification", `{"scheme":"api_key","api_key":{"header":"X"}}`, "secrets", `[" sixteen bytes or more"]`), "secrets[0]", "white space"},
		{endpoint("verification", `{"scheme":"none","handshake":{"type":"smoke"}}`), "verification.handshake.type", `one of "slack", "meta"`},
		{endpoint("verification", `{"scheme":"none","handshake":{"type":"slack"}}`), "verification.handshake.type", "goes with"},
		{endpoint("verification", `{"scheme":"none","handshake":{"type":"meta"}}`), "verification.handshake.verify_token", "16 to 255 bytes"},
		{endpoint("verification", `{"scheme":"none","handshake":{"type":"meta","verify_token":"secret\r"}}`), "verification.handshake.verify_token", "not 7"},
		{endpoint("verification", `{"scheme":"none","handshake":{"type":"dropbox","verify_token":"a token of sixteen"}}`), "verification.handshake.verify_token", "no meaning"},
		{endpoint("verification", `{"scheme":"hmac"}`), "verification.hmac", "needed"},
		{endpoint("verification", `{"scheme":"hmac","hmac":{}}`), "verification.hmac.header", "missing"},
		{endpoint("verification", `{"scheme":"hmac","hmac":{"header":"not a name"}}`), "verification.hmac.header", "name of a header"},
		{endpoint("verification", `{"scheme":"hmac","hmac":{"header":"X","algorithm":"md5"}}`), "verification.hmac.algorithm", "sha256"},
		{endpoint("verification", `{"scheme":"hmac","hmac":{"header":"host"}}`), "verification.hmac.header", "belongs to the connection"},
		{endpoint("verification", `{"scheme":"github","hmac":{"header":"X"}}`), "verification.hmac", "no meaning"},
		{endpoint("verification", `{"scheme":"github"}`), "secrets", "1 to 10"},
		{endpoint("secrets", `["sixteen bytes or more"]`), "secrets", "no meaning"},
		{endpoint("verification", `{"scheme":"github"}`, "secrets", `["sixteen bytes or more","short and secret"]`, "lane", `"x"`), "lane", "auto"},
		{endpoint("verification", `{"scheme":"github"}`, "secrets", `["sixteen bytes or more","too short"]`), "secrets[1]", "16 to 1024 bytes, not 9"},
		{endpoint("secrets", `[1]`), "secrets[0]", "a string"},
		{endpoint("secrets", `{}`), "secrets", "an array"},
		{endpoint("duplicates", `{"source":"magic"}`), "duplicates.source", "must be"},
		{endpoint("duplicates", `{"source":"header"}`), "duplicates.header", "name of a header"},
		{endpoint("duplicates", `{"source":"header","header":"Content-Length"}`), "duplicates.header", "belongs to the connection"},
		{endpoint("duplicates", `{"window_seconds":604801}`), "duplicates.window_seconds", "1 to 604800"},
		{endpoint("duplicates", `{"window_seconds":0}`), "duplicates.window_seconds", "1 to 604800"},
		{endpoint("duplicates", `{"window_seconds":1.5}`), "duplicates.window_seconds", "integer"},
		{endpoint("duplicates", `{"window_seconds":1e30}`), "duplicates.window_seconds", "integer"},
		{endpoint("lane", `"fast"`), "lane", `"auto", "workflow" or "batch"`},
		{endpoint("destinations", `[]`), "destinations", "1 to 100"},
		{endpoint("destinations", ""), "destinations", "missing"},
		{destination(``), "destinations[1].url", "missing"},
		{destination(`"url":"ftp://example.com"`), "destinations[1].url", "http"},
		{destination(`"url":"http://127.0.0.1/"`), "destinations[1].url", "private"},
		{destination(`"url":"http://[::ffff:10.0.0.1]/"`), "destinations[1].url", "private"},
		{destination(`"url":"http://localhost:3000"`), "destinations[1].url", "private"},
		{destination(`"url":"http://2130706433/"`), "destinations[1].url", "four decimal numbers"},
		{destination(`"url":"https://user:secret@example.com"`), "destinations[1].url", "user name"},
		{destination(`"url":"https://-example.com"`), "destinations[1].url", "host name"},
		{destination(`"url":"https://example.com","urll":"x"`), "destinations[1].urll", "unknown"},
		{destination(`"url":"https://example.com","timeout_ms":99`), "destinations[1].timeout_ms", "100 to 120000, not 99"},
		{destination(`"url":"https://example.com","max_concurrency":0`), "destinations[1].max_concurrency", "1 to 10000, not 0"},
		{destination(`"url":"https://example.com","max_concurrency":10001`), "destinations[1].max_concurrency", "1 to 10000"},
		{destination(`"url":"https://example.com","max_concurrency":1.5`), "destinations[1].max_concurrency", "integer"},
		{destination(`"url":"https://example.com","rate_per_second":-1`), "destinations[1].rate_per_second", "1 to 10000, not -1"},
		{destination(`"url":"https://example.com","rate_per_second":"5"`), "destinations[1].rate_per_second", "integer"},
		{destination(`"url":"https://example.com","timeout_ms":0`), "destinations[1].timeout_ms", "100 to 120000"},
		{destination(`"url":"https://example.com","timeout_ms":"1s"`), "destinations[1].timeout_ms", "integer"},
		{destination(`"url":"https://example.com","secret_path":1`), "destinations[1].secret_path", "true or false"},
		{destination(`"url":"https://example.com","schedule":{"type":"random"}`), "destinations[1].schedule.type", "exponential"},
		{destination(`"url":"https://example.com","schedule":{"max_attempts":101}`), "destinations[1].schedule.max_attempts", "1 to 100, not 101"},
		{destination(`"url":"https://example.com","schedule":{"max_attempts":0}`), "destinations[1].schedule.max_attempts", "must not be 0"},
		{destination(`"url":"https://example.com","schedule":{"factor":"2"}`), "destinations[1].schedule.factor", "a number"},
		{destination(`"url":"https://example.com","schedule":{"type":"list"}`), "destinations[1].schedule.delays_ms", "1 to 99"},
		{destination(`"url":"https://example.com","schedule":{"type":"list","delays_ms":[10,9]}`), "destinations[1].schedule.delays_ms[1]", "not 9"},
		{destination(`"url":"https://example.com","schedule":{"type":"none","factor":2}`), "destinations[1].schedule.factor", "no meaning"},
		{destination(`"url":"https://example.com","circuit":{"failures_in_row":11}`), "destinations[1].circuit.failures_in_row", "1 to 10, not 11"},
		{destination(`"url":"https://example.com","circuit":{"failures_of_last_10":-1}`), "destinations[1].circuit.failures_of_last_10", "1 to 10, not -1"},
		{destination(`"url":"https://example.com","circuit":{"open_ms":999}`), "destinations[1].circuit.open_ms", "1000 to 3600000, not 999"},
		{destination(`"url":"https://example.com","circuit":{"open_ms":0}`), "destinations[1].circuit.open_ms", "must not be 0"},
		{destination(`"url":"https://example.com","circuit":{"successes":101}`), "destinations[1].circuit.successes", "1 to 100"},
		{destination(`"url":"https://example.com","circuit":{"ramp_per_second":1001}`), "destinations[1].circuit.ramp_per_second", "1 to 1000"},
		{destination(`"url":"https://example.com","circuit":{"off":true,"successes":1}`), "destinations[1].circuit.off", "must be the only setting"},
		{destination(`"url":"https://example.com","circuit":{"off":"yes"}`), "destinations[1].circuit.off", "true or false"},
		{destination(`"url":"https://example.com","circuit":{"state":"open"}`), "destinations[1].circuit.state", "unknown"},
		{destination(`"url":"https://example.com","circuit":"off"`), "destinations[1].circuit", "a JSON object"},
		{destination(`"url":"https://example.com","headers":{"Host":"x"}`), "destinations[1].headers", "Host"},
		{destination(`"url":"https://example.com","headers":{"X":"a secret\r\n"}`), "destinations[1].headers", "control"},
		{destination(`"url":"https://example.com","headers":{"x-a":"1","X-A":"2"}`), "destinations[1].headers", "twice"},
		{destination(`"url":"https://example.com","headers":{"X":1}`), "destinations[1].headers.X", "a string"},
	} {
		a := b.post(t, "/api/v1/endpoints", c.body)
		p := problem(t, a, 422, "invalid-field")
		require.NotNil(t, p.Field, c.body)
		require.Equal(t, c.field, *p.Field, c.body)
		require.Contains(t, p.Detail, c.says, c.body)
		require.True(t, strings.HasPrefix(p.Detail, c.field+" "), p.Detail)
		require.NotContains(t, p.Detail, "secret\r", "no value of a header is told")
	}
	for _, body := range []string{"", "[]", "7", "{", `{"name":"n"`, `{"name":"n"}}`, endpoint() + "x", endpoint() + endpoint(), "\xff", `{"a":}`} {
		a := b.post(t, "/api/v1/endpoints", body)
		require.Contains(t, []int{400, 422}, a.status, "%q: %s", body, a.body)
	}
	problem(t, b.post(t, "/api/v1/endpoints", strings.Repeat(" ", 1<<20+1)), 413, "too-large")
	for _, table := range []string{"endpoints", "endpoint_secrets", "destinations", "destination_secrets"} {
		require.Zero(t, b.count(t, table), table)
	}
}

func TestAPIKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, header := range []string{"", b.key, "Basic " + b.key, "Bearer", "Bearer ", "Bearer " + b.key + "x", "Bearer  " + b.key, "Bearer kapsel_"} {
		var headers []string
		if header != "" {
			headers = []string{"Authorization", header}
		}
		for _, path := range []string{"/api/v1/events", "/api/v1/events?limit=x", "/api/v1/endpoints", "/api/v1/attestation/proof/da_x", "/api/v1/attestation/download-proof/da_x"} {
			a := b.do(t, "GET", path, nil, headers...)
			problem(t, a, 401, "unauthorized")
			require.Contains(t, a.header.Get("WWW-Authenticate"), "Bearer")
		}
		problem(t, b.do(t, "POST", "/api/v1/endpoints", strings.NewReader("{"), headers...), 401, "unauthorized")
	}
	problem(t, b.do(t, "GET", "/api/v1/events", nil, "Authorization", "Bearer "+b.key, "Authorization", "Bearer "+b.key), 401, "unauthorized")
	require.Equal(t, 200, b.do(t, "GET", "/api/v1/events", nil, "Authorization", "bearer "+b.key).status)

	revoked, err := admin.CreateAPIKey(t.Context(), b.owner, b.tenant, "revoked", nil)
	require.NoError(t, err)
	require.Equal(t, 200, b.do(t, "GET", "/api/v1/events", nil, "Authorization", "Bearer "+revoked.Key).status)
	_, err = b.owner.Exec(t.Context(), "update api_keys set revoked_at = now() where id = $1", revoked.ID)
	require.NoError(t, err)
	problem(t, b.do(t, "GET", "/api/v1/events", nil, "Authorization", "Bearer "+revoked.Key), 401, "unauthorized")
	_, err = b.owner.Exec(t.Context(), "update tenants set deleted_at = now()")
	require.NoError(t, err)
	problem(t, b.get(t, "/api/v1/events"), 401, "unauthorized")
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/", "/api/v1/", "/api/v1/events/", "/api/v2/events", "/ingest", "/log/x/checkpoint", "/log/" + id.Log.Format(id.New()) + "/checkpoint",
		"/api/v1/events/evt_x", "/api/v1/events/" + id.Event.Format(id.New()), "/api/v1/events/" + id.Event.Format(id.New()) + "/payload",
		"/api/v1/endpoints/" + id.Endpoint.Format(id.New()), "/api/v1/endpoints/" + id.Event.Format(id.New()),
		"/api/v1/attestation/proof/" + id.Attempt.Format(id.New()), "/api/v1/attestation/download-proof/nonsense"} {
		problem(t, b.get(t, path), 404, "not-found")
	}
	for _, method := range []string{"DELETE", "PUT", "PATCH"} {
		a := b.do(t, method, "/api/v1/endpoints", nil)
		problem(t, a, 405, "method-not-allowed")
		require.NotEmpty(t, a.header.Get("Allow"))
	}
	for path, field := range map[string]string{
		"/api/v1/events?limit=0": "limit", "/api/v1/events?limit=201": "limit", "/api/v1/events?limit=x": "limit",
		"/api/v1/events?cursor=ep_x": "cursor", "/api/v1/events?endpoint_id=x": "endpoint_id", "/api/v1/endpoints?limit=-1": "limit",
		"/api/v1/attestation/consistency-proof":                       "old_size",
		"/api/v1/attestation/consistency-proof?old_size=1":            "new_size",
		"/api/v1/attestation/consistency-proof?old_size=0&new_size=1": "old_size",
		"/api/v1/attestation/consistency-proof?old_size=2&new_size=1": "new_size",
		"/api/v1/attestation/sth?log=x":                               "log",
		"/api/v1/attestation/proof/da_x?tree_size=big":                "tree_size",
	} {
		p := problem(t, b.get(t, path), http.StatusBadRequest, "invalid-parameter")
		require.NotNil(t, p.Field, path)
		require.Equal(t, field, *p.Field)
	}
}
