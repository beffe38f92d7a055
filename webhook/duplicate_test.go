package webhook_test

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

func keyOf(t *testing.T, p webhook.DuplicatePolicy, h http.Header, body string) (webhook.DuplicateKey, bool) {
	t.Helper()
	require.NoError(t, p.Validate())
	key, ok, err := p.Key(h, []byte(body))
	require.NoError(t, err)
	return key, ok
}

var (
	byNone    = webhook.DuplicatePolicy{Source: "none"}
	byHeader  = webhook.DuplicatePolicy{Source: "header", Header: "x-github-delivery"}
	byContent = webhook.DuplicatePolicy{Source: "content"}
	off       = webhook.DuplicatePolicy{Source: "off"}
)

func TestDuplicateKeyIsWhereThePolicySays(t *testing.T) {
	t.Parallel()
	named, idempotent := header("X-GitHub-Delivery", "1"), header("Idempotency-Key", "1", "X-GitHub-Delivery", "1")
	for name, tc := range map[string]struct {
		policy          webhook.DuplicatePolicy
		headers         http.Header
		ok, idempotency bool
	}{
		"the zero policy":          {webhook.DuplicatePolicy{}, named, false, false},
		"none":                     {byNone, named, false, false},
		"none, with a key":         {byNone, idempotent, true, true},
		"header":                   {byHeader, named, true, false},
		"header, with a key":       {byHeader, idempotent, true, true},
		"header, but it isn't set": {byHeader, header("X-Other", "1"), false, false},
		"header, but it is empty":  {byHeader, header("X-GitHub-Delivery", ""), false, false},
		"content":                  {byContent, named, true, false},
		"content, with a key":      {byContent, idempotent, true, true},
		"content, X- form":         {byContent, header("X-Idempotency-Key", "1"), true, true},
		"off":                      {off, named, false, false},
		"off, with a key":          {off, idempotent, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, ok := keyOf(t, tc.policy, tc.headers, "body")
			require.Equal(t, tc.ok, ok)
			require.Equal(t, tc.idempotency, key.Idempotency)
			require.Equal(t, tc.ok, key.Hash != [32]byte{})
		})
	}
}

func TestDuplicateKeyTellsApart(t *testing.T) {
	t.Parallel()
	same := func(p webhook.DuplicatePolicy, h1 http.Header, b1 string, q webhook.DuplicatePolicy, h2 http.Header, b2 string) bool {
		k1, ok1 := keyOf(t, p, h1, b1)
		k2, ok2 := keyOf(t, q, h2, b2)
		require.True(t, ok1 && ok2)
		return k1.Hash == k2.Hash
	}
	key := func(v string) http.Header { return header("Idempotency-Key", v) }
	named := func(v string) http.Header { return header("X-GitHub-Delivery", v) }

	require.True(t, same(byNone, key("a"), "1", byContent, key("a"), "2"), "the body is no part of an Idempotency-Key")
	require.True(t, same(byNone, key("a"), "", byNone, header("X-Idempotency-Key", "a"), ""), "both names mean the same")
	require.False(t, same(byNone, key("a"), "", byNone, key("A"), ""))
	require.True(t, same(byHeader, named("a"), "1", byHeader, named("a"), "2"))
	require.True(t, same(byHeader, named("a"), "", webhook.DuplicatePolicy{Source: "header", Header: "X-GITHUB-DELIVERY"}, named("a"), ""))
	require.False(t, same(byHeader, named("a"), "", byNone, key("a"), ""), "the sources don't mix")
	require.False(t, same(byHeader, named("a"), "", webhook.DuplicatePolicy{Source: "header", Header: "X-Other"}, header("X-Other", "a"), ""))
	require.False(t, same(byHeader, header("X-GitHub-Delivery", "a", "X-GitHub-Delivery", "b"), "", byHeader, named("ab"), ""))
	require.True(t, same(byContent, named("a"), "1", byContent, named("b"), "1"))
	require.False(t, same(byContent, named("a"), "1", byContent, named("a"), "2"))
	require.True(t, same(byContent, header(), "", byContent, header(), ""), "an empty body is content too")
}

// Keys are kept for days: another version of Kapsel must find the same.
func TestDuplicateKeyIsStable(t *testing.T) {
	t.Parallel()
	key, _ := keyOf(t, byNone, header("Idempotency-Key", "a"), "")
	// printf 'kapsel.io/duplicate-key/v1\0' and, each after its length in 8 bytes, 'idempotency-key', '', 'a' | sha256sum
	require.Equal(t, "05c611e44257ef5e6a2a31e3e4ef1a662b4189e72a240de889237d0c69e81aa2", hex.EncodeToString(key.Hash[:]))
}

func TestIdempotencyKeyThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	for want, h := range map[string]http.Header{
		"it is empty":                      header("Idempotency-Key", ""),
		"it has 256 bytes, more than 255":  header("X-Idempotency-Key", strings.Repeat("k", 256)),
		"the request has several":          header("Idempotency-Key", "a", "Idempotency-Key", "b"),
		"unusable Idempotency-Key: the re": header("Idempotency-Key", "a", "X-Idempotency-Key", "b"),
	} {
		_, ok, err := byContent.Key(h, nil)
		require.False(t, ok)
		require.ErrorIs(t, err, webhook.ErrIdempotencyKey)
		require.ErrorContains(t, err, want)
		_, _, err = off.Key(h, nil)
		require.NoError(t, err, "nobody looks at it if duplicates are off")
	}
	for _, h := range []http.Header{
		header("Idempotency-Key", strings.Repeat("k", 255)),
		header("Idempotency-Key", "a", "Idempotency-Key", "a", "X-Idempotency-Key", "a"),
	} {
		_, ok, err := byNone.Key(h, nil)
		require.NoError(t, err)
		require.True(t, ok)
	}
}

func TestDuplicatePolicyJSON(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"source":"luck"}`:                   "source must be",
		`{"source":"header"}`:                 "header must be the name of a header",
		`{"source":"header","header":"a b"}`:  "header must be the name of a header",
		`{"source":"header","header":"host"}`: "header must be a header of the webhook itself",
		`{"source":"content","header":"X"}`:   `header has no meaning for source "content"`,
		`{"window_seconds":-1}`:               "window_seconds must be 1 to 604800, not -1",
		`{"window_seconds":604801}`:           "window_seconds must be 1 to 604800, not 604801",
		`{"windows":1}`:                       "unknown field",
	} {
		var p webhook.DuplicatePolicy
		require.ErrorContains(t, json.Unmarshal([]byte(in), &p), want, in)
		require.Zero(t, p)
	}
	var p webhook.DuplicatePolicy
	require.NoError(t, json.Unmarshal([]byte(`{}`), &p))
	require.Equal(t, 24*time.Hour, p.Window())
	require.NoError(t, json.Unmarshal([]byte(`{"source":"header","header":"webhook-id"}`), &p))
	require.NoError(t, json.Unmarshal([]byte(`{"source":"header","header":"X-GitHub-Delivery","window_seconds":60}`), &p))
	require.Equal(t, webhook.DuplicatePolicy{Source: "header", Header: "X-GitHub-Delivery", WindowSeconds: 60}, p)
	require.Equal(t, time.Minute, p.Window())
}
