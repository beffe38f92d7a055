package api_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/webhook"
)

func filterGuide(t *testing.T) string {
	t.Helper()
	guide, err := os.ReadFile("../docs/guides/filters.md")
	require.NoError(t, err)
	return string(guide)
}

// block returns a fenced block of the guide by the words behind its fence.
func block(t *testing.T, guide, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(guide, "```"+name+"\n")
	require.True(t, ok, name)
	text, _, ok := strings.Cut(rest, "```")
	require.True(t, ok, name)
	return text
}

func TestTheFilterGuidesEndpointWorks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, block(t, filterGuide(t), "json endpoint"))
	require.Equal(t, openapi.EventTypeSourceHeader, endpoint.EventType.Source)
	require.Len(t, endpoint.Destinations, 3)
}

// Every line of the table of expressions is evaluated, and gives what the table says.
func TestTheFilterGuidesExpressionsDoWhatItSays(t *testing.T) {
	t.Parallel()
	guide := filterGuide(t)
	message := delivery.Message{
		EventType: "invoice.paid", Headers: map[string]string{"x-env": "prod"},
		Body: webhook.NewDocument([]byte(block(t, guide, "json event"))).Value,
	}
	_, table, ok := strings.Cut(guide, "| expression | result |")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n\n")
	rows := regexp.MustCompile("(?m)^\\| `(.+)` \\| (true|false|fails: `([a-z_]+)`) \\|$").FindAllStringSubmatch(table, -1)
	require.Len(t, rows, strings.Count(table, "\n")-1, "each line but the one under the heading can be read")
	for _, row := range rows {
		filter, err := delivery.Filter{Expression: row[1]}.Compile()
		require.NoError(t, err, row[1])
		want := delivery.FilterVerdict{Matches: row[2] != "false", Error: delivery.FilterError(row[3])}
		require.Equal(t, want, filter.Evaluate(t.Context(), message), row[1])
	}
}

func TestTheFilterGuidesPatternsDoWhatItSays(t *testing.T) {
	t.Parallel()
	_, table, ok := strings.Cut(filterGuide(t), "| pattern | matches | doesn't match |")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n\n")
	quoted := regexp.MustCompile("`([^`]+)`")
	checked := 0
	for line := range strings.SplitSeq(table, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		filter, err := delivery.Filter{EventTypes: []string{quoted.FindStringSubmatch(cells[1])[1]}}.Compile()
		require.NoError(t, err)
		for i, matches := range []bool{true, false} {
			for _, event := range quoted.FindAllStringSubmatch(cells[2+i], -1) {
				require.Equal(t, matches, filter.Evaluate(t.Context(), delivery.Message{EventType: event[1]}).Matches, "%s of %s", event[1], cells[1])
				checked++
			}
		}
	}
	require.Equal(t, 8, checked)
}

// The words that the guide and the contract name are those that there are.
func TestTheFilterGuideNamesEveryError(t *testing.T) {
	t.Parallel()
	contract, err := os.ReadFile("openapi.yaml")
	require.NoError(t, err)
	for _, word := range []delivery.FilterError{
		delivery.FilterKey, delivery.FilterType, delivery.FilterNotBool, delivery.FilterCost, delivery.FilterTime, delivery.FilterBody,
		delivery.FilterUnusable, delivery.FilterOtherwise,
	} {
		require.Contains(t, filterGuide(t), "| `"+string(word)+"` | ")
		require.Contains(t, string(contract), "`"+string(word)+"`")
	}
}
