package api_test

import (
	"encoding/hex"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
)

// handshakeAnswer checks what a handshake is answered with, and returns the body.
func handshakeAnswer(t *testing.T, a answer, contentType string) string {
	t.Helper()
	require.Equal(t, 200, a.status, "%s", a.body)
	require.Equal(t, contentType, a.header.Get("Content-Type"))
	require.Equal(t, "no-store", a.header.Get("Cache-Control"))
	require.Equal(t, "default-src 'none'; sandbox", a.header.Get("Content-Security-Policy"))
	return string(a.body)
}

const plainText = "text/plain; charset=utf-8"

func TestHandshakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const token, secret = "a token of Meta's dashboard", "a secret of the source"
	meta := b.sourceEndpoint(t, `{"scheme":"github","handshake":{"type":"meta","verify_token":"`+token+`"}}`, secret)
	query := "?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token="
	require.Equal(t, "1158201444", handshakeAnswer(t, b.do(t, "GET", "/ingest/"+meta+query+url.QueryEscape(token), nil), plainText))
	refused := b.do(t, "GET", "/ingest/"+meta+query+"wrong", nil)
	problem(t, refused, 403, "handshake-refused")
	require.NotContains(t, string(refused.body), "1158201444")
	shown := b.get(t, "/api/v1/endpoints/"+meta)
	require.Equal(t, openapi.HandshakeTypeMeta, read[openapi.Endpoint](t, shown, 200).Verification.Handshake.Type)
	require.NotContains(t, strings.ReplaceAll(string(shown.body), "proof_token", ""), "token", "neither the token nor its hash is shown")

	dropbox := b.sourceEndpoint(t, `{"scheme":"hmac","hmac":{"header":"X-Dropbox-Signature"},"handshake":{"type":"dropbox"}}`, secret)
	require.Equal(t, "abc", handshakeAnswer(t, b.do(t, "GET", "/ingest/"+dropbox+"?challenge=abc", nil), plainText))
	problem(t, b.do(t, "GET", "/ingest/"+dropbox+"?challenge=%3Cscript%3E", nil), 403, "handshake-refused")

	graph := b.sourceEndpoint(t, `{"scheme":"none","handshake":{"type":"microsoft_graph"}}`)
	require.Equal(t, "Validation: a b", handshakeAnswer(t, b.do(t, "POST", "/ingest/"+graph+"?validationToken=Validation%3A+a+b", nil, "Content-Type", "text/plain"), plainText))
	problem(t, b.do(t, "POST", "/ingest/"+graph+"?validationToken=%3Cb%3E", nil), 403, "handshake-refused")

	x := b.sourceEndpoint(t, `{"scheme":"hmac","hmac":{"header":"x-twitter-webhooks-signature","encoding":"base64","prefix":"sha256="},"handshake":{"type":"x"}}`, "another secret of the source", secret)
	require.JSONEq(t, `{"response_token":"sha256=`+base64Of(mac(secret, "a-token"))+`"}`, handshakeAnswer(t, b.do(t, "GET", "/ingest/"+x+"?crc_token=a-token", nil), "application/json"))
	problem(t, b.do(t, "GET", "/ingest/"+x+"?crc_token=%7B%22a%22%3A1%7D", nil), 403, "handshake-refused")

	slack := b.sourceEndpoint(t, `{"scheme":"slack","handshake":{"type":"slack"}}`, secret)
	at := strconv.FormatInt(time.Now().Unix(), 10)
	signed := func(body string) []string {
		return []string{"X-Slack-Request-Timestamp", at, "X-Slack-Signature", "v0=" + hex.EncodeToString(mac(secret, "v0:"+at+":"+body))}
	}
	const challenge = `{"type":"url_verification","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"}`
	require.Equal(t, "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P", handshakeAnswer(t, b.ingest(t, slack, challenge, signed(challenge)...), plainText))
	problem(t, b.ingest(t, slack, challenge), 401, "signature-missing")
	problem(t, b.ingest(t, slack, challenge, signed(challenge+" ")...), 401, "bad-signature")
	b.requireNothingStored(t)

	// What isn't a handshake is an event as ever.
	acceptedID(t, b.ingest(t, graph+"?validationToken=x", `{"value":[]}`))
	acceptedID(t, b.ingest(t, slack, `{"type":"event_callback"}`, signed(`{"type":"event_callback"}`)...))
}

// Endpoints that weren't asked to answer one repeat nothing.
func TestOtherEndpointsAnswerNoHandshake(t *testing.T) {
	t.Parallel()
	b := setup(t)
	plain := b.endpoint(t)
	slack := b.sourceEndpoint(t, `{"scheme":"slack"}`, "a secret of the source")
	const query = "?challenge=repeat-me&validationToken=repeat-me&crc_token=repeat-me&hub.mode=subscribe&hub.challenge=repeat-me&hub.verify_token="
	for _, endpoint := range []string{plain, slack} {
		a := b.do(t, "GET", "/ingest/"+endpoint+query, nil)
		problem(t, a, 405, "method-not-allowed")
		require.Equal(t, "POST", a.header.Get("Allow"))
		require.NotContains(t, string(a.body), "repeat-me")
	}
	require.NotContains(t, string(b.do(t, "POST", "/ingest/"+plain+query, nil).body), "repeat-me")
	const challenge = `{"type":"url_verification","challenge":"repeat-me"}`
	at := strconv.FormatInt(time.Now().Unix(), 10)
	a := b.ingest(t, slack, challenge, "X-Slack-Request-Timestamp", at, "X-Slack-Signature", "v0="+hex.EncodeToString(mac("a secret of the source", "v0:"+at+":"+challenge)))
	acceptedID(t, a)
	problem(t, b.do(t, "GET", "/ingest/nonsense"+query, nil), 404, "not-found")
}
