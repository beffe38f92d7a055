package activities_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/webhook"
)

// requireUnanswered wants the delivery's one leaf to say that there was no answer, and why.
func requireUnanswered(t testing.TB, b *testBundle, delivery uuid.UUID, class string) {
	t.Helper()
	d, attempts, leaves := b.explained(t, delivery)
	require.Equal(t, "pending", d.State)
	require.Len(t, leaves, 1)
	require.Equal(t, "retry", leaves[0].Outcome)
	require.Equal(t, class, leaves[0].Error)
	require.Zero(t, leaves[0].ResponseStatus)
	require.Empty(t, leaves[0].ResponseHash)
	require.Zero(t, leaves[0].ResponseSize)
	require.False(t, leaves[0].ResponseTruncated)
	require.NotEmpty(t, leaves[0].HeadersHash)
	require.Nil(t, attempts[0].Headers)
	require.Nil(t, attempts[0].Body)
}

func TestSendWithoutAnswerIsRetried(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	reset := newReceiver(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	silent := newReceiver(t, func(_ http.ResponseWriter, request *http.Request) { <-request.Context().Done() })
	for class, url := range map[string]string{"connection_refused": closed.URL, "connection_reset": reset.URL, "timeout": silent.URL} {
		delivery, destination := b.claimedFor(t, url)
		if class == "timeout" {
			b.exec(t, "update destinations set timeout_ms = 100 where id = $1", destination)
		}
		progress := recorded(t, a, first(delivery))
		require.Equal(t, "pending", progress.State, class)
		require.InDelta(t, time.Second, progress.Delay, float64(250*time.Millisecond), class)
		requireUnanswered(t, b, delivery, class)
	}
}

func TestSendToAPrivateAddressIsBlocked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, ""))
	a := b.sender(t)
	a.Client = webhook.NewClient(webhook.ClientConfig{})
	t.Cleanup(a.Client.Close)
	delivery, _ := b.claimedFor(t, r.URL)
	require.Equal(t, "pending", recorded(t, a, first(delivery)).State)
	requireUnanswered(t, b, delivery, "blocked_address")
	require.Empty(t, r.got())
}

// When the worker has no more time, requests in flight end and are recorded as interrupted.
func TestSendInterrupted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.sender(t)
	interrupt := make(chan struct{})
	a.Interrupt = interrupt
	r := newReceiver(t, func(_ http.ResponseWriter, request *http.Request) {
		close(interrupt)
		<-request.Context().Done()
	})
	delivery, _ := b.claimedFor(t, r.URL)
	require.Equal(t, "pending", recorded(t, a, first(delivery)).State)
	requireUnanswered(t, b, delivery, "interrupted")
	require.Len(t, r.got(), 1)
}

// Temporal cancels the context of an activity whose worker stops, or whose workflow was terminated: the request ends, and
// what became of it is recorded all the same.
func TestSendCanceledIsRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := newReceiver(t, func(_ http.ResponseWriter, request *http.Request) {
		cancel()
		<-request.Context().Done()
	})
	delivery, _ := b.claimedFor(t, r.URL)
	a := b.sender(t)
	env := environment(a)
	env.RegisterActivityWithOptions(func(inner context.Context, in activities.SendInput) (activities.SendResult, error) {
		inner, stop := context.WithCancel(inner)
		defer context.AfterFunc(ctx, stop)()
		return a.SendAttempt(inner, in)
	}, activity.RegisterOptions{Name: "canceled"})
	encoded, err := env.ExecuteActivity("canceled", first(delivery))
	result, err := decoded(t, encoded, err)
	require.NoError(t, err)
	require.NotNil(t, result.Progress)
	requireUnanswered(t, b, delivery, "interrupted")
}

func TestSendTruncatesLongAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, extra := range []int{0, 1} {
		r := newReceiver(t, says(200, strings.Repeat("x", webhook.MaxResponseBody+extra)))
		delivery, _ := b.claimedFor(t, r.URL)
		recorded(t, b.sender(t), first(delivery))
		_, attempts, leaves := b.explained(t, delivery)
		kept := strings.Repeat("x", 64<<10)
		require.Equal(t, kept, string(attempts[0].Body))
		require.Equal(t, extra > 0, leaves[0].ResponseTruncated)
		require.EqualValues(t, 64<<10, leaves[0].ResponseSize)
		salts := b.storedSalts(t, delivery, 1)
		require.Equal(t, attestation.Commit(verify.LabelResponse, salts.Response, []byte(kept)), leaves[0].ResponseHash)
	}
}

// storedSalts opens the commitments of an attempt with the secrets that are queued with its leaf.
func (b *testBundle) storedSalts(t testing.TB, delivery uuid.UUID, number int) *verify.Salts {
	t.Helper()
	secrets := value[[]byte](t, b, "select secrets from leaf_queue where attempt_id = $1", id.AttemptOf(delivery, number))
	require.Len(t, secrets, 64)
	salts, err := attestation.SaltsOf(secrets[:32], secrets[32:])
	require.NoError(t, err)
	return salts
}

// While a request is under way Temporal hears of it, so that a worker that dies is found out.
func TestSendHeartbeats(t *testing.T) {
	t.Parallel()
	b := setup(t)
	beat := make(chan struct{}, 16)
	r := newReceiver(t, func(w http.ResponseWriter, request *http.Request) {
		select {
		case <-beat:
			says(200, "")(w, request)
		case <-request.Context().Done():
		}
	})
	delivery, destination := b.claimedFor(t, r.URL)
	b.exec(t, "update destinations set timeout_ms = 60000 where id = $1", destination)
	a := b.sender(t)
	env := environment(a)
	env.SetOnActivityHeartbeatListener(func(*activity.Info, converter.EncodedValues) { beat <- struct{}{} })
	encoded, err := env.ExecuteActivity(a.SendAttempt, first(delivery))
	result, err := decoded(t, encoded, err)
	require.NoError(t, err)
	require.Equal(t, "delivered", result.Progress.State)
}

// stuck is a delivery whose row another transaction holds, so that its outcome can't be recorded while it is sent.
type stuck struct {
	a          *activities.Activities
	r          *receiver
	delivery   uuid.UUID
	blocker    pgx.Tx
	commits    chan error // of the recorder
	unrecorded activities.Outcome
}

// sendStuck sends for a delivery until the sender gives up recording.
func (b *testBundle) sendStuck(t testing.TB) *stuck {
	t.Helper()
	s := &stuck{a: b.sender(t), r: newReceiver(t, says(200, "thanks")), commits: make(chan error, 16)}
	s.a.Recorder = activities.NewRecorder(activities.RecorderConfig{
		DB: b.engine, Observe: func(_ int, _ time.Duration, err error) { s.commits <- err },
	})
	t.Cleanup(s.a.Recorder.Close)
	s.delivery, _ = b.claimedFor(t, s.r.URL+"/in?token=secret")
	var err error
	s.blocker, err = b.owner.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.blocker.Rollback(context.Background()) })
	_, err = s.blocker.Exec(t.Context(), "select from deliveries where id = $1 for update", s.delivery)
	require.NoError(t, err)

	result, err := send(t, s.a, first(s.delivery))
	require.NoError(t, err, "the request was sent, so there is an outcome and no error")
	require.Nil(t, result.Progress)
	require.NotNil(t, result.Unrecorded)
	require.Len(t, s.r.got(), 1)
	s.unrecorded = *result.Unrecorded
	return s
}

func (s *stuck) record(t testing.TB) activities.Progress {
	t.Helper()
	encoded, err := environment(s.a).ExecuteActivity(s.a.RecordAttempt, activities.RecordInput{
		DeliveryID: id.Delivery.Format(s.delivery), Attempt: 1, Outcome: s.unrecorded,
	})
	require.NoError(t, err)
	var progress activities.Progress
	require.NoError(t, encoded.Get(&progress))
	return progress
}

// The outcome that the sender returns makes the same leaf as the sender itself would have.
func TestSendUnrecordedIsRecordedByAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.sendStuck(t)
	b.tamper(t, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
	require.Error(t, <-s.commits, "the sender's own recording has failed for good")
	require.NoError(t, s.blocker.Rollback(t.Context()))

	require.Equal(t, activities.Progress{State: "delivered"}, s.record(t))
	require.Equal(t, activities.Progress{State: "delivered"}, s.record(t), "it may run twice")
	_, attempts, leaves := b.explained(t, s.delivery)
	require.Len(t, leaves, 1)
	require.Nil(t, attempts[0].Body, "lost with the sender; its hash isn't")
	leaf, salts, o := leaves[0], b.storedSalts(t, s.delivery, 1), s.unrecorded
	require.Equal(t, []string{o.URLHash, o.HeadersHash, o.ResponseHash}, []string{leaf.URLHash, leaf.HeadersHash, leaf.ResponseHash})
	sent := committedLines(s.r.got()[0].Header, "Content-Length")
	require.Equal(t, attestation.Commit(verify.LabelURL, salts.URL, []byte(s.r.URL+"/in?token=secret")), leaf.URLHash)
	require.Equal(t, attestation.Commit(verify.LabelHeaders, salts.Headers, sent), leaf.HeadersHash)
	require.Equal(t, attestation.Commit(verify.LabelResponse, salts.Response, []byte("thanks")), leaf.ResponseHash)
	require.Equal(t, verify.FormatTime(o.AttemptedAt), leaf.AttemptedAt)
	require.Equal(t, o.Duration.Milliseconds(), leaf.DurationMS)
	require.EqualValues(t, 6, leaf.ResponseSize)
	require.Zero(t, leaf.LostStarts)
}

// A recording that the sender no longer waited for may still be committed; then there is nothing left to record.
func TestSendUnrecordedWasRecordedAfterAll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := b.sendStuck(t)
	require.NoError(t, s.blocker.Rollback(t.Context()))
	require.NoError(t, <-s.commits)
	require.Equal(t, activities.Progress{State: "delivered"}, s.record(t))
	_, attempts, leaves := b.explained(t, s.delivery)
	require.Len(t, leaves, 1)
	require.Equal(t, "thanks", string(attempts[0].Body))
}

func TestSendRefusesMalformedIDs(t *testing.T) {
	t.Parallel()
	a := &activities.Activities{Alive: func() bool { return true }}
	_, err := send(t, a, activities.SendInput{DeliveryID: id.Event.Format(id.New())})
	requireFinal(t, err)
	_, err = environment(a).ExecuteActivity(a.RecordAttempt, activities.RecordInput{DeliveryID: "dlv_"})
	requireFinal(t, err)
	require.Error(t, requeue(a, activities.RequeueInput{DeliveryID: id.Event.Format(id.New())}))
}

// requireFinal wants an error that Temporal doesn't retry.
func requireFinal(t testing.TB, err error) {
	t.Helper()
	var application *temporal.ApplicationError
	require.True(t, errors.As(err, &application), err)
	require.True(t, application.NonRetryable())
}

// mark stands in everything that must not go into workflow history.
const mark = "S3CR3T"

// Invariant 3: whatever becomes of an attempt, what SendAttempt returns holds no payload, no header's value, no secret,
// no key, and no credential of a URL.
func TestSendKeepsSecretsOutOfHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, says(200, mark, "X-Answer", mark))
	busy := newReceiver(t, says(503, mark, "Retry-After", mark))
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	query := "/" + mark + "?token=" + mark
	type wired = *activities.Activities
	for name, c := range map[string]struct {
		url, headers, configured, schedule string
		before                             func(a wired, in *activities.SendInput, destination uuid.UUID)
		want                               string // in the history
	}{
		"delivered":  {url: r.URL + query, want: `"State":"delivered"`},
		"retry":      {url: busy.URL + query, want: `"State":"pending"`},
		"refused":    {url: closed.URL + query, want: `"State":"pending"`},
		"unsendable": {url: strings.Replace(r.URL, "//", "//user:"+mark+"@", 1) + query, want: `"State":"dead"`},
		"unsendable header": {
			url: r.URL + query, configured: `{"X-Api-Key":["` + mark + `\u0001"]}`, want: `"State":"dead"`,
		},
		"unrecorded": {
			url: r.URL + query, want: `"Outcome":"delivered"`,
			before: func(a wired, _ *activities.SendInput, _ uuid.UUID) { a.Recorder.Close() },
		},
		"held": {
			url: r.URL + query, want: `"Held":true`,
			before: func(_ wired, _ *activities.SendInput, destination uuid.UUID) {
				b.exec(t, "update destinations set paused_at = now() where id = $1", destination)
			},
		},
		"moved": {
			url: r.URL + query, want: `"Moved":true`,
			before: func(_ wired, in *activities.SendInput, _ uuid.UUID) { in.Epoch = 1 },
		},
		"moved, who knows where": {
			url: r.URL + query, want: "NotSent",
			before: func(a wired, in *activities.SendInput, _ uuid.UUID) { in.Epoch = 1; a.Recorder.Close() },
		},
		"lapsed": {
			url: r.URL + query, want: "NotSent",
			before: func(a wired, _ *activities.SendInput, _ uuid.UUID) { a.Alive = func() bool { return false } },
		},
		"malformed headers":    {url: r.URL + query, headers: mark, want: "NotSent"},
		"malformed URL":        {url: "http://" + mark + "/%zz?" + mark, want: "NotSent"},
		"malformed schedule":   {url: r.URL + query, schedule: `{"first_delay_ms":"` + mark + `"}`, want: "NotSent"},
		"malformed configured": {url: r.URL + query, configured: `{"X-Api-Key":"` + mark + `"}`, want: "NotSent"},
	} {
		delivery, destination := b.marked(t, c.url, c.headers, c.configured, c.schedule)
		a, in := b.sender(t), first(delivery)
		if c.before != nil {
			c.before(a, &in, destination)
		}
		encoded, err := environment(a).ExecuteActivity(a.SendAttempt, in)
		kept := history(t, encoded, err)
		require.Contains(t, kept, c.want, name)
		b.requireNoSecrets(t, delivery, name, kept)
	}
}

// history is what Temporal would keep of a result or an error.
func history(t testing.TB, encoded converter.EncodedValue, err error) string {
	t.Helper()
	if err != nil {
		return temporal.GetDefaultFailureConverter().ErrorToFailure(err).String()
	}
	var result json.RawMessage
	require.NoError(t, encoded.Get(&result))
	return string(result)
}

// marked returns a claimed delivery with the mark wherever something secret may be.
func (b *testBundle) marked(t testing.TB, url, headers, configured, schedule string) (delivery, destination uuid.UUID) {
	t.Helper()
	destination = b.addDestination(t, url)
	set := func(column, json string) {
		if json != "" {
			b.exec(t, "update destinations set "+column+" = $2 where id = $1", destination, json)
		}
	}
	set("headers", `{"X-Api-Key":["`+mark+`"]}`)
	set("headers", configured)
	set("schedule", schedule)
	b.exec(t, "update destinations set secret_path = true where id = $1", destination)
	b.exec(t, "insert into destination_secrets (id, destination_id, tenant_id, secret) values ($1, $2, $3, $4)",
		id.New(), destination, b.tenant, []byte(strings.Repeat(mark, 6)))
	if headers == "" {
		headers = string(webhook.EncodeHeaders(http.Header{"X-Original": {mark}, "Authorization": {mark}}))
	}
	row := b.acceptance(`{"payload":"`+mark+`"}`, headers, destination)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	b.claim(t, 1, destination)
	return row.Deliveries[0].ID, destination
}

func (b *testBundle) requireNoSecrets(t testing.TB, delivery uuid.UUID, name, history string) {
	t.Helper()
	salt := value[[]byte](t, b, "select p.salt from event_payloads p join deliveries d using (event_id) where d.id = $1", delivery)
	secret := value[[]byte](t, b, "select p.secret from event_payloads p join deliveries d using (event_id) where d.id = $1", delivery)
	require.NotContains(t, history, mark, name)
	for _, secret := range [][]byte{salt, secret, attestation.AttemptSecret(secret, delivery, 1), []byte(strings.Repeat(mark, 6))} {
		for _, form := range []string{hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret)} {
			require.NotContains(t, history, form, name)
		}
	}
}
