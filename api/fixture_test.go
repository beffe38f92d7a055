package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// testBundle is a server that listens on loopback, its database, and a tenant with an API key.
type testBundle struct {
	owner, engine *pgxpool.Pool
	url           string
	keys          string // directory of the logs' seeds
	log           admin.Log
	tenant        uuid.UUID
	key           string
	config        api.Config
}

func setup(t testing.TB, configure ...func(*api.Config)) *testBundle {
	t.Helper()
	b := prepare(t, postgrestest.New(t))
	b.serve(t, configure...)
	return b
}

// prepare makes everything but the server.
func prepare(t testing.TB, databaseURL string) *testBundle {
	t.Helper()
	b := &testBundle{
		owner:  postgrestest.Pool(t, databaseURL, postgres.Owner),
		engine: postgrestest.Pool(t, databaseURL, postgres.Engine),
		keys:   t.TempDir(),
	}
	b.config = api.Config{Engine: b.engine, API: postgrestest.Pool(t, databaseURL, postgres.API)}
	b.log = b.addLog(t)
	b.tenant, b.key = b.addTenant(t, "Example Bank")
	return b
}

// serve starts a server that ends, in order, with the test.
func (b *testBundle) serve(t testing.TB, configure ...func(*api.Config)) {
	t.Helper()
	for _, f := range configure {
		f(&b.config)
	}
	server, err := api.New(b.config)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b.url = "http://" + listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		http.DefaultClient.CloseIdleConnections()
		require.NoError(t, <-served)
	})
}

func (b *testBundle) addLog(t testing.TB) admin.Log {
	t.Helper()
	log, err := admin.CreateLog(t.Context(), b.owner, admin.LogConfig{Host: "kapsel.example", KeyDir: b.keys, HighWaterDir: b.keys})
	require.NoError(t, err)
	return log
}

func (b *testBundle) addTenant(t testing.TB, name string) (uuid.UUID, string) {
	t.Helper()
	tenant, err := admin.CreateTenant(t.Context(), b.owner, name, b.log.ID)
	require.NoError(t, err)
	key, err := admin.CreateAPIKey(t.Context(), b.owner, tenant, "test", nil)
	require.NoError(t, err)
	return tenant, key.Key
}

// answer is an HTTP response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// try sends a request. Headers are pairs of name and value.
func (b *testBundle) try(ctx context.Context, method, path string, body io.Reader, headers ...string) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, b.url+path, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	got, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, got}, err
}

// do sends a request and checks what every answer has.
func (b *testBundle) do(t testing.TB, method, path string, body io.Reader, headers ...string) answer {
	t.Helper()
	a, err := b.try(t.Context(), method, path, body, headers...)
	require.NoError(t, err)
	require.Regexp(t, `^req_[0-9a-z]{26}$`, a.header.Get("Kapsel-Request-Id"), "every answer names its request")
	require.Equal(t, "nosniff", a.header.Get("X-Content-Type-Options"))
	return a
}

// flood sends n webhooks at once and returns the answers.
func (b *testBundle) flood(t testing.TB, n int, endpoint func(i int) string, headers ...string) []answer {
	t.Helper()
	answers, errs := make([]answer, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			answers[i], errs[i] = b.try(t.Context(), "POST", "/ingest/"+endpoint(i), strings.NewReader("{}"), headers...)
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	return answers
}

// get asks with the tenant's key.
func (b *testBundle) get(t testing.TB, path string) answer {
	t.Helper()
	return b.do(t, "GET", path, nil, "Authorization", "Bearer "+b.key)
}

// post sends JSON with the tenant's key.
func (b *testBundle) post(t testing.TB, path, body string) answer {
	t.Helper()
	return b.do(t, "POST", path, strings.NewReader(body), "Authorization", "Bearer "+b.key, "Content-Type", "application/json")
}

// ingest sends a webhook.
func (b *testBundle) ingest(t testing.TB, endpoint, body string, headers ...string) answer {
	t.Helper()
	return b.do(t, "POST", "/ingest/"+endpoint, strings.NewReader(body), headers...)
}

// read decodes an answer of the expected status.
func read[T any](t testing.TB, a answer, status int) T {
	t.Helper()
	require.Equal(t, status, a.status, "%s", a.body)
	var v T
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&v), "%s", a.body)
	return v
}

// problem checks that an answer is one, whole and of the given status and type.
func problem(t testing.TB, a answer, status int, kind string) openapi.Problem {
	t.Helper()
	p := read[openapi.Problem](t, a, status)
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	require.Equal(t, "https://kapsel.io/problems/"+kind, p.Type, "%s", a.body)
	require.Equal(t, status, p.Status)
	require.Equal(t, a.header.Get("Kapsel-Request-Id"), p.RequestID)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	return p
}

// acceptedID is the event that a webhook became.
func acceptedID(t testing.TB, a answer) string {
	t.Helper()
	event := read[struct {
		EventID string `json:"event_id"`
	}](t, a, 200).EventID
	_, err := id.Event.Parse(event)
	require.NoError(t, err)
	return event
}

const plainEndpoint = `{"name":"in","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/in"}]}`

// createEndpoint makes one by the API.
func (b *testBundle) createEndpoint(t testing.TB, body string) openapi.Endpoint {
	t.Helper()
	return read[openapi.Endpoint](t, b.post(t, "/api/v1/endpoints", body), 201)
}

// endpoint makes a plain one and returns its ID.
func (b *testBundle) endpoint(t testing.TB) string {
	t.Helper()
	return b.createEndpoint(t, plainEndpoint).ID
}

func (b *testBundle) count(t testing.TB, table string) int {
	t.Helper()
	var n int
	require.NoError(t, b.engine.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n))
	return n
}

// requireNothingStored fails if any part of an event was kept.
func (b *testBundle) requireNothingStored(t testing.TB) {
	t.Helper()
	for _, table := range []string{"events", "event_payloads", "deliveries", "delivery_queue", "dedup"} {
		require.Zero(t, b.count(t, table), table)
	}
}

func allowLoopback(c *api.Config) { c.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }
