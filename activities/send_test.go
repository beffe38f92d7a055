package activities_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// received is a request as its receiver saw it.
type received struct {
	URI    string
	Header http.Header
	Body   []byte
}

// receiver is a real server on loopback that keeps what it is sent.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	requests []received
}

func newReceiver(t testing.TB, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		r.requests = append(r.requests, received{request.RequestURI, request.Header.Clone(), body})
		r.mu.Unlock()
		answer(w, request)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) got() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// says answers with a status, a body, and headers given as names and values in turn.
func says(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Add(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// sender returns the activities as a worker has them, allowed to reach the receivers of these tests.
func (b *testBundle) sender(t testing.TB) *activities.Activities {
	t.Helper()
	client := webhook.NewClient(webhook.ClientConfig{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	t.Cleanup(client.Close)
	loader := activities.NewLoader(b.engine, nil)
	t.Cleanup(loader.Close)
	return &activities.Activities{
		DB: b.engine, Client: client, Loader: loader, Recorder: b.recorder(t), Alive: func() bool { return true },
		Latencies: activities.NewLatencies(), Permits: b.permits(), Interrupt: make(chan struct{}),
	}
}

func newSuite() *testsuite.WorkflowTestSuite {
	suite := &testsuite.WorkflowTestSuite{}
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	return suite
}

func environment(a *activities.Activities) *testsuite.TestActivityEnvironment {
	env := newSuite().NewTestActivityEnvironment()
	env.SetTestTimeout(time.Minute) // of local activities
	env.RegisterActivity(a)
	return env
}

// send runs SendAttempt as an ordinary activity, and returns its result as a workflow reads it.
func send(t testing.TB, a *activities.Activities, in activities.SendInput) (activities.SendResult, error) {
	t.Helper()
	encoded, err := environment(a).ExecuteActivity(a.SendAttempt, in)
	return decoded(t, encoded, err)
}

func sendLocally(t testing.TB, a *activities.Activities, in activities.SendInput) (activities.SendResult, error) {
	t.Helper()
	encoded, err := environment(a).ExecuteLocalActivity(a.SendAttempt, in)
	return decoded(t, encoded, err)
}

func decoded(t testing.TB, encoded converter.EncodedValue, err error) (result activities.SendResult, _ error) {
	t.Helper()
	if err == nil {
		require.NoError(t, encoded.Get(&result))
	}
	return result, err
}

// recorded sends and wants the attempt to have been recorded.
func recorded(t testing.TB, a *activities.Activities, in activities.SendInput) activities.Progress {
	t.Helper()
	result, err := send(t, a, in)
	require.NoError(t, err)
	require.NotNil(t, result.Progress)
	return *result.Progress
}

// first is the attempt whose start the claim counted.
func first(delivery uuid.UUID) activities.SendInput {
	return activities.SendInput{DeliveryID: id.Delivery.Format(delivery), Attempt: 1, Counted: true}
}

// claimedWith returns a claimed delivery of a webhook to a new destination.
func (b *testBundle) claimedWith(t testing.TB, url, body string, headers http.Header) (delivery, destination uuid.UUID) {
	t.Helper()
	destination = b.addDestination(t, url)
	row := b.acceptance(body, string(webhook.EncodeHeaders(headers)), destination)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	b.claim(t, 1, destination)
	return row.Deliveries[0].ID, destination
}

// claimedFor returns a claimed delivery of a small webhook to a new destination.
func (b *testBundle) claimedFor(t testing.TB, url string) (delivery, destination uuid.UUID) {
	t.Helper()
	return b.claimedWith(t, url, `{"hello":"world"}`, http.Header{"Content-Type": {"application/json"}})
}

// arrived are the headers of a webhook as its sender wrote them; half of them are for Kapsel only.
var arrived = http.Header{
	"Content-Type": {"application/json"}, "X-Github-Event": {"push"}, "X-Multi": {"one", "two"}, "User-Agent": {"Hookshot/1"},
	"Authorization": {"Basic c2VjcmV0"}, "Proxy-Authorization": {"Basic c2VjcmV0"}, "Cookie": {"session=secret"},
	"Connection": {"keep-alive, X-Hop"}, "X-Hop": {"1"}, "Keep-Alive": {"timeout=5"}, "Te": {"trailers"}, "Upgrade": {"h2c"},
	"Accept-Encoding": {"br"}, "Kapsel-Event-Id": {"forged"}, "Kapsel-Other": {"forged"}, "Webhook-Id": {"forged"},
}

func TestSendDelivers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, run := range map[string]func(testing.TB, *activities.Activities, activities.SendInput) (activities.SendResult, error){
		"activity": send, "local activity": sendLocally,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := "\x00\xff bytes, no JSON \r\n"
			r := newReceiver(t, says(201, "thanks", "X-Answer", "yes"))
			delivery, destination := b.claimedWith(t, r.URL+"/in?token=abc", body, arrived)
			b.exec(t, `update destinations set headers = '{"x-api-key":["configured"],"X-MULTI":["three"]}' where id = $1`, destination)
			b.addSecrets(t, destination)
			a := b.sender(t)
			from := time.Now()
			result, err := run(t, a, first(delivery))
			require.NoError(t, err)
			require.Equal(t, activities.SendResult{Progress: &activities.Progress{State: "delivered"}}, result)

			require.Len(t, r.got(), 1)
			got := r.got()[0]
			require.Equal(t, "/in?token=abc", got.URI)
			require.Equal(t, body, string(got.Body))
			requireSigned(t, got, from)
			requireHeaders(t, b, delivery, got)
			_, attempts, leaves := b.explained(t, delivery)
			require.Equal(t, "thanks", string(attempts[0].Body))
			require.Contains(t, string(attempts[0].Headers), "X-Answer: yes\r\n")
			require.Equal(t, r.URL+"/in", leaves[0].EndpointURL)
			require.EqualValues(t, 6, leaves[0].ResponseSize)
			require.False(t, leaves[0].ResponseTruncated)
			require.Empty(t, leaves[0].Error)
			require.Zero(t, leaves[0].LostStarts)
			require.Positive(t, a.Latencies.P95(destination))
		})
	}
}

const newKey, oldKey, expiredKey = "a signing key of 32 bytes, new..", "a signing key of 32 bytes, old..", "a signing key of 32 bytes, gone."

func (b *testBundle) addSecrets(t testing.TB, destination uuid.UUID) {
	t.Helper()
	for key, expires := range map[string]string{oldKey: "now() + interval '1 hour'", newKey: "null", expiredKey: "now() - interval '1 second'"} {
		row := id.New()
		row[15], row[6] = 0, 0x70 // IDs order the keys, newest first: by time, and here within one millisecond
		if key == newKey {
			row[0] = 0x7f
		}
		b.exec(t, `insert into destination_secrets (id, destination_id, tenant_id, secret, expires_at) values ($1, $2, $3, $4, `+expires+`)`,
			row, destination, b.tenant, []byte(key))
	}
}

// requireSigned checks the Standard Webhooks signatures as a receiver does, by itself.
func requireSigned(t testing.TB, got received, from time.Time) {
	t.Helper()
	seconds := got.Header.Get("Webhook-Timestamp")
	at, err := strconv.ParseInt(seconds, 10, 64)
	require.NoError(t, err)
	require.GreaterOrEqual(t, at, from.Unix())
	require.LessOrEqual(t, at, time.Now().Unix())
	var want []string
	for _, key := range []string{newKey, oldKey} {
		mac := hmac.New(sha256.New, []byte(key))
		_, _ = fmt.Fprintf(mac, "%s.%s.%s", got.Header.Get("Webhook-Id"), seconds, got.Body)
		want = append(want, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	require.Equal(t, strings.Join(want, " "), got.Header.Get("Webhook-Signature"))
}

// requireHeaders wants exactly the headers that a receiver of arrived should see.
func requireHeaders(t testing.TB, b *testBundle, delivery uuid.UUID, got received) {
	t.Helper()
	accepted := value[time.Time](t, b, "select e.accepted_at from events e join deliveries d on d.event_id = e.id where d.id = $1", delivery)
	event := value[uuid.UUID](t, b, "select event_id from deliveries where id = $1", delivery)
	require.Equal(t, http.Header{
		"Content-Type": {"application/json"}, "X-Github-Event": {"push"}, "User-Agent": {"Hookshot/1"},
		"X-Api-Key": {"configured"}, "X-Multi": {"three"},
		"Content-Length":  {strconv.Itoa(len(got.Body))},
		"Kapsel-Event-Id": {id.Event.Format(event)}, "Kapsel-Delivery-Id": {id.Delivery.Format(delivery)}, "Kapsel-Attempt": {"1"},
		"Kapsel-Original-Timestamp": {verify.FormatTime(accepted)},
		"Webhook-Id":                {id.Delivery.Format(delivery)},
		"Webhook-Timestamp":         got.Header["Webhook-Timestamp"],
		"Webhook-Signature":         got.Header["Webhook-Signature"],
	}, got.Header)
}

// The commitments in the leaf open with the stored secrets, for a stranger who holds what went over the wire.
func TestSendCommitsToWhatWentOverTheWire(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body, answer := `{"amount":1}`, "\x1f\x8b not decoded \xff" // gzip by its header: committed to as it is
	r := newReceiver(t, says(200, answer, "Content-Encoding", "gzip"))
	url := r.URL + "/in%2Fx?token=secret"
	delivery, destination := b.claimedWith(t, url, body, arrived)
	b.exec(t, `update destinations set headers = '{"X-Api-Key":["configured"]}' where id = $1`, destination)
	require.Equal(t, "delivered", recorded(t, b.sender(t), first(delivery)).State)
	require.NoError(t, b.sealing().SealNow(t.Context(), b.log.ID))
	_, heads := checkLog(t, b)
	leaf := collect[storedLeaf](t, b, `select leaf_index, tenant_id, attempt_id, leaf_hash, leaf, secrets from merkle_leaves`)[0]
	pkg, err := b.evidence(t, leaf, heads[0]).Package()
	require.NoError(t, err)

	payload, response, sent := []byte(body), []byte(answer), committedLines(r.got()[0].Header, "Content-Length", "X-Api-Key")
	result, err := verify.Package(pkg, verify.Options{
		VKey: b.log.VKey, Payload: &payload, Response: &response, URL: &url, Headers: &sent,
	})
	require.NoError(t, err)
	require.True(t, result.Delivered())
	require.Equal(t, r.URL+"/in%2Fx", result.Leaf.EndpointURL)
	require.EqualValues(t, len(body), result.Leaf.PayloadSize)
}

// committedLines are headers as headers_hash covers them, without some.
func committedLines(h http.Header, without ...string) []byte {
	var lines []string
	for name, values := range h {
		if !slices.Contains(without, name) {
			for _, v := range values {
				lines = append(lines, strings.ToLower(name)+":"+v+"\n")
			}
		}
	}
	slices.Sort(lines)
	return []byte(strings.Join(lines, ""))
}

func TestSendRetriesUntilItsScheduleEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, func(w http.ResponseWriter, request *http.Request) {
		if request.Header.Get("Kapsel-Attempt") == "1" {
			w.Header().Set("Retry-After", "7")
		}
		says(503, "busy")(w, request)
	})
	delivery, _ := b.claimedFor(t, r.URL)
	a, in := b.sender(t), first(delivery)
	require.Equal(t, activities.Progress{State: "pending", Delay: 7 * time.Second}, recorded(t, a, in), "the receiver asked for more than the schedule's second")
	in.Attempt, in.Counted = 2, false
	second := recorded(t, a, in)
	require.InDelta(t, 2*time.Second, second.Delay, float64(500*time.Millisecond), "the schedule's ±25 %")
	require.Equal(t, activities.Progress{State: "pending", Delay: second.Delay}, second)
	in.Attempt = 3
	require.Equal(t, activities.Progress{State: "dead"}, recorded(t, a, in))

	_, attempts, leaves := b.explained(t, delivery)
	require.Len(t, leaves, 4)
	require.Equal(t, []string{"retry", "retry", "failed", "attempts_exhausted"},
		[]string{leaves[0].Outcome, leaves[1].Outcome, leaves[2].Outcome, leaves[3].Outcome})
	require.Equal(t, "busy", string(attempts[2].Body))
	for i, got := range r.got() {
		require.Equal(t, strconv.Itoa(i+1), got.Header.Get("Kapsel-Attempt"))
		require.Equal(t, in.DeliveryID, got.Header.Get("Webhook-Id"), "the same for all attempts")
	}
	require.Len(t, r.got(), 3)
}

func TestSendParksALongWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(500, ""))
	delivery, destination := b.claimedFor(t, r.URL)
	b.exec(t, `update destinations set schedule = '{"type":"list","delays_ms":[10000000]}' where id = $1`, destination)
	progress := recorded(t, b.sender(t), first(delivery))
	require.True(t, progress.Moved)
	require.Equal(t, "pending", progress.State)
	d, _, _ := b.explained(t, delivery)
	require.Equal(t, 1, d.Epoch)
	require.True(t, d.Queued)
	require.False(t, d.Claimed)
}

func TestSendGoneDisablesTheDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(410, ""))
	delivery, destination := b.claimedFor(t, r.URL)
	later := b.accept(t, 1, destination)[0]
	b.claim(t, 1, destination)
	a := b.sender(t)
	require.Equal(t, activities.Progress{State: "dead"}, recorded(t, a, first(delivery)))
	_, _, leaves := b.explained(t, delivery)
	require.Equal(t, "gone", leaves[1].Outcome)
	require.Equal(t, "gone", value[string](t, b, "select disabled_reason from destinations where id = $1 and disabled_at is not null", destination))

	result, err := send(t, a, first(later))
	require.NoError(t, err)
	require.Equal(t, activities.SendResult{Held: true, Unused: true}, result)
	require.Len(t, r.got(), 1)
}

func TestSendFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	elsewhere := newReceiver(t, says(200, ""))
	r := newReceiver(t, says(307, "", "Location", elsewhere.URL))
	delivery, _ := b.claimedFor(t, r.URL)
	require.Equal(t, activities.Progress{State: "dead"}, recorded(t, b.sender(t), first(delivery)))
	_, _, leaves := b.explained(t, delivery)
	require.EqualValues(t, 307, leaves[0].ResponseStatus)
	require.Equal(t, "rejected", leaves[1].Outcome)
	require.Empty(t, elsewhere.got())
}
