package api_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/webhook"
)

const (
	firstSecret  = "the first secret of all"
	secondSecret = "the second secret of all"
)

// patch and endSecret ask with the tenant's key.
func (b *testBundle) patch(t testing.TB, path, body string) answer {
	t.Helper()
	return b.do(t, "PATCH", path, strings.NewReader(body), "Authorization", "Bearer "+b.key, "Content-Type", "application/json")
}

func (b *testBundle) endSecret(t testing.TB, path string) answer {
	t.Helper()
	return b.do(t, "DELETE", path, nil, "Authorization", "Bearer "+b.key)
}

// signedBy sends a webhook as GitHub would, and returns its status.
func (b *testBundle) signedBy(t testing.TB, endpoint, secret string) int {
	t.Helper()
	return b.ingest(t, endpoint, "{}", "X-Hub-Signature-256", webhook.SignGitHub([]byte(secret), []byte("{}"))).status
}

func (b *testBundle) secretsOf(t testing.TB, endpoint string) []openapi.Secret {
	t.Helper()
	return read[openapi.SecretList](t, b.get(t, "/api/v1/endpoints/"+endpoint+"/secrets"), 200).Data
}

func TestRotateASecret(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret)
	path := "/api/v1/endpoints/" + endpoint + "/secrets"
	require.Equal(t, 200, b.signedBy(t, endpoint, firstSecret))
	require.Equal(t, 401, b.signedBy(t, endpoint, secondSecret))

	a := b.post(t, path, `{"secret":"`+secondSecret+`","expire_others_in_seconds":3600}`)
	added := read[openapi.Secret](t, a, 201)
	require.NotContains(t, string(a.body), secondSecret)
	require.Nil(t, added.ExpiresAt)
	require.Equal(t, 200, b.signedBy(t, endpoint, firstSecret), "both are good meanwhile")
	require.Equal(t, 200, b.signedBy(t, endpoint, secondSecret), "at once: what this process remembered is forgotten")

	secrets := b.secretsOf(t, endpoint)
	require.Len(t, secrets, 2)
	require.Equal(t, added, secrets[1])
	require.WithinDuration(t, time.Now().Add(time.Hour), *secrets[0].ExpiresAt, 5*time.Minute)
	require.Equal(t, 2, read[openapi.Endpoint](t, b.get(t, "/api/v1/endpoints/"+endpoint), 200).SecretCount)

	// A later rotation doesn't let the old one live longer.
	third := read[openapi.Secret](t, b.post(t, path, `{"secret":"the third secret of all","expire_others_in_seconds":7200}`), 201)
	again := b.secretsOf(t, endpoint)
	require.Equal(t, secrets[0], again[0])
	require.WithinDuration(t, time.Now().Add(2*time.Hour), *again[1].ExpiresAt, 5*time.Minute)

	require.Equal(t, 204, b.endSecret(t, path+"/"+secrets[0].ID).status)
	require.Equal(t, 401, b.signedBy(t, endpoint, firstSecret))
	require.Equal(t, 200, b.signedBy(t, endpoint, secondSecret))
	problem(t, b.endSecret(t, path+"/"+secrets[0].ID), 404, "not-found")
	// The second still counts for two hours; but after them there would be none.
	problem(t, b.endSecret(t, path+"/"+third.ID), 409, "last-secret")
	read[openapi.Secret](t, b.post(t, path, `{"secret":"the fourth secret of all","expire_others_in_seconds":0}`), 201)
	require.Equal(t, 401, b.signedBy(t, endpoint, secondSecret))
	require.Equal(t, 200, b.signedBy(t, endpoint, "the fourth secret of all"))
	require.Len(t, b.secretsOf(t, endpoint), 1)
}

// Without a word about the others they stay; and a secret ends by itself when its time has come.
func TestSecretsExpire(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret)
	path := "/api/v1/endpoints/" + endpoint + "/secrets"
	read[openapi.Secret](t, b.post(t, path, `{"secret":"`+secondSecret+`"}`), 201)
	for _, secret := range b.secretsOf(t, endpoint) {
		require.Nil(t, secret.ExpiresAt)
	}
	read[openapi.Secret](t, b.post(t, path, `{"secret":"the third secret of all","expire_others_in_seconds":1}`), 201)
	require.Eventually(t, func() bool { return b.signedBy(t, endpoint, firstSecret) == 401 }, 30*time.Second, 20*time.Millisecond)
	require.Eventually(t, func() bool { return len(b.secretsOf(t, endpoint)) == 1 }, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, 200, b.signedBy(t, endpoint, "the third secret of all"))
}

func TestSecretsAreChecked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret)
	open := b.endpoint(t)
	path := "/api/v1/endpoints/" + endpoint + "/secrets"
	for body, field := range map[string]string{
		`{}`:                 "secret",
		`{"secret":"short"}`: "secret",
		`{"secret":1}`:       "secret",
		`{"secret":"` + secondSecret + `","expire_others_in_seconds":-1}`:      "expire_others_in_seconds",
		`{"secret":"` + secondSecret + `","expire_others_in_seconds":2592001}`: "expire_others_in_seconds",
		`{"secret":"` + secondSecret + `","expire_others_in_seconds":1.5}`:     "expire_others_in_seconds",
		`{"secret":"` + secondSecret + `","expires_at":"now"}`:                 "expires_at",
	} {
		p := problem(t, b.post(t, path, body), 422, "invalid-field")
		require.Equal(t, field, *p.Field, body)
	}
	p := problem(t, b.post(t, "/api/v1/endpoints/"+open+"/secrets", `{"secret":"`+secondSecret+`"}`), 422, "invalid-field")
	require.Equal(t, "secret", *p.Field)
	require.Contains(t, p.Detail, `no meaning for scheme "none"`)
	standard := b.sourceEndpoint(t, `{"scheme":"standard"}`, webhook.NewSigningSecret())
	p = problem(t, b.post(t, "/api/v1/endpoints/"+standard+"/secrets", `{"secret":"`+secondSecret+`","expire_others_in_seconds":0}`), 422, "invalid-field")
	require.Contains(t, p.Detail, "whsec_")
	require.Nil(t, b.secretsOf(t, standard)[0].ExpiresAt, "what was refused changed nothing")

	at := path + "/" + b.secretsOf(t, endpoint)[0].ID
	problem(t, b.do(t, "DELETE", at, strings.NewReader("{}"), "Authorization", "Bearer "+b.key), 400, "malformed-request")
	for i := range 9 {
		read[openapi.Secret](t, b.post(t, path, fmt.Sprintf(`{"secret":"one of many secrets, %d"}`, i)), 201)
	}
	problem(t, b.post(t, path, `{"secret":"`+secondSecret+`"}`), 409, "limit-reached")
	problem(t, b.post(t, path, `{"secret":"`+secondSecret+`","expire_others_in_seconds":60}`), 409, "limit-reached")
	require.Nil(t, b.secretsOf(t, endpoint)[0].ExpiresAt, "all or nothing")
	read[openapi.Secret](t, b.post(t, path, `{"secret":"`+secondSecret+`","expire_others_in_seconds":0}`), 201)
	problem(t, b.endSecret(t, path+"/"+b.secretsOf(t, endpoint)[0].ID), 409, "last-secret")
}

// Another tenant's endpoint and secrets are as good as none.
func TestSecretsOfAnotherTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret, secondSecret)
	secret := b.secretsOf(t, endpoint)[0].ID
	own := b.key
	_, b.key = b.addTenant(t, "Another Bank")
	theirs := b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret, secondSecret)
	for _, at := range []string{endpoint, id.Endpoint.Format(id.New()), "nonsense"} {
		problem(t, b.get(t, "/api/v1/endpoints/"+at+"/secrets"), 404, "not-found")
		problem(t, b.post(t, "/api/v1/endpoints/"+at+"/secrets", `{"secret":"a secret of somebody else","expire_others_in_seconds":0}`), 404, "not-found")
		problem(t, b.endSecret(t, "/api/v1/endpoints/"+at+"/secrets/"+secret), 404, "not-found")
		problem(t, b.patch(t, "/api/v1/endpoints/"+at, `{"verification":{"scheme":"none"}}`), 404, "not-found")
	}
	for _, at := range []string{secret, id.Secret.Format(id.New()), "nonsense"} { // by way of an endpoint of their own
		problem(t, b.endSecret(t, "/api/v1/endpoints/"+theirs+"/secrets/"+at), 404, "not-found")
	}
	b.key = own
	require.Equal(t, 200, b.signedBy(t, endpoint, firstSecret))
	problem(t, b.do(t, "GET", "/api/v1/endpoints/"+endpoint+"/secrets", nil), 401, "unauthorized")
	problem(t, b.do(t, "DELETE", "/api/v1/endpoints/"+endpoint+"/secrets/"+secret, nil), 401, "unauthorized")
	problem(t, b.do(t, "PATCH", "/api/v1/endpoints/"+endpoint, strings.NewReader("{}")), 401, "unauthorized")
}

// Those who add secrets, and those who change what they are for, wait for each other.
func TestSecretsAreAddedOneAfterTheOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret)
	path := "/api/v1/endpoints/" + endpoint
	ask := func(method, path, body string) int {
		a, err := b.try(t.Context(), method, path, strings.NewReader(body), "Authorization", "Bearer "+b.key, "Content-Type", "application/json")
		if err != nil {
			return 0
		}
		return a.status
	}
	statuses := make([]int, 14)
	var all sync.WaitGroup
	for i := range statuses {
		all.Go(func() {
			statuses[i] = ask("POST", path+"/secrets", fmt.Sprintf(`{"secret":"one of many secrets, %d"}`, i))
		})
	}
	all.Wait()
	slices.Sort(statuses)
	require.Equal(t, []int{201, 201, 201, 201, 201, 201, 201, 201, 201, 409, 409, 409, 409, 409}, statuses)
	require.Len(t, b.secretsOf(t, endpoint), 10)

	const open, signed = `{"verification":{"scheme":"none"}}`, `{"verification":{"scheme":"github"},"secrets":["` + firstSecret + `"]}`
	for range 5 {
		require.Equal(t, 200, ask("PATCH", path, signed))
		all.Go(func() { ask("PATCH", path, open) })
		all.Go(func() { ask("POST", path+"/secrets", `{"secret":"`+secondSecret+`"}`) })
		all.Wait()
		require.Empty(t, b.secretsOf(t, endpoint), "no secret is left for a scheme that has none")
	}
}
