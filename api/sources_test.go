package api_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

func mac(secret, message string) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(message))
	return h.Sum(nil)
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// sourceEndpoint makes an endpoint of one destination.
func (b *testBundle) sourceEndpoint(t testing.TB, verification string, secrets ...string) string {
	t.Helper()
	list := `"` + strings.Join(secrets, `","`) + `"`
	if len(secrets) == 0 {
		list = ""
	}
	return b.createEndpoint(t, fmt.Sprintf(`{"name":"in","verification":%s,"secrets":[%s],"destinations":[{"url":"https://example.com/in"}]}`, verification, list)).ID
}

// Every scheme from its configuration to what is stored, and every way in which it can refuse.
func TestEverySchemeEndToEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const secret, body = "a secret of the source", `{"id":1}`
	key := base64Of([]byte("0123456789012345678901234567"))
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	hexMAC := func(message string) string { return hex.EncodeToString(mac(secret, message)) }
	standard := func(version string, sign func(signed string) []byte) func(at string) []string {
		return func(at string) []string {
			return []string{"webhook-id", "msg_1", "webhook-timestamp", at, "webhook-signature", version + "," + base64Of(sign("msg_1."+at+"."+body))}
		}
	}
	for name, c := range map[string]struct {
		verification, secret string
		sign                 func(at string) []string
		timed                bool
	}{
		"github":  {`{"scheme":"github"}`, secret, func(string) []string { return []string{"X-Hub-Signature-256", "sha256=" + hexMAC(body)} }, false},
		"shopify": {`{"scheme":"shopify"}`, secret, func(string) []string { return []string{"X-Shopify-Hmac-Sha256", base64Of(mac(secret, body))} }, false},
		"stripe": {`{"scheme":"stripe"}`, secret, func(at string) []string {
			return []string{"Stripe-Signature", "t=" + at + ",v1=" + hexMAC(at+"."+body)}
		}, true},
		"slack": {`{"scheme":"slack"}`, secret, func(at string) []string {
			return []string{"X-Slack-Request-Timestamp", at, "X-Slack-Signature", "v0=" + hexMAC("v0:"+at+":"+body)}
		}, true},
		"standard v1":  {`{"scheme":"standard"}`, "whsec_" + key, standard("v1", func(signed string) []byte { return mac("0123456789012345678901234567", signed) }), true},
		"standard v1a": {`{"scheme":"standard"}`, "whpk_" + base64Of(public), standard("v1a", func(signed string) []byte { return ed25519.Sign(private, []byte(signed)) }), true},
		"hmac": {`{"scheme":"hmac","hmac":{"header":"X-Sig","encoding":"base64","signed":"{timestamp}.{body}","timestamp_header":"X-T"}}`, secret, func(at string) []string {
			return []string{"X-T", at, "X-Sig", base64Of(mac(secret, at+"."+body))}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endpoint := b.sourceEndpoint(t, c.verification, c.secret)
			shifted := func(by time.Duration) []string { return c.sign(strconv.FormatInt(time.Now().Add(by).Unix(), 10)) }
			s := b.stored(t, acceptedID(t, b.ingest(t, endpoint, body, shifted(0)...)))
			require.Equal(t, body, string(s.body))
			require.Equal(t, shifted(0)[0], headerName(shifted(0)[0], s.headers), "what is signed is kept")
			problem(t, b.ingest(t, endpoint, body), 401, "signature-missing")
			problem(t, b.ingest(t, endpoint, body+" ", shifted(0)...), 401, "bad-signature")
			if !c.timed {
				return
			}
			acceptedID(t, b.ingest(t, endpoint, body, shifted(-4*time.Minute)...))
			acceptedID(t, b.ingest(t, endpoint, body, shifted(4*time.Minute)...))
			problem(t, b.ingest(t, endpoint, body, shifted(-6*time.Minute)...), 401, "timestamp-too-old")
			problem(t, b.ingest(t, endpoint, body, shifted(6*time.Minute)...), 401, "timestamp-too-new")
			problem(t, b.ingest(t, endpoint, body+" ", shifted(-6*time.Minute)...), 401, "bad-signature")
			longer := b.sourceEndpoint(t, strings.TrimSuffix(c.verification, "}")+`,"tolerance_seconds":600}`, c.secret)
			acceptedID(t, b.ingest(t, longer, body, shifted(-9*time.Minute)...))
			problem(t, b.ingest(t, longer, body, shifted(-11*time.Minute)...), 401, "timestamp-too-old")
		})
	}
}

// headerName returns name if the headers have it.
func headerName(name string, headers map[string][]string) string {
	for got := range headers {
		if strings.EqualFold(got, name) {
			return name
		}
	}
	return ""
}

// Who may read an event, or receives it, mustn't learn by which secret it was sent.
func TestSecretsThatAreSentAreNotKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	basic := b.sourceEndpoint(t, `{"scheme":"basic"}`, "bank:a password of enough bytes")
	keyed := b.sourceEndpoint(t, `{"scheme":"api_key","api_key":{"header":"x-api-key"}}`, "a key of enough bytes")
	login := "Basic " + base64Of([]byte("bank:a password of enough bytes"))
	for endpoint, headers := range map[string][]string{basic: {"Authorization", login}, keyed: {"X-API-Key", "a key of enough bytes"}} {
		s := b.stored(t, acceptedID(t, b.ingest(t, endpoint, "{}", append(headers, "X-Other", "kept")...)))
		require.NotContains(t, string(webhook.EncodeHeaders(s.headers)), headers[1])
		require.Equal(t, []string{"kept"}, s.headers["X-Other"])
	}
	a := b.ingest(t, basic, "{}")
	problem(t, a, 401, "signature-missing")
	require.Equal(t, `Basic realm="kapsel", charset="UTF-8"`, a.header.Get("WWW-Authenticate"))
	a = b.ingest(t, basic, "{}", "Authorization", login+"x")
	problem(t, a, 401, "bad-signature")
	require.Equal(t, `Basic realm="kapsel", charset="UTF-8"`, a.header.Get("WWW-Authenticate"))
	a = b.ingest(t, keyed, "{}", "X-API-Key", "a key of enough bytez")
	problem(t, a, 401, "bad-signature")
	require.Empty(t, a.header.Get("WWW-Authenticate"))
	require.Equal(t, 2, b.count(t, "events"))
}
