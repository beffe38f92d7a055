package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	sdk "go.temporal.io/sdk/client"
	"google.golang.org/protobuf/proto"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/tracing/tracingtest"
	"github.com/kapsel-io/kapsel/webhook"
)

// planted are secrets by what they are. Each is found again only by its name.
type planted map[string][]byte

func (p planted) plant(what string) string {
	secret := "planted-" + what + "-5fK2qLx9"
	p[what] = []byte(secret)
	return secret
}

// find names what is planted in text, as it is, in hexadecimal, or in base64 wherever that begins.
func (p planted) find(text []byte) (found []string) {
	for what, secret := range p {
		forms := [][]byte{secret, []byte(hex.EncodeToString(secret))}
		for shift := range 3 {
			// What the neighbours have no part in, of the encoding that begins so many bytes before the secret.
			encoded := base64.StdEncoding.EncodeToString(append(make([]byte, shift), secret...))
			from, to := (shift*8+5)/6, (shift+len(secret))*8/6
			forms = append(forms, []byte(encoded[from:to]), []byte(strings.NewReplacer("+", "-", "/", "_").Replace(encoded[from:to])))
		}
		for _, form := range forms {
			if bytes.Contains(text, form) {
				found = append(found, what)
				break
			}
		}
	}
	return found
}

func TestFindPlanted(t *testing.T) {
	t.Parallel()
	p := planted{}
	secret := p.plant("one")
	p.plant("other")
	require.Equal(t, []string{"one"}, p.find([]byte("x"+secret+"y")))
	require.Equal(t, []string{"one"}, p.find([]byte(hex.EncodeToString([]byte("ab"+secret)))))
	for _, before := range []string{"", "a", "ab", "abc"} {
		require.Equal(t, []string{"one"}, p.find([]byte(base64.StdEncoding.EncodeToString([]byte(before+secret+"after")))), before)
	}
	require.Empty(t, p.find([]byte("planted-one-5fK2qLx8")))
}

// startGarbage is a receiver that doesn't speak HTTP, and tells a secret instead.
func startGarbage(t *testing.T, answer string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = conn.Read(make([]byte, 1024))
				_, _ = conn.Write([]byte(answer))
				_ = conn.Close()
			}()
		}
	}()
	return listener.Addr().String()
}

// Whatever is secret (payloads, headers, what receivers answer, credentials in URLs, keys) is in no log, no metric, no trace and no
// workflow history: not in either lane, not when sending, recording or reading a request fails, and not at level debug.
func TestSecretsAreNowhere(t *testing.T) {
	collector := tracingtest.New(t)
	s, err := startStack(t.Context(), stackConfig{Dir: openDir(t), LogLevel: "debug", TraceTo: collector.URL}, &strings.Builder{})
	require.NoError(t, err)
	stack := &testStack{stack: s, site: newSite(t, s.apiURL, s.dbURL, s.state)}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			require.NoError(t, s.stop(nil))
		}
	}
	t.Cleanup(stop)
	secrets := planted{"api key": []byte(s.state.APIKey)}
	stack.plantSeeds(t, secrets)

	events := 0
	for _, lane := range []client.Lane{client.Workflow, client.Batch} {
		events += stack.sendSecrets(t, lane, secrets)
		stack.recordLate(t, lane, secrets)
		events++
	}
	stack.failRequests(t, secrets)
	stack.awaitSealed(t, 2*time.Minute)
	require.Equal(t, events, stack.count(t, "select count(*) from events"))

	stack.plantStored(t, secrets)

	histories, workflows := stack.histories(t)
	require.Empty(t, secrets.find(histories), "in a workflow history")
	require.Contains(t, string(histories), "dlv_", "the histories are there")
	require.Greater(t, workflows, 6)
	response, err := http.Get(s.metrics)
	require.NoError(t, err)
	var metrics bytes.Buffer
	_, err = metrics.ReadFrom(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Empty(t, secrets.find(metrics.Bytes()), "in a metric")
	require.Contains(t, metrics.String(), "kapsel_attempts_total")

	// What was planted is where it belongs, so it went all the way.
	require.NotZero(t, stack.count(t, "select count(*) from event_payloads where position($1::bytea in body) > 0", secrets["payload-batch"]))
	require.NotZero(t, stack.count(t, "select count(*) from attempts where position($1::bytea in response_body) > 0", secrets["answer-workflow"]))
	require.NotZero(t, stack.count(t, "select count(*) from deliveries where state = 'dead'"))
	attempts := stack.attemptIDs(t)

	stop() // what is said last is said too
	logs := readLogs(t, s.dir)
	require.Empty(t, secrets.find(logs), "in a log")
	require.Empty(t, secrets.find(collector.Raw()), "in a trace")
	traced := map[string]int{}
	for _, span := range collector.Spans() {
		traced[span.GetName()]++
	}
	require.Equal(t, len(attempts), traced["attempt"], "a span tells of every request")
	require.Equal(t, events, traced["commit"])
	for _, name := range []string{"POST /ingest/:endpoint_id", "deliver", "SendAttempt", "SendBatch", "record", "leaf", "seal"} {
		require.NotZero(t, traced[name], name)
	}
	for _, attempt := range attempts {
		require.Contains(t, string(logs), `"attempt_id":"`+attempt+`"`, "the log tells of every request")
	}
}

// plantSeeds counts the keys of the logs among the secrets.
func (s *testStack) plantSeeds(t *testing.T, secrets planted) {
	t.Helper()
	files, err := os.ReadDir(keyDir(s.dir))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		seed, err := os.ReadFile(filepath.Join(keyDir(s.dir), file.Name()))
		require.NoError(t, err)
		secrets["seed "+file.Name()] = bytes.TrimSpace(seed)
	}
}

// plantStored counts what Kapsel made up itself among the secrets: what opens commitments, and private keys.
func (s *testStack) plantStored(t *testing.T, secrets planted) {
	t.Helper()
	for what, sql := range map[string]string{
		"salt": "select salt from event_payloads", "secret of attempts": "select secret from event_payloads",
		"private key": "select substring(private_key for 32) from destination_keys",
	} {
		rows, err := s.db.Query(t.Context(), sql)
		require.NoError(t, err)
		stored, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
		require.NoError(t, err)
		require.NotEmpty(t, stored, what)
		for i, secret := range stored {
			secrets[fmt.Sprintf("%s %d", what, i)] = secret
		}
	}
}

// sendSecrets delivers webhooks full of secrets to receivers of every kind, and returns how many.
func (s *testStack) sendSecrets(t *testing.T, lane client.Lane, secrets planted) int {
	t.Helper()
	plant := func(what string) string { return secrets.plant(what + "-" + string(lane)) }
	header, location, body := plant("answer-header"), plant("location"), plant("answer")
	tell := func(status int) string {
		return startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Answer", header)
			w.Header().Set("Location", "http://127.0.0.1/"+location)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}).URL
	}
	source, path, hidden, headers := plant("source"), plant("query"), true, map[string]string{"Authorization": "Bearer " + plant("configured-header")}
	v1a := []string{"v1", "v1a"}
	var destinations []client.NewDestination
	for _, url := range []string{
		tell(200), tell(500), tell(302), tell(404), "http://127.0.0.1:1", "https://" + strings.TrimPrefix(tell(200), "http://"),
		"http://" + startGarbage(t, plant("garbage")+"\r\n"+plant("garbage")), "http://" + startGarbage(t, "HTTP/1.1 200 OK\r\n"+plant("garbage")+"\r\n\r\n"),
		"http://nowhere.invalid",
	} {
		destinations = append(destinations, client.NewDestination{
			URL: url + "/" + plant("path") + "?token=" + path, SecretPath: &hidden, Headers: &headers, Schedule: schedule(100), Signing: &v1a,
		})
	}
	answer, err := s.api.CreateEndpointWithResponse(t.Context(), client.NewEndpoint{
		Name: "test", Lane: &lane, Destinations: withoutCircuits(destinations), Secrets: &[]string{source},
		Verification: client.Verification{Scheme: client.VerificationSchemeGithub},
	})
	require.NoError(t, err)
	require.NotNil(t, answer.JSON201, string(answer.Body))
	for _, d := range answer.JSON201.Destinations {
		secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(*d.SigningSecret, "whsec_"))
		require.NoError(t, err)
		secrets["signing secret of "+d.ID] = secret
	}
	const webhooks = 2
	for i := range webhooks {
		body := `{"card":"` + plant("payload") + strings.Repeat("x", i) + `"}`
		require.Equal(t, http.StatusOK, s.request(t, http.MethodPost, "/ingest/"+answer.JSON201.ID+"?key="+plant("ingest-query"), body, map[string]string{
			"X-Hub-Signature-256": webhook.SignGitHub([]byte(source), []byte(body)), "Authorization": "Basic " + plant("authorization"),
			"Cookie": "session=" + plant("cookie"), "X-Custom": plant("header"),
			"Traceparent": "00-" + plant("traceparent"), "Tracestate": "a=" + plant("tracestate"), "Baggage": "a=" + plant("baggage"),
		}))
	}
	require.Equal(t, http.StatusUnauthorized, s.request(t, http.MethodPost, "/ingest/"+answer.JSON201.ID, plant("refused-payload"), map[string]string{
		"X-Hub-Signature-256": "sha256=" + plant("signature"),
	}))
	s.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending'")
	return webhooks
}

// recordLate has an outcome go through the workflow, because its sender can't record it.
func (s *testStack) recordLate(t *testing.T, lane client.Lane, secrets planted) {
	t.Helper()
	late := []byte(secrets.plant("late-answer-" + string(lane)))
	slow := startReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		<-time.After(time.Second) // in which its delivery's row is locked
		_, _ = w.Write(late)
	})
	hidden := true
	endpoint := s.createLane(t, lane, client.NewDestination{URL: slow.URL + "/" + secrets.plant("late-path-"+string(lane)), SecretPath: &hidden})
	s.pause(t, true)
	s.mustIngest(t, endpoint, secrets.plant("late-payload-"+string(lane)))
	s.blockRecording(t, "")
	s.awaitZero(t, time.Minute, "select count(*) from deliveries where state = 'pending'")
}

// failRequests sends what the api must refuse, each full of secrets.
func (s *testStack) failRequests(t *testing.T, secrets planted) {
	t.Helper()
	key := map[string]string{"Authorization": "Bearer " + s.made.APIKey, "Content-Type": "application/json"}
	wrong := map[string]string{"Authorization": "Bearer " + secrets.plant("wrong-key"), "Content-Type": "application/json"}
	secret := secrets.plant("refused")
	for _, body := range []string{
		secret, `{"` + secret + `":1}`, `{"name":"` + secret, `{"name":["` + secret + `"]}`,
		`{"name":"a","verification":{"scheme":"github"},"secrets":["` + secret + `",5],"destinations":[]}`,
		`{"name":"a","verification":{"scheme":"` + secret + `"},"destinations":[]}`,
		`{"name":"a","verification":{"scheme":"none"},"destinations":[{"url":"http://user:` + secret + `@example.com/?` + secret + `"}]}`,
		`{"name":"a","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com","headers":{"X":"` + secret + `\n"}}]}`,
		`{"name":"a","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com","transport":{"proxy":{"url":"http://a:` + secret + `@b"}}}]}`,
	} {
		status := s.request(t, http.MethodPost, "/api/v1/endpoints", body, key)
		require.True(t, status >= 400 && status < 500, "%d: %s", status, body)
		require.Equal(t, http.StatusUnauthorized, s.request(t, http.MethodPost, "/api/v1/endpoints?key="+secret, body, wrong))
	}
	for _, path := range []string{"/" + secret, "/api/v1/events/" + secret, "/api/v1/events?" + secret + "=1", "/api/v1/events?limit=" + secret,
		"/ingest/" + secret, "/log/" + secret + "/checkpoint"} {
		status := s.request(t, http.MethodGet, path, "", key)
		require.True(t, status >= 400 && status < 500, "%d: %s", status, path)
	}
}

func (s *site) request(t *testing.T, method, path, body string, headers map[string]string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.base+path, strings.NewReader(body))
	require.NoError(t, err)
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	return response.StatusCode
}

// histories returns all that Temporal keeps of every workflow, as bytes, and how many there are.
func (s *testStack) histories(t *testing.T) (all []byte, workflows int) {
	t.Helper()
	c := s.temporalClient(t)
	expected := s.count(t, "select count(*) from deliveries where lane = 'workflow'")
	var executions []*workflowservice.ListWorkflowExecutionsResponse
	require.Eventually(t, func() bool {
		executions, workflows = nil, 0
		for token, first := []byte(nil), true; first || len(token) > 0; first = false {
			page, err := c.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Namespace: temporal.Namespace, NextPageToken: token})
			if err != nil {
				return false
			}
			executions, workflows, token = append(executions, page), workflows+len(page.GetExecutions()), page.GetNextPageToken()
		}
		return workflows > expected // and those of the batches and of the log
	}, time.Minute, 100*time.Millisecond)
	for _, page := range executions {
		listed, err := proto.Marshal(page)
		require.NoError(t, err)
		all = append(all, listed...)
		for _, one := range page.GetExecutions() {
			all = append(all, historyOf(t, c, one.GetExecution().GetWorkflowId(), one.GetExecution().GetRunId())...)
		}
	}
	return all, workflows
}

func historyOf(t *testing.T, c sdk.Client, workflowID, runID string) (all []byte) {
	t.Helper()
	events := c.GetWorkflowHistory(t.Context(), workflowID, runID, false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		require.NoError(t, err)
		written, err := proto.Marshal(event)
		require.NoError(t, err)
		all = append(all, written...)
	}
	return all
}

// attemptIDs are those of all requests that were sent.
func (s *testStack) attemptIDs(t *testing.T) (ids []string) {
	t.Helper()
	rows, err := s.db.Query(t.Context(), "select id from attempts where number > 0")
	require.NoError(t, err)
	attempts, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	require.NoError(t, err)
	require.NotEmpty(t, attempts)
	for _, attempt := range attempts {
		ids = append(ids, id.Attempt.Format(attempt))
	}
	return ids
}

// readLogs returns all that was logged: by Kapsel, by Temporal, and by Postgres.
func readLogs(t *testing.T, dir string) (all []byte) {
	t.Helper()
	files := 0
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".log") {
			return err
		}
		files++
		text, err := os.ReadFile(path)
		all = append(all, text...)
		return err
	}))
	require.GreaterOrEqual(t, files, 2)
	return all
}
