package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func duplicatesBy(policy string) string {
	return `{"name":"in","verification":{"scheme":"none"},"duplicates":` + policy + `,"destinations":[{"url":"https://example.com/in"}]}`
}

// again checks that a is the answer to a duplicate of first.
func again(t *testing.T, a answer, first string) {
	t.Helper()
	require.Equal(t, first, acceptedID(t, a))
	require.Equal(t, "true", a.header.Get("Kapsel-Duplicate"))
}

// fresh checks that a is the answer to a new event.
func fresh(t *testing.T, a answer) string {
	t.Helper()
	require.Empty(t, a.header.Values("Kapsel-Duplicate"))
	return acceptedID(t, a)
}

func TestDuplicatesByIdempotencyKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, policy := range []string{`{}`, `{"source":"none"}`, `{"source":"header","header":"X-Id"}`, `{"source":"content"}`} {
		endpoint := b.createEndpoint(t, duplicatesBy(policy)).ID
		before := b.count(t, "events")
		first := fresh(t, b.ingest(t, endpoint, "body", "Idempotency-Key", "k"))
		again(t, b.ingest(t, endpoint, "body", "Idempotency-Key", "k"), first)
		again(t, b.ingest(t, endpoint, "body", "X-Idempotency-Key", "k"), first)
		p := problem(t, b.ingest(t, endpoint, "another body", "Idempotency-Key", "k"), 409, "idempotency-conflict")
		require.Contains(t, p.Detail, first)
		fresh(t, b.ingest(t, endpoint, "body", "Idempotency-Key", "another key"))
		require.Equal(t, before+2, b.count(t, "events"))

		other := b.createEndpoint(t, duplicatesBy(policy)).ID
		fresh(t, b.ingest(t, other, "another body", "Idempotency-Key", "k")) // a key is its endpoint's
	}
}

func TestDuplicatesByHeader(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, duplicatesBy(`{"source":"header","header":"x-github-delivery"}`)).ID
	first := fresh(t, b.ingest(t, endpoint, "body", "X-GitHub-Delivery", "1"))
	again(t, b.ingest(t, endpoint, "body", "X-GitHub-Delivery", "1"), first)
	again(t, b.ingest(t, endpoint, "providers may change a body", "X-GitHub-Delivery", "1"), first)
	fresh(t, b.ingest(t, endpoint, "body", "X-GitHub-Delivery", "2"))
	fresh(t, b.ingest(t, endpoint, "body"))
	fresh(t, b.ingest(t, endpoint, "body"))
}

func TestDuplicatesByContent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, duplicatesBy(`{"source":"content"}`)).ID
	first := fresh(t, b.ingest(t, endpoint, "body"))
	again(t, b.ingest(t, endpoint, "body", "X-Other", "header"), first)
	fresh(t, b.ingest(t, endpoint, "body "))
}

func TestDuplicatesOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, duplicatesBy(`{"source":"off"}`)).ID
	first := fresh(t, b.ingest(t, endpoint, "body", "Idempotency-Key", "k"))
	require.NotEqual(t, first, fresh(t, b.ingest(t, endpoint, "body", "Idempotency-Key", "k")))
}

func TestDuplicatesEndWithTheirWindow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, duplicatesBy(`{"window_seconds":3600}`)).ID
	first := fresh(t, b.ingest(t, endpoint, "body", "Idempotency-Key", "k"))
	var seconds int
	require.NoError(t, b.engine.QueryRow(t.Context(), "select extract(epoch from max(expires_at - accepted_at))::int from dedup").Scan(&seconds))
	require.Equal(t, 3600, seconds)
	_, err := b.engine.Exec(t.Context(), "update dedup set accepted_at = accepted_at - interval '1 h', expires_at = now() - interval '1 ms'")
	require.NoError(t, err)
	second := fresh(t, b.ingest(t, endpoint, "another body", "Idempotency-Key", "k"))
	require.NotEqual(t, first, second)
	again(t, b.ingest(t, endpoint, "another body", "Idempotency-Key", "k"), second)
}

// Some of these meet in one group commit, others in concurrent transactions.
func TestOneOfManyAtOnceIsTheEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.endpoint(t)
	events, first := map[string]bool{}, 0
	for _, a := range b.flood(t, 50, func(int) string { return endpoint }, "Idempotency-Key", "k") {
		events[acceptedID(t, a)] = true
		if a.header.Get("Kapsel-Duplicate") == "" {
			first++
		}
	}
	require.Len(t, events, 1)
	require.Equal(t, 1, first)
	for _, table := range []string{"events", "event_payloads", "deliveries", "delivery_queue"} {
		require.Equal(t, 1, b.count(t, table), table)
	}
}
