package api_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
)

// exchange sends bytes and reads the one answer. ok is false if there was none because the server had closed the
// connection before it had everything.
func (b *testBundle) exchange(t *testing.T, request string) (a answer, ok bool) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, writeErr := io.WriteString(conn, request)
	reader := bufio.NewReader(conn)
	for {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			require.Error(t, writeErr, "no answer: %v", err)
			return answer{}, false
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode == http.StatusContinue {
			continue
		}
		require.NoError(t, err)
		return answer{response.StatusCode, response.Header, body}, true
	}
}

// whole counts the events and fails if a part of one is missing or left over. Each endpoint has one destination.
func (b *testBundle) whole(t testing.TB) int {
	t.Helper()
	var events, payloads, deliveries, queued, torn int
	require.NoError(t, b.engine.QueryRow(t.Context(), `select (select count(*) from events), (select count(*) from event_payloads),
		(select count(*) from deliveries), (select count(*) from delivery_queue),
		(select count(*) from events e join event_payloads p on p.event_id = e.id where e.body_size <> octet_length(p.body))`).
		Scan(&events, &payloads, &deliveries, &queued, &torn))
	require.Equal(t, []int{events, events, events, 0}, []int{payloads, deliveries, queued, torn})
	return events
}

// The statuses that a request of whatever bytes may be answered with. No 500 (a panic), no 503.
var fuzzStatuses = []int{200, 400, 401, 403, 408, 409, 413, 417, 431, 501, 508}

// Whatever arrives at an endpoint, as headers and as body, there is an answer; and an event is kept whole if the answer
// says so, and not at all otherwise.
func FuzzRawIngest(f *testing.F) {
	b := setup(f, func(c *api.Config) { c.BodyTimeout = 100 * time.Millisecond })
	endpoints := []string{
		b.endpoint(f),
		b.sourceEndpoint(f, `{"scheme":"github"}`, firstSecret),
		b.sourceEndpoint(f, `{"scheme":"slack","handshake":{"type":"slack"}}`, firstSecret),
		b.sourceEndpoint(f, `{"scheme":"standard"}`, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="),
		b.sourceEndpoint(f, `{"scheme":"basic"}`, "bank:a password of enough bytes"),
		b.sourceEndpoint(f, `{"scheme":"none","handshake":{"type":"microsoft_graph"}}`),
	}
	for _, seed := range []struct{ headers, body string }{
		{"Content-Length: 2\r\n", "{}"},
		{"Content-Length: 0\r\n", ""},
		{"", ""},
		// malformed
		{"no colon\r\n", ""},
		{": no name\r\n", ""},
		{"X Y: 1\r\n", ""},
		{"X: 1\r\n folded\r\n", ""},
		{"X: a\x00b\r\n", ""},
		{"X: a\rb\r\n", ""},
		{"Content-Length: -1\r\n", "x"},
		{"Content-Length: 1e3\r\n", "x"},
		{"Content-Length: 99999999999999999999\r\n", "x"},
		{"Content-Length: 1\r\nContent-Length: 2\r\n", "xy"},
		{"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"},
		{"Host: another\r\n", ""},
		{"Expect: 100-continue\r\nContent-Length: 2\r\n", "{}"},
		{"Expect: a miracle\r\nContent-Length: 2\r\n", "{}"},
		{"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nConnection: Upgrade\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		// truncated
		{"Content-Length: 10\r\n", "{}"},
		{"Transfer-Encoding: chunked\r\n", "5\r\nab"},
		{"Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n"},
		// oversized
		{"Content-Length: 10485761\r\n", "x"},
		{"X: " + strings.Repeat("x", 80<<10) + "\r\n", ""},
		{"Content-Length: 70000\r\n", strings.Repeat("\xff", 70_000)},
		// chunked
		{"Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n"},
		{"Transfer-Encoding: chunked\r\n", "1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n"},
		{"Transfer-Encoding: chunked\r\nTrailer: X-Hub-Signature-256\r\n", "2\r\n{}\r\n0\r\nX-Hub-Signature-256: sha256=00\r\n\r\n"},
		{"Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\n"},
		{"Transfer-Encoding: chunked\r\n", "zz\r\n"},
		{"Transfer-Encoding: gzip, chunked\r\n", "2\r\n{}\r\n0\r\n\r\n"},
		{"Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"},
		// compressed: kept as it is
		{"Content-Encoding: gzip\r\nContent-Length: 10\r\n", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"},
		{"Content-Encoding: br, gzip, deflate\r\nContent-Length: 4\r\n", "\x00\xff\x00\xff"},
		// stuffed
		{strings.Repeat("X-Stuffed: 1\r\n", 2000) + "Content-Length: 2\r\n", "{}"},
		{strings.Repeat("Idempotency-Key: k\r\n", 50) + "Content-Length: 2\r\n", "{}"},
		{"Idempotency-Key: a\r\nX-Idempotency-Key: b\r\nContent-Length: 2\r\n", "{}"},
		{"Idempotency-Key:\r\n", ""},
		{"Kapsel-Delivery-Id: dlv_01h455vb4pex5vsknk084sn02q\r\nKapsel-Hops: 9\r\n", ""},
		{"X-Hub-Signature-256: sha256=" + strings.Repeat("0", 64) + "\r\nX-Hub-Signature-256: x\r\n", ""},
		{"X-Slack-Signature: v0=" + strings.Repeat("0", 64) + "\r\nX-Slack-Request-Timestamp: 99999999999999999999\r\n", ""},
		{"Webhook-Id: m\r\nWebhook-Timestamp: 1614265330\r\nWebhook-Signature: v1a, v1,= , v1a," + strings.Repeat("A", 86) + "==\r\n", ""},
		{"Webhook-Id: m\r\nWebhook-Timestamp: 1\r\nWebhook-Signature: " + strings.Repeat("v1,AAAA ", 900) + "\r\n", ""},
		{"Authorization: Basic \r\n", ""},
		{"Authorization: Basic " + strings.Repeat("=", 500) + "\r\n", ""},
		// not UTF-8
		{"Content-Type: text/\xff\xfe\r\nX-\xff: 1\r\n", ""},
		{"Content-Type: \xc3\x28\r\nUser-Agent: \xed\xa0\x80\r\nContent-Length: 3\r\n", "\xff\xfe\x00"},
		{"Idempotency-Key: \xff\r\nContent-Length: 1\r\n", "\x80"},
		{"Content-Length: 60\r\n", `{"type":"url_verification","challenge":"<script>\ud800"}    `},
	} {
		for which := range endpoints {
			f.Add(uint8(which), []byte(seed.headers), []byte(seed.body))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, headers, body []byte) {
		endpoint := endpoints[int(which)%len(endpoints)]
		request := "POST /ingest/" + endpoint + " HTTP/1.1\r\nHost: kapsel\r\nConnection: close\r\n" + string(headers) + "\r\n" + string(body)
		if !strings.Contains(request, "\n\r\n") && !strings.Contains(request, "\n\n") {
			return // its headers don't end: net/http waits for the rest, and closes the connection after 10 s
		}
		before := b.whole(t)
		a, answered := b.exchange(t, request)
		accepted := 0
		if answered {
			require.Contains(t, fuzzStatuses, a.status, "%s", a.body)
			var event struct {
				ID string `json:"event_id"`
			}
			if a.status == 200 && json.Unmarshal(a.body, &event) == nil && event.ID != "" && a.header.Get("Kapsel-Duplicate") == "" {
				accepted = 1
			}
			require.NotContains(t, string(a.body), firstSecret)
		}
		require.Equal(t, before+accepted, b.whole(t))
	})
}
