package webhook_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// sha256MAC is written out here, so that what verifies isn't what signed.
func sha256MAC(secret, message string) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(message))
	return h.Sum(nil)
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// signedExample is a request that its scheme must accept.
type signedExample struct {
	source  webhook.Source
	secret  string
	other   string // another secret of the same form
	headers []string
	body    string
	at      int64 // when it was signed; 0 if that isn't signed
	// unsigned is whether the scheme proves nothing of the body.
	unsigned bool
}

const (
	otherSecret = "another secret of enough bytes"
	// Slack, "Verifying requests from Slack" (https://docs.slack.dev/authentication/verifying-requests-from-slack).
	slackSecret = "8f742231b10e8888abcd99yyyzzz85a5"
	slackBody   = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar" +
		"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2F" +
		"commands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
	slackSignature = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
	// Standard Webhooks: the vectors of its reference libraries (v1: every language's "sign" test) and of the Svix server,
	// by the specification's authors (v1a: worker.rs, test_asymmetric_key_signing; the signature is also the example in
	// spec/standard-webhooks.md).
	standardID     = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	standardBody   = `{"test": 2432232314}`
	standardSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	standardV1     = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	standardPublic = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
	standardV1a    = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
	standardAt     = 1614265330
)

// examples has the providers' documented vectors where they publish one. Shopify and Stripe don't with a secret of
// enough bytes (see stripe_internal_test.go): theirs were computed with Python's hmac.
func examples() map[string]signedExample {
	timed := webhook.HMAC{Header: "X-Signature", Prefix: "v1=", Signed: "{id}.{timestamp}.{body}", TimestampHeader: "X-Time", IDHeader: "X-Id"}
	return map[string]signedExample{
		"github": {source: webhook.Source{Scheme: "github"}, secret: gitHubSecret, other: otherSecret,
			headers: []string{"X-Hub-Signature-256", gitHubSignature}, body: gitHubBody},
		"slack": {source: webhook.Source{Scheme: "slack"}, secret: slackSecret, other: otherSecret, body: slackBody, at: 1531420618,
			headers: []string{"X-Slack-Signature", slackSignature, "X-Slack-Request-Timestamp", "1531420618"}},
		"shopify": {source: webhook.Source{Scheme: "shopify"}, secret: "hush-hush-hush-hush", other: otherSecret, body: `{"id":820982911946154508}`,
			headers: []string{"X-Shopify-Hmac-Sha256", "aDPQjbkrpNlMdy9Xpgse3eKgANQc2Yx/Najj029WpLU="}},
		"stripe": {source: webhook.Source{Scheme: "stripe"}, secret: "whsec_" + otherSecret, other: otherSecret, body: `{"id":"evt_1"}`, at: 1492774577,
			headers: []string{"Stripe-Signature", "t=1492774577,v1=" + hex.EncodeToString(sha256MAC("whsec_"+otherSecret, `1492774577.{"id":"evt_1"}`))}},
		"standard v1": {source: webhook.Source{Scheme: "standard"}, secret: standardSecret, other: webhook.NewSigningSecret(), body: standardBody, at: standardAt,
			headers: []string{"webhook-id", standardID, "webhook-timestamp", "1614265330", "webhook-signature", standardV1}},
		"standard v1a": {source: webhook.Source{Scheme: "standard"}, secret: standardPublic, other: newPublicKey(), body: standardBody, at: standardAt,
			headers: []string{"webhook-id", standardID, "webhook-timestamp", "1614265330", "webhook-signature", standardV1a}},
		"svix's headers": {source: webhook.Source{Scheme: "standard", Standard: &webhook.Standard{Headers: "svix"}}, secret: standardSecret,
			other: webhook.NewSigningSecret(), body: standardBody, at: standardAt,
			headers: []string{"svix-id", standardID, "svix-timestamp", "1614265330", "svix-signature", standardV1}},
		"hmac of ID, timestamp and body": {source: webhook.Source{Scheme: "hmac", HMAC: &timed}, secret: otherValidText, other: otherSecret, body: "{}", at: 1700000000,
			headers: []string{"X-Signature", "v1=" + hex.EncodeToString(sha256MAC(otherValidText, "a-b.1700000000.{}")), "X-Time", "1700000000", "X-Id", "a-b"}},
		// RFC 7617, section 2, with a longer password than its "Aladdin:open sesame".
		"basic": {source: webhook.Source{Scheme: "basic"}, secret: "Aladdin:open sesame, please", other: "Aladdin:another password",
			headers: []string{"Authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZSwgcGxlYXNl"}, body: "{}", unsigned: true},
		"api_key": {source: webhook.Source{Scheme: "api_key", APIKey: &webhook.APIKey{Header: "authorization", Prefix: "Bearer "}}, secret: "a key of enough bytes",
			other: otherSecret, headers: []string{"Authorization", "Bearer a key of enough bytes"}, body: "{}", unsigned: true},
	}
}

const otherValidText = "a secret of the source"

func newPublicKey() string {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return "whpk_" + base64Of(public)
}

// eachExample runs f for every example, with a clock that stands at the moment of the signature.
func eachExample(t *testing.T, f func(t *testing.T, e signedExample, verify func(h http.Header, body string, secrets ...string) error)) {
	t.Helper()
	for name, e := range examples() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, e.source.Validate())
			require.NoError(t, e.source.ValidateSecrets([][]byte{[]byte(e.secret), []byte(e.other)}))
			now := at
			if e.at != 0 {
				now = time.Unix(e.at, 0)
			}
			f(t, e, func(h http.Header, body string, secrets ...string) error {
				err := e.source.Verify(h, []byte(body), bytesOf(secrets), now)
				if err != nil {
					require.NotContains(t, err.Error(), e.secret)
				}
				return err
			})
		})
	}
}

func bytesOf(secrets []string) (list [][]byte) {
	for _, secret := range secrets {
		list = append(list, []byte(secret))
	}
	return list
}

func TestDocumentedVectors(t *testing.T) {
	t.Parallel()
	eachExample(t, func(t *testing.T, e signedExample, verify func(http.Header, string, ...string) error) {
		h := header(e.headers...)
		require.NoError(t, verify(h, e.body, e.secret))
		require.NoError(t, verify(h, e.body, e.secret, e.other), "while the secret is rotated")
		require.NoError(t, verify(h, e.body, e.other, e.secret))
		require.NoError(t, verify(h, e.body, "", e.secret), "a secret that can't be one is passed over")
	})
}

func TestEveryTamperingIsNoticed(t *testing.T) {
	t.Parallel()
	eachExample(t, func(t *testing.T, e signedExample, verify func(http.Header, string, ...string) error) {
		good := header(e.headers...)
		require.ErrorIs(t, verify(good, e.body, e.other), webhook.ErrBadSignature, "another secret")
		require.ErrorIs(t, verify(good, e.body), webhook.ErrBadSignature, "no secret")
		require.ErrorIs(t, verify(good, e.body, "", "short"), webhook.ErrBadSignature, "no secret that can be one")
		require.ErrorIs(t, verify(http.Header{}, e.body, e.secret), webhook.ErrNoSignature)
		if !e.unsigned {
			for i := range e.body {
				require.ErrorIs(t, verify(good, e.body[:i]+string(e.body[i]^1)+e.body[i+1:], e.secret), webhook.ErrBadSignature)
			}
			require.ErrorIs(t, verify(good, e.body[1:], e.secret), webhook.ErrBadSignature)
			require.ErrorIs(t, verify(good, e.body+" ", e.secret), webhook.ErrBadSignature)
			require.ErrorIs(t, verify(good, "", e.secret), webhook.ErrBadSignature)
		}
		for name, values := range good {
			value := values[0]
			with := func(values ...string) http.Header {
				h := good.Clone()
				h[name] = values
				return h
			}
			require.ErrorIs(t, verify(with(), e.body, e.secret), webhook.ErrNoSignature, name)
			require.ErrorIs(t, verify(with(""), e.body, e.secret), webhook.ErrNoSignature, name)
			require.ErrorIs(t, verify(with(value, value), e.body, e.secret), webhook.ErrBadSignature, "%s twice", name)
			require.ErrorIs(t, verify(with(value, "x"), e.body, e.secret), webhook.ErrBadSignature, "%s twice", name)
			for i := range value {
				require.Error(t, verify(with(value[:i]+string(value[i]^1)+value[i+1:]), e.body, e.secret), "%s, byte %d", name, i)
				require.Error(t, verify(with(value[:i]), e.body, e.secret), "%s, first %d bytes", name, i)
			}
			for _, changed := range []string{value + "\x00", value + "x", "x" + value, "\xff" + value, strings.Repeat("9", 30)} {
				require.Error(t, verify(with(changed), e.body, e.secret), "%s: %q", name, changed)
			}
		}
	})
}

// Hexadecimal where base64 is meant, the alphabet of URLs, padding left out: none of them is the signature.
func TestOtherEncodingsAreRefused(t *testing.T) {
	t.Parallel()
	mac := sha256MAC(otherValidText, "{}")
	shopify := webhook.Source{Scheme: "shopify"}
	good := base64Of(mac)
	require.NoError(t, shopify.Verify(header("X-Shopify-Hmac-Sha256", good), []byte("{}"), bytesOf([]string{otherValidText}), at))
	for _, value := range []string{hex.EncodeToString(mac), base64.RawStdEncoding.EncodeToString(mac), base64.URLEncoding.EncodeToString(mac) + "=",
		base64Of([]byte(hex.EncodeToString(mac))), base64Of([]byte(good)), good + "=", string(mac), base64Of(mac[:31]), "sha256=" + good} {
		err := shopify.Verify(header("X-Shopify-Hmac-Sha256", value), []byte("{}"), bytesOf([]string{otherValidText}), at)
		require.ErrorIs(t, err, webhook.ErrBadSignature, value)
	}
	hub := webhook.Source{Scheme: "github"}
	err := hub.Verify(header("X-Hub-Signature-256", "sha256="+good), []byte("{}"), bytesOf([]string{otherValidText}), at)
	require.ErrorIs(t, err, webhook.ErrBadSignature)
}

func TestTolerance(t *testing.T) {
	t.Parallel()
	for name, e := range examples() {
		if e.at == 0 {
			continue
		}
		for _, seconds := range []int64{0, 1, 60, 86_400} {
			e.source.ToleranceSeconds = seconds
			require.NoError(t, e.source.Validate())
			tolerance := int64(e.source.Tolerance() / time.Second)
			require.Equal(t, map[bool]int64{true: 300, false: seconds}[seconds == 0], tolerance)
			verify := func(after int64, secret string) error {
				return e.source.Verify(header(e.headers...), []byte(e.body), bytesOf([]string{secret}), time.Unix(e.at+after, 999_999_999))
			}
			require.NoError(t, verify(tolerance, e.secret), name)
			require.NoError(t, verify(-tolerance, e.secret), name)
			require.ErrorIs(t, verify(tolerance+1, e.secret), webhook.ErrTooOld, name)
			require.ErrorIs(t, verify(-tolerance-1, e.secret), webhook.ErrTooNew, name)
			require.ErrorIs(t, verify(1<<40, e.secret), webhook.ErrTooOld, name)
			require.ErrorIs(t, verify(1<<40, e.other), webhook.ErrBadSignature, "who can't sign learns nothing of the timestamp")
			require.ErrorIs(t, verify(-tolerance-1, e.other), webhook.ErrBadSignature)
		}
	}
}

// A timestamp that isn't digits is refused although it is signed: what is compared with the clock must be what was signed.
func TestTimestampsAreDigits(t *testing.T) {
	t.Parallel()
	source := webhook.Source{Scheme: "slack"}
	verify := func(timestamp string) error {
		h := header("X-Slack-Request-Timestamp", timestamp, "X-Slack-Signature", "v0="+hex.EncodeToString(sha256MAC(slackSecret, "v0:"+timestamp+":{}")))
		return source.Verify(h, []byte("{}"), bytesOf([]string{slackSecret}), time.Unix(1531420618, 0))
	}
	require.NoError(t, verify("1531420618"))
	for _, timestamp := range []string{"+1531420618", "-1531420618", " 1531420618", "1531420618 ", "1531420618.0", "0x5b479d4a", "1.53e9", "1_531_420_618",
		"1531420618000000000", "9223372036854775807", "99999999999999999999999", "٣", "now", "1531420618:{"} {
		require.ErrorIs(t, verify(timestamp), webhook.ErrBadSignature, timestamp)
	}
}

func TestStripeSignatures(t *testing.T) {
	t.Parallel()
	const body = "{}"
	source, now := webhook.Source{Scheme: "stripe"}, time.Unix(1492774577, 0)
	sign := func(secret string) string { return hex.EncodeToString(sha256MAC(secret, "1492774577."+body)) }
	good, wrong := "v1="+sign(otherSecret), "v1="+sign("not the secret at all")
	for value, want := range map[string]error{
		"t=1492774577," + good:                                     nil,
		good + ",t=1492774577":                                     nil,
		"t=1492774577," + wrong + "," + good:                       nil, // while the secret is rolled
		"t=1492774577," + good + "," + wrong:                       nil,
		"t=1492774577,v1=zz,v1=," + good:                           nil,
		"t=1492774577,v0=ab,x," + good:                             nil,
		"t=1492774577," + wrong:                                    webhook.ErrBadSignature,
		"t=1492774577,v0=" + sign(otherSecret):                     webhook.ErrNoSignature, // v0 is for tests, and weaker
		"t=1492774577,V1=" + sign(otherSecret):                     webhook.ErrNoSignature,
		"t=1492774577, " + good:                                    webhook.ErrNoSignature,
		good:                                                       webhook.ErrNoSignature,
		"t=," + good:                                               webhook.ErrNoSignature,
		"t=1492774577,t=1492774578," + good:                        webhook.ErrBadSignature,
		"t=1492774578,t=1492774577," + good:                        webhook.ErrBadSignature,
		"t=1492774578," + good:                                     webhook.ErrBadSignature,
		"t=-1492774577," + good:                                    webhook.ErrBadSignature,
		"t=1492774577" + strings.Repeat(","+wrong, 8) + good:       webhook.ErrBadSignature,
		"t=1492774577" + strings.Repeat(","+good, 9):               webhook.ErrBadSignature, // more than are tried
		"t=1492774577;" + good:                                     webhook.ErrNoSignature,
		"t=1492774577,v1=" + strings.Repeat("a", 64) + "," + wrong: webhook.ErrBadSignature,
	} {
		err := source.Verify(header("Stripe-Signature", value), []byte(body), bytesOf([]string{otherSecret}), now)
		require.ErrorIs(t, err, want, value)
	}
}

func TestStandardLists(t *testing.T) {
	t.Parallel()
	verify := func(list string, secrets ...string) error {
		h := header("webhook-id", standardID, "webhook-timestamp", "1614265330", "webhook-signature", list)
		return webhook.Source{Scheme: "standard"}.Verify(h, []byte(standardBody), bytesOf(secrets), time.Unix(standardAt, 0))
	}
	wrong := "v1," + base64Of(make([]byte, 32))
	require.NoError(t, verify(wrong+" "+standardV1, standardSecret))
	require.NoError(t, verify(standardV1a+" "+standardV1, standardSecret))
	require.NoError(t, verify(standardV1a+" "+standardV1, standardPublic))
	require.NoError(t, verify("v2,AAAA v1 , v1,!!!! x  "+standardV1, standardSecret), "unknown versions and malformed entries are passed over")
	require.NoError(t, verify(standardV1, webhook.NewSigningSecret(), newPublicKey(), standardSecret), "secrets of both kinds together")
	for _, list := range []string{wrong, "v1", "v1,", ",", "v1," + standardV1, strings.ReplaceAll(standardV1, ",", "="), strings.TrimPrefix(standardV1, "v1,"),
		"v2" + standardV1[2:], "V1" + standardV1[2:], standardV1 + "," + standardV1, strings.Repeat(wrong+" ", 8) + standardV1, wrong + "\t" + standardV1} {
		require.ErrorIs(t, verify(list, standardSecret), webhook.ErrBadSignature, list)
	}
}

// A signature is verified by the algorithm that its key is for, whatever the request says.
func TestStandardAlgorithmsAreNotConfused(t *testing.T) {
	t.Parallel()
	const signed = standardID + ".1614265330." + standardBody
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	key := "whpk_" + base64Of(public)
	seed := "whsec_" + base64Of(private.Seed())
	verify := func(list string, secrets ...string) error {
		h := header("webhook-id", standardID, "webhook-timestamp", "1614265330", "webhook-signature", list)
		return webhook.Source{Scheme: "standard"}.Verify(h, []byte(standardBody), bytesOf(secrets), time.Unix(standardAt, 0))
	}
	signature := ed25519.Sign(private, []byte(signed))
	require.NoError(t, verify("v1a,"+base64Of(signature), key))
	require.ErrorIs(t, verify("v1,"+base64Of(signature), key), webhook.ErrBadSignature, "Ed25519 called v1")
	require.ErrorIs(t, verify("v1a,"+base64Of(signature), seed), webhook.ErrBadSignature, "the private key isn't for verifying")
	// The public key is no secret: everybody can use it as one.
	for _, hmacKey := range []string{string(public), key, base64Of(public), ""} {
		mac := base64Of(sha256MAC(hmacKey, signed))
		require.ErrorIs(t, verify("v1,"+mac, key), webhook.ErrBadSignature)
		require.ErrorIs(t, verify("v1a,"+mac, key), webhook.ErrBadSignature)
	}
	require.ErrorIs(t, verify("v1a"+standardV1[2:], standardSecret), webhook.ErrBadSignature, "HMAC called v1a")
	require.ErrorIs(t, verify("v1a"+standardV1[2:], standardSecret, key), webhook.ErrBadSignature)
	// With S + L in the place of S the equation still holds; RFC 8032 (section 5.1.7) refuses it.
	require.ErrorIs(t, verify("v1a,"+base64Of(addOrder(signature)), key), webhook.ErrBadSignature)
}

// addOrder adds the order of the group, 2^252 + 27742317777372353535851937790883648493, to a signature's S.
func addOrder(signature []byte) []byte {
	order, _ := hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	sum, carry := slices.Clone(signature), 0
	for i, b := range order {
		carry += int(sum[32+i]) + int(b)
		sum[32+i], carry = byte(carry), carry>>8
	}
	return sum
}

// Were the ID to hold a full stop, a request could be taken apart in another way and still have its signature.
func TestSignedPartsCannotBeMoved(t *testing.T) {
	t.Parallel()
	const body = `{"a":1}`
	mac := sha256MAC("0123456789012345678901234567", "msg.1614265330.1614265331."+body)
	standard := webhook.Source{Scheme: "standard"}
	secret := "whsec_" + base64Of([]byte("0123456789012345678901234567"))
	split := func(id, timestamp, body string) error {
		h := header("webhook-id", id, "webhook-timestamp", timestamp, "webhook-signature", "v1,"+base64Of(mac))
		return standard.Verify(h, []byte(body), bytesOf([]string{secret}), time.Unix(standardAt, 0))
	}
	require.NoError(t, split("msg", "1614265330", "1614265331."+body))
	require.ErrorIs(t, split("msg.1614265330", "1614265331", body), webhook.ErrBadSignature)

	configured := webhook.Source{Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X-Sig", Signed: "{id}:{timestamp};{body}", IDHeader: "X-Id", TimestampHeader: "X-T"}}
	require.NoError(t, configured.Validate())
	verify := func(signed, id, timestamp, body string) error {
		h := header("X-Sig", hex.EncodeToString(sha256MAC(otherSecret, signed)), "X-Id", id, "X-T", timestamp)
		return configured.Verify(h, []byte(body), bytesOf([]string{otherSecret}), time.Unix(standardAt, 0))
	}
	require.NoError(t, verify("msg:1614265330;1;x", "msg", "1614265330", "1;x"))
	require.ErrorIs(t, verify("a:1:1614265330;x", "a:1", "1614265330", "x"), webhook.ErrBadSignature)
	require.NoError(t, verify("{timestamp}:1614265330;x", "{timestamp}", "1614265330", "x"), "a value isn't read as a template")
	require.ErrorIs(t, verify("1614265330:1614265330;x", "{timestamp}", "1614265330", "x"), webhook.ErrBadSignature)
}

func TestBasicCredentials(t *testing.T) {
	t.Parallel()
	const secret = "user:pass:word with colons and ü"
	source := webhook.Source{Scheme: "basic"}
	verify := func(value string) error {
		return source.Verify(header("Authorization", value), nil, bytesOf([]string{secret}), at)
	}
	encoded := base64Of([]byte(secret))
	for _, good := range []string{"Basic " + encoded, "basic " + encoded, "BASIC   " + encoded} {
		require.NoError(t, verify(good), good)
	}
	for _, bad := range []string{"Basic" + encoded, "Bearer " + encoded, "Basic " + secret, "Basic " + strings.TrimRight(encoded, "=") + "x", encoded,
		"Basic " + encoded + " " + encoded, "Basic", "Basic ", "Basic\t" + encoded, "Basic " + base64Of([]byte("user:")), "Basic " + base64Of([]byte(secret+"\x00"))} {
		require.ErrorIs(t, verify(bad), webhook.ErrBadSignature, bad)
	}
}

func TestSecretsOfEachForm(t *testing.T) {
	t.Parallel()
	apiKey := webhook.Source{Scheme: "api_key", APIKey: &webhook.APIKey{Header: "X"}}
	for _, c := range []struct {
		source webhook.Source
		secret string
		says   string
	}{
		{webhook.Source{Scheme: "stripe"}, "short", "secret must have 16 to 1024 bytes, not 5"},
		{webhook.Source{Scheme: "slack"}, strings.Repeat("x", 1025), "not 1025"},
		{webhook.Source{Scheme: "standard"}, otherSecret, "whsec_ and base64 of 24 to 64 bytes, or whpk_"},
		{webhook.Source{Scheme: "standard"}, "whsec_" + base64Of(make([]byte, 23)), "whsec_"},
		{webhook.Source{Scheme: "standard"}, "whsec_" + base64Of(make([]byte, 65)), "whsec_"},
		{webhook.Source{Scheme: "standard"}, "whpk_" + base64Of(make([]byte, 31)), "whpk_"},
		{webhook.Source{Scheme: "standard"}, "whpk_" + base64Of(make([]byte, 32)), "small order"}, // anybody can sign for it
		{webhook.Source{Scheme: "standard"}, "whpk_" + base64Of(append([]byte{1}, make([]byte, 31)...)), "small order"},
		{webhook.Source{Scheme: "standard"}, "whpk_" + base64Of(append([]byte{2}, make([]byte, 31)...)), "small order"}, // no point at all
		{webhook.Source{Scheme: "standard"}, "whsk_" + base64Of(make([]byte, 64)), "whpk_"},
		{webhook.Source{Scheme: "basic"}, "no colon in this secret", "a user name, a colon and a password"},
		{webhook.Source{Scheme: "basic"}, ":a password of enough bytes", "a user name"},
		{webhook.Source{Scheme: "basic"}, "a rather long user name:short", "password of at least 16"},
		{webhook.Source{Scheme: "basic"}, "user:a password\nof enough bytes", "control"},
		{apiKey, " a key of enough bytes", "white space"},
		{apiKey, "a key of\r\nenough bytes", "control"},
		{webhook.Source{Scheme: "none"}, otherSecret, "no meaning"},
	} {
		err := c.source.ValidateSecret([]byte(c.secret))
		require.ErrorContains(t, err, c.says)
		require.NotContains(t, err.Error(), c.secret)
		require.Error(t, c.source.ValidateSecrets([][]byte{[]byte(c.secret)}))
	}
	require.True(t, webhook.Source{Scheme: "stripe"}.TakesSecretsOf(webhook.Source{Scheme: "github"}))
	require.False(t, webhook.Source{Scheme: "standard"}.TakesSecretsOf(webhook.Source{Scheme: "github"}))
	require.False(t, webhook.Source{Scheme: "none"}.TakesSecretsOf(webhook.Source{Scheme: "github"}))
	require.False(t, webhook.Source{Scheme: "none"}.NeedsSecrets())
	require.Equal(t, "Authorization", webhook.Source{Scheme: "basic"}.SecretHeader())
	require.Equal(t, "X", apiKey.SecretHeader())
	require.Empty(t, webhook.Source{Scheme: "slack"}.SecretHeader())
}

func TestSettingsErrorsNameTheField(t *testing.T) {
	t.Parallel()
	signed := func(template string) webhook.Source {
		return webhook.Source{Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", Signed: template, TimestampHeader: "X-T", IDHeader: "X-I"}}
	}
	for _, c := range []struct {
		says   string
		source webhook.Source
	}{
		{"standard has no meaning", webhook.Source{Scheme: "slack", Standard: &webhook.Standard{}}},
		{"api_key has no meaning", webhook.Source{Scheme: "none", APIKey: &webhook.APIKey{}}},
		{"api_key is needed", webhook.Source{Scheme: "api_key"}},
		{"api_key.header must be a header of", webhook.Source{Scheme: "api_key", APIKey: &webhook.APIKey{Header: "Host"}}},
		{"api_key.prefix must have at most 64", webhook.Source{Scheme: "api_key", APIKey: &webhook.APIKey{Header: "X", Prefix: strings.Repeat("x", 65)}}},
		{"standard.headers must be", webhook.Source{Scheme: "standard", Standard: &webhook.Standard{Headers: "hook"}}},
		{"tolerance_seconds has no meaning", webhook.Source{Scheme: "github", ToleranceSeconds: 1}},
		{"tolerance_seconds has no meaning", webhook.Source{Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X"}, ToleranceSeconds: 1}},
		{"tolerance_seconds must be 1 to 86400, not 86401", webhook.Source{Scheme: "stripe", ToleranceSeconds: 86_401}},
		{"tolerance_seconds must be 1 to 86400, not -1", webhook.Source{Scheme: "stripe", ToleranceSeconds: -1}},
		{"hmac.timestamp_header has no meaning", webhook.Source{Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", TimestampHeader: "X-T"}}},
		{"hmac.id_header has no meaning", webhook.Source{Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", IDHeader: "X-I"}}},
		{"hmac.timestamp_header must be the name", webhook.Source{Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", Signed: "{timestamp}.{body}"}}},
		{"hmac.id_header must be a header of", webhook.Source{Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", Signed: "{id}.{body}", IDHeader: "Host"}}},
		{"hmac.signed must", signed("{body}.{timestamp}")},
		{"hmac.signed must", signed("{timestamp}{body}")},
		{"hmac.signed must", signed("{timestamp}0{body}")},
		{"hmac.signed must", signed("{id}{timestamp}.{body}")},
		{"hmac.signed must", signed("{id}.{id}.{timestamp}.{body}")},
		{"hmac.signed must", signed("{id}.{timestamp}.{body}{body}")},
		{"hmac.signed must", signed("{url}.{body}")},
		{"hmac.signed must", signed("{.{body}")},
		{"hmac.signed must", signed("x")},
		{"hmac.signed must", signed(strings.Repeat("x", 128) + "{body}")},
	} {
		require.ErrorContains(t, c.source.Validate(), "source: "+c.says)
	}
	require.NoError(t, signed("{id}.{timestamp}.{body}").Validate())
	require.NoError(t, signed("v0:{timestamp}\n{id}\n{body}").Validate())
}

// Nobody knows the secrets, so nothing may be accepted, whatever arrives; and every error is one of the four.
func FuzzSources(f *testing.F) {
	names := slices.Sorted(maps.Keys(examples()))
	secrets := map[string][][]byte{}
	for i, name := range names {
		e := examples()[name]
		secrets[name] = bytesOf([]string{rand.Text() + ":" + rand.Text(), webhook.NewSigningSecret(), newPublicKey()})
		values := [3]string{}
		for j := 0; j < len(e.headers); j += 2 {
			values[j/2] = e.headers[j+1]
		}
		f.Add(uint8(i), values[0], values[1], values[2], []byte(e.body), e.at)
	}
	f.Add(uint8(0), "", "", "\xff", []byte{0}, int64(-1))
	f.Add(uint8(7), "t="+strconv.Itoa(1<<62)+",v1=,v1", ",,,=", "v1,=v1a, v1", []byte("."), int64(1<<62))
	f.Fuzz(func(t *testing.T, which uint8, a, b, c string, body []byte, now int64) {
		name := names[int(which)%len(names)]
		e := examples()[name]
		h := http.Header{}
		for i, value := range []string{a, b, c} {
			if 2*i < len(e.headers) {
				h.Add(e.headers[2*i], value)
			}
		}
		err := e.source.Verify(h, body, secrets[name], time.Unix(now, 0))
		require.True(t, err != nil && isSourceError(err), "%v", err)
	})
}

func isSourceError(err error) bool {
	return slices.ContainsFunc([]error{webhook.ErrNoSignature, webhook.ErrBadSignature, webhook.ErrTooOld, webhook.ErrTooNew}, func(known error) bool {
		return errors.Is(err, known)
	})
}
