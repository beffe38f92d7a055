package webhook_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

const verifyToken = "a token of Meta's dashboard"

// answering is a source that answers one handshake.
func answering(t testing.TB, kind webhook.HandshakeType) webhook.Source {
	t.Helper()
	source := webhook.Source{Scheme: "none"}
	token := ""
	switch kind {
	case webhook.HandshakeSlack:
		source.Scheme = "slack"
	case webhook.HandshakeX:
		source.Scheme, source.HMAC = "hmac", &webhook.HMAC{Header: "x-twitter-webhooks-signature", Encoding: "base64", Prefix: "sha256="}
	case webhook.HandshakeMeta:
		token = verifyToken
	}
	var err error
	source.Handshake, err = webhook.NewHandshake(kind, token)
	require.NoError(t, err)
	require.NoError(t, source.Validate())
	return source
}

func TestHandshakesByGet(t *testing.T) {
	t.Parallel()
	meta, dropbox := answering(t, webhook.HandshakeMeta), answering(t, webhook.HandshakeDropbox)
	token := url.QueryEscape(verifyToken)
	for query, want := range map[string]string{
		"hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=" + token: "1158201444",
		"hub.verify_token=" + token + "&hub.challenge=x&hub.mode=subscribe&a=b": "x",
	} {
		reply, err := meta.AnswerGet(query, nil)
		require.NoError(t, err)
		require.Equal(t, want, string(reply.Body))
		require.Equal(t, "text/plain; charset=utf-8", reply.ContentType)
	}
	for _, query := range []string{
		"", "hub.challenge=1", "hub.mode=subscribe&hub.challenge=1", "hub.mode=subscribe&hub.challenge=1&hub.verify_token=",
		"hub.mode=subscribe&hub.challenge=1&hub.verify_token=" + token + "x", "hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=" + token,
		"hub.mode=subscribe&hub.verify_token=" + token, "hub.mode=subscribe&hub.challenge=1&hub.challenge=2&hub.verify_token=" + token,
		"hub.mode=subscribe&hub.challenge=1&hub.verify_token=" + token + "&hub.verify_token=x", "challenge=1",
		"hub.mode=subscribe&hub.challenge=%zz&hub.verify_token=" + token, "hub.mode=subscribe;hub.challenge=1&hub.verify_token=" + token,
	} {
		_, err := meta.AnswerGet(query, nil)
		require.ErrorIs(t, err, webhook.ErrHandshake, query)
	}
	reply, err := dropbox.AnswerGet("challenge=aZ09-_", nil)
	require.NoError(t, err)
	require.Equal(t, "aZ09-_", string(reply.Body))
	for _, none := range []webhook.Source{{Scheme: "none"}, answering(t, webhook.HandshakeSlack), answering(t, webhook.HandshakeGraph)} {
		require.False(t, none.AnswersGet())
		_, err := none.AnswerGet("challenge=x&validationToken=x&hub.challenge=x", nil)
		require.ErrorIs(t, err, webhook.ErrHandshake)
	}
}

// What is repeated can't be a page, a script, a header or a great deal.
func TestOnlyPlainChallengesAreRepeated(t *testing.T) {
	t.Parallel()
	dropbox, graph := answering(t, webhook.HandshakeDropbox), answering(t, webhook.HandshakeGraph)
	for _, bad := range []string{"", "<script>alert(1)</script>", "a&b", `"`, "'", "a\r\nSet-Cookie: x", "\x00", "ü", "\xff", "\u2028", strings.Repeat("x", 1025)} {
		_, err := dropbox.AnswerGet("challenge="+url.QueryEscape(bad), nil)
		require.ErrorIs(t, err, webhook.ErrHandshake, "%q", bad)
		_, ok, err := graph.AnswerPost("validationToken="+url.QueryEscape(bad), nil)
		require.True(t, ok, "it is a handshake, and refused")
		require.ErrorIs(t, err, webhook.ErrHandshake, "%q", bad)
	}
	longest := strings.Repeat("x", 1024)
	reply, err := dropbox.AnswerGet("challenge="+longest, nil)
	require.NoError(t, err)
	require.Equal(t, longest, string(reply.Body))
}

func TestGraphHandshake(t *testing.T) {
	t.Parallel()
	graph := answering(t, webhook.HandshakeGraph)
	// The documented form of the token, decoded: https://learn.microsoft.com/en-us/graph/change-notifications-delivery-webhooks
	const token = "Validation: Testing client application reachability for subscription Request-Id: 42cbf5b5-8b3c-4b2a-9c56-0d4e2ad9a4a1"
	reply, ok, err := graph.AnswerPost("validationToken="+url.QueryEscape(token), nil)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, token, string(reply.Body))
	for query, body := range map[string]string{"validationToken=x": `{"value":[]}`, "": "", "validationtoken=x": "", "%zz&validationToken=x": ""} {
		_, ok, err := graph.AnswerPost(query, []byte(body))
		require.False(t, ok, "%s: a webhook like any other", query)
		require.NoError(t, err)
	}
	_, ok, _ = webhook.Source{Scheme: "none"}.AnswerPost("validationToken=x", nil)
	require.False(t, ok)
}

func TestSlackHandshake(t *testing.T) {
	t.Parallel()
	slack := answering(t, webhook.HandshakeSlack)
	// The documented example: https://docs.slack.dev/reference/events/url_verification
	const example = `{"token": "Jhj5dZrVaK7ZwHHjRyZWjbDl", "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P", "type": "url_verification"}`
	reply, ok, err := slack.AnswerVerified([]byte(example))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P", string(reply.Body))
	for _, body := range []string{"", "{}", "payload=%7B%7D", `{"type":"event_callback","challenge":"x"}`, `{"challenge":"x"}`, `["url_verification"]`,
		`{"type":"url_verification","challenge":"x","pad":"` + strings.Repeat("x", 4<<10) + `"}`} {
		_, ok, err := slack.AnswerVerified([]byte(body))
		require.False(t, ok, body)
		require.NoError(t, err)
	}
	for _, body := range []string{`{"type":"url_verification"}`, `{"type":"url_verification","challenge":"<b>"}`} {
		_, ok, err := slack.AnswerVerified([]byte(body))
		require.True(t, ok)
		require.ErrorIs(t, err, webhook.ErrHandshake)
	}
	_, ok, _ = webhook.Source{Scheme: "slack"}.AnswerVerified([]byte(example))
	require.False(t, ok, "unless it is configured")
}

func TestXHandshake(t *testing.T) {
	t.Parallel()
	x := answering(t, webhook.HandshakeX)
	// The example by X's developer relations (https://gist.github.com/jcipriano/46c4b3f379d214d57a9ddfa70dba49fe); its result
	// was computed with Python's hmac.
	const secret, token = "z3ZX4v7mAAUGykl3EcmkqbartmuW8VFOOzCloLx9Q45P0hLrFu", "9b4507b3-9040-4669-9ca3-6b94edb50553"
	reply, err := x.AnswerGet("crc_token="+token, bytesOf([]string{otherSecret, secret}))
	require.NoError(t, err)
	require.Equal(t, `{"response_token":"sha256=Cytd4Sq+NvEcV3MMrXxWJGJx5A+y/lXzzU2Maartkx8="}`, string(reply.Body))
	require.Equal(t, "application/json", reply.ContentType)
	for _, query := range []string{"", "crc_token=", "crc_token=a&crc_token=b", "crc_token=%7B%7D", "crc_token=a+b", "crc_token=" + strings.Repeat("x", 256), "token=x"} {
		_, err := x.AnswerGet(query, bytesOf([]string{secret}))
		require.ErrorIs(t, err, webhook.ErrHandshake, query)
	}
	for _, secrets := range [][]string{nil, {""}, {"short"}} {
		_, err := x.AnswerGet("crc_token="+token, bytesOf(secrets))
		require.ErrorIs(t, err, webhook.ErrHandshake, "nobody gets the HMAC of an empty secret")
	}
}

// X has whatever is in crc_token signed with the secret of its webhooks, and anybody can ask. No answer may be the
// signature of a webhook that is accepted.
func TestXHandshakeSignsNoWebhook(t *testing.T) {
	t.Parallel()
	x, secrets := answering(t, webhook.HandshakeX), bytesOf([]string{otherSecret})
	for _, wanted := range []string{`{"forged":true}`, "[]", "forged", "1", "null", "a=b", ""} {
		reply, err := x.AnswerGet("crc_token="+url.QueryEscape(wanted), secrets)
		if err != nil {
			continue
		}
		var answer struct {
			Token string `json:"response_token"`
		}
		require.NoError(t, json.Unmarshal(reply.Body, &answer))
		err = x.Verify(header("x-twitter-webhooks-signature", answer.Token), []byte(wanted), secrets, at)
		require.ErrorIs(t, err, webhook.ErrBadSignature, wanted)
	}
	own := "sha256=" + base64Of(sha256MAC(otherSecret, `{"real":true}`))
	require.NoError(t, x.Verify(header("x-twitter-webhooks-signature", own), []byte(`{"real":true}`), secrets, at))
}

func TestHandshakeErrorsNameTheField(t *testing.T) {
	t.Parallel()
	_, err := webhook.NewHandshake("meta", "too short")
	require.ErrorContains(t, err, "source: handshake.verify_token must have 16 to 255 bytes, not 9")
	_, err = webhook.NewHandshake("meta", "")
	require.ErrorContains(t, err, "not 0")
	_, err = webhook.NewHandshake("dropbox", verifyToken)
	require.ErrorContains(t, err, "source: handshake.verify_token has no meaning")
	body := webhook.HMAC{Header: "X"}
	other := webhook.HMAC{Header: "X", Signed: "x.{body}"}
	for says, source := range map[string]webhook.Source{
		"handshake.type must be one of":        {Scheme: "none", Handshake: &webhook.Handshake{Type: "smoke"}},
		`handshake.type "slack" goes with`:     {Scheme: "none", Handshake: &webhook.Handshake{Type: "slack"}},
		`handshake.type "x" goes with`:         {Scheme: "hmac", HMAC: &other, Handshake: &webhook.Handshake{Type: "x"}},
		`handshake.verify_token is needed for`: {Scheme: "hmac", HMAC: &body, Handshake: &webhook.Handshake{Type: "meta"}},
	} {
		require.ErrorContains(t, source.Validate(), says)
	}
	stored, err := json.Marshal(answering(t, webhook.HandshakeMeta))
	require.NoError(t, err)
	require.NotContains(t, string(stored), "Meta's", "the token isn't kept")
}

// Whatever is asked, the answer is short and plain, or there is none.
func FuzzHandshakes(f *testing.F) {
	f.Add("challenge=x", []byte("{}"))
	f.Add("hub.mode=subscribe&hub.challenge=<b>&hub.verify_token="+url.QueryEscape(verifyToken), []byte(`{"type":"url_verification","challenge":"<"}`))
	f.Add("validationToken=%3Cscript%3E&crc_token=%7B", []byte{})
	f.Add("validationToken=a%0d%0ab;crc_token=x&challenge=%ff", []byte(`{"TYPE":"url_verification","challenge":"\ud800"}`))
	kinds := []webhook.HandshakeType{webhook.HandshakeSlack, webhook.HandshakeMeta, webhook.HandshakeDropbox, webhook.HandshakeGraph, webhook.HandshakeX}
	f.Fuzz(func(t *testing.T, query string, body []byte) {
		for _, kind := range kinds {
			source := answering(t, kind)
			var replies []webhook.Reply
			if reply, err := source.AnswerGet(query, bytesOf([]string{otherSecret})); err == nil {
				replies = append(replies, reply)
			}
			if reply, ok, err := source.AnswerPost(query, body); ok && err == nil {
				replies = append(replies, reply)
			}
			if reply, ok, err := source.AnswerVerified(body); ok && err == nil {
				replies = append(replies, reply)
			}
			require.LessOrEqual(t, len(replies), 1)
			for _, reply := range replies {
				if reply.ContentType == "application/json" {
					require.Regexp(t, `^\{"response_token":"sha256=[A-Za-z0-9+/]{43}="\}$`, string(reply.Body))
					continue
				}
				require.NotEmpty(t, reply.Body)
				require.LessOrEqual(t, len(reply.Body), 1024)
				require.False(t, strings.ContainsFunc(string(reply.Body), func(r rune) bool {
					return r < ' ' || r > '~' || strings.ContainsRune(`<>&"'`, r)
				}), "%q", reply.Body)
			}
		}
	})
}
