package delivery_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/delivery"
)

// message is an event of a type with a JSON body and two headers.
func message(t testing.TB, eventType, body string) delivery.Message {
	t.Helper()
	return delivery.Message{
		EventType:   eventType,
		ContentType: "application/json",
		Headers:     map[string]string{"x-tenant": "acme", "accept": "a, b"},
		Body: func() (any, error) {
			var v any
			if json.Unmarshal([]byte(body), &v) != nil {
				return nil, nil //nolint:nilerr // what isn't JSON is null
			}
			return v, nil
		},
	}
}

func compile(t testing.TB, f delivery.Filter) *delivery.CompiledFilter {
	t.Helper()
	compiled, err := f.Compile()
	require.NoError(t, err)
	return compiled
}

func TestAFilterWantsEventTypes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		patterns, event string
		matches         bool
	}{
		{"push", "push", true},
		{"push", "pushed", false},
		{"push", "Push", false},
		{"push", "", false},
		{"pull_request.*", "pull_request.opened", true},
		{"pull_request.*", "pull_request.", true},
		{"pull_request.*", "pull_request", false},
		{"pull_request*", "pull_request", true},
		{"invoice.*,charge.*", "charge.failed", true},
		{"invoice.*,charge.*", "customer.created", false},
		{"*", "anything", true},
		{"*", "", true},
		{"é.*", "é.x", true},
	} {
		f := compile(t, delivery.Filter{EventTypes: strings.Split(c.patterns, ",")})
		require.Equal(t, delivery.FilterVerdict{Matches: c.matches}, f.Evaluate(t.Context(), message(t, c.event, "{}")), "%s of %s", c.event, c.patterns)
	}
}

const pullRequest = `{"action":"opened","number":7,"draft":false,"labels":[{"name":"bug"},{"name":"payments"}],
	"repository":{"full_name":"acme/app","private":true},"amount":12.5,"big":9007199254740993,"nothing":null,"list":[1,2,3]}`

func TestAnExpressionIsEvaluated(t *testing.T) {
	t.Parallel()
	yes, no := delivery.FilterVerdict{Matches: true}, delivery.FilterVerdict{}
	failed := func(e delivery.FilterError) delivery.FilterVerdict {
		return delivery.FilterVerdict{Matches: true, Error: e}
	}
	for expression, want := range map[string]delivery.FilterVerdict{
		`true`:                                               yes,
		`false`:                                              no,
		`event.type == "pull_request"`:                       yes,
		`event.type.startsWith("pull")`:                      yes,
		`event.type.endsWith("pull")`:                        no,
		`event.content_type.contains("js")`:                  yes,
		`headers["x-tenant"] == "acme"`:                      yes,
		`headers["accept"] == "a, b"`:                        yes,
		`"x-tenant" in headers`:                              yes,
		`"x-other" in headers`:                               no,
		`headers["x-other"] == "a"`:                          failed(delivery.FilterKey),
		`body.action == "opened"`:                            yes,
		`body.action in ["closed", "reopened"]`:              no,
		`body.number > 6 && body.number <= 7`:                yes,
		`body.amount == 12.5`:                                yes,
		`body.amount > 12`:                                   yes,
		`body.number == 7.0`:                                 yes,
		`-body.number < 0`:                                   yes,
		`!body.draft`:                                        yes,
		`body.draft`:                                         no,
		`body.repository.private ? body.number == 7 : false`: yes,
		`body["repository"]["full_name"] == "acme/app"`:      yes,
		`body.labels[0].name == "bug"`:                       yes,
		`body.labels[7].name == "bug"`:                       failed(delivery.FilterKey),
		`size(body.labels) == 2 && body.action.size() == 6`:  yes,
		`body.labels.exists(l, l.name == "payments")`:        yes,
		`body.labels.all(l, l.name == "payments")`:           no,
		`body.labels.exists(l, l.nam == "payments")`:         failed(delivery.FilterKey),
		`2 in body.list`:                                     yes,
		`"action" in body`:                                   yes,
		`has(body.action)`:                                   yes,
		`has(body.missing)`:                                  no,
		`has(body.repository.missing) && body.repository.missing == 1`: no,
		`body.missing == 1`:                            failed(delivery.FilterKey),
		`body.missing == 1 || body.action == "opened"`: yes,
		`body.missing == 1 && body.action == "closed"`: no,
		`body.nothing == null`:                         yes,
		`body == null`:                                 no,
		`body.action > 3`:                              failed(delivery.FilterType),
		`body.number.startsWith("7")`:                  failed(delivery.FilterType),
		`body.action.name == "x"`:                      failed(delivery.FilterKey),
		`body.action`:                                  failed(delivery.FilterNotBool),
		`body`:                                         failed(delivery.FilterNotBool),
		`string(body.number) == "7"`:                   yes,
		`int("42") == 42 && double("1.5") == 1.5`:      yes,
		`int(body.action) == 1`:                        failed(delivery.FilterType),
		`body.labels == [{"name": "bug"}, {"name": "payments"}]`:                yes,
		`body.labels != [{"name": "bug"}, {"name": "payments"}]`:                no,
		`body.labels.exists(l, l.name == "x") || headers["x-tenant"] == "acme"`: yes,
	} {
		f := compile(t, delivery.Filter{Expression: expression})
		require.Equal(t, want, f.Evaluate(t.Context(), message(t, "pull_request", pullRequest)), expression)
	}
}

func TestABodyThatIsNoJSONIsNull(t *testing.T) {
	t.Parallel()
	for expression, want := range map[string]delivery.FilterVerdict{
		`body == null`:                {Matches: true},
		`has(body.x)`:                 {},
		`body.x == 1`:                 {Matches: true, Error: delivery.FilterKey},
		`body != null && body.x == 1`: {},
	} {
		f := compile(t, delivery.Filter{Expression: expression})
		require.Equal(t, want, f.Evaluate(t.Context(), message(t, "", "a=1&b=2")), expression)
	}
}

func TestAFilterNeedsBothTypeAndExpression(t *testing.T) {
	t.Parallel()
	f := compile(t, delivery.Filter{EventTypes: []string{"push"}, Expression: `body.ref == "main"`})
	require.True(t, f.Evaluate(t.Context(), message(t, "push", `{"ref":"main"}`)).Matches)
	require.False(t, f.Evaluate(t.Context(), message(t, "push", `{"ref":"dev"}`)).Matches)
	require.False(t, f.Evaluate(t.Context(), message(t, "pull", `{"ref":"main"}`)).Matches)
	// The type is wrong, so the expression isn't asked and can't fail.
	require.Equal(t, delivery.FilterVerdict{}, f.Evaluate(t.Context(), message(t, "pull", `{}`)))
}

func TestNoFilterWantsEverything(t *testing.T) {
	t.Parallel()
	var none *delivery.CompiledFilter
	require.Equal(t, delivery.FilterVerdict{Matches: true}, none.Evaluate(t.Context(), message(t, "", "")))
	require.Equal(t, delivery.FilterVerdict{Matches: true, Error: delivery.FilterUnusable}, delivery.Unusable().Evaluate(t.Context(), message(t, "", "")))
}

func TestABodyIsReadOnlyIfAsked(t *testing.T) {
	t.Parallel()
	m := message(t, "push", "")
	m.Body = func() (any, error) { return nil, context.DeadlineExceeded }
	ask := func(expression string) delivery.FilterVerdict {
		return compile(t, delivery.Filter{Expression: expression}).Evaluate(t.Context(), m)
	}
	require.Equal(t, delivery.FilterVerdict{Matches: true}, ask(`event.type == "push" || body.x == 1`))
	require.Equal(t, delivery.FilterVerdict{Matches: true, Error: delivery.FilterBody}, ask(`event.type == "push" && body.x == 1`))
	require.Equal(t, delivery.FilterVerdict{Matches: true, Error: delivery.FilterBody}, ask(`body == null`))
}

func TestFiltersAreRefused(t *testing.T) {
	t.Parallel()
	many := make([]string, 101)
	for i := range many {
		many[i] = "a"
	}
	for want, filter := range map[string]delivery.Filter{
		"filter: event_types or expression":   {},
		"filter: event_types must be at most": {EventTypes: many},
		"filter: event_types[1] must":         {EventTypes: []string{"a", "a*b"}},
		"filter: event_types[0] must":         {EventTypes: []string{""}},
		"filter: event_types[0] must be":      {EventTypes: []string{strings.Repeat("a", 201)}},
		"filter: event_types[0] must be 1":    {EventTypes: []string{"a\nb"}},
		"filter: event_types[0] must be 1 to": {EventTypes: []string{"**"}},
		"filter: expression must be at most":  {Expression: "true || " + strings.Repeat(" ", 2000) + "true"},
	} {
		_, err := filter.Compile()
		require.ErrorContains(t, err, want)
	}
}

func TestExpressionsAreRefused(t *testing.T) {
	t.Parallel()
	for expression, want := range map[string]string{
		`body.action = "x"`:                          "line 1, column 13",
		"true &&\n  bdy.x":                           "line 2, column 3: undeclared reference to 'bdy'",
		`body.x.matches("a+")`:                       "undeclared reference to 'matches'",
		`body.x.map(y, y) == []`:                     "undeclared reference",
		`body.x.filter(y, y) == []`:                  "undeclared reference",
		`body.a + body.b == "x"`:                     "undeclared reference to '_+_'",
		`body.a * 2 == 4`:                            "undeclared reference to '_*_'",
		`timestamp(body.t) > timestamp(0)`:           "undeclared reference to 'timestamp'",
		`type(body) == int`:                          "undeclared reference to 'type'",
		`event.secret == "x"`:                        "undeclared reference",
		`event == null`:                              "undeclared reference",
		`env("HOME") == ""`:                          "undeclared reference",
		`headers["a"] == 1`:                          "no matching overload",
		`event.type`:                                 "must be true or false, but is of type string",
		`1`:                                          "must be true or false, but is of type int",
		`body.a.exists(x, body.b.exists(y, x == y))`: "nesting limit",
		`[1,2].all(x, [3].exists(y, body.c.exists(z, z == x)))`:      "nesting limit",
		strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200): "expression",
		"true" + strings.Repeat(" || true", 200):                     "expression",
		"body" + strings.Repeat(".a", 500) + " == 1":                 "expression",
		"\x00":      "line 1",
		"\xff":      "line 1",
		`"`:         "line 1",
		`body.a.b.`: "line 1",
	} {
		_, err := delivery.Filter{Expression: expression}.Compile()
		require.ErrorContains(t, err, want, "%.80s", expression)
		require.True(t, strings.HasPrefix(err.Error(), "filter: expression "), "%s", err)
		require.NotContains(t, err.Error(), "\n")
	}
}

// What is charged: an expression that goes through a large body again and again ends by its cost, and a matching event.
func TestAnExpressionEndsByItsCost(t *testing.T) {
	t.Parallel()
	large := `{"list":[` + strings.Repeat(`{"a":[1,2,3]},`, 30_000) + `0]}`
	for _, expression := range []string{
		`body.list.all(x, body.list == body.list)`,
		`body.list.all(x, x != 1 && x != 2 && x != 3 && x != 4 && x != 5 && x != 6 && x != 7)`,
		`body == body && [body] == [body] && {"a": body} == {"a": body}`,
		`body in [body, body] && body in [body] && body in [body]`,
	} {
		f := compile(t, delivery.Filter{Expression: expression})
		require.Equal(t, delivery.FilterVerdict{Matches: true, Error: delivery.FilterCost}, f.Evaluate(t.Context(), message(t, "", large)), expression)
	}
}

func TestAnExpressionThatMayCostTooMuchIsRefused(t *testing.T) {
	t.Parallel()
	_, err := delivery.Filter{Expression: `body.list.all(x, x in body.list)`}.Compile()
	require.ErrorContains(t, err, "filter: expression may take")
}

func TestAnExpressionEndsWithItsTime(t *testing.T) {
	t.Parallel()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	f := compile(t, delivery.Filter{Expression: `body.list.all(x, x == 1)`})
	require.Equal(t, delivery.FilterVerdict{Matches: true, Error: delivery.FilterTime}, f.Evaluate(over, message(t, "", `{"list":[1]}`)))

	// Also in the middle of a list: the body's own reading uses up the time.
	during, cancel := context.WithCancel(t.Context())
	m := message(t, "", "")
	m.Body = func() (any, error) {
		cancel()
		return map[string]any{"list": []any{1.0, 1.0, 1.0}}, nil
	}
	require.Equal(t, delivery.FilterVerdict{Matches: true, Error: delivery.FilterTime}, f.Evaluate(during, m))
}

func TestAFilterIsAskedByManyAtOnce(t *testing.T) {
	t.Parallel()
	f := compile(t, delivery.Filter{Expression: `body.labels.exists(l, l.name == headers["x-tenant"])`})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			m := message(t, "", fmt.Sprintf(`{"labels":[{"name":"a"},{"name":"%d"}]}`, i))
			for n := range 200 {
				m.Headers = map[string]string{"x-tenant": fmt.Sprint(n % 8)}
				if v := f.Evaluate(t.Context(), m); v.Matches != (n%8 == i) {
					t.Errorf("%d of %d: %v", n, i, v)
				}
			}
		})
	}
	all.Wait()
}

func TestAFilterIsStoredAsJSON(t *testing.T) {
	t.Parallel()
	f := delivery.Filter{EventTypes: []string{"a.*"}, Expression: `body.x > 1 && "<" != ">"`}
	text, err := json.Marshal(f)
	require.NoError(t, err)
	var read delivery.Filter
	require.NoError(t, json.Unmarshal(text, &read))
	require.Equal(t, f, read)
	require.Error(t, json.Unmarshal([]byte(`{"event_type":["a"]}`), &read))
}

// Whatever people configure and strangers send: an answer in bounded time, and never a panic. An error is always a match.
func FuzzFilter(f *testing.F) {
	for _, seed := range [][2]string{
		{`body.action == "opened"`, pullRequest},
		{`body.labels.exists(l, l.name == "x" || size(l) > 2)`, pullRequest},
		{`has(body.a.b) && headers["x"].contains(string(body.c))`, `{"a":{}}`},
		{`body == [body, {"a": body}]`, `[[[[]]]]`},
		{`1 == 1u && 2.0 < 3 && b"x" == b"y" && r"\d" != '''a'''`, `null`},
		{`"\ud800" in body`, `"\ud800"`},
		{`body[-1] == body[0] || -9223372036854775808 == -body`, `[-9223372036854775808]`},
		{`int(body) == 1 || double(body) == 1.0`, `1e400`},
	} {
		f.Add(seed[0], "push", []byte(seed[1]))
	}
	f.Fuzz(func(t *testing.T, expression, pattern string, body []byte) {
		filter := delivery.Filter{Expression: expression, EventTypes: []string{pattern}}
		compiled, err := filter.Compile()
		if err != nil {
			if !strings.HasPrefix(err.Error(), "filter: ") {
				t.Fatalf("error doesn't name the field: %s", err)
			}
			return
		}
		if len(body) > 64<<10 {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		verdict := compiled.Evaluate(ctx, message(t, strings.TrimSuffix(pattern, "*"), string(body)))
		if took := time.Since(began); took > 10*time.Second { // a hang, on however busy a machine
			t.Fatalf("took %s", took)
		}
		if verdict.Error != delivery.FilterOK && !verdict.Matches {
			t.Fatalf("failed with %s and doesn't match", verdict.Error)
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	m := message(b, "pull_request.opened", pullRequest)
	body, _ := m.Body()
	m.Body = func() (any, error) { return body, nil }
	for name, filter := range map[string]delivery.Filter{
		"event_types": {EventTypes: []string{"push", "issues.*", "pull_request.*"}},
		"expression":  {Expression: `body.repository.private && body.action in ["opened", "closed"]`},
		"exists":      {Expression: `body.labels.exists(l, l.name == "payments")`},
	} {
		compiled := compile(b, filter)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if v := compiled.Evaluate(b.Context(), m); !v.Matches || v.Error != delivery.FilterOK {
					b.Fatal(fmt.Sprint(v))
				}
			}
		})
	}
}
