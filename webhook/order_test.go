package webhook_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

func orderPolicy(t *testing.T, text string) webhook.OrderPolicy {
	t.Helper()
	var p webhook.OrderPolicy
	require.NoError(t, json.Unmarshal([]byte(text), &p))
	return p
}

func TestOrderKeys(t *testing.T) {
	t.Parallel()
	byHeader := orderPolicy(t, `{"source":"header","header":"X-Order","on_dead":"skip"}`)
	byPath := orderPolicy(t, `{"source":"jsonpath","path":"$.order.items[1]['id']","on_dead":"block"}`)
	all := orderPolicy(t, `{"source":"endpoint","on_dead":"skip"}`)
	key := func(p webhook.OrderPolicy, header, body string) [32]byte {
		h := http.Header{}
		if header != "" {
			h.Set("X-Order", header)
		}
		hash, ok := p.Key(h, []byte(body))
		require.True(t, ok)
		return hash
	}
	require.Equal(t, key(byHeader, "7", "a"), key(byHeader, "7", "b"))
	require.NotEqual(t, key(byHeader, "7", ""), key(byHeader, "8", ""))
	document := func(id string) string { return `{"order":{"items":[{},{"id":` + id + `}]}}` }
	require.Equal(t, key(byPath, "1", document(`"x"`)), key(byPath, "2", document(`"x"`)+"\n"))
	require.NotEqual(t, key(byPath, "", document(`"x"`)), key(byPath, "", document(`"y"`)))
	require.Equal(t, key(all, "", "a"), key(all, "1", "b"))

	for _, test := range []struct {
		policy webhook.OrderPolicy
		header http.Header
		body   string
	}{
		{byHeader, http.Header{}, "{}"},
		{byHeader, http.Header{"X-Order": {""}}, "{}"},
		{byPath, nil, "not JSON"},
		{byPath, nil, ""},
		{byPath, nil, `{"order":{}}`},
		{byPath, nil, document("null")},
		{byPath, nil, document("{}")},
		{byPath, nil, document("[1]")},
	} {
		_, ok := test.policy.Key(test.header, []byte(test.body))
		require.False(t, ok, "%+v %s", test.header, test.body)
	}
}

func TestOrderPoliciesAreValidated(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		`{"source":"header","header":"X-A"}`:                                                 "on_dead",
		`{"source":"header","header":"X-A","on_dead":"wait"}`:                                "on_dead",
		`{"source":"header","on_dead":"skip"}`:                                               "header",
		`{"source":"header","header":"Host","on_dead":"skip"}`:                               "header",
		`{"source":"jsonpath","on_dead":"skip"}`:                                             "path",
		`{"source":"jsonpath","path":"order","on_dead":"skip"}`:                              "path",
		`{"source":"jsonpath","path":"$","on_dead":"skip"}`:                                  "path",
		`{"source":"jsonpath","path":"$..id","on_dead":"skip"}`:                              "path",
		`{"source":"jsonpath","path":"$.*","on_dead":"skip"}`:                                "path",
		`{"source":"jsonpath","path":"$[?(@.a)]","on_dead":"skip"}`:                          "path",
		`{"source":"jsonpath","path":"$[(","on_dead":"skip"}`:                                "path",
		`{"source":"endpoint","path":"$.a","on_dead":"skip"}`:                                "path",
		`{"source":"endpoint","header":"X-A","on_dead":"skip"}`:                              "header",
		`{"source":"body","on_dead":"skip"}`:                                                 "source",
		`{"source":"endpoint","on_dead":"skip","unknown":1}`:                                 "unknown",
		`{"source":"jsonpath","path":"$.` + strings.Repeat("a", 300) + `","on_dead":"skip"}`: "path",
	} {
		var p webhook.OrderPolicy
		require.ErrorContains(t, json.Unmarshal([]byte(text), &p), says, text)
	}
}

func FuzzPath(f *testing.F) {
	f.Add("$.order.id", `{"order":{"id":1}}`)
	f.Add("$['a b'][0]", `{"a b":[true]}`)
	f.Add("$[-1]", `[1,2.5e300,3]`)
	f.Add("$.a", strings.Repeat(`{"a":`, 2000)+"1"+strings.Repeat("}", 2000))
	f.Add("$.a", "\xff\x00{")
	f.Fuzz(func(t *testing.T, path, body string) {
		p := webhook.OrderPolicy{Source: webhook.OrderByJSONPath, Path: path, OnDead: webhook.OnDeadSkip}
		if p.Validate() != nil {
			return
		}
		first, ok := p.Key(nil, []byte(body))
		again, same := p.Key(nil, []byte(body))
		require.Equal(t, ok, same)
		require.Equal(t, first, again)
	})
}
