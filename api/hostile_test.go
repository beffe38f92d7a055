package api_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
	"github.com/kapsel-io/kapsel/webhook"
)

// A sender who knows one endpoint's ID can fill that endpoint's share of the memory, and nobody else's.
func TestOneEndpointKeepsNoOtherOut(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.MaxBodyBytes = 4 * api.MaxBody })
	attacked, other := b.endpoint(t), b.endpoint(t)
	body := strings.Repeat("x", 1<<20)
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		// Never the last byte. Of those that come too late, some are refused while they write.
		_, _ = fmt.Fprintf(conn, "POST /ingest/%s HTTP/1.1\r\nHost: kapsel\r\nContent-Length: %d\r\n\r\n%s",
			attacked, api.MaxBody, body[:1<<20-1]+strings.Repeat(body, 9))
		return b.ingest(t, attacked, body).status == 503
	}, 20*time.Second, 10*time.Millisecond)
	acceptedID(t, b.ingest(t, other, body))
}

func TestLoopsEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	const ours = "dlv_01h455vb4pex5vsknk084sn02q"
	p := problem(t, b.ingest(t, endpoint, "x", webhook.HeaderDeliveryID, ours, webhook.HeaderHops, "9"), 508, "loop-detected")
	require.Contains(t, p.Detail, "9 deliveries")
	b.requireNothingStored(t)
	acceptedID(t, b.ingest(t, endpoint, "x", webhook.HeaderDeliveryID, ours, webhook.HeaderHops, "8"))
	acceptedID(t, b.ingest(t, endpoint, "x", webhook.HeaderDeliveryID, ours))
	acceptedID(t, b.ingest(t, endpoint, "x", webhook.HeaderDeliveryID, "forged", webhook.HeaderHops, "9"))
	acceptedID(t, b.ingest(t, endpoint, "x", webhook.HeaderHops, "9"))
}

// Whatever a client sends, in whichever place, the log doesn't repeat it.
func TestTheRequestLogRepeatsNothing(t *testing.T) {
	t.Parallel()
	const planted = "pl4nted"
	core, logged := observer.New(zapcore.DebugLevel)
	b := setup(t, func(c *api.Config) { c.Log = zap.New(core) })
	endpoint := b.createEndpoint(t, `{"name":"in","verification":{"scheme":"hmac","hmac":{"header":"X-Sig","prefix":"v1="}},
		"secrets":["sixteen bytes or more"],"destinations":[{"url":"https://example.com/in"}]}`).ID
	const name, none, to = `"name":"n"`, `"verification":{"scheme":"none"}`, `"destinations":[{"url":"https://example.com"}]`
	hmac := func(settings string) string {
		return `{` + name + `,"verification":{"scheme":"hmac","hmac":{` + settings + `}},"secrets":["sixteen bytes or more"],` + to + `}`
	}
	destination := func(members string) string {
		return `{` + name + `,` + none + `,"destinations":[{` + members + `}]}`
	}
	for _, body := range []string{
		planted, `"` + planted + `"`, `{"` + planted + `":1}`, `{` + name + `,` + none + `,` + to + `}` + planted,
		`{"name":"` + planted + `\n",` + none + `,` + to + `}`,
		`{` + name + `,"verification":{"scheme":"` + planted + `"},` + to + `}`,
		`{` + name + `,"verification":{"scheme":"none","` + planted + `":1},` + to + `}`,
		`{` + name + `,` + none + `,"secrets":["` + planted + `"],` + to + `}`,
		`{` + name + `,"verification":{"scheme":"github"},"secrets":["` + planted + `"],` + to + `}`,
		hmac(`"header":"` + planted + ` x"`), hmac(`"header":"X","algorithm":"` + planted + `"`),
		hmac(`"header":"X","encoding":"` + planted + `"`), hmac(`"header":"X","prefix":"` + strings.Repeat(planted, 20) + `"`),
		`{` + name + `,` + none + `,` + to + `,"duplicates":{"source":"` + planted + `"}}`,
		`{` + name + `,` + none + `,` + to + `,"duplicates":{"source":"header","header":"` + planted + ` x"}}`,
		`{` + name + `,` + none + `,` + to + `,"duplicates":{"window_seconds":"` + planted + `"}}`,
		`{` + name + `,` + none + `,` + to + `,"lane":"` + planted + `"}`,
		destination(`"url":"` + planted + `"`), destination(`"url":"https://` + planted + `@example.com"`),
		destination(`"url":"http://127.0.0.1/` + planted + `"`), destination(`"url":"https://-x.example/` + planted + `"`),
		destination(`"url":"https://example.com","timeout_ms":"` + planted + `"`),
		destination(`"url":"https://example.com","schedule":{"type":"` + planted + `"}`),
		destination(`"url":"https://example.com","headers":{"` + planted + ` x":"1"}`),
		destination(`"url":"https://example.com","headers":{"Kapsel-` + planted + `":"1"}`),
		destination(`"url":"https://example.com","headers":{"X":"` + planted + `\n"}`),
		destination(`"url":"https://example.com","headers":{"` + planted + `":1}`),
		destination(`"url":"https://example.com","headers":{"` + planted + `":"1","` + strings.ToUpper(planted[:1]) + planted[1:] + `":"2"}`),
	} {
		a := b.post(t, "/api/v1/endpoints", body)
		require.Contains(t, []int{400, 422}, a.status, "%s: %s", body, a.body)
	}
	for _, query := range []string{"limit=" + planted, planted + "=1", "cursor=" + planted, "endpoint_id=" + planted, "limit=" + planted + ";x", "limit=%" + planted} {
		problem(t, b.get(t, "/api/v1/events?"+query), 400, "invalid-parameter")
	}
	b.get(t, "/"+planted)
	b.get(t, "/api/v1/events/"+planted)
	b.do(t, "GET", "/api/v1/events", nil, "Authorization", "Bearer "+planted)
	problem(t, b.ingest(t, endpoint, planted, "X-Sig", planted), 401, "bad-signature")
	problem(t, b.ingest(t, endpoint, planted, "X-Sig", "v1="+planted, "X-"+planted, planted), 401, "bad-signature")
	problem(t, b.ingest(t, planted, planted), 404, "not-found")
	problem(t, b.ingest(t, b.endpoint(t), planted, "Idempotency-Key", strings.Repeat(planted, 40)), 400, "malformed-request")
	b.raw(t, "POST /ingest/"+endpoint+" HTTP/1.1\r\nHost: kapsel\r\nTransfer-Encoding: chunked\r\n\r\n"+planted+"\r\n", false)

	b.do(t, "GET", "/ingest/"+endpoint+"?challenge="+planted, nil)
	dropbox := b.sourceEndpoint(t, `{"scheme":"none","handshake":{"type":"dropbox"}}`)
	require.Equal(t, planted, string(b.do(t, "GET", "/ingest/"+dropbox+"?challenge="+planted, nil).body))
	problem(t, b.do(t, "GET", "/ingest/"+dropbox+"?challenge=%3C"+planted, nil), 403, "handshake-refused")
	for _, verification := range []string{
		`{"scheme":"none","handshake":{"type":"` + planted + `"}}`, `{"scheme":"none","handshake":{"type":"dropbox","verify_token":"` + planted + `"}}`,
		`{"scheme":"hmac","hmac":{"header":"X","signed":"` + planted + `"}}`, `{"scheme":"standard","standard":{"headers":"` + planted + `"}}`,
	} {
		problem(t, b.patch(t, "/api/v1/endpoints/"+endpoint, `{"verification":`+verification+`}`), 422, "invalid-field")
	}
	problem(t, b.post(t, "/api/v1/endpoints/"+endpoint+"/secrets", `{"secret":"`+planted+`"}`), 422, "invalid-field")
	require.Equal(t, 201, b.post(t, "/api/v1/endpoints/"+endpoint+"/secrets", `{"secret":"`+planted+planted+planted+`"}`).status)
	problem(t, b.endSecret(t, "/api/v1/endpoints/"+endpoint+"/secrets/"+planted), 404, "not-found")

	lines := logged.FilterMessage("request").All()
	require.GreaterOrEqual(t, len(lines), 40)
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, line := range logged.All() {
		text, err := encoder.EncodeEntry(line.Entry, line.Context)
		require.NoError(t, err)
		require.NotContains(t, strings.ToLower(text.String()), planted)
	}
	require.Contains(t, loggedErrors(logged), "invalid-field", "what kind of problem it was is told")
}

func loggedErrors(logged *observer.ObservedLogs) (errs []any) {
	for _, line := range logged.All() {
		if err, ok := line.ContextMap()["error"]; ok {
			errs = append(errs, err)
		}
	}
	return errs
}

// What went wrong here is told in the log, and only there.
func TestTheRequestLogTellsOurOwnErrors(t *testing.T) {
	t.Parallel()
	core, logged := observer.New(zapcore.DebugLevel)
	b := setup(t, func(c *api.Config) {
		c.Log = zap.New(core)
		c.Current = func(context.Context) (bool, error) { return false, errors.New("an internal cause") }
	})
	a := b.do(t, "GET", "/health/ready", nil)
	problem(t, a, 503, "unavailable")
	require.NotContains(t, string(a.body), "an internal cause")
	require.Equal(t, []any{"unavailable: an internal cause"}, loggedErrors(logged))
}

func TestReadyNeedsTheSchema(t *testing.T) {
	t.Parallel()
	database := postgrestest.New(t)
	b := prepare(t, database)
	b.serve(t, func(c *api.Config) {
		c.Current = func(ctx context.Context) (bool, error) {
			err := migrations.Check(ctx, b.engine)
			return err == nil, nil
		}
	})
	require.Equal(t, 200, b.do(t, "GET", "/health/ready", nil).status)
	user, err := pgx.Connect(t.Context(), database)
	require.NoError(t, err)
	defer func() { _ = user.Close(context.Background()) }()
	_, err = user.Exec(t.Context(), "delete from goose_db_version where version_id > 1")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return b.do(t, "GET", "/health/ready", nil).status == 503 }, 30*time.Second, 50*time.Millisecond)
	p := problem(t, b.do(t, "GET", "/health/ready", nil), 503, "unavailable")
	require.Contains(t, p.Detail, "run kapsel migrate")
	require.Contains(t, (*p.Checks)["schema"], "run kapsel migrate")
	require.Equal(t, "ok", (*p.Checks)["postgres"])
	require.Equal(t, 200, b.do(t, "GET", "/health/startup", nil).status, "it has been ready")
	require.Equal(t, 200, b.do(t, "GET", "/health/live", nil).status)
}

// A parameter that isn't understood is refused: without its filter the answer would hold more than was asked for.
func TestQueriesAreReadStrictly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	for query, field := range map[string]string{
		"limit=3&endpoint_id=" + endpoint + ";x": "endpoint_id",
		"limit=3;endpoint_id=" + endpoint:        "limit",
		"endpoint_id=%zz":                        "endpoint_id",
		"limit=3&endpoint%zz=1":                  "endpoint%zz",
		"endpoint=" + endpoint:                   "endpoint",
		"Limit=3":                                "Limit",
		"limit=3&limit=3":                        "limit",
		"limit=3&%6Cimit=3":                      "limit",
		"limit=3&x":                              "x",
	} {
		p := problem(t, b.get(t, "/api/v1/events?"+query), 400, "invalid-parameter")
		require.NotNil(t, p.Field, query)
		require.Equal(t, field, *p.Field, query)
	}
	require.Contains(t, problem(t, b.get(t, "/api/v1/events?x=1"), 400, "invalid-parameter").Detail, "Known are accepted_after, accepted_before, content_type, cursor, delivery_state, endpoint_id, event_type, header_name")
	for _, path := range []string{
		"/api/v1/endpoints?endpoint_id=" + endpoint, "/api/v1/endpoints/" + endpoint + "?limit=1", "/api/v1/attestation/keys?log_id=x",
		"/api/v1/attestation/sth?tree_size=1", "/api/v1/attestation/consistency-proof?old=1", "/api/v1/attestation/proof/da_x?size=1", "/health/ready?x=1",
	} {
		problem(t, b.get(t, path), 400, "invalid-parameter")
	}
	problem(t, b.post(t, "/api/v1/endpoints?limit=1", plainEndpoint), 400, "invalid-parameter")
	for _, query := range []string{"", "limit=3&", "&limit=3", "endpoint%5Fid=" + url.QueryEscape(endpoint)} {
		require.Equal(t, 200, b.get(t, "/api/v1/events?"+query).status, query)
	}
}

// encoding/json would put U+FFFD in the place of half a character.
func TestHalfCharactersAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	named := func(name string) string { return strings.Replace(plainEndpoint, `"in"`, `"`+name+`"`, 1) }
	for _, name := range []string{`\ud800`, `\uDFFF`, `a\ud83dz`, `\ud83d\ud83d`, `\ude00\ud83d`, `\ud83d\n`, `\\\ud83d`} {
		problem(t, b.post(t, "/api/v1/endpoints", named(name)), 400, "malformed-request")
	}
	problem(t, b.post(t, "/api/v1/endpoints", strings.Replace(plainEndpoint, `"name"`, `"\ud800"`, 1)), 400, "malformed-request")
	for sent, want := range map[string]string{`\ud83d\ude00`: "😀", `\uD83D\uDE00\u00e4`: "😀ä", `\\ud800`: `\ud800`, `\ufffd`: "\ufffd"} {
		require.Equal(t, want, b.createEndpoint(t, named(sent)).Name)
	}
}

// What isn't HTTP is answered by the HTTP server itself, as openapi.yaml says.
func TestWhatIsNotHTTP(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for request, status := range map[string]int{
		"nonsense\r\n\r\n":       400,
		"GET / HTTP/1.1\r\n\r\n": 400,
		"GET / HTTP/1.1\r\nHost: k\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n":              431,
		"POST / HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: gzip\r\n\r\n":                            501,
		"GET / HTTP/3.0\r\nHost: k\r\n\r\n":                                                        505,
		"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx":            400,
		"POST / HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n": 501,
	} {
		a := b.raw(t, request, false)
		require.Equal(t, status, a.status, "%.80q", request)
		require.Contains(t, a.header.Get("Content-Type"), "text/plain")
		require.Empty(t, a.header.Get("Kapsel-Request-Id"))
	}
}
