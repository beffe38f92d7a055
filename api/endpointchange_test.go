package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/webhook"
)

func TestChangeAnEndpoint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	before := b.createEndpoint(t, `{"name":"before","verification":{"scheme":"github"},"secrets":["`+firstSecret+`"],
		"duplicates":{"source":"header","header":"X-Id","window_seconds":60},"destinations":[{"url":"https://example.com/in"}]}`)
	before.Destinations[0].SigningSecret = nil
	path := "/api/v1/endpoints/" + before.ID
	change := func(body string) openapi.Endpoint {
		t.Helper()
		changed := read[openapi.Endpoint](t, b.patch(t, path, body), 200)
		require.Equal(t, changed, read[openapi.Endpoint](t, b.get(t, path), 200))
		return changed
	}
	require.Equal(t, before, change(`{}`), "what isn't named stays")

	after := before
	after.Name = "after"
	require.Equal(t, after, change(`{"name":"after"}`))
	after.Lane = "batch"
	require.Equal(t, after, change(`{"lane":"batch"}`))

	acceptedID(t, b.ingest(t, before.ID, "{}", "X-Hub-Signature-256", webhook.SignGitHub([]byte(firstSecret), []byte("{}")), "X-Id", "1"))
	content := openapi.DuplicatesSourceContent
	window := int64(86_400)
	after.Duplicates = openapi.Duplicates{Source: &content, WindowSeconds: &window}
	require.Equal(t, after, change(`{"duplicates":{"source":"content"}}`), "a member is replaced whole")

	after.Verification = openapi.Verification{Scheme: "hmac", Hmac: &openapi.HMAC{Header: "X-Sig"}}
	require.Equal(t, after, change(`{"verification":{"scheme":"hmac","hmac":{"header":"X-Sig"}}}`), "the secret can stay")
	sig := webhook.HMAC{Header: "X-Sig"}.Sign([]byte(firstSecret), []byte("{}"))
	require.Equal(t, 401, b.signedBy(t, before.ID, firstSecret), "at once")
	acceptedID(t, b.ingest(t, before.ID, "{}", "X-Sig", sig))

	p := problem(t, b.patch(t, path, `{"name":"x","verification":{"scheme":"standard"}}`), 422, "invalid-field")
	require.Equal(t, "secrets", *p.Field)
	require.Contains(t, p.Detail, `those of scheme "hmac" can't be used for scheme "standard"`)
	require.Equal(t, after, read[openapi.Endpoint](t, b.get(t, path), 200), "nothing was stored, not even the name")

	after.Verification = openapi.Verification{Scheme: "standard"}
	require.Equal(t, after, change(`{"verification":{"scheme":"standard"},"secrets":["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}`))
	after.Verification, after.SecretCount = openapi.Verification{Scheme: "none"}, 0
	require.Equal(t, after, change(`{"verification":{"scheme":"none"}}`), "secrets without a use expire")
	after.Verification, after.SecretCount = openapi.Verification{Scheme: "github"}, 2
	require.Equal(t, after, change(`{"verification":{"scheme":"github"},"secrets":["`+secondSecret+`","`+firstSecret+`"]}`))
	after.SecretCount = 1
	require.Equal(t, after, change(`{"verification":{"scheme":"github"},"secrets":["`+secondSecret+`"]}`))
	require.Equal(t, 401, b.signedBy(t, before.ID, firstSecret))
	require.Equal(t, 200, b.signedBy(t, before.ID, secondSecret))
}

// Each member is checked as at creation, and nothing of a wrong change is kept.
func TestWrongChangesAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret)
	path := "/api/v1/endpoints/" + endpoint
	before := b.get(t, path)
	for body, field := range map[string]string{
		`{"name":""}`:                                       "name",
		`{"name":null}`:                                     "name",
		`{"name":"a\nb"}`:                                   "name",
		`{"lane":"fast"}`:                                   "lane",
		`{"id":"ep_x"}`:                                     "id",
		`{"destinations":[]}`:                               "destinations",
		`{"duplicates":{"source":"header"}}`:                "duplicates.header",
		`{"duplicates":{"window_seconds":0}}`:               "duplicates.window_seconds",
		`{"name":"new","verification":{}}`:                  "verification.scheme",
		`{"name":"new","verification":{"scheme":"pigeon"}}`: "verification.scheme",
		`{"verification":{"scheme":"hmac"}}`:                "verification.hmac",
		`{"verification":{"scheme":"github","handshake":{"type":"slack"}}}`:                         "verification.handshake.type",
		`{"verification":{"scheme":"github","handshake":{"type":"meta"}}}`:                          "verification.handshake.verify_token",
		`{"secrets":["` + secondSecret + `"]}`:                                                      "secrets",
		`{"verification":{"scheme":"github"},"secrets":[]}`:                                         "secrets",
		`{"verification":{"scheme":"github"},"secrets":["short"]}`:                                  "secrets[0]",
		`{"verification":{"scheme":"none"},"secrets":["` + secondSecret + `"]}`:                     "secrets",
		`{"verification":{"scheme":"basic"}}`:                                                       "secrets",
		`{"verification":{"scheme":"api_key","api_key":{"header":"X"}},"name":"new","lane":"auto"}`: "secrets",
	} {
		p := problem(t, b.patch(t, path, body), 422, "invalid-field")
		require.NotNil(t, p.Field, body)
		require.Equal(t, field, *p.Field, body)
	}
	for _, body := range []string{"", "[]", "{", `{"name":"x"}{}`, "\xff"} {
		problem(t, b.patch(t, path, body), 400, "malformed-request")
	}
	problem(t, b.patch(t, path+"?force=1", "{}"), 400, "invalid-parameter")
	require.Equal(t, string(before.body), string(b.get(t, path).body))
	require.Equal(t, 200, b.signedBy(t, endpoint, firstSecret))
}
