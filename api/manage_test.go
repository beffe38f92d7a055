package api_test

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/webhook"
)

// send sends JSON, or nothing, with the tenant's key.
func (b *testBundle) send(t testing.TB, method, path, body string) answer {
	t.Helper()
	return b.do(t, method, path, strings.NewReader(body), "Authorization", "Bearer "+b.key, "Content-Type", "application/json")
}

// destination makes a plain endpoint and returns its ID and that of its only destination.
func (b *testBundle) destination(t testing.TB) (endpoint, destination string) {
	t.Helper()
	e := b.createEndpoint(t, plainEndpoint)
	return e.ID, e.Destinations[0].ID
}

func destinationID(t testing.TB, name string) uuid.UUID {
	t.Helper()
	u, err := id.Destination.Parse(name)
	require.NoError(t, err)
	return u
}

func TestUpdateDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, name := b.destination(t)
	path := "/api/v1/destinations/" + name
	d := read[openapi.Destination](t, b.get(t, path), 200)
	require.Equal(t, endpoint, d.EndpointID)
	require.Equal(t, "https://example.com/in", d.URL)
	require.Nil(t, d.SigningSecret)
	require.Equal(t, read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+endpoint), 200).Destinations[0], d)

	// Each change changes what it names and nothing else.
	for _, step := range []struct {
		body   string
		change func()
	}{
		{`{"timeout_ms":100}`, func() { d.TimeoutMs = 100 }},
		{`{"headers":{"x-team":"payments","Authorization":"Bearer of the receiver"}}`, func() { d.HeaderNames = []string{"Authorization", "X-Team"} }},
		{`{"headers":{"x-other":"x"}}`, func() { d.HeaderNames = []string{"X-Other"} }},
		{`{"url":"https://example.com/a/b?c=d"}`, func() { d.URL = "https://example.com/a/b?c=d" }},
		{`{"secret_path":true}`, func() { d.SecretPath = true }},
		{`{"url":"https://example.com/other"}`, func() { d.URL = "https://example.com/other" }}, // and stays secret
		{`{"secret_path":false}`, func() { d.SecretPath = false }},
		{`{"url":"https://hooks.slack.com/services/T/B/token"}`, func() { d.URL, d.SecretPath = "https://hooks.slack.com/services/T/B/token", true }},
		{`{"url":"https://hooks.slack.com/services/open","secret_path":false}`, func() { d.URL, d.SecretPath = "https://hooks.slack.com/services/open", false }},
		{`{"schedule":{"type":"list","delays_ms":[10,20]}}`, func() {
			kind, attempts := openapi.ScheduleTypeList, 3
			d.Schedule = openapi.Schedule{Type: &kind, MaxAttempts: &attempts, DelaysMs: &[]int64{10, 20}}
		}},
		{`{"headers":{},"timeout_ms":120000}`, func() { d.HeaderNames, d.TimeoutMs = []string{}, 120_000 }},
	} {
		step.change()
		require.Equal(t, d, read[openapi.Destination](t, b.send(t, "PATCH", path, step.body), 200), step.body)
		require.Equal(t, d, read[openapi.Destination](t, b.get(t, path), 200), step.body)
	}
	loaded, err := postgres.LoadDestinations(t.Context(), b.engine, []uuid.UUID{destinationID(t, name)})
	require.NoError(t, err)
	require.Equal(t, d.URL, loaded[destinationID(t, name)].URL, "as workers read it")
}

// A change is checked like a creation, and nothing of a wrong one is stored.
func TestWrongChangesOfDestinationsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, name := b.destination(t)
	path := "/api/v1/destinations/" + name
	before := b.get(t, path).body
	for _, c := range []struct{ members, field, says string }{
		{`"url":"ftp://example.com"`, "url", "http"},
		{`"url":"http://127.0.0.1/"`, "url", "private"},
		{`"url":"http://169.254.169.254/latest"`, "url", "private"},
		{`"url":"https://user:secret@example.com"`, "url", "user name"},
		{`"url":null`, "url", "string"},
		{`"timeout_ms":99`, "timeout_ms", "100 to 120000, not 99"},
		{`"timeout_ms":0`, "timeout_ms", "100 to 120000"},
		{`"timeout_ms":"1s"`, "timeout_ms", "integer"},
		{`"secret_path":1`, "secret_path", "true or false"},
		{`"schedule":{"type":"random"}`, "schedule.type", "exponential"},
		{`"schedule":{"max_attempts":101}`, "schedule.max_attempts", "1 to 100"},
		{`"schedule":{"type":"none","factor":2}`, "schedule.factor", "no meaning"},
		{`"headers":{"Host":"x"}`, "headers", "Host"},
		{`"headers":{"X":"a secret\r\n"}`, "headers", "control"},
		{`"headers":{"x-a":"1","X-A":"2"}`, "headers", "twice"},
		{`"id":"dst_x"`, "id", "unknown"},
		{`"paused_at":"2026-01-01T00:00:00Z"`, "paused_at", "unknown"},
	} {
		p := problem(t, b.send(t, "PATCH", path, `{"headers":{"X-Right":"x"},`+c.members+`}`), 422, "invalid-field")
		if strings.HasPrefix(c.members, `"headers"`) {
			p = problem(t, b.send(t, "PATCH", path, `{"timeout_ms":1000,`+c.members+`}`), 422, "invalid-field")
		}
		require.Equal(t, c.field, *p.Field, c.members)
		require.Contains(t, p.Detail, c.says, c.members)
		require.NotContains(t, p.Detail, "a secret")
	}
	problem(t, b.send(t, "PATCH", path, `{}`), 400, "malformed-request")
	problem(t, b.send(t, "PATCH", path, ``), 400, "malformed-request")
	problem(t, b.send(t, "PATCH", path+"?x=1", `{"timeout_ms":1000}`), 400, "invalid-parameter")
	require.Equal(t, string(before), string(b.get(t, path).body))
}

func TestPauseResumeEnable(t *testing.T) {
	t.Parallel()
	var notified atomic.Int64
	b := setup(t, func(c *api.Config) { c.Notify = func() { notified.Add(1) } })
	_, name := b.destination(t)
	path := "/api/v1/destinations/" + name
	paused := read[openapi.Destination](t, b.send(t, "POST", path+"/pause", ""), 200)
	require.NotNil(t, paused.PausedAt)
	again := read[openapi.Destination](t, b.send(t, "POST", path+"/pause", ""), 200)
	require.Equal(t, paused.PausedAt, again.PausedAt, "since when it is paused")
	require.Zero(t, notified.Load())
	resumed := read[openapi.Destination](t, b.send(t, "POST", path+"/resume", ""), 200)
	require.Nil(t, resumed.PausedAt)
	require.EqualValues(t, 1, notified.Load(), "dispatchers look at once")
	require.Nil(t, read[openapi.Destination](t, b.send(t, "POST", path+"/resume", ""), 200).PausedAt)

	_, err := b.engine.Exec(t.Context(), "update destinations set disabled_at = now(), disabled_reason = 'gone'")
	require.NoError(t, err)
	d := read[openapi.Destination](t, b.send(t, "POST", path+"/resume", ""), 200)
	require.Equal(t, "gone", *d.DisabledReason, "resuming doesn't enable")
	d = read[openapi.Destination](t, b.send(t, "POST", path+"/enable", ""), 200)
	require.Nil(t, d.DisabledAt)
	require.Nil(t, d.DisabledReason)

	for _, verb := range []string{"pause", "resume", "enable"} {
		problem(t, b.send(t, "POST", path+"/"+verb, "{}"), 400, "malformed-request")
		problem(t, b.send(t, "POST", path+"/"+verb+"?x=1", ""), 400, "invalid-parameter")
		problem(t, b.send(t, "GET", path+"/"+verb, ""), 405, "method-not-allowed")
	}
}

func TestDeleteDestination(t *testing.T) {
	t.Parallel()
	var notified atomic.Int64
	b := setup(t, func(c *api.Config) { c.Notify = func() { notified.Add(1) } })
	endpoint, first := b.destination(t)
	p := problem(t, b.send(t, "DELETE", "/api/v1/destinations/"+first, ""), 409, "still-needed")
	require.Contains(t, p.Detail, "last destination")
	require.Equal(t, 200, b.get(t, "/api/v1/destinations/"+first).status)

	second := read[openapi.Destination](t, b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://example.com/2"}`), 201).ID
	before := acceptedID(t, b.ingest(t, endpoint, "to both"))
	notified.Store(0)
	require.Equal(t, 204, b.send(t, "DELETE", "/api/v1/destinations/"+first, "").status)
	require.EqualValues(t, 1, notified.Load(), "what waits is canceled soon")
	after := acceptedID(t, b.ingest(t, endpoint, "to one"))
	require.Len(t, read[openapi.Event](t, b.get(t, "/api/v1/events/"+before), 200).Deliveries, 2, "the record stays")
	deliveries := read[openapi.Event](t, b.get(t, "/api/v1/events/"+after), 200).Deliveries
	require.Len(t, deliveries, 1)
	require.Equal(t, second, deliveries[0].DestinationID)
	require.Len(t, read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+endpoint), 200).Destinations, 1)
	for _, request := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"PATCH", `{"timeout_ms":1000}`}} {
		problem(t, b.send(t, request[0], "/api/v1/destinations/"+first, request[1]), 404, "not-found")
	}
	for _, verb := range []string{"pause", "resume", "enable"} {
		problem(t, b.send(t, "POST", "/api/v1/destinations/"+first+"/"+verb, ""), 404, "not-found")
	}
	problem(t, b.send(t, "DELETE", "/api/v1/destinations/"+second, ""), 409, "still-needed")
}

func TestTheLastTwoDestinationsCantBeDeletedTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 5 {
		e := b.createEndpoint(t, `{"name":"n","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com"},{"url":"https://example.com"}]}`)
		statuses := make(chan int, 2)
		for _, d := range e.Destinations {
			go func() {
				a, err := b.try(t.Context(), "DELETE", "/api/v1/destinations/"+d.ID, nil, "Authorization", "Bearer "+b.key)
				if err != nil {
					a.status = 0
				}
				statuses <- a.status
			}()
		}
		require.ElementsMatch(t, []int{204, 409}, []int{<-statuses, <-statuses})
	}
}

func TestDeleteEndpoint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, destination := b.destination(t)
	event := acceptedID(t, b.ingest(t, endpoint, "before"))
	require.Equal(t, 204, b.send(t, "DELETE", "/api/v1/endpoints/"+endpoint, "").status)
	problem(t, b.ingest(t, endpoint, "after"), 404, "not-found")
	problem(t, b.get(t, "/api/v1/endpoints/"+endpoint), 404, "not-found")
	problem(t, b.send(t, "DELETE", "/api/v1/endpoints/"+endpoint, ""), 404, "not-found")
	problem(t, b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://example.com"}`), 404, "not-found")
	require.Empty(t, read[openapi.EndpointPage](t, b.get(t, "/api/v1/endpoints"), 200).Data)

	require.Len(t, read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Deliveries, 1)
	due, err := postgres.DueDestinations(t.Context(), b.engine, uuid.Nil, 10)
	require.NoError(t, err)
	require.Len(t, due, 1, "what was accepted goes on")
	require.NotNil(t, read[openapi.Destination](t, b.send(t, "POST", "/api/v1/destinations/"+destination+"/pause", ""), 200).PausedAt)
	require.Equal(t, 204, b.send(t, "DELETE", "/api/v1/destinations/"+destination, "").status, "the last one too, now")
}

func TestRotateSigningSecrets(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := b.createEndpoint(t, plainEndpoint)
	name := e.Destinations[0].ID
	path := "/api/v1/destinations/" + name + "/secrets"
	keys := func() (texts []string) {
		loaded, err := postgres.LoadDestinations(t.Context(), b.engine, []uuid.UUID{destinationID(t, name)})
		require.NoError(t, err)
		for _, key := range loaded[destinationID(t, name)].SigningKeys {
			texts = append(texts, string(key))
		}
		return texts
	}
	bytesOf := func(secret string) string {
		key, err := webhook.ParseSigningSecret(secret)
		require.NoError(t, err)
		return string(key)
	}
	first := bytesOf(*e.Destinations[0].SigningSecret)
	require.Equal(t, []string{first}, keys())

	made := read[openapi.SigningSecret](t, b.post(t, path, `{}`), 201)
	require.Nil(t, made.ExpiresAt)
	second := bytesOf(*made.Secret)
	require.Equal(t, []string{second, first}, keys(), "both sign, the new one first")
	list := b.get(t, path)
	require.NotContains(t, string(list.body), "whsec_")
	secrets := read[openapi.SigningSecretList](t, list, 200).Data
	require.Len(t, secrets, 2)
	require.Equal(t, made.ID, secrets[0].ID)
	require.InDelta(t, 24*60*60, secrets[1].ExpiresAt.Sub(secrets[0].CreatedAt).Seconds(), 1)

	given := webhook.NewSigningSecret()
	third := read[openapi.SigningSecret](t, b.post(t, path, `{"secret":"`+given+`","expire_others_in_seconds":3600}`), 201)
	require.Nil(t, third.Secret, "whoever gave it knows it")
	require.Equal(t, []string{bytesOf(given), second, first}, keys())
	secrets = read[openapi.SigningSecretList](t, b.get(t, path), 200).Data
	require.InDelta(t, 3600, secrets[2].ExpiresAt.Sub(secrets[0].CreatedAt).Seconds(), 1, "earlier than it was to")
	read[openapi.SigningSecret](t, b.post(t, path, `{"expire_others_in_seconds":7200}`), 201)
	require.InDelta(t, 3600, read[openapi.SigningSecretList](t, b.get(t, path), 200).Data[3].ExpiresAt.Sub(secrets[0].CreatedAt).Seconds(), 1, "none gets more time")

	require.Equal(t, 204, b.send(t, "DELETE", path+"/"+made.ID, "").status)
	require.NotContains(t, keys(), second)
	problem(t, b.send(t, "DELETE", path+"/"+made.ID, ""), 404, "not-found")
	newest := read[openapi.SigningSecretList](t, b.get(t, path), 200).Data[0]
	problem(t, b.send(t, "DELETE", path+"/"+newest.ID, ""), 409, "still-needed")
	require.Len(t, keys(), 3)

	compromised := read[openapi.SigningSecret](t, b.post(t, path, `{"expire_others_in_seconds":0}`), 201)
	require.Equal(t, []string{bytesOf(*compromised.Secret)}, keys(), "at once")
	for range 9 {
		require.Equal(t, 201, b.post(t, path, `{}`).status)
	}
	problem(t, b.post(t, path, `{}`), 409, "limit-reached")
	require.Len(t, keys(), 10)
}

func TestWrongSigningSecretsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, name := b.destination(t)
	path := "/api/v1/destinations/" + name + "/secrets"
	for body, field := range map[string]string{
		`{"secret":"whsec_c2hvcnQ="}`:           "secret",
		`{"secret":"not prefixed and secret"}`:  "secret",
		`{"secret":""}`:                         "secret",
		`{"secret":null}`:                       "secret",
		`{"expire_others_in_seconds":-1}`:       "expire_others_in_seconds",
		`{"expire_others_in_seconds":2592001}`:  "expire_others_in_seconds",
		`{"expire_others_in_seconds":"a day"}`:  "expire_others_in_seconds",
		`{"expires_at":"2027-01-01T00:00:00Z"}`: "expires_at",
	} {
		p := problem(t, b.post(t, path, body), 422, "invalid-field")
		require.Equal(t, field, *p.Field)
		require.NotContains(t, p.Detail, "not prefixed")
	}
	problem(t, b.post(t, path, ``), 400, "malformed-request")
	require.Equal(t, 1, b.count(t, "destination_secrets where expires_at is null"))
	require.Equal(t, 1, b.count(t, "destination_secrets"))
}

// Another tenant's ID is answered like one that isn't there, whatever is asked of it, and changes nothing.
func TestATenantManagesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, destination := b.destination(t)
	delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, "{}")))
	b.record(t, delivery, "retry", false)
	secret := read[openapi.SigningSecretList](t, b.get(t, "/api/v1/destinations/"+destination+"/secrets"), 200).Data[0].ID
	before := b.get(t, "/api/v1/endpoints/"+endpoint).body
	requests := []struct{ method, path, id, rest, body string }{
		{"GET", "/api/v1/destinations/", destination, "", ""},
		{"PATCH", "/api/v1/destinations/", destination, "", `{"timeout_ms":1000}`},
		{"DELETE", "/api/v1/destinations/", destination, "", ""},
		{"POST", "/api/v1/destinations/", destination, "/pause", ""},
		{"POST", "/api/v1/destinations/", destination, "/resume", ""},
		{"POST", "/api/v1/destinations/", destination, "/enable", ""},
		{"GET", "/api/v1/destinations/", destination, "/stats", ""},
		{"GET", "/api/v1/destinations/", destination, "/secrets", ""},
		{"POST", "/api/v1/destinations/", destination, "/secrets", `{}`},
		{"DELETE", "/api/v1/destinations/", destination, "/secrets/" + secret, ""},
		{"DELETE", "/api/v1/endpoints/", endpoint, "", ""},
		{"GET", "/api/v1/deliveries/", id.Delivery.Format(delivery), "", ""},
		{"GET", "/api/v1/attempts/", id.Attempt.Format(id.AttemptOf(delivery, 1)), "", ""},
	}
	own := b.key
	_, b.key = b.addTenant(t, "Another Bank")
	for _, r := range requests {
		prefix, _, _ := strings.Cut(r.id, "_")
		theirs := problem(t, b.send(t, r.method, r.path+r.id+r.rest, r.body), 404, "not-found")
		nobodys := problem(t, b.send(t, r.method, r.path+id.Kind(prefix).Format(id.New())+r.rest, r.body), 404, "not-found")
		theirs.RequestID, nobodys.RequestID = "", ""
		require.Equal(t, nobodys, theirs, r)
		problem(t, b.send(t, r.method, r.path+"nonsense"+r.rest, r.body), 404, "not-found")
	}
	_, mine := b.destination(t)
	problem(t, b.send(t, "DELETE", "/api/v1/destinations/"+mine+"/secrets/"+secret, ""), 404, "not-found")
	for _, path := range []string{"/api/v1/deliveries?destination_id=" + destination, "/api/v1/deliveries"} {
		require.Empty(t, read[openapi.DeliveryPage](t, b.get(t, path), 200).Data)
	}
	b.key = own
	require.Equal(t, string(before), string(b.get(t, "/api/v1/endpoints/"+endpoint).body))
	for _, r := range requests { // and with its own key each is found
		if !slices.Contains([]string{"DELETE"}, r.method) {
			require.Less(t, b.send(t, r.method, r.path+r.id+r.rest, r.body).status, http.StatusBadRequest, r)
		}
	}
}
