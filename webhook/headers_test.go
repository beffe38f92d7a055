package webhook_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/webhook"
)

func TestEncodeHeaders(t *testing.T) {
	t.Parallel()
	h := http.Header{"X-B": {"2", "1"}, "X-A": {""}, "x-a": {" caf\xe9: \t"}, "No values": {"x"}, "X-C": {"a\r\nInjected: 1\x00"}, "X-D": {}}
	require.Equal(t, "X-A: \r\nX-B: 2\r\nX-B: 1\r\nX-C: a  Injected: 1 \r\nx-a:  caf\xe9: \t\r\n", string(webhook.EncodeHeaders(h)))
	require.Empty(t, webhook.EncodeHeaders(nil))
}

func TestDecodeHeadersRefusesWhatWasNotEncoded(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"X", "X: 1", "X: 1\n", "X:1\r\n", ": 1\r\n", "X Y: 1\r\n", "\r\n", "X: 1\r\n\r\n", "X: 1\n2\r\n", "X: \x00\r\n", "X: 1\r\n Y: 2\r\n", "X: \r\r\n"} {
		_, err := webhook.DecodeHeaders([]byte(in))
		require.ErrorContains(t, err, "decode headers: line", "%q", in)
	}
}

func TestHeadersPropertyLossless(t *testing.T) {
	t.Parallel()
	value := rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return strings.Map(dropControl, string(b)) })
	header := rapid.MapOf(rapid.StringMatching(`[A-Za-z0-9!#$%&'*+.^_|~-]{1,20}`), rapid.SliceOfN(value, 1, 4))
	rapid.Check(t, func(t *rapid.T) {
		h := http.Header(header.Draw(t, "header"))
		back, err := webhook.DecodeHeaders(webhook.EncodeHeaders(h))
		require.NoError(t, err)
		require.Equal(t, h, back)
	})
}

func dropControl(r rune) rune {
	if r == '\r' || r == '\n' || r == 0 {
		return -1
	}
	return r
}

// What can be decoded is encoded again to the same headers, and the form is stable.
func FuzzDecodeHeaders(f *testing.F) {
	for _, in := range []string{"", "X: 1\r\n", "B: 1\r\nA: 2\r\nB: \xff\r\n", "X:1\r\n", "X: 1\n", ": \r\n", "X: a: b\r\n"} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := webhook.DecodeHeaders(in)
		if err != nil {
			return
		}
		once := webhook.EncodeHeaders(h)
		require.Len(t, once, len(in), "every byte of what was accepted is kept")
		again, err := webhook.DecodeHeaders(once)
		require.NoError(t, err)
		require.Equal(t, h, again)
		require.True(t, bytes.Equal(once, webhook.EncodeHeaders(again)))
	})
}

var outgoing = webhook.Outgoing{EventID: "evt_1", DeliveryID: "dlv_1", Attempt: 3, AcceptedAt: at, SentAt: at.Add(time.Minute), Body: []byte("{}")}

func TestOutgoingHeaders(t *testing.T) {
	t.Parallel()
	original := header(
		"Content-Type", "application/json", "X-GitHub-Event", "push", "X-Hub-Signature-256", gitHubSignature,
		"User-Agent", "GitHub-Hookshot/1", "X-Multi", "1", "X-Multi", "2", "Content-Encoding", "gzip", "Idempotency-Key", "k",
		"Connection", "close, X-Private", "Connection", " x-other-private", "X-Private", "1", "X-Other-Private", "1",
		"Keep-Alive", "1", "TE", "trailers", "Trailer", "X", "Transfer-Encoding", "chunked", "Upgrade", "h2c", "HTTP2-Settings", "x",
		"Proxy-Connection", "x", "Proxy-Authenticate", "x", "Proxy-Authorization", "x", "Authorization", "Bearer sender", "Cookie", "c=1",
		"Host", "kapsel.example", "Content-Length", "7", "Accept-Encoding", "gzip", "Expect", "100-continue",
		"Kapsel-Event-Id", "evt_forged", "Kapsel-Anything", "forged",
		"webhook-id", "msg_source", "webhook-timestamp", "1", "webhook-signature", "v1,source")
	original["x-lower"] = []string{"kept"}
	configured := header("Authorization", "Bearer receiver", "X-Multi", "3", "Kapsel-Attempt", "99", "Host", "elsewhere")
	before := original.Clone()
	got := webhook.OutgoingHeaders(original, configured, outgoing)
	require.Equal(t, http.Header{
		"Content-Type": {"application/json"}, "X-Github-Event": {"push"}, "X-Hub-Signature-256": {gitHubSignature},
		"User-Agent": {"GitHub-Hookshot/1"}, "X-Multi": {"3"}, "Content-Encoding": {"gzip"}, "Idempotency-Key": {"k"}, "X-Lower": {"kept"},
		"Authorization":   {"Bearer receiver"},
		"Kapsel-Event-Id": {"evt_1"}, "Kapsel-Delivery-Id": {"dlv_1"}, "Kapsel-Attempt": {"3"},
		"Kapsel-Original-Timestamp": {"2026-11-23T12:00:00.123Z"},
		"Webhook-Id":                {"dlv_1"}, "Webhook-Timestamp": {"1795435260"},
	}, got)
	got["X-Multi"][0], got["X-Github-Event"][0] = "changed", "changed"
	require.Equal(t, before, original)
	require.Equal(t, "3", configured.Get("X-Multi"))
	require.Equal(t, "Kapsel", webhook.OutgoingHeaders(nil, nil, outgoing).Get("User-Agent"))
}

// A webhook that comes from Kapsel says how many deliveries it has gone through; what a stranger writes counts for nothing.
func TestHops(t *testing.T) {
	t.Parallel()
	const ours = "dlv_01h455vb4pex5vsknk084sn02q"
	for _, c := range []struct {
		id, hops string
		want     int
	}{
		{"", "", 0}, {"", "7", 0}, {"dlv_forged", "7", 0}, {"evt_01h455vb4pex5vsknk084sn02q", "7", 0},
		{ours, "", 1}, {ours, "1", 1}, {ours, "7", 7}, {ours, "0", 1}, {ours, "-3", 1}, {ours, "7, 1", 1}, {ours, "99999999999", 1},
	} {
		arrived := header(webhook.HeaderDeliveryID, c.id, webhook.HeaderHops, c.hops)
		require.Equal(t, c.want, webhook.Hops(arrived), "%+v", c)
	}
	arrived := http.Header{}
	for hop := range 3 {
		require.Equal(t, hop, webhook.Hops(arrived))
		arrived = webhook.OutgoingHeaders(arrived, nil, webhook.Outgoing{DeliveryID: ours})
	}
	require.Equal(t, "3", arrived.Get(webhook.HeaderHops))
}

func TestOutgoingSignature(t *testing.T) {
	t.Parallel()
	out := outgoing
	out.Secrets = [][]byte{otherValid, []byte(gitHubSecret)}
	got := webhook.OutgoingHeaders(nil, nil, out)
	require.Equal(t, webhook.SignStandard("dlv_1", out.SentAt, out.Body, out.Secrets), got.Get("webhook-signature"))
	require.Len(t, strings.Fields(got.Get("webhook-signature")), 2)
}

// The example of the Svix and Standard Webhooks libraries' own tests.
func TestSignStandardVector(t *testing.T) {
	t.Parallel()
	secret, err := webhook.ParseSigningSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	require.NoError(t, err)
	got := webhook.SignStandard("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`), [][]byte{secret})
	require.Equal(t, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", got)
}

func TestSigningSecrets(t *testing.T) {
	t.Parallel()
	a, b := webhook.NewSigningSecret(), webhook.NewSigningSecret()
	require.NotEqual(t, a, b)
	secret, err := webhook.ParseSigningSecret(a)
	require.NoError(t, err)
	require.Len(t, secret, 32)
	for _, bad := range []string{"", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!!!!", "whsec_" + strings.Repeat("AAAA", 22)} {
		_, err := webhook.ParseSigningSecret(bad)
		require.ErrorContains(t, err, "signing secret must", bad)
	}
}

func TestValidateConfiguredHeaders(t *testing.T) {
	t.Parallel()
	require.NoError(t, webhook.ValidateConfiguredHeaders(header("Authorization", "Bearer x", "X-Anything", "")))
	for want, h := range map[string]http.Header{
		"must be the name of a header":    {"a b": {"1"}},
		"X-Long must be at most":          {"X-Long": {strings.Repeat("v", 8<<10+1)}},
		"X-Break must be at most":         {"X-Break": {"a\r\nb"}},
		"content-length is set by Kapsel": {"content-length": {"1"}},
		"Kapsel-Proof-Token is set":       {"Kapsel-Proof-Token": {"1"}},
		"webhook-signature is set by":     {"webhook-signature": {"1"}},
	} {
		require.ErrorContains(t, webhook.ValidateConfiguredHeaders(h), want)
	}
	many := http.Header{}
	for i := range webhook.MaxConfiguredHeaders + 1 {
		many.Set("X-"+strings.Repeat("a", i+1), "1")
	}
	require.ErrorContains(t, webhook.ValidateConfiguredHeaders(many), "at most 50, not 51")
}

func TestIsCredential(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"authorization": true, "COOKIE": true, "Proxy-Authorization": true, "X-Hub-Signature-256": false} {
		require.Equal(t, want, webhook.IsCredential(name), name)
	}
}

// The context of our own trace replaces the sender's, but none that is configured; without one the sender's is passed on.
func TestOutgoingTraceparent(t *testing.T) {
	t.Parallel()
	const ours = "00-01a2295da4377673980e23bbd4967619-a1b68ddf365f6989-01"
	original := http.Header{"Traceparent": {"the sender's", "twice"}, "Tracestate": {"the sender's"}, "Connection": {"traceparent"}}
	got := webhook.OutgoingHeaders(original, nil, webhook.Outgoing{Traceparent: ours})
	require.Equal(t, []string{ours}, got["Traceparent"])
	require.NotContains(t, got, "Tracestate")
	configured := http.Header{"traceparent": {"configured"}, "TraceState": {"configured"}}
	got = webhook.OutgoingHeaders(original, configured, webhook.Outgoing{Traceparent: ours})
	require.Equal(t, []string{"configured"}, got["Traceparent"])
	require.Equal(t, []string{"configured"}, got["Tracestate"])
	delete(original, "Connection")
	got = webhook.OutgoingHeaders(original, nil, webhook.Outgoing{})
	require.Equal(t, original["Traceparent"], got["Traceparent"])
	require.Equal(t, original["Tracestate"], got["Tracestate"])
}
