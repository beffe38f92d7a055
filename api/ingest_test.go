package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// stored is what the database holds of an event.
type stored struct {
	tenant, endpoint   uuid.UUID
	contentType        string
	size               int
	hash, salt, secret []byte
	headers            http.Header
	body               []byte
}

func (b *testBundle) stored(t testing.TB, event string) stored {
	t.Helper()
	eventID, err := id.Event.Parse(event)
	require.NoError(t, err)
	var s stored
	var headers []byte
	require.NoError(t, b.engine.QueryRow(t.Context(), `select e.tenant_id, e.endpoint_id, e.content_type, e.body_size, e.payload_hash,
		p.salt, p.secret, p.headers, p.body from events e join event_payloads p on p.event_id = e.id where e.id = $1`, eventID).
		Scan(&s.tenant, &s.endpoint, &s.contentType, &s.size, &s.hash, &s.salt, &s.secret, &headers, &s.body))
	s.headers, err = webhook.DecodeHeaders(headers)
	require.NoError(t, err)
	return s
}

func everyByte() []byte {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func TestBodiesAreKeptByteForByte(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	largest := make([]byte, api.MaxBody)
	_, _ = rand.Read(largest)
	for name, body := range map[string][]byte{
		"empty":              {},
		"all bytes":          everyByte(),
		"JSON":               []byte(`{"a" : 1.0}` + "\r\n"),
		"gzip, not decoded":  {0x1f, 0x8b, 0x08, 0x00},
		"10 MiB exactly":     largest,
		"larger than a page": largest[:300<<10],
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunked := range []bool{false, true} {
				var reader io.Reader = bytes.NewReader(body)
				if chunked {
					reader = struct{ io.Reader }{reader} // of unknown length
				}
				event := acceptedID(t, b.do(t, "POST", "/ingest/"+endpoint, reader, "Content-Encoding", "gzip"))
				s := b.stored(t, event)
				require.True(t, bytes.Equal(body, s.body), "the body changed")
				require.Equal(t, len(body), s.size)
				require.Equal(t, b.tenant, s.tenant)
				require.Equal(t, endpoint, id.Endpoint.Format(s.endpoint))
				require.Len(t, s.secret, 32)
				require.NotEqual(t, s.salt, s.secret)
				require.Equal(t, verify.Commitment("payload", s.salt, body), s.hash)

				payload := b.get(t, "/api/v1/events/"+event+"/payload")
				require.Equal(t, 200, payload.status)
				require.True(t, bytes.Equal(body, payload.body), "the body changed on its way out")
				require.Equal(t, "application/octet-stream", payload.header.Get("Content-Type"))
				require.Equal(t, `attachment; filename="`+event+`.bin"`, payload.header.Get("Content-Disposition"))
			}
		})
	}
}

func TestHeadersAreKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.stored(t, acceptedID(t, b.ingest(t, b.endpoint(t), "x", "X-Twice", "1", "X-Twice", "2", "Content-Type", "text/\xff; v=ü",
		"X-Bytes", "\xfe\xff", "Authorization", "Basic Zm9v", "User-Agent", "GitHub-Hookshot/1")))
	require.Equal(t, []string{"1", "2"}, s.headers["X-Twice"])
	require.Equal(t, []string{"\xfe\xff"}, s.headers["X-Bytes"])
	require.Equal(t, []string{"text/\xff; v=ü"}, s.headers["Content-Type"], "the header is kept as it is")
	require.Equal(t, "text/\uFFFD; v=ü", s.contentType, "the column holds text")
	require.Equal(t, []string{strings.TrimPrefix(b.url, "http://")}, s.headers["Host"])
	require.Equal(t, []string{"1"}, s.headers["Content-Length"])
	require.Equal(t, []string{"GitHub-Hookshot/1"}, s.headers["User-Agent"])

	none := b.stored(t, acceptedID(t, b.do(t, "POST", "/ingest/"+b.endpoint(t), nil)))
	require.Empty(t, none.contentType, "no content type is as good as any")
}

func TestAcceptedMeansCommittedWithAllDeliveries(t *testing.T) {
	t.Parallel()
	var notified atomic.Int64
	b := setup(t, func(c *api.Config) { c.Notify = func() { notified.Add(1) } })
	endpoint := b.createEndpoint(t, `{"name":"in","verification":{"scheme":"none"},
		"destinations":[{"url":"https://example.com/1"},{"url":"https://example.com/2"},{"url":"https://example.com/3"}]}`)
	event := acceptedID(t, b.ingest(t, endpoint.ID, "{}"))
	require.EqualValues(t, 1, notified.Load())
	require.Equal(t, 3, b.count(t, "delivery_queue"))

	got := read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200)
	require.Len(t, got.Deliveries, 3)
	var went []string
	for _, d := range got.Deliveries {
		went = append(went, d.DestinationID)
		require.Equal(t, "pending", d.State)
		require.Empty(t, d.Attempts)
		deliveryID, err := id.Delivery.Parse(d.ID)
		require.NoError(t, err)
		eventID, err := id.Event.Parse(event)
		require.NoError(t, err)
		require.Equal(t, id.Time(eventID), id.Time(deliveryID), "both lie in one partition")
	}
	require.ElementsMatch(t, []string{endpoint.Destinations[0].ID, endpoint.Destinations[1].ID, endpoint.Destinations[2].ID}, went)
}

func TestGitHubSignatures(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// GitHub documents this vector under "Validating webhook deliveries".
	const secret, body = "It's a Secret to Everybody", "Hello, World!"
	const signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	endpoint := b.createEndpoint(t, `{"name":"GitHub","verification":{"scheme":"github"},"secrets":["another, rotated away","`+secret+`"],
		"destinations":[{"url":"https://example.com/in"}]}`).ID
	problem(t, b.ingest(t, endpoint, body), 401, "signature-missing")
	for name, headers := range map[string][]string{
		"a wrong digit":  {"X-Hub-Signature-256", signature[:70] + "8"},
		"sent twice":     {"X-Hub-Signature-256", signature, "X-Hub-Signature-256", signature},
		"another secret": {"X-Hub-Signature-256", webhook.SignGitHub([]byte("not this endpoint's secret"), []byte(body))},
	} {
		a := b.ingest(t, endpoint, body, headers...)
		problem(t, a, 401, "bad-signature")
		require.NotContains(t, string(a.body), secret, name)
		require.Empty(t, a.header.Get("WWW-Authenticate"))
	}
	problem(t, b.ingest(t, endpoint, body+"!", "X-Hub-Signature-256", signature), 401, "bad-signature")
	b.requireNothingStored(t)
	acceptedID(t, b.ingest(t, endpoint, body, "X-Hub-Signature-256", signature))
}

func TestHMACSignatures(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, `{"name":"in","verification":{"scheme":"hmac","hmac":{"header":"x-sig","algorithm":"sha512","encoding":"base64","prefix":"v1,"}},
		"secrets":["sixteen bytes or more"],"destinations":[{"url":"https://example.com/in"}]}`).ID
	signed := webhook.HMAC{Header: "X-Sig", Algorithm: "sha512", Encoding: "base64", Prefix: "v1,"}.Sign([]byte("sixteen bytes or more"), []byte("body"))
	acceptedID(t, b.ingest(t, endpoint, "body", "X-Sig", signed))
	problem(t, b.ingest(t, endpoint, "Body", "X-Sig", signed), 401, "bad-signature")
}

func TestRealGitHubPayloads(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../local/payloads/github-webhooks/*.json")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 50)
	b := setup(t)
	const secret = "a secret of this endpoint"
	endpoint := b.createEndpoint(t, `{"name":"GitHub","verification":{"scheme":"github"},"secrets":["`+secret+`"],
		"duplicates":{"source":"header","header":"X-GitHub-Delivery"},"destinations":[{"url":"https://example.com/in"}]}`).ID
	for _, file := range files {
		body, err := os.ReadFile(file)
		require.NoError(t, err)
		event := acceptedID(t, b.do(t, "POST", "/ingest/"+endpoint, bytes.NewReader(body), "Content-Type", "application/json",
			"X-GitHub-Delivery", uuid.NewString(), "X-Hub-Signature-256", webhook.SignGitHub([]byte(secret), body)))
		require.True(t, bytes.Equal(body, b.stored(t, event).body), file)
	}
	require.Equal(t, len(files), b.count(t, "deliveries"))
}

func TestIngestRefusals(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.MaxBodyBytes = 20 << 20 })
	endpoint := b.endpoint(t)
	unknown := id.Endpoint.Format(id.New())
	for _, path := range []string{unknown, "ep_", "nonsense", strings.Replace(endpoint, "ep_", "evt_", 1), strings.ToUpper(endpoint), "%00"} {
		problem(t, b.ingest(t, path, "x"), 404, "not-found")
	}
	problem(t, b.do(t, "GET", "/ingest/"+endpoint, nil), 405, "method-not-allowed")
	problem(t, b.do(t, "POST", "/ingest/"+endpoint+"/", nil), 404, "not-found")

	over := make([]byte, api.MaxBody+1)
	problem(t, b.do(t, "POST", "/ingest/"+endpoint, bytes.NewReader(over)), 413, "too-large")
	problem(t, b.do(t, "POST", "/ingest/"+endpoint, struct{ io.Reader }{bytes.NewReader(over)}), 413, "too-large")

	for _, key := range []string{"", strings.Repeat("k", 256)} {
		p := problem(t, b.ingest(t, endpoint, "x", "Idempotency-Key", key), 400, "malformed-request")
		require.Contains(t, p.Detail, "Idempotency-Key")
	}
	problem(t, b.ingest(t, endpoint, "x", "Idempotency-Key", "a", "X-Idempotency-Key", "b"), 400, "malformed-request")
	b.requireNothingStored(t)
}

// raw writes bytes as they are and reads the answer.
func (b *testBundle) raw(t testing.TB, request string, halfClose bool) answer {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, request)
	require.NoError(t, err)
	if halfClose {
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return answer{response.StatusCode, response.Header, body}
}

func TestBodiesThatDoNotArrive(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.BodyTimeout = 50 * time.Millisecond })
	head := "POST /ingest/" + b.endpoint(t) + " HTTP/1.1\r\nHost: kapsel\r\n"
	problem(t, b.raw(t, head+"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", false), 400, "malformed-request")
	problem(t, b.raw(t, head+"Content-Length: 10\r\n\r\nabc", true), 400, "malformed-request")
	problem(t, b.raw(t, head+"Content-Length: 10\r\n\r\nabc", false), 408, "request-timeout")
	b.requireNothingStored(t)
}

func TestTooManyBodiesAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *api.Config) { c.MaxBodyBytes = 1000 })
	endpoint := b.endpoint(t)
	a := b.ingest(t, endpoint, strings.Repeat("x", 1001))
	problem(t, a, 503, "unavailable")
	require.Equal(t, "1", a.header.Get("Retry-After"))
	for range 3 { // what was held is given back
		acceptedID(t, b.ingest(t, endpoint, strings.Repeat("x", 1000)))
	}
}

// A row that Postgres refuses leaves nothing, and those that came with it aren't held up.
func TestNothingIsHalfKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	refused, fine := b.endpoint(t), b.endpoint(t)
	refusedID, err := id.Endpoint.Parse(refused)
	require.NoError(t, err)
	// The last of the four tables refuses: by then the others hold the event.
	_, err = b.owner.Exec(t.Context(), fmt.Sprintf(`
		create function refuse_it() returns trigger language plpgsql as $$ begin
			if new.destination_id in (select id from destinations where endpoint_id = '%s') then
				raise exception 'secret internal text' using errcode = 'check_violation';
			end if;
			return new;
		end $$;
		create trigger refuse_it before insert on delivery_queue for each row execute function refuse_it()`, refusedID))
	require.NoError(t, err)
	accepted := 0
	for _, a := range b.flood(t, 20, func(i int) string { return []string{refused, fine}[i%2] }) {
		if a.status == 200 {
			accepted++
			continue
		}
		problem(t, a, 500, "internal-error")
		require.NotContains(t, string(a.body), "secret internal text")
	}
	require.Equal(t, 10, accepted)
	for _, table := range []string{"events", "event_payloads", "deliveries", "delivery_queue"} {
		require.Equal(t, 10, b.count(t, table), table)
	}
}

func TestClosedServerRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	server, err := api.New(b.config)
	require.NoError(t, err)
	server.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	local := &http.Server{Handler: server.Handler(), ReadHeaderTimeout: time.Second}
	go func() { _ = local.Serve(listener) }()
	t.Cleanup(func() { _ = local.Shutdown(context.Background()) })
	b.url = "http://" + listener.Addr().String()
	a := b.ingest(t, endpoint, "x")
	problem(t, a, 503, "unavailable")
	require.Equal(t, "1", a.header.Get("Retry-After"))
	b.requireNothingStored(t)
}

// Whatever arrives is either kept as it came or refused with a problem.
func FuzzIngest(f *testing.F) {
	b := setup(f)
	endpoint := b.endpoint(f)
	f.Add([]byte("{}"), "application/json", "key")
	f.Add(everyByte(), "", "")
	f.Add([]byte{}, "text/\xff", "\xff")
	f.Fuzz(func(t *testing.T, body []byte, contentType, key string) {
		if strings.ContainsFunc(contentType+key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return // net/http's client doesn't send it
		}
		a := b.ingest(t, endpoint, string(body), "Content-Type", contentType, "X-Idempotency-Key", key)
		switch a.status {
		case 200:
			require.Equal(t, body, b.stored(t, acceptedID(t, a)).body)
		case 400:
			problem(t, a, 400, "malformed-request")
		case 409:
			problem(t, a, 409, "idempotency-conflict")
		default:
			t.Fatalf("status %d: %s", a.status, a.body)
		}
	})
}
