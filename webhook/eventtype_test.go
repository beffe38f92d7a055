package webhook_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

func policyOf(t testing.TB, text string) webhook.EventTypePolicy {
	t.Helper()
	var p webhook.EventTypePolicy
	require.NoError(t, json.Unmarshal([]byte(text), &p), text)
	return p
}

func TestAnEventsTypeComesFromWhereThePolicySays(t *testing.T) {
	t.Parallel()
	headers := http.Header{"X-Github-Event": {"push"}, "X-Two": {"a", "b"}, "X-Empty": {""}}
	const body = `{"type":"invoice.paid","n":7,"data":{"object":{"a b":"deep"}},"items":[{"t":"first"},{"t":"last"}],"t.x":"dotted","nothing":null}`
	for policy, want := range map[string]string{
		`{}`:                "",
		`{"source":"none"}`: "",
		`{"source":"header","header":"X-GitHub-Event"}`:       "push",
		`{"source":"header","header":"x-github-event"}`:       "push",
		`{"source":"header","header":"X-Two"}`:                "",
		`{"source":"header","header":"X-Empty"}`:              "",
		`{"source":"header","header":"X-Other"}`:              "",
		`{"source":"jsonpath","path":"$.type"}`:               "invoice.paid",
		`{"source":"jsonpath","path":"$['type']"}`:            "invoice.paid",
		`{"source":"jsonpath","path":"$['t.x']"}`:             "dotted",
		`{"source":"jsonpath","path":"$.data.object['a b']"}`: "deep",
		`{"source":"jsonpath","path":"$.items[0].t"}`:         "first",
		`{"source":"jsonpath","path":"$.items[-1].t"}`:        "last",
		`{"source":"jsonpath","path":"$.items[2].t"}`:         "",
		`{"source":"jsonpath","path":"$.missing.x"}`:          "",
		`{"source":"jsonpath","path":"$.n"}`:                  "",
		`{"source":"jsonpath","path":"$.data"}`:               "",
		`{"source":"jsonpath","path":"$.nothing"}`:            "",
		`{"source":"jsonpath","path":"$.nothing.x"}`:          "",
		`{"source":"jsonpath","path":"$.type.x"}`:             "",
	} {
		p := policyOf(t, policy)
		require.Equal(t, want, p.Of(headers, webhook.NewDocument([]byte(body))), policy)
	}
	p := policyOf(t, `{"source":"jsonpath","path":"$.type"}`)
	for _, unreadable := range []string{"", "a=1", `["type"]`, `{"type":"a"} x`, `{"type":"a"`, `{"type":"a"}` + strings.Repeat(" ", webhook.MaxDocument), `{"type":"a","x":` + nested(64) + `}`} {
		require.Empty(t, p.Of(headers, webhook.NewDocument([]byte(unreadable))), "%.40s", unreadable)
	}
	require.Equal(t, "a", p.Of(headers, webhook.NewDocument([]byte(`{"type":"a","x":`+nested(63)+`}`))))
}

func nested(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }

func TestEventTypePoliciesAreRefused(t *testing.T) {
	t.Parallel()
	for policy, want := range map[string]string{
		`{"source":"body"}`:                                                 "event type: source must be",
		`{"source":"header"}`:                                               "event type: header must be",
		`{"source":"header","header":"Host"}`:                               "event type: header must be a header of the webhook itself",
		`{"source":"header","header":"X-A","path":"$.a"}`:                   "event type: path has no meaning",
		`{"header":"X-A"}`:                                                  "event type: header has no meaning",
		`{"source":"jsonpath"}`:                                             "event type: path must be a JSONPath",
		`{"source":"jsonpath","path":"type"}`:                               "event type: path must be a JSONPath",
		`{"source":"jsonpath","path":"$"}`:                                  "event type: path must name a member",
		`{"source":"jsonpath","path":"$.*"}`:                                "event type: path must name one place",
		`{"source":"jsonpath","path":"$..type"}`:                            "event type: path must name one place",
		`{"source":"jsonpath","path":"$.a[1:2]"}`:                           "event type: path must name one place",
		`{"source":"jsonpath","path":"$['a','b']"}`:                         "event type: path must name one place",
		`{"source":"jsonpath","path":"$.a[?(@.x == 1)]"}`:                   "event type: path must name one place",
		`{"source":"jsonpath","path":"$.a["}`:                               "event type: path must be a JSONPath",
		`{"source":"jsonpath","path":"$.` + strings.Repeat("a", 256) + `"}`: "event type: path must be a JSONPath of at most 256",
		`{"source":"none","more":1}`:                                        "read event type policy",
	} {
		var p webhook.EventTypePolicy
		require.ErrorContains(t, json.Unmarshal([]byte(policy), &p), want, policy)
	}
}

func TestADocumentKeepsWhatNumbersSay(t *testing.T) {
	t.Parallel()
	v, err := webhook.NewDocument([]byte(`{"id":9007199254740993,"f":1.5,"e":1e2,"huge":1e999,"list":[1,[2]],"big":18446744073709551616}`)).Value()
	require.NoError(t, err)
	m := v.(map[string]any)
	require.Equal(t, int64(9007199254740993), m["id"])
	require.Equal(t, 1.5, m["f"])
	require.Equal(t, 100.0, m["e"])
	require.Greater(t, m["huge"], 1.7e308)
	require.Equal(t, []any{int64(1), []any{int64(2)}}, m["list"])
	require.Equal(t, 18446744073709551616.0, m["big"])
}

func TestADocumentHasBounds(t *testing.T) {
	t.Parallel()
	for _, body := range []string{nested(65), `"` + strings.Repeat("a", webhook.MaxDocument) + `"`} {
		_, err := webhook.NewDocument([]byte(body)).Value()
		require.ErrorIs(t, err, webhook.ErrDocument)
	}
	// Brackets in strings are no depth.
	v, err := webhook.NewDocument([]byte(`"\"` + strings.Repeat("[", 100) + `\\"`)).Value()
	require.NoError(t, err)
	require.Equal(t, `"`+strings.Repeat("[", 100)+`\`, v)
}

// Whatever is configured and sent: no panic, and at most one text.
func FuzzEventType(f *testing.F) {
	f.Add("$.type", []byte(`{"type":"a"}`))
	f.Add("$.items[-1]['a b']", []byte(`{"items":[{"a b":"c"}]}`))
	f.Add("$[0][1]", []byte(`[[1,"x"]]`))
	f.Add("$..a[?(@.x =~ /a+/)]", []byte(`{"a":[{"x":"aaa"}]}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		p := webhook.EventTypePolicy{Source: webhook.EventTypeByPath, Path: path}
		if err := p.Validate(); err != nil {
			if !strings.HasPrefix(err.Error(), "event type: path ") {
				t.Fatalf("error doesn't name the field: %s", err)
			}
			return
		}
		p.Of(nil, webhook.NewDocument(body))
	})
}
